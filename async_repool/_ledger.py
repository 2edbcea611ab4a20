"""The ledger: every slot of a pool and its state, and all rules about sizes and ages.

Facts and ``now`` go in; orders come out: lease this, open these, close these because, wake me at. Only here live the
rules of sizing, expiry, shrinking, refilling, outages, drain and closing. It holds connections as opaque objects, and
knows nothing of event loops, threads, clocks, randomness, logging or the driver; of those who wait it knows only how
many they are.

Every method is one step: it leaves all invariants intact (:meth:`Ledger.check` asserts them).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum
from itertools import chain
from typing import Any, Final

from ._backoff import Backoff, Random, expiry
from .config import PoolConfig

NEVER: Final = float("inf")

PROBATION_SECONDS: Final = 1.0
"""A new connection that dies within this time, before its first lease, counts as one that could not be opened."""


class SlotState(Enum):
    """What a slot holds. The sum of the four that hold something is the pool's size."""

    EMPTY = "empty"
    CONNECTING = "connecting"  # being opened, checked or reset: on its way to be idle
    IDLE = "idle"
    LEASED = "leased"
    CLOSING = "closing"
    # Outside the pool's size, in the lane:
    FEED = "feed"  # leased to a feed
    TRAILING = "trailing"  # was leased to a feed, which is read on after the lease
    RETIRED = "retired"  # waits for its last cursor to end, then closes
    GONE = "gone"  # nothing; the lease of such a slot was ended by the pool


# Reading a member off its enum class costs more than the rest of a step.
EMPTY, CONNECTING, IDLE, LEASED, CLOSING = (
    SlotState.EMPTY,
    SlotState.CONNECTING,
    SlotState.IDLE,
    SlotState.LEASED,
    SlotState.CLOSING,
)
FEED, TRAILING, RETIRED, GONE = SlotState.FEED, SlotState.TRAILING, SlotState.RETIRED, SlotState.GONE


class CloseReason(StrEnum):
    """Why a connection was closed."""

    EXPIRED = "expired"
    BROKEN = "broken"
    UNFIT = "unfit"  # its check or its reset failed
    SURPLUS = "surplus"
    DRAINED = "drained"
    FEED_ENDED = "feed ended"
    POOL_CLOSED = "pool closed"


class LedgerState(Enum):
    """The life of a pool."""

    CLOSED = "closed"
    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"


class Refusal(Enum):
    """Who is told of a failed opening, at once."""

    NOBODY = "nobody"  # the outage is known: those who wait have time, or run out of it
    OLDEST = "oldest"  # news: whoever has waited longest
    ALL = "all"  # hopeless: everybody would get the same answer


class Check(Enum):
    """The order to check a connection before it is leased."""

    CHECK = "check"


CHECK: Final = Check.CHECK


class Slot:
    """The pool's place for one connection. Read by all, written by the ledger alone."""

    __slots__ = (
        *("connection", "doomed", "is_asked_for", "expires_at", "holder", "idle_since", "is_probe"),
        *("is_pinged", "is_proven", "opened_at", "state"),
    )

    def __init__(self) -> None:
        self.state = EMPTY
        self.connection: Any = None
        self.holder: Any = None  # the shell's note of who holds the lease
        self.opened_at = 0.0
        self.expires_at = NEVER
        self.idle_since = 0.0
        self.doomed: CloseReason | None = None  # to be closed when it comes home
        self.is_probe = False  # opening began when an outage was known
        self.is_asked_for = False  # is checked because a caller asked for it
        self.is_pinged = False  # is checked though nobody asks for it: as good as idle
        self.is_proven = False  # its connection was leased, or passed its check

    def __repr__(self) -> str:
        return f"<Slot {self.state.value}{f' doomed: {self.doomed}' if self.doomed else ''}>"


@dataclass(slots=True)
class Orders:
    """What is to be done now, and when to ask again."""

    open: list[Slot]
    close: list[tuple[Slot, CloseReason]]
    check: list[Slot]
    wake_at: float = NEVER
    has_outage_lasted: bool = False
    """Whether ``on_reconnect_failed`` is due."""


class Ledger:
    """The book of one pool. ``random`` gives floats in [0, 1)."""

    def __init__(self, config: PoolConfig, random: Random) -> None:
        self._config = config
        self._random = random
        self.state = LedgerState.CLOSED
        self.max_size = config.pool_size
        self.min_size = config.smallest_size
        self.slots = [Slot() for _ in range(self.max_size)]
        self.lane: set[Slot] = set()  # FEED, TRAILING and RETIRED, outside the size

        # Each is the number of slots in that state.
        self.connecting = 0
        self.idle = 0
        self.leased = 0
        self.closing = 0
        self.checking = 0  # of those that are connecting: checked because a caller asked
        self.pinged = 0  # of those that are connecting: checked though nobody asked

        # How many idle slots the pool could do without is its surplus. surplus_since[k] is when the surplus last rose
        # to k + 1, so len(surplus_since) is the surplus, and as many connections as there are entries older than
        # max_idle were superfluous all that time, whichever they were. Last use says nothing: light steady traffic uses
        # every connection now and then.
        self._can_shrink = config.max_idle is not None and self.min_size < self.max_size
        self.surplus_since: list[float] = []

        self.watches_idle = self._can_shrink or config.ping_interval > 0  # whether idle_alarm() ever rings

        # Of openings; has failures during an outage only. A connection that dies or fails its check soon after it was
        # opened counts as one that could not be opened, and an outage is over only when a connection has proven good.
        # Else a server that lets everybody in and then hangs up would be called again and again without a pause.
        self.backoff = Backoff(random)
        self._is_outage_told = False  # has_outage_lasted was said
        self._check_after = float("-inf") if config.check else config.check_idle or NEVER  # seconds of being idle

        self.is_hopeless = False  # the last opening failed in a way that trying again cannot mend

        self.acquired_total = 0
        self.opened_total = 0
        self.connect_failures_total = 0
        self.closed_by_reason: Counter[str] = Counter()

    @property
    def size(self) -> int:
        """Slots that hold something; never above ``max_size``."""
        return self.connecting + self.idle + self.leased + self.closing

    @property
    def feeds(self) -> int:
        """Connections in the feed lane."""
        return sum(slot.state is not RETIRED for slot in self.lane)

    @property
    def retired(self) -> int:
        """Connections that wait for their last cursor to end."""
        return len(self.lane) - self.feeds

    def leased_slots(self) -> Iterator[Slot]:
        """Those that are in somebody's hands, those of feeds too."""
        return (slot for slot in chain(self.slots, self.lane) if slot.state is LEASED or slot.state is FEED)

    @property
    def leases(self) -> int:
        """Leases that are out, those of feeds too."""
        return sum(1 for _ in self.leased_slots())

    @property
    def is_short(self) -> bool:
        """Whether fewer connections are open than min_size."""
        return self.idle + self.leased + self.pinged < self.min_size

    @property
    def can_grow(self) -> bool:
        """Whether there is place for one more connection."""
        return self.size < self.max_size

    @property
    def is_leased_out(self) -> bool:
        """Whether every slot is leased, so that only a release can help who waits."""
        return self.leased == self.max_size

    @property
    def is_opening(self) -> bool:
        """Whether the first connections are being opened."""
        return self.state is LedgerState.OPENING

    @property
    def is_outage(self) -> bool:
        """Whether an attempt to open a connection failed, and no connection has proven good since."""
        return self.backoff.failures > 0

    # ---- the life of the pool

    def open(self) -> None:
        """The pool is being opened: :meth:`tend` orders the first connections."""
        self.state = LedgerState.OPENING
        self.backoff.succeeded()
        self.is_hopeless = self._is_outage_told = False

    def opened_all(self) -> None:
        """The first connections are open: the pool is."""
        self.state = LedgerState.OPEN

    def close(self, now: float) -> list[Slot]:
        """The pool ends: nothing more is leased or opened. Returns the idle slots, which are to be closed; the others
        are closed when they come home.
        """
        self.state = LedgerState.CLOSING
        return self._doom_all(CloseReason.POOL_CLOSED, now)

    def closed_all(self) -> None:
        """Nothing is left: the pool is closed and may be opened again."""
        self.state = LedgerState.CLOSED

    def bury(self) -> None:
        """The pool ended without closing. What was leased or in the lane counts no more; all slots are empty."""
        for slot in (*self.slots, *self.lane):
            slot.state, slot.connection = GONE, None
        self.slots = [Slot() for _ in range(self.max_size)]
        self.lane = set()
        self.connecting = self.idle = self.leased = self.closing = self.checking = self.pinged = 0
        self.surplus_since = []
        self.state = LedgerState.CLOSED

    def drain(self, now: float) -> list[Slot]:
        """Replace every connection. Returns the idle slots, to be closed; the others follow when they come home."""
        return self._doom_all(CloseReason.DRAINED, now)

    def _doom_all(self, reason: CloseReason, now: float) -> list[Slot]:
        idle = [slot for slot in self.slots if slot.state is IDLE]
        for slot in idle:
            self._condemn(slot)
        self._note_surplus(now)
        for slot in (*self.slots, *self.lane):
            if slot.state in (CONNECTING, LEASED, FEED, TRAILING):
                slot.doomed = reason
        return idle

    # ---- leases

    def lease(self, slot: Slot, now: float, is_open: bool, *, is_checked: bool = False) -> CloseReason | Check | None:
        """An idle slot is asked for. Leases it and returns None; or says why its connection must be closed instead, or
        that it must be checked first: it counts as connecting until :meth:`prepared` or :meth:`unfit`.
        """
        order: CloseReason | Check | None = None
        self.idle -= 1
        if is_open and now < slot.expires_at and (now - slot.idle_since < self._check_after or is_checked):
            slot.state = LEASED
            self.leased += 1
            self.acquired_total += 1
            if not slot.is_proven:
                self._prove(slot)
        elif is_open and now < slot.expires_at:
            order = CHECK
            slot.state = CONNECTING
            slot.is_asked_for = True
            self.connecting += 1
            self.checking += 1
        else:
            order = CloseReason.EXPIRED if is_open else CloseReason.BROKEN
            slot.state = CLOSING
            self.closing += 1
            if not is_open:
                self._doubt(slot, now)
        if self._can_shrink:
            self._note_surplus(now)
        return order

    def release(self, slot: Slot, now: float, is_open: bool) -> CloseReason | None:
        """A leased slot came home. Makes it idle and returns None, or says why its connection must be closed."""
        self.leased -= 1
        if is_open and slot.doomed is None:
            slot.state = IDLE
            slot.idle_since = now
            self.idle += 1
            if self._can_shrink:
                self._note_surplus(now)
            return None
        slot.state = CLOSING
        self.closing += 1
        self._trim_surplus()
        return slot.doomed or CloseReason.BROKEN

    def pass_on(self, slot: Slot, now: float, is_open: bool) -> CloseReason | None:
        """A leased slot was never seen by whom it was meant for. As :meth:`release`, and the lease does not count."""
        self.acquired_total -= 1
        return self.release(slot, now, is_open)

    def hold(self, slot: Slot, now: float) -> None:
        """An idle slot is to be reset: it counts as connecting until :meth:`prepared` or :meth:`unfit`."""
        self.idle -= 1
        slot.state = CONNECTING
        self.connecting += 1
        self._note_surplus(now)

    def suspect(self, now: float) -> list[Slot]:
        """A connection died of a network error: its idle siblings are to be checked, all together, before any is
        leased. They count as connecting until :meth:`prepared` or :meth:`unfit`.
        """
        idle = [slot for slot in self.slots if slot.state is IDLE]
        for slot in idle:
            self._ping(slot)
        return idle

    def hold_released(self, slot: Slot) -> None:
        """A leased slot is to be reset before it is idle: it counts as connecting until :meth:`prepared`."""
        self.leased -= 1
        slot.state = CONNECTING
        self.connecting += 1

    def prepared(self, slot: Slot, now: float, is_open: bool) -> CloseReason | None:
        """A check or reset has passed. Makes the slot idle and returns None, or says why to close its connection."""
        self._end_preparing(slot)
        if not slot.is_proven:
            self._prove(slot)
        return self._come_home(slot, now, is_open)

    def unfit(self, slot: Slot, now: float, is_open: bool) -> CloseReason:
        """The check or reset of a slot has failed: its connection must be closed."""
        self._end_preparing(slot)
        slot.state = CLOSING
        self.closing += 1
        self._trim_surplus()
        self._doubt(slot, now)
        return CloseReason.UNFIT if is_open else CloseReason.BROKEN

    def _end_preparing(self, slot: Slot) -> None:
        self.connecting -= 1
        self.pinged -= slot.is_pinged
        self.checking -= slot.is_asked_for
        slot.is_pinged = slot.is_asked_for = False

    def _come_home(self, slot: Slot, now: float, is_open: bool) -> CloseReason | None:
        """A slot comes home from anywhere: as one that was leased until now."""
        self.leased += 1
        return self.release(slot, now, is_open)

    # ---- connections

    def opened(self, slot: Slot, connection: object, now: float) -> CloseReason | None:
        """A connection was opened. Makes its slot idle and returns None, or says why it must be closed at once."""
        self.opened_total += 1
        self.is_hopeless = False
        slot.connection = connection
        slot.opened_at = now
        slot.expires_at = expiry(now, self._config.connection_ttl, self._random)
        self.connecting -= 1
        return self._come_home(slot, now, is_open=True)

    def open_failed(self, slot: Slot, now: float, *, is_hopeless: bool = False) -> Refusal:
        """A connection could not be opened; its slot is empty again. Says who of those who wait is told at once.

        A failure is told at once to whoever has waited longest, for its opening was begun for a caller. Openings that
        are begun during a known outage are probes, one at a time: they are told to nobody, so that callers use the time
        they have. A hopeless failure is told to everybody, each time, and the next caller may try again at once.
        """
        was_probe = slot.is_probe
        self.connecting -= 1
        self._empty(slot)
        self._trim_surplus()
        self._note_failure(now)
        self.is_hopeless = is_hopeless
        if is_hopeless:
            return Refusal.ALL
        return Refusal.NOBODY if was_probe else Refusal.OLDEST

    def open_cancelled(self, slot: Slot) -> None:
        """An opening was given up because the pool ends."""
        self.connecting -= 1
        self._empty(slot)
        self._trim_surplus()

    def lost(self, slot: Slot, now: float) -> CloseReason:
        """The connection of an idle slot died: it must be closed."""
        self._condemn(slot)
        self._note_surplus(now)
        self._doubt(slot, now)
        return CloseReason.BROKEN

    def closed(self, slot: Slot, reason: CloseReason) -> None:
        """The connection of a closing slot, or of one in the lane, is closed: its place is free."""
        self.closed_by_reason[reason] += 1
        if slot in self.lane:
            self.lane.remove(slot)
            slot.state, slot.connection = GONE, None
        else:
            self.closing -= 1
            self._empty(slot)

    def abandon(self, slot: Slot, reason: CloseReason) -> None:
        """The connection of a leased or feed slot was aborted under its user. The lease keeps the slot object, which
        counts no more; an empty one takes its place.
        """
        self.closed_by_reason[reason] += 1
        if slot in self.lane:
            self.lane.remove(slot)
        else:
            self.leased -= 1
            self._replace(slot, Slot())
            self._trim_surplus()
        slot.state, slot.connection = GONE, None

    # ---- the lane, outside the pool's size

    def has_feed_room(self) -> bool:
        """Whether the feed lane takes one more connection."""
        return self.feeds < self._config.feed_limit

    def to_feed_lane(self, slot: Slot) -> None:
        """A leased slot leaves the pool's size to serve a feed; an empty one takes its place."""
        self.leased -= 1
        self._replace(slot, Slot())
        self._trim_surplus()
        slot.state = FEED
        self.lane.add(slot)

    def trail(self, slot: Slot) -> None:
        """The lease of a feed slot was released, but the feed is still read."""
        slot.state = TRAILING

    def retire(self, slot: Slot) -> None:
        """The connection of a closing slot, or of one in the lane, is still read from: it leaves the pool's size, and
        an empty slot takes its place, so that a slow reader costs no capacity.
        """
        if slot not in self.lane:
            self.closing -= 1
            self._replace(slot, Slot())
            self.lane.add(slot)
        slot.state = RETIRED

    def feed_ended(self, slot: Slot, now: float, is_open: bool) -> CloseReason | None:
        """Nobody reads from a feed slot any more. Makes it an idle one of the pool, if it is fit and there is room, and
        returns None; or says why its connection must be closed."""
        reason = slot.doomed
        if reason is None and not is_open:
            reason = CloseReason.BROKEN
        elif reason is None and (self.size == self.max_size or slot.expires_at <= now):
            reason = CloseReason.FEED_ENDED
        if reason is not None:
            slot.state = RETIRED
            return reason
        self.lane.remove(slot)
        self._replace(next(other for other in self.slots if other.state is EMPTY), slot)
        return self._come_home(slot, now, is_open=True)

    # ---- sizes

    def admits(self, waiting: int) -> bool:
        """Whether one more caller may wait beside ``waiting`` others. Those do not count whom a connection is on its
        way to, or may still be opened for.
        """
        on_the_way = self.connecting + self.idle + (self.max_size - self.size)
        return not self._config.max_waiting or waiting - on_the_way < self._config.max_waiting

    def tend(self, now: float, waiting: int) -> Orders:
        """What the pool's size needs now: slots to open (they are connecting from here on), idle ones to close (closing
        from here on), and when to ask again.
        """
        if self.state not in (LedgerState.OPEN, LedgerState.OPENING):
            return Orders([], [], [])
        close, surplus_at = self._shrink(now)
        check, ping_at = self._ping_idle(now)
        proven_at = self._prove_survivors(now) if self.is_outage else NEVER
        wanted = self._wanted(waiting)
        wake_at = min(surplus_at, ping_at, proven_at)
        has_outage_lasted = False
        if wanted > 0 and self.is_outage:
            has_outage_lasted, told_at = self._tell_outage(now)
            wake_at = min(wake_at, told_at)
            if any(slot.state is CONNECTING and slot.connection is None for slot in self.slots):
                wanted = 0  # the result of the one probe in flight decides
            elif now < self.backoff.retry_at and not (self.is_hopeless and waiting):
                wake_at = min(wake_at, self.backoff.retry_at)
                wanted = 0
            else:
                wanted = 1
        connect = [self._connect() for _ in range(wanted)]
        self._note_surplus(now)
        return Orders(connect, close, check, wake_at, has_outage_lasted)

    def _wanted(self, waiting: int) -> int:
        """Openings to begin: one for each caller that has none under way, or what min_size needs; at most max."""
        for_min_size = self.min_size - (self.idle + self.leased)
        return min(max(waiting, for_min_size) - self.connecting, self.max_size - self.size)

    def _connect(self) -> Slot:
        slot = next(slot for slot in self.slots if slot.state is EMPTY)
        slot.state = CONNECTING
        slot.is_probe = self.is_outage
        self.connecting += 1
        return slot

    def _shrink(self, now: float) -> tuple[list[tuple[Slot, CloseReason]], float]:
        """Idle slots that have been surplus for max_idle, the longest unused first; and when there may be more."""
        max_idle = self._config.max_idle
        if max_idle is None or not self.surplus_since:
            return [], NEVER
        due = min(self.idle, sum(risen + max_idle <= now for risen in self.surplus_since))
        longest_unused = sorted((slot for slot in self.slots if slot.state is IDLE), key=lambda slot: slot.idle_since)
        close = [(slot, CloseReason.SURPLUS) for slot in longest_unused[:due]]
        for slot, _ in close:
            self._condemn(slot)
        # Without these connections the surplus would have been smaller by so many at any time: the eldest entries go.
        del self.surplus_since[:due]
        return close, self.surplus_since[0] + max_idle if self.surplus_since and self.idle else NEVER

    def _ping_idle(self, now: float) -> tuple[list[Slot], float]:
        """Idle slots that were not used for ping_interval: to be checked. And when there may be more."""
        interval = self._config.ping_interval
        if not interval:
            return [], NEVER
        idle = [slot for slot in self.slots if slot.state is IDLE]
        due = [slot for slot in idle if slot.idle_since + interval <= now]
        for slot in due:
            self._ping(slot)
        return due, min((slot.idle_since + interval for slot in idle if slot not in due), default=NEVER)

    def _ping(self, slot: Slot) -> None:
        self.idle -= 1
        slot.state = CONNECTING
        slot.is_pinged = True
        self.connecting += 1
        self.pinged += 1

    # ---- outages

    def _tell_outage(self, now: float) -> tuple[bool, float]:
        """Whether the outage has lasted reconnect_timeout, which is said once; and when it will have."""
        if self._is_outage_told or self._config.reconnect_timeout is None or self.backoff.since is None:
            return False, NEVER
        told_at = self.backoff.since + self._config.reconnect_timeout
        self._is_outage_told = now >= told_at
        return self._is_outage_told, NEVER if self._is_outage_told else told_at

    def _prove(self, slot: Slot) -> None:
        """A connection is good: if there was an outage, it is over."""
        slot.is_proven = True
        if self.backoff.failures:
            self.backoff.succeeded()
            self._is_outage_told = False

    def _prove_survivors(self, now: float) -> float:
        """New connections that have outlived the probation are good too. Returns when there may be more of them."""
        young = [slot for slot in self.slots if slot.connection is not None and not slot.is_proven]
        for slot in young:
            if slot.opened_at + PROBATION_SECONDS <= now:
                self._prove(slot)
        return min((slot.opened_at + PROBATION_SECONDS for slot in young if not slot.is_proven), default=NEVER)

    def _doubt(self, slot: Slot, now: float) -> None:
        """A connection is bad. Where it was never good, and is young, the attempt to open it has failed."""
        if not slot.is_proven and now < slot.opened_at + PROBATION_SECONDS:
            self._note_failure(now)

    def _note_failure(self, now: float) -> None:
        self.connect_failures_total += 1
        self.backoff.failed(now)

    # ---- steps that keep the counts

    def idle_alarm(self, now: float) -> float:
        """When something is to be done about idle slots, if they stay as they are from now on."""
        surplus_at = self.surplus_since[0] + (self._config.max_idle or 0.0) if self.surplus_since else NEVER
        return min(surplus_at, now + self._config.ping_interval if self._config.ping_interval else NEVER)

    def _surplus(self) -> int:
        if not self._can_shrink:
            return 0
        return max(0, min(self.idle + self.pinged, self.idle + self.leased + self.connecting - self.min_size))

    def _note_surplus(self, now: float) -> None:
        """To be called after every step that may change the surplus."""
        self._trim_surplus()
        self.surplus_since.extend([now] * (self._surplus() - len(self.surplus_since)))

    def _trim_surplus(self) -> None:
        """To be called after every step that can only make the surplus smaller."""
        del self.surplus_since[self._surplus() :]

    def _condemn(self, slot: Slot) -> None:
        self.idle -= 1
        slot.state = CLOSING
        self.closing += 1

    def _empty(self, slot: Slot) -> None:
        slot.state = EMPTY
        slot.connection = None
        slot.doomed = None
        slot.is_probe = slot.is_proven = False

    def _replace(self, slot: Slot, other: Slot) -> None:
        self.slots[self.slots.index(slot)] = other

    def check(self) -> None:
        """Assert every invariant. For tests: it looks at every slot."""
        states = Counter(slot.state for slot in self.slots)
        assert len(self.slots) == len(set(self.slots)) == self.max_size, "a slot was lost or doubled"
        assert states[CONNECTING] == self.connecting, (states, self.connecting)
        assert states[IDLE] == self.idle, (states, self.idle)
        assert states[LEASED] == self.leased, (states, self.leased)
        assert self.checking == sum(slot.is_asked_for for slot in self.slots if slot.state is CONNECTING)
        assert not any(slot.is_asked_for for slot in (*self.slots, *self.lane) if slot.state is not CONNECTING)
        assert self.pinged == sum(slot.is_pinged for slot in self.slots if slot.state is CONNECTING)
        assert not any(slot.is_pinged for slot in (*self.slots, *self.lane) if slot.state is not CONNECTING)
        assert states[CLOSING] == self.closing, (states, self.closing)
        assert self.size + states[EMPTY] == self.max_size, (states, self.size)
        assert len(self.surplus_since) == self._surplus(), (self.surplus_since, self._surplus())
        assert self.surplus_since == sorted(self.surplus_since), self.surplus_since
        assert not self.lane & set(self.slots), "a slot is in the pool and in the lane"
        assert all(slot.state in (FEED, TRAILING, RETIRED) for slot in self.lane), self.lane
        assert all(slot.connection is None for slot in self.slots if slot.state is EMPTY), "an empty slot holds one"
        held = [slot.connection for slot in (*self.slots, *self.lane) if slot.connection is not None]
        assert len(held) == len({id(connection) for connection in held}), "a connection is in two slots"
        assert all(slot.connection is not None for slot in self.slots if slot.state in (IDLE, LEASED, CLOSING))
        assert all(slot.doomed is None for slot in self.slots if slot.state is IDLE), "an idle slot is doomed"
        assert self.state is LedgerState.OPEN or not self.idle or self.state is LedgerState.OPENING, "idle while closed"
