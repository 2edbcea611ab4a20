"""How many connections and callers there are now of what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .line import Line
from .shares import Shares
from .slots import CLOSING, IDLE, LEASED, OPENING, PREPARING, QUERY, READ_ON, SHARED, Slot, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """Connections by state, callers, and the requests that shared connections carry."""

    min_size: int
    max_size: int
    opening: int
    preparing: int
    idle: int
    leased: int
    shared: int
    closing: int
    feeds: int  # beside the size, as the one below
    retired: int
    waiting: int
    queries_waiting: int
    queries: int
    changefeeds: int
    is_down: bool

    @property
    def size(self) -> int:
        """Connections that count against ``pool_size``."""
        return self.opening + self.preparing + self.idle + self.leased + self.shared + self.closing

    @property
    def is_short(self) -> bool:
        """Whether fewer than ``min_size`` connections are open."""
        return self.preparing + self.idle + self.leased + self.shared < self.min_size


def take_census(
    slots: Iterable[Slot], line: Line, queries: Shares, *, min_size: int, max_size: int, is_down: bool
) -> Census:
    """Count. Looks at every slot."""
    inside, outside = [0] * len(State), [0] * len(State)
    retired = in_flight = changefeeds = 0
    for slot in slots:
        (outside if slot.beside else inside)[slot.state] += 1
        retired += slot.beside and (slot.state is CLOSING or (slot.state is READ_ON and slot.doom is not None))
        if slot.shares is queries:
            in_flight += slot.load
        else:
            changefeeds += slot.load
    return Census(
        min_size=min_size,
        max_size=max_size,
        opening=inside[OPENING],
        preparing=inside[PREPARING],
        idle=inside[IDLE],
        leased=inside[LEASED],
        shared=inside[SHARED],
        closing=inside[CLOSING],
        feeds=sum(outside) - retired,
        retired=retired,
        waiting=line.total,
        queries_waiting=line.waiting[QUERY],
        queries=in_flight,
        changefeeds=changefeeds,
        is_down=is_down,
    )
