"""The counts of a pool at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from .line import Line
from .shares import Shares
from .slots import CLOSING, IDLE, LEASED, OPENING, PREPARING, QUERY, READ_ON, SHARED, Slots, State


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
    feeds: int  # outside the size, as is `retired`
    retired: int
    waiting: int
    queries_waiting: int
    queries: int
    changefeeds: int
    in_use: int  # what closing waits for
    is_down: bool

    @property
    def size(self) -> int:
        """Connections that count against ``pool_size``."""
        return self.opening + self.preparing + self.idle + self.leased + self.shared + self.closing

    @property
    def is_short(self) -> bool:
        """Whether fewer than ``min_size`` connections are open."""
        return self.preparing + self.idle + self.leased + self.shared < self.min_size


def take_census(slots: Slots, line: Line, queries: Shares, sizes: tuple[int, int], is_down: bool) -> Census:
    """Count. Looks at every slot."""
    inside, outside = [0] * len(State), [0] * len(State)
    retired = in_flight = changefeeds = in_use = 0
    for slot in slots:
        (outside if slot.beside else inside)[slot.state] += 1
        retired += slot.beside and (slot.state is CLOSING or (slot.state is READ_ON and slot.doom is not None))
        in_use += slot.state in (PREPARING, LEASED, SHARED, READ_ON)
        if slot.shares is queries:
            in_flight += slot.load
        else:
            changefeeds += slot.load
    return Census(
        min_size=sizes[0],
        max_size=sizes[1],
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
        in_use=in_use,
        is_down=is_down,
    )
