"""The shelf: the idle connections, in a queue that is last in, first out.

So a few connections do most of the work. The one at the bottom was unused for longest: it is closed first.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from .backoff import NEVER
from .slots import Slot


class Stack(Protocol):
    """An ``asyncio.LifoQueue`` is one, and a ``queue.LifoQueue``."""

    def put_nowait(self, slot: Slot, /) -> None: ...
    def get_nowait(self) -> Slot: ...
    def qsize(self) -> int: ...


class Shelf:
    """Sorted by ``used_at``, the latest on top."""

    def __init__(self, queue: Stack) -> None:
        self._queue = queue
        self.take = queue.get_nowait
        """Take the one on top."""
        self.put = queue.put_nowait
        """Put one on top: it was used after all others."""

    def __len__(self) -> int:
        return self._queue.qsize()

    def insert(self, slot: Slot) -> None:
        """Put one in its place by ``used_at``."""
        later: list[Slot] = []
        while len(self):
            other = self.take()
            if other.used_at <= slot.used_at:
                self.put(other)
                break
            later.append(other)
        for one in (slot, *reversed(later)):
            self.put(one)

    def remove(self, slots: Collection[Slot]) -> None:
        """Take these out; the others keep their places."""
        for slot in reversed([slot for slot in [self.take() for _ in range(len(self))] if slot not in slots]):
            self.put(slot)

    def take_all(self) -> list[Slot]:
        """Take all out, the one that was not used for longest first."""
        return [self.take() for _ in range(len(self))][::-1]

    def oldest_first(self) -> list[Slot]:
        """All, the one that was not used for longest first. They stay."""
        slots = self.take_all()
        for slot in slots:
            self.put(slot)
        return slots

    def take_surplus(self, surplus: int, now: float, max_idle: float) -> tuple[list[Slot], float]:
        """Take out up to ``surplus`` that were unused for ``max_idle`` seconds. Also returns when to ask again."""
        oldest = self.oldest_first()[: max(0, surplus)]
        due = [slot for slot in oldest if slot.used_at + max_idle <= now]
        self.remove(due)
        left = oldest[len(due) :]
        return due, min(now + max_idle, left[0].used_at + max_idle if left else NEVER)

    def take_silent(self, now: float, interval: float) -> tuple[list[Slot], float]:
        """Take out those that were silent for ``interval`` seconds. Also returns when to ask again."""
        silent_at = {slot: max(slot.used_at, slot.heard_at) + interval for slot in self.oldest_first()}
        due = [slot for slot, at in silent_at.items() if at <= now]
        self.remove(due)
        return due, min([now + interval, *(at for at in silent_at.values() if at > now)])

    def check(self) -> None:
        """Assert every invariant. For tests."""
        used = [slot.used_at for slot in self.oldest_first()]
        assert used == sorted(used), used
