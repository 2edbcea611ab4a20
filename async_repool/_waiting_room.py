"""The waiting room: idle slots in an ``asyncio.Queue``, and the line of those who wait for one.

Strictly first come, first served. A queue alone is not: a task that puts and at once gets again overtakes a waiter that
was woken but has not run yet. So a newcomer may take an idle slot only where nobody waits, and whoever has a slot to
give hands it straight to the oldest waiter. It knows nothing of sizes, ages or connectors.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")

Ticket: TypeAlias = "asyncio.Future[T]"
"""A place in the line. Its result is the slot that was handed over."""


class WaitingRoom(Generic[T]):
    """Invariant, kept by its user: nobody waits for an idle slot for longer than its check takes."""

    def __init__(self) -> None:
        self._idle: asyncio.Queue[T] = asyncio.Queue()
        self._line: OrderedDict[Ticket[T], None] = OrderedDict()  # oldest first; leaving from the middle costs the same

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._line)

    @property
    def has_idle(self) -> bool:
        """Whether a slot is idle."""
        return not self._idle.empty()

    def take_nowait(self) -> T | None:
        """An idle slot, the longest unused one; None if there is none or if somebody waits already."""
        if self._line:
            return None
        try:
            return self._idle.get_nowait()
        except asyncio.QueueEmpty:
            return None

    def pop_nowait(self) -> T | None:
        """An idle slot, the longest unused one, whoever waits: to be given to the oldest of those. None if there is
        none.
        """
        try:
            return self._idle.get_nowait()
        except asyncio.QueueEmpty:
            return None

    def put_nowait(self, slot: T) -> bool:
        """Keep an idle slot. False, and it is not kept, where somebody waits: it belongs to the oldest of them."""
        if self._line and self._oldest() is not None:
            return False
        self._idle.put_nowait(slot)
        return True

    def remove(self, slots: Collection[T]) -> None:
        """Take these idle slots out; the others keep their order."""
        for _ in range(self._idle.qsize()):
            slot = self._idle.get_nowait()
            if slot not in slots:
                self._idle.put_nowait(slot)

    def join(self) -> Ticket[T]:
        """Stand at the end of the line, then await the ticket. Whatever happens then, call :meth:`leave`."""
        ticket: Ticket[T] = asyncio.get_running_loop().create_future()
        self._line[ticket] = None
        return ticket

    def leave(self, ticket: Ticket[T]) -> T | None:
        """Leave the line. Returns the slot that was handed over to this ticket and that nobody has seen: pass it on."""
        self._line.pop(ticket, None)
        if ticket.done() and not ticket.cancelled() and ticket.exception() is None:
            return ticket.result()
        return None

    def _oldest(self) -> Ticket[T] | None:
        """Who has waited longest, of those that can still be served; None if nobody waits."""
        while self._line:
            ticket = next(iter(self._line))
            if not ticket.done():
                return ticket
            del self._line[ticket]  # cancelled, but its task has not run yet
        return None

    def hand_over(self, slot: T) -> bool:
        """Give the slot to whoever has waited longest. False if nobody waits."""
        ticket = self._oldest()
        if ticket is None:
            return False
        del self._line[ticket]
        ticket.set_result(slot)
        return True

    def refuse(self, error: Exception) -> bool:
        """Raise ``error`` in whoever has waited longest. False if nobody waits."""
        ticket = self._oldest()
        if ticket is None:
            return False
        del self._line[ticket]
        ticket.set_exception(error)
        return True

    def refuse_all(self, error: Exception) -> None:
        """Raise ``error`` in everybody who waits."""
        while self.refuse(error):
            pass
