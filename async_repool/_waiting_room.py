"""The waiting room: idle slots in an ``asyncio.Queue``, and the one line of all who wait, whatever they need.

Strictly first come, first served. A queue alone is not: a task that puts and at once gets again overtakes a waiter that
was woken but has not run yet. So a newcomer may take an idle slot only where nobody waits, and whoever has a slot to
give hands it straight to the oldest waiter. It knows nothing of sizes, ages or connectors.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection
from enum import IntEnum
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")

Ticket: TypeAlias = "asyncio.Future[T]"
"""A place in the line. Its result is the slot that was handed over."""


class Need(IntEnum):  # whose members are hashed faster than those of an Enum
    """What a caller waits for."""

    LEASE = 1  # a slot of its own
    QUERY = 2  # a place on a shared slot
    FEED = 3  # a place on a slot of the feed lane


class WaitingRoom(Generic[T]):
    """Invariant, kept by its user: nobody waits for an idle slot for longer than its check takes."""

    def __init__(self) -> None:
        self._idle: asyncio.Queue[T] = asyncio.Queue()
        self._line: OrderedDict[Ticket[T], Need] = OrderedDict()  # oldest first; leaving from the middle costs the same
        self._waiting_for = dict.fromkeys(Need, 0)  # how many of those in line need what
        self.waiting = 0
        """How many wait. Every query asks, twice."""

    def waiting_for(self, need: Need) -> int:
        """How many of them need this."""
        return self._waiting_for[need]

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

    def keep_nowait(self, slot: T) -> None:
        """Keep an idle slot, whoever waits."""
        self._idle.put_nowait(slot)

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

    def join(self, need: Need) -> Ticket[T]:
        """Stand at the end of the line, then await the ticket. Whatever happens then, call :meth:`leave`."""
        ticket: Ticket[T] = asyncio.get_running_loop().create_future()
        self._line[ticket] = need
        self._waiting_for[need] += 1
        self.waiting += 1
        return ticket

    def expire(self, ticket: Ticket[T], error: TimeoutError) -> None:
        """Raise ``error`` in this one, unless it was served or refused before."""
        if not ticket.done():
            self._remove(ticket)
            ticket.set_exception(error)

    def leave(self, ticket: Ticket[T]) -> T | None:
        """Leave the line. Returns the slot that was handed over to this ticket and that nobody has seen: pass it on."""
        if ticket in self._line:
            self._remove(ticket)
        if ticket.done() and not ticket.cancelled() and ticket.exception() is None:
            return ticket.result()
        return None

    def _remove(self, ticket: Ticket[T]) -> None:
        self._waiting_for[self._line.pop(ticket)] -= 1
        self.waiting -= 1

    def _oldest(self) -> Ticket[T] | None:
        """Who has waited longest, of those that can still be served; None if nobody waits."""
        while self._line:
            ticket = next(iter(self._line))
            if not ticket.done():
                return ticket
            self._remove(ticket)  # cancelled, but its task has not run yet
        return None

    @property
    def next_need(self) -> Need | None:
        """What whoever has waited longest needs; None if nobody waits."""
        ticket = self._oldest()
        return None if ticket is None else self._line[ticket]

    def in_line_for(self, need: Need) -> list[Ticket[T]]:
        """The tickets of those who need this and can still be served, oldest first."""
        if not self._waiting_for[need]:
            return []
        return [ticket for ticket, needed in self._line.items() if needed is need and not ticket.done()]

    def serve(self, ticket: Ticket[T], slot: T) -> None:
        """Give the slot to this one, who is in line."""
        self._remove(ticket)
        ticket.set_result(slot)

    def hand_over(self, slot: T) -> bool:
        """Give the slot to whoever has waited longest. False if nobody waits."""
        ticket = self._oldest()
        if ticket is None:
            return False
        self.serve(ticket, slot)
        return True

    def refuse(self, error: Exception) -> bool:
        """Raise ``error`` in whoever has waited longest. False if nobody waits."""
        ticket = self._oldest()
        if ticket is None:
            return False
        self._remove(ticket)
        ticket.set_exception(error)
        return True

    def refuse_all(self, error: Exception) -> None:
        """Raise ``error`` in everybody who waits."""
        while self.refuse(error):
            pass
