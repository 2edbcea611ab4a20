"""The record of one connection, its states, why it is closed; and all records, counted by state. No rules."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum, StrEnum
from typing import Any, Final


class Need(IntEnum):
    """What a caller asks for."""

    LEASE = 0  # a connection of its own
    QUERY = 1  # a place beside other queries
    FEED = 2  # a place beside other feeds, on a connection outside the pool's size


class State(IntEnum):
    """The states of a connection."""

    OPENING = 0
    PREPARING = 1  # a check or a reset is under way
    IDLE = 2
    LEASED = 3  # one user has it
    SHARED = 4  # carries requests of many
    READ_ON = 5  # nobody has it, but cursors on it are still read; always outside the pool's size
    CLOSING = 6
    GONE = 7


# Reading a member from its enum class costs more than the rest of a step. States are plain numbers, which a list finds
# faster than members: a turn of connect() takes 2 % less, a query's 3 %.
LEASE: Final = Need.LEASE
QUERY: Final = Need.QUERY
FEED: Final = Need.FEED
OPENING: Final = State.OPENING.value
PREPARING: Final = State.PREPARING.value
IDLE: Final = State.IDLE.value
LEASED: Final = State.LEASED.value
SHARED: Final = State.SHARED.value
READ_ON: Final = State.READ_ON.value
CLOSING: Final = State.CLOSING.value
GONE: Final = State.GONE.value


class Reason(StrEnum):
    """Why a connection is closed."""

    EXPIRED = "expired"
    BROKEN = "broken"
    UNFIT = "unfit"  # its check or its reset failed
    SURPLUS = "surplus"
    DRAINED = "drained"
    FEED_ENDED = "feed ended"
    POOL_CLOSED = "pool closed"


class Slot:
    """One connection, from the order to open it until it is gone. Only the core writes it, except the shell's notes."""

    __slots__ = (
        *("beside", "connection", "doom", "expires_at", "heard_at", "holder", "in_lane", "is_doubted"),
        *("is_new", "load", "needs_reset", "number", "opened_at", "shares", "state", "used_at", "work"),
    )

    def __init__(self, number: int) -> None:
        self.number = number  # for logs and events
        self.state: int = OPENING  # of State
        self.beside = False  # outside the pool's size, for feeds or readers
        self.in_lane = False  # beside, and for feeds
        self.connection: Any = None  # None until it is open
        self.shares: Any = None  # while SHARED: the Shares that it belongs to
        self.load = 0  # requests that it carries
        self.doom: Reason | None = None  # why it takes no new users, and is closed when the last one is gone
        self.is_doubted = False  # it is checked, and takes no new requests meanwhile
        self.is_new = True  # was not used yet, and passed no check
        self.needs_reset = False  # is to be reset before it is idle
        self.opened_at = self.expires_at = 0.0
        self.used_at = 0.0  # when its last use ended
        self.heard_at = 0.0  # when it last showed that its peer is alive
        self.holder: Any = None  # the shell's note of who holds the lease
        self.work: Any = None  # the shell's note of what it does with this connection now

    @property
    def takes_more(self) -> bool:
        """Whether new requests may join those that it carries."""
        return self.doom is None and not self.is_doubted

    def __repr__(self) -> str:
        beside = " beside" if self.beside else ""
        load = f" load {self.load}" if self.load else ""
        doubted = " doubted" if self.is_doubted else ""
        doom = f" doom: {self.doom}" if self.doom else ""
        return f"<#{self.number} {State(self.state).name}{beside}{load}{doubted}{doom}>"


class Slots:
    """All slots that are not gone, and how many of them are in which state."""

    def __init__(self) -> None:
        self._all: dict[Slot, None] = {}  # oldest first
        self._made = 0
        self.size = 0
        """How many are not beside."""
        self.inside = [0] * len(State)
        """How many of these are in each state."""
        self.outside = [0] * len(State)
        """How many that are beside are in each state."""

    def __iter__(self) -> Iterator[Slot]:
        return iter(tuple(self._all))  # a thread may take a census while the pool opens and closes

    def __len__(self) -> int:
        return len(self._all)

    def new(self) -> Slot:
        """One more, opening."""
        self._made += 1
        slot = Slot(self._made)
        self._all[slot] = None
        self.size += 1
        self.inside[OPENING] += 1
        return slot

    def move(self, slot: Slot, state: int) -> None:
        """This one is in another state now."""
        counts = self.outside if slot.beside else self.inside
        counts[slot.state] -= 1
        counts[state] += 1
        slot.state = state

    def put_beside(self, slot: Slot) -> None:
        """This one leaves the size. Does nothing if it has left it before."""
        if not slot.beside:
            self.inside[slot.state] -= 1
            self.outside[slot.state] += 1
            self.size -= 1
            slot.beside = True

    def put_inside(self, slot: Slot) -> None:
        """This one counts against the size. Does nothing if it does already."""
        if slot.beside:
            self.outside[slot.state] -= 1
            self.inside[slot.state] += 1
            self.size += 1
            slot.beside = False

    def remove(self, slot: Slot) -> None:
        """This one is gone."""
        (self.outside if slot.beside else self.inside)[slot.state] -= 1
        self.size -= not slot.beside
        del self._all[slot]
        slot.state = GONE

    def forget(self) -> None:
        """All are gone."""
        for slot in list(self._all):
            self.remove(slot)

    def check(self, queries: Any, feeds: Any) -> None:
        """Assert every invariant. For tests."""
        for counts, beside in ((self.inside, False), (self.outside, True)):
            states = [slot.state for slot in self._all if slot.beside is beside]
            assert counts == [states.count(state) for state in State], (counts, states)
        assert self.size == sum(self.inside), (self.size, self.inside)
        connections = [slot.connection for slot in self._all if slot.connection is not None]
        assert len(connections) == len({id(connection) for connection in connections}), "a connection is in two slots"
        for slot in self._all:
            assert (slot.connection is None) is (slot.state is OPENING), slot
            assert slot.beside or not slot.in_lane, slot
            assert slot.beside or slot.state is not READ_ON, slot
            assert not slot.beside or slot.state in (LEASED, SHARED, READ_ON, CLOSING), slot
            assert (slot.shares is not None) is (slot.state is SHARED), slot
            assert (slot.load > 0 or slot.is_doubted) is (slot.state is SHARED), slot
            assert slot.state is not IDLE or slot.doom is None, slot
            assert slot.shares is not queries or not slot.beside, slot
            for shares in (queries, feeds):
                assert (slot in shares) is (slot.shares is shares and slot.takes_more), slot
