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

from ._backoff import LONGEST_DELAY, Backoff, Random, expiry
from .config import PoolConfig

NEVER: Final = float("inf")

PROBATION_SECONDS: Final = 1.0
"""A new connection that dies within this time, before its first lease, counts as one that could not be opened."""

FORGET_SECONDS: Final = 60.0
"""An outage during which nothing had to be opened for so long, and for ``reconnect_timeout``, is forgotten."""

CROWDED: Final = 2
"""Queries on each shared connection from which on another one is opened, where there is room. An idle one is shared
before that: one thread of the server serves one connection, so two queries that keep it busy take half the time on two.
"""


class SlotState(Enum):
    """What a slot holds. The sum of the five that hold something is the pool's size."""

    EMPTY = "empty"
    CONNECTING = "connecting"  # being opened, checked or reset: on its way to be idle
    IDLE = "idle"
    LEASED = "leased"
    SHARED = "shared"  # carries queries of many
    CLOSING = "closing"
    # Outside the pool's size, in the lane:
    FEED = "feed"  # leased to a feed
    CARRIER = "carrier"  # carries feeds of many
    TRAILING = "trailing"  # was leased to a feed, which is read on after the lease
    RETIRED = "retired"  # waits for its last cursor to end, then closes
    GONE = "gone"  # nothing; the lease of such a slot was ended by the pool


# Reading a member off its enum class costs more than the rest of a step.
EMPTY, CONNECTING, IDLE = SlotState.EMPTY, SlotState.CONNECTING, SlotState.IDLE
LEASED, SHARED, CLOSING = SlotState.LEASED, SlotState.SHARED, SlotState.CLOSING
FEED, CARRIER, TRAILING = SlotState.FEED, SlotState.CARRIER, SlotState.TRAILING
RETIRED, GONE = SlotState.RETIRED, SlotState.GONE


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
        *(
            "connection",
            "doomed",
            "ended_at",
            "expires_at",
            "holder",
            "idle_since",
            "in_flight",
            "is_asked_for",
            "is_for_caller",
        ),
        *("is_on_trial", "is_pinged", "is_proven", "is_suspected", "opened_at", "state"),
    )

    def __init__(self) -> None:
        self.state = EMPTY
        self.connection: Any = None
        self.holder: Any = None  # the shell's note of who holds the lease
        self.opened_at = 0.0
        self.expires_at = NEVER
        self.idle_since = 0.0
        self.ended_at: float | None = None  # when the pool ended it under its users
        self.in_flight = 0  # queries, or feeds, that it carries; 0 unless SHARED or CARRIER
        self.doomed: CloseReason | None = None  # to be closed when it comes home; takes no new query or feed
        self.is_suspected = False  # is checked while it carries queries; takes no new one
        self.is_for_caller = False  # its opening began for a caller who waits, and no outage was known
        self.is_asked_for = False  # is checked because a caller asked for it
        self.is_on_trial = False  # a carrier none of whose feeds is open yet
        self.is_pinged = False  # is checked though nobody asks for it: as good as idle
        self.is_proven = False  # its connection was leased, or passed its check

    def __repr__(self) -> str:
        load = f" {self.in_flight} in flight" if self.in_flight else ""
        return f"<Slot {self.state.value}{load}{f' doomed: {self.doomed}' if self.doomed else ''}>"


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
        self.lane: set[Slot] = set()  # FEED, CARRIER, TRAILING and RETIRED, outside the size

        self.size = 0  # slots that hold something; never above max_size
        # Each is the number of slots in that state; their sum is the size.
        self.connecting = 0
        self.idle = 0
        self.leased = 0
        self.shared = 0
        self.closing = 0
        self.checking = 0  # of those that are connecting: checked because a caller asked
        self.pinged = 0  # of those that are connecting: checked though nobody asked

        # _by_load[n] are the shared slots that carry n queries and would take another one, in the order in which they
        # came to n. _least is the smallest n that has any, at most max_in_flight, which says that no query is taken.
        # So the least loaded is found at once, however many there are.
        self._max_in_flight = config.max_in_flight
        self._by_load: list[dict[Slot, None]] = [{}, {}]
        self._least = self._max_in_flight
        # A query came when each of them carried CROWDED: another connection is to be opened, which helps those that
        # come after it. Those that are under way cannot move, so their number by itself is no reason to open any.
        self.is_crowded = False
        self._can_wait_idle = config.max_idle != 0  # until such a query comes

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
        self._unwanted_since = NEVER  # in an outage: since when nothing is to be opened
        self._is_old_news = False  # nothing was to be opened for a while, and no opening has failed since
        self._check_after = float("-inf") if config.check else config.check_idle or NEVER  # seconds of being idle

        self.is_hopeless = False  # the last opening failed in a way that trying again cannot mend

        self.acquired_total = 0
        self.opened_total = 0
        self.connect_failures_total = 0
        self.closed_by_reason: Counter[str] = Counter()

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
    def queries(self) -> int:
        """Queries on shared connections."""
        return sum(slot.in_flight - slot.is_suspected for slot in self.slots if slot.state is SHARED)

    @property
    def carried(self) -> int:
        """Feeds on connections of the lane that carry many."""
        return sum(slot.in_flight - slot.is_suspected for slot in self.lane if slot.state is CARRIER)

    @property
    def is_short(self) -> bool:
        """Whether fewer connections are open than min_size."""
        return self.idle + self.leased + self.shared + self.pinged < self.min_size

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
        self._end_outage()
        self.is_hopeless = False

    def opened_all(self) -> None:
        """The first connections are open: the pool is."""
        self.state = LedgerState.OPEN

    def close(self, now: float) -> list[Slot]:
        """The pool ends: nothing more is leased, shared or opened. Returns the idle slots, which are to be closed; the
        others are closed when they come home.
        """
        self.state = LedgerState.CLOSING
        return self._doom_all(CloseReason.POOL_CLOSED, now)

    def closed_all(self) -> None:
        """Nothing is left: the pool is closed and may be opened again."""
        self.state = LedgerState.CLOSED

    def bury(self) -> None:
        """The pool ended without closing. What was in use or in the lane counts no more; all slots are empty."""
        for slot in (*self.slots, *self.lane):
            slot.state, slot.connection = GONE, None
        self.slots = [Slot() for _ in range(self.max_size)]
        self.lane = set()
        self.size = self.connecting = self.idle = self.leased = self.shared = self.closing = 0
        self.checking = self.pinged = 0
        self._by_load, self._least, self.is_crowded = [{}, {}], self._max_in_flight, False
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
            if slot.state is SHARED:
                self._doom_shared(slot, reason)
            elif slot.state in (CONNECTING, LEASED, FEED, CARRIER, TRAILING):
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

    # ---- sharing

    def share(self, slot: Slot, now: float, is_open: bool, *, is_checked: bool = False) -> CloseReason | Check | None:
        """An idle slot is to carry a query. Says what :meth:`lease` says; None: it is shared, by one query so far."""
        order = self.lease(slot, now, is_open, is_checked=is_checked)
        if order is None:
            self.acquired_total -= 1
            self.leased -= 1
            self.shared += 1
            slot.state = SHARED
            slot.in_flight = 1
            self._by_load[1][slot] = None
            self._least = 1
        return order

    def join(self, now: float) -> Slot | None:
        """Put one more query on the least loaded shared slot. None where none takes any."""
        while (load := self._least) < self._max_in_flight:
            slots = self._by_load[load]
            slot = next(iter(slots))
            if now < slot.expires_at:
                del slots[slot]
                if load + 1 == len(self._by_load):
                    self._by_load.append({})
                self._by_load[load + 1][slot] = None
                slot.in_flight = load + 1
                if load >= CROWDED and self.size < self.max_size and self._can_wait_idle:
                    self.is_crowded = True
                if not slots:
                    self._least = load + 1
                return slot
            self._doom_shared(slot, CloseReason.EXPIRED)
        return None

    def leave(self, slot: Slot) -> bool:
        """A query on a shared slot has ended. True where it was the last: :meth:`unshare` follows."""
        load = slot.in_flight
        slot.in_flight = load - 1
        if slot.doomed is None and not slot.is_suspected:
            del self._by_load[load][slot]
            if load > 1:
                self._by_load[load - 1][slot] = None
                if load <= self._least:
                    self._least = load - 1
            elif self.shared == 1:
                self._least = self._max_in_flight
            elif not self._by_load[1]:
                self._find_least()
        return load == 1

    def unshare(self, slot: Slot, now: float, is_open: bool) -> CloseReason | None:
        """The last query on a shared slot has ended. Makes it idle and returns None, or says why to close it."""
        self.shared -= 1
        return self._come_home(slot, now, is_open)

    def turn_away(self, slot: Slot) -> bool:
        """A query that was just put on a shared slot found it broken: it takes no new ones. As :meth:`leave`."""
        self._doom_shared(slot, CloseReason.BROKEN)
        return self.leave(slot)

    def question(self, slot: Slot) -> bool:
        """A query on a shared slot, or a feed on a carrier, had no answer in time: it is to be checked, and takes no
        new ones until :meth:`answered`. The check counts as one of them. False where it is checked or doomed already.
        """
        if slot.doomed is not None or slot.is_suspected:
            return False
        if slot.state is SHARED:
            self._take_out(slot)
        slot.is_suspected = True
        slot.in_flight += 1
        return True

    def answered(self, slot: Slot, *, is_good: bool) -> bool:
        """The check of a suspected slot is over. As :meth:`leave`, or :meth:`remove_feed`."""
        slot.is_suspected = False
        if slot.state is CARRIER:
            return self.remove_feed(slot)
        if not is_good:
            slot.doomed = slot.doomed or CloseReason.UNFIT
        elif slot.doomed is None:
            self._put_in(slot)
        return self.leave(slot)

    def _doom_shared(self, slot: Slot, reason: CloseReason) -> None:
        if slot.doomed is None and not slot.is_suspected:
            self._take_out(slot)
        slot.doomed = reason

    def _put_in(self, slot: Slot) -> None:
        while slot.in_flight >= len(self._by_load):
            self._by_load.append({})
        self._by_load[slot.in_flight][slot] = None
        self._least = min(self._least, slot.in_flight)

    def _take_out(self, slot: Slot) -> None:
        del self._by_load[slot.in_flight][slot]
        self._find_least()

    def _find_least(self) -> None:
        for load in range(self._least, len(self._by_load)):
            if self._by_load[load]:
                self._least = min(load, self._max_in_flight)
                return
        self._least = self._max_in_flight

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

        The failure of an opening that was begun for a caller is told at once, to whoever has waited longest. Others are
        told to nobody, so that callers use the time they have: those that keep up the size, whose failure tells no more
        than that the server was away before anybody asked, and those that are begun during a known outage, which are
        probes, one at a time. A hopeless failure is told to everybody, each time, and the next caller may try again at
        once.
        """
        was_for_caller = slot.is_for_caller
        self.connecting -= 1
        self._empty(slot)
        self._trim_surplus()
        self._note_failure(now)
        self.is_hopeless = is_hopeless
        if is_hopeless:
            return Refusal.ALL
        return Refusal.OLDEST if was_for_caller else Refusal.NOBODY

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

    def abandon(self, slot: Slot, reason: CloseReason, now: float = 0.0) -> None:
        """The connection of a slot in use was aborted under its users. They keep the slot object, which counts no more;
        an empty one takes its place.
        """
        self.closed_by_reason[reason] += 1
        if slot in self.lane:
            self.lane.remove(slot)
        else:
            if slot.state is SHARED:
                self._doom_shared(slot, reason)
                self.shared -= 1
            else:
                self.leased -= 1
            self._leave_size(slot)
            self._trim_surplus()
        slot.state, slot.connection, slot.ended_at = GONE, None, now

    # ---- the lane, outside the pool's size

    def has_feed_room(self) -> bool:
        """Whether the feed lane takes one more connection. One that is doomed and only waits for its last feed to end
        takes no place.
        """
        ending = sum(slot.state is CARRIER and slot.doomed is not None for slot in self.lane)
        return self.feeds - ending < self._config.feed_limit

    def has_feed_place(self) -> bool:
        """Whether the lane will take one more feed, on a connection that it has or on another."""
        return self.has_feed_room() or any(slot.state is CARRIER and slot.doomed is None for slot in self.lane)

    def carrier(self) -> Slot | None:
        """The connection in the lane that carries the fewest feeds, and takes more. Its age does not matter: feeds may
        live for days.
        """
        usable = (slot for slot in self.lane if slot.doomed is None and not slot.is_suspected)
        carriers = (slot for slot in usable if slot.state is CARRIER)
        return min(carriers, key=lambda slot: slot.in_flight, default=None)

    def add_feed(self, slot: Slot) -> None:
        """One more feed on a carrier."""
        slot.in_flight += 1

    def remove_feed(self, slot: Slot) -> bool:
        """A feed on a carrier has ended. True where it was the last: :meth:`feed_ended` follows."""
        slot.in_flight -= 1
        slot.is_on_trial = slot.is_on_trial and slot.in_flight > 0
        return slot.in_flight == 0

    def wants_carrier(self) -> bool:
        """Whether the next feed is better served by one more connection in the lane."""
        carrier = self.carrier()
        return self.has_feed_room() and (carrier is None or carrier.in_flight >= self._max_in_flight)

    def carry(self, slot: Slot, now: float, is_open: bool, *, is_checked: bool = False) -> CloseReason | Check | None:
        """An idle slot is to carry a feed. Says what :meth:`lease` says; None: it is in the lane, with one feed."""
        order = self.lease(slot, now, is_open, is_checked=is_checked)
        if order is None:
            self.acquired_total -= 1
            self.to_feed_lane(slot)
            slot.state = CARRIER
            slot.in_flight = 1
            slot.is_on_trial = True
        return order

    def feed_opened(self, slot: Slot) -> bool:
        """A feed on a carrier is open. True where it is the first: from now on min_size counts without the carrier."""
        was_on_trial, slot.is_on_trial = slot.is_on_trial, False
        return was_on_trial

    def to_feed_lane(self, slot: Slot) -> None:
        """A leased slot leaves the pool's size to serve a feed; an empty one takes its place."""
        self.leased -= 1
        self._leave_size(slot)
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
            self._leave_size(slot)
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
        self.slots[self.slots.index(next(other for other in self.slots if other.state is EMPTY))] = slot
        self.size += 1
        return self._come_home(slot, now, is_open=True)

    # ---- sizes

    def admits(self, leases: int, queries: int = 0) -> bool:
        """Whether one more caller may wait beside those who wait for a lease or to run a query. Those do not count whom
        a connection is on its way to, or may still be opened for.
        """
        on_the_way = self.connecting + self.idle + (self.max_size - self.size)
        for_queries = max(0, on_the_way - leases) * self._max_in_flight
        not_served = max(0, leases - on_the_way) + max(0, queries - for_queries)
        return not self._config.max_waiting or not_served < self._config.max_waiting

    def tend(self, now: float, leases: int, queries: int = 0) -> Orders:
        """What the pool's size needs now, where so many wait for a lease and so many to run a query: slots to open
        (they are connecting from here on), idle ones to close (closing from here on), and when to ask again.
        """
        if self.state not in (LedgerState.OPEN, LedgerState.OPENING):
            return Orders([], [], [])
        close, surplus_at = self._shrink(now)
        check, ping_at = self._ping_idle(now)
        proven_at = self._prove_survivors(now) if self.is_outage else NEVER
        for_callers = self._for_callers(leases, queries)
        is_crowded = self._least >= CROWDED and any(self._by_load) and not self.idle and self.can_grow
        self.is_crowded = self.is_crowded and is_crowded
        wanted = self._wanted(for_callers)
        wake_at = min(surplus_at, ping_at, proven_at)
        has_outage_lasted = False
        is_opening = self.is_outage and any(slot.state is CONNECTING and slot.connection is None for slot in self.slots)
        if self.is_outage:
            self._note_attempts(now, is_attempted=wanted > 0 or is_opening)
        if self.is_outage and wanted > 0:
            has_outage_lasted, told_at = self._tell_outage(now)
            wake_at = min(wake_at, told_at)
            if is_opening:
                wanted = 0  # the result of the one probe in flight decides
            elif now < self.backoff.retry_at and not (self.is_hopeless and leases + queries):
                wake_at = min(wake_at, self.backoff.retry_at)
                wanted = 0
            else:
                wanted = 1
        is_asked_for = min(wanted, for_callers - self.connecting) if leases + queries and not self.is_outage else 0
        connect = [self._connect(is_for_caller=number < is_asked_for) for number in range(wanted)]
        self.is_crowded = self.is_crowded and not connect
        self._note_surplus(now)
        return Orders(connect, close, check, wake_at, has_outage_lasted)

    def _for_callers(self, leases: int, queries: int) -> int:
        """Connections that those in line need, beyond those that are open: one for each who waits for a lease, and so
        many for the queries that the shared ones have no place for that none is crowded.
        """
        for_queries = 0
        if queries:
            room = sum(len(slots) * (self._max_in_flight - load) for load, slots in enumerate(self._by_load))
            for_queries = -(-max(0, queries - room) // min(CROWDED, self._max_in_flight))
        return max(0, leases + for_queries - self.idle)

    def _wanted(self, for_callers: int) -> int:
        """Openings to begin: as callers need and have none under way, or as min_size needs, or one where shared ones
        are crowded; at most max. A carrier on trial may come back at once, as after a restart, when tables are slow to
        follow: what is opened in its place would have to be closed then.
        """
        on_trial = sum(slot.is_on_trial and slot.doomed is None for slot in self.lane)
        for_min_size = self.min_size - (self.idle + self.leased + self.shared + on_trial)
        return min(max(for_callers, for_min_size, self.is_crowded) - self.connecting, self.max_size - self.size)

    def _connect(self, *, is_for_caller: bool) -> Slot:
        slot = next(slot for slot in self.slots if slot.state is EMPTY)
        slot.state = CONNECTING
        slot.is_for_caller = is_for_caller
        self.connecting += 1
        self.size += 1
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
        if self._is_old_news:
            return False, NEVER  # the next failure tells
        told_at = self.backoff.since + self._config.reconnect_timeout
        self._is_outage_told = now >= told_at
        return self._is_outage_told, NEVER if self._is_outage_told else told_at

    def _prove(self, slot: Slot) -> None:
        """A connection is good: if there was an outage, it is over."""
        slot.is_proven = True
        if self.backoff.failures:
            self._end_outage()

    def _end_outage(self) -> None:
        self.backoff.succeeded()
        self._is_outage_told = self._is_old_news = False
        self._unwanted_since = NEVER

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
        self._is_old_news = False
        self.backoff.failed(now)

    def _note_attempts(self, now: float, *, is_attempted: bool) -> None:
        """Note whether anything is to be opened in an outage. Where nothing was for long, because the connections that
        there are were enough, the outage is forgotten: it may have been over since.
        """
        if not is_attempted:
            self._unwanted_since = min(self._unwanted_since, now)
            return
        pause = now - self._unwanted_since
        self._unwanted_since = NEVER
        if pause > max(FORGET_SECONDS, self._config.reconnect_timeout or 0):
            self._end_outage()
        elif pause > LONGEST_DELAY:
            self._is_old_news = True

    # ---- steps that keep the counts

    def idle_alarm(self, now: float) -> float:
        """When something is to be done about idle slots, if they stay as they are from now on."""
        surplus_at = self.surplus_since[0] + (self._config.max_idle or 0.0) if self.surplus_since else NEVER
        return min(surplus_at, now + self._config.ping_interval if self._config.ping_interval else NEVER)

    def _surplus(self) -> int:
        if not self._can_shrink:
            return 0
        beyond = self.idle + self.leased + self.shared + self.connecting - self.min_size
        return max(0, min(self.idle + self.pinged, beyond))

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
        self.size -= 1
        slot.state = EMPTY
        slot.connection = None
        slot.doomed = None
        slot.is_for_caller = slot.is_proven = False

    def _leave_size(self, slot: Slot) -> None:
        """A slot goes to the lane, or from the pool altogether; an empty one takes its place."""
        self.slots[self.slots.index(slot)] = Slot()
        self.size -= 1

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
        assert states[SHARED] == self.shared, (states, self.shared)
        assert states[CLOSING] == self.closing, (states, self.closing)
        for slot in (*self.slots, *self.lane):
            assert slot.in_flight > 0 or slot.state is not SHARED, slot
            assert slot.in_flight == 0 or slot.state in (SHARED, CARRIER), slot
            assert slot.state is CARRIER or slot.in_flight <= self._max_in_flight + slot.is_suspected, slot
            takes_queries = slot.state is SHARED and slot.doomed is None and not slot.is_suspected
            found_at = [load for load, slots in enumerate(self._by_load) if slot in slots]
            assert found_at == ([slot.in_flight] if takes_queries else []), (slot, found_at)
        assert sum(map(len, self._by_load)) <= self.shared, "a slot that is not shared takes queries"
        lowest = min((load for load, slots in enumerate(self._by_load) if slots), default=self._max_in_flight)
        assert self._least == lowest, (self._least, lowest)
        assert self.size == self.connecting + self.idle + self.leased + self.shared + self.closing <= self.max_size
        assert self.size + states[EMPTY] == self.max_size, (states, self.size)
        assert len(self.surplus_since) == self._surplus(), (self.surplus_since, self._surplus())
        assert self.surplus_since == sorted(self.surplus_since), self.surplus_since
        assert not self.lane & set(self.slots), "a slot is in the pool and in the lane"
        assert all(slot.state in (FEED, CARRIER, TRAILING, RETIRED) for slot in self.lane), self.lane
        assert all(slot.state is CARRIER and slot.in_flight for slot in self.lane if slot.is_on_trial), self.lane
        assert not any(slot.is_on_trial for slot in self.slots), "a slot of the pool is on trial for the lane"
        assert all(slot.connection is None for slot in self.slots if slot.state is EMPTY), "an empty slot holds one"
        held = [slot.connection for slot in (*self.slots, *self.lane) if slot.connection is not None]
        assert len(held) == len({id(connection) for connection in held}), "a connection is in two slots"
        assert all(slot.connection is not None for slot in self.slots if slot.state in (IDLE, LEASED, SHARED, CLOSING))
        assert all(slot.doomed is None for slot in self.slots if slot.state is IDLE), "an idle slot is doomed"
        assert self.state is LedgerState.OPEN or not self.idle or self.state is LedgerState.OPENING, "idle while closed"
