"""Connections that carry many requests, by how many each carries."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

from .slots import Slot

NOBODY: Final = sys.maxsize


class Shares:
    """The shared connections that take more requests. The least loaded is found at once, however many there are; of
    equals, it is the one that has had this load for longest.
    """

    def __init__(self) -> None:
        self._by_load: list[dict[Slot, None]] = [{}, {}]
        self.least = NOBODY
        """The smallest load of any of them; NOBODY if there is none."""

    def first(self, below: int = NOBODY) -> Slot | None:
        """The least loaded, if it carries fewer than ``below``."""
        least = self.least
        return next(iter(self._by_load[least])) if least < below else None

    def add(self, slot: Slot) -> None:
        """This one takes requests, beside those that it carries already."""
        load = slot.load
        while load >= len(self._by_load):
            self._by_load.append({})
        self._by_load[load][slot] = None
        if load < self.least:
            self.least = load

    def remove(self, slot: Slot) -> None:
        """This one takes no more."""
        del self._by_load[slot.load][slot]
        self._find_least(slot.load)

    def more(self, slot: Slot) -> Slot:
        """One more request on this one, which is returned."""
        load = slot.load
        by_load = self._by_load
        slots = by_load[load]
        del slots[slot]
        slot.load = load + 1
        if load + 1 == len(by_load):
            by_load.append({})
        by_load[load + 1][slot] = None
        if load == self.least and not slots:
            self.least = load + 1
        return slot

    def fewer(self, slot: Slot) -> None:
        """A request on this one has ended. If it was the last, the connection leaves."""
        load = slot.load
        del self._by_load[load][slot]
        slot.load = load - 1
        if load > 1:
            self._by_load[load - 1][slot] = None
            if load <= self.least:
                self.least = load - 1
        else:
            self._find_least(load)

    def room(self, most: int) -> int:
        """Requests that they take until each carries ``most``."""
        return sum((most - load) * len(slots) for load, slots in enumerate(self._by_load[:most]))

    def __contains__(self, slot: Slot) -> bool:
        return slot.load < len(self._by_load) and slot in self._by_load[slot.load]

    def __iter__(self) -> Iterator[Slot]:
        return (slot for slots in self._by_load for slot in slots)

    def _find_least(self, from_load: int) -> None:
        """A connection with this load has left: find the smallest load again."""
        if from_load == self.least:
            loads = range(from_load, len(self._by_load))
            self.least = next((load for load in loads if self._by_load[load]), NOBODY)

    def check(self) -> None:
        """Assert every invariant. For tests."""
        for load, slots in enumerate(self._by_load):
            assert all(slot.load == load > 0 for slot in slots), (load, slots)
        assert self.least == min((load for load, slots in enumerate(self._by_load) if slots), default=NOBODY)
