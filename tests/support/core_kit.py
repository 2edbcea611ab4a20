"""A core, and a shell that a test moves by hand: the test states a fact, and reads the orders that follow.

:class:`Shell` also keeps its own books: who waits, who uses what, what is under way, what was opened and closed. After
each fact it compares them with the core, so that every test of the core is a test of its promises too. What it
compares is the rule, written down a second time in the plainest way; it never asks the core why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

from async_repool._core.core import CROWDED, Core
from async_repool._core.orders import AwaitReaders, Close, Open, Order, OutageStage, Prepare, Refuse, Report, Serve
from async_repool._core.servers import PROBATION_SECONDS
from async_repool._core.slots import (
    CLOSING,
    FEED,
    IDLE,
    LEASE,
    LEASED,
    OPENING,
    PREPARING,
    QUERY,
    READ_ON,
    SHARED,
    Need,
    Slot,
    State,
)
from async_repool.config import PoolConfig

__all__ = ["FEED", "LEASE", "QUERY", "Connection", "Lifo", "Shell", "Ticket", "Told", "hook"]

NEVER = float("inf")

Told: TypeAlias = tuple[Any, ...]
"""One order, easy to compare: ``("open", 1)``, ``("serve", "a", 1)``, ``("close", 1, "expired")``."""


async def hook(connection: Any) -> None:
    """Stands for any ``check`` or ``reset``. It is never called."""


class Constant:
    """A random function that is none."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self) -> float:
        return self.value


class Lifo(list[Slot]):
    """The plainest queue that is last in, first out."""

    put_nowait = list.append
    get_nowait = list.pop
    qsize = list.__len__


class Connection:
    """A connection of the scripted peer, and what the shell knows of it."""

    def __init__(self, name: int, now: float) -> None:
        self.name = name
        self.is_dead = False  # is_open() is false
        self.is_reported = False  # the core was told that it is lost
        self.is_read = False  # has_streams() is true
        self.is_drained = False  # it was there when the pool was drained
        self.is_dirty = False  # was leased, and not reset since
        self.is_suspect = False  # another one was lost since it was last checked
        self.is_grace_over = False  # its readers have had their time
        self.is_closed = False
        self.heard_at = now  # when it last showed that its peer is alive
        self.checked_at = -NEVER  # the last check, if it was not used since

    def __repr__(self) -> str:
        return f"<connection {self.name}>"


class Ticket:
    """One caller's place in the line."""

    def __init__(self, name: str, need: Need) -> None:
        self.name, self.need = name, need
        self.is_done = False

    def done(self) -> bool:
        return self.is_done

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Use:
    """What a caller has: a lease, or a place for a query or a feed."""

    def __init__(self, name: str, need: Need, slot: Slot) -> None:
        self.name, self.need, self.slot = name, need, slot
        self.is_over = False  # the pool has ended it; the caller does not know yet


def is_open(connection: Connection) -> bool:
    return not connection.is_dead and not connection.is_closed


def has_streams(connection: Connection) -> bool:
    return connection.is_read


class Shell:
    """Each method states one fact to the core, and returns the orders that follow.

    The pool begins with ``min_size`` open connections, numbered from 1, unless ``is_started`` is false. Connections
    live for ever and are not checked after a time, unless the options say so.
    """

    def __init__(
        self,
        *,
        is_started: bool = True,
        random: float | Callable[[], float] = 0.0,
        queue: Any = None,
        **options: Any,
    ) -> None:
        self.config = PoolConfig(**{"check_idle": None, "connection_ttl": None, "max_idle": None, **options})
        self.now = 0.0
        self.waiting: dict[str, Ticket] = {}  # oldest first
        self.uses: dict[str, Use] = {}
        self.work: dict[Slot, Order] = {}  # what is under way with each connection
        self._drained: set[Slot] = set()  # those that were opening when the pool was drained
        self.opened_total = self.closed_total = 0
        self.is_down = self.is_hopeless = False  # the last opening failed
        self.failed_at = -NEVER
        self.up_at = -NEVER  # when an opening succeeded after one that had failed
        self.outage: OutageStage | None = None  # what was reported of it last; None if it has ended
        self.least_pause = 0.1 * random if isinstance(random, float) else 0.0  # after a failed opening
        self._last_size = 0
        self.is_closing = False
        self.is_verified = True  # after each fact
        self.core = Core(
            self.config,
            random if callable(random) else Constant(random),
            Lifo() if queue is None else queue,
            is_open=is_open,
            has_streams=has_streams,
        )
        if is_started:
            for _, number in self.tick():
                self.opened(number)

    # ---- facts: callers

    def ask(self, name: str, need: Need = LEASE) -> list[Told]:
        """A caller comes. It waits, if it is not served in these orders."""
        assert name not in self.waiting, name
        assert name not in self.uses, name
        somebody_waits = any(not ticket.is_done for ticket in self.waiting.values())
        slot = None if self.is_closing else self.core.take(need, self.now)
        assert not self.core.orders, "take() orders nothing"
        if slot is not None:
            assert not somebody_waits, "a newcomer was served while somebody waits"
            self._begin_use(Ticket(name, need), slot)
            self.verify()
            return [("serve", name, slot.number)]
        ticket = self.waiting[name] = Ticket(name, need)
        self.core.join(need, ticket, self.now)
        return self._obey()

    def cancel(self, name: str) -> list[Told]:
        """A caller was cancelled. It leaves the line a little later."""
        self.waiting[name].is_done = True
        return []

    def leave(self, name: str) -> list[Told]:
        """A caller leaves the line, cancelled or not."""
        ticket = self.waiting.pop(name)
        self.core.leave_line(ticket, self.now)
        ticket.is_done = True
        return self._obey()

    def expire(self, name: str, *, is_deadlock: bool = False) -> list[Told]:
        self.core.expire(self.waiting[name], self.now, is_deadlock=is_deadlock)
        return self._obey()

    def release(self, name: str, *, was_used: bool = True, is_read_on: bool = False) -> list[Told]:
        """A caller gives back what it has. ``was_used=False``: it never saw it. ``is_read_on``: its feed is read on."""
        use = self.uses.pop(name)
        if not use.is_over and was_used:
            connection = use.slot.connection
            connection.heard_at, connection.checked_at = self.now, -NEVER
            connection.is_dirty |= use.need is LEASE and self.config.reset is not None
        self.core.release(use.slot, self.now, was_used=was_used, is_read_on=is_read_on)
        told = self._obey()
        assert not use.is_over or not told, (use.name, told)
        return told

    def step_aside(self, name: str) -> list[Told] | None:
        """What a caller has serves a feed from now on. None if the lane is full."""
        slot = self.uses[name].slot
        is_aside = self.core.step_aside(slot, self.now)
        told = self._obey()
        assert not is_aside or slot.beside, f"{slot} serves a feed, and counts against the size"
        return told if is_aside else None

    def doubt(self, name: str) -> list[Told]:
        """A request of this caller had no answer in time."""
        self.core.doubt(self.uses[name].slot, self.now)
        return self._obey()

    # ---- facts: connections

    def opened(self, number: int) -> list[Told]:
        order = self._end_work(number, Open)
        self.opened_total += 1
        if self.core.census().is_down:
            self.up_at = self.now
        self.is_down = False
        connection = Connection(number, self.now)
        connection.is_drained = order.slot in self._drained
        self._drained.discard(order.slot)
        self.core.opened(order.slot, connection, self.now)
        told = self._obey()
        is_well = self.is_closing or connection.is_dead or not self.core.census().is_down
        assert is_well, "the end of an outage was not noticed"
        return told

    def open_failed(self, number: int, *, is_hopeless: bool = False) -> list[Told]:
        order = self._end_work(number, Open)
        if not self.is_closing:
            self.is_down, self.is_hopeless, self.failed_at = True, is_hopeless, self.now
        self.core.open_failed(order.slot, self.now, is_hopeless=is_hopeless)
        return self._obey()

    def prepared(self, number: int, *, is_fit: bool = True) -> list[Told]:
        """The check or reset of this connection is over."""
        order = self._end_work(number, Prepare)
        connection = order.slot.connection
        is_fit = is_fit and not connection.is_dead
        if is_fit:
            connection.heard_at = self.now
            connection.is_suspect = False
            if order.is_reset:
                connection.is_dirty = False
            else:
                connection.checked_at = self.now
        self.core.prepared(order.slot, self.now, is_fit=is_fit)
        return self._obey()

    def die(self, number: int) -> list[Told]:
        """A connection dies, and nobody has noticed yet."""
        self.slot(number).connection.is_dead = True
        return []

    def lost(self, number: int) -> list[Told]:
        """A connection has died, and the core is told."""
        slot = self.slot(number)
        slot.connection.is_dead = slot.connection.is_reported = True
        if slot.state is not CLOSING:
            for other in self.core.slots:
                if other.state is IDLE:
                    other.connection.is_suspect = True
        self.core.lost(slot, self.now)
        return self._obey()

    def read(self, name: str) -> list[Told]:
        """A caller leaves a cursor behind on what it has."""
        self.uses[name].slot.connection.is_read = True
        return []

    def read_out(self, number: int, *, is_time_over: bool = False) -> list[Told]:
        """The cursors of a connection that is read on have ended; or the time that they had."""
        order = self._end_work(number, AwaitReaders)
        order.slot.connection.is_read &= is_time_over
        order.slot.connection.is_grace_over = is_time_over
        self.core.read_out(order.slot, self.now)
        return self._obey()

    def closed(self, number: int) -> list[Told]:
        order = self._end_work(number, Close)
        self._close(order.slot)
        self.core.closed(order.slot, self.now)
        return self._obey()

    # ---- facts: the pool

    def wait(self, seconds: float) -> list[Told]:
        """Time passes. The core is told if it has asked for that."""
        self.now += seconds
        return self.tick() if self.core.wake_at <= self.now else []

    def wait_unnoticed(self, seconds: float) -> list[Told]:
        """Time passes, and the timer has not run yet."""
        self.now += seconds
        return []

    def tick(self) -> list[Told]:
        self.core.tick(self.now)
        return self._obey()

    def drain(self) -> list[Told]:
        for slot in self.core.slots:
            if slot.connection is None:
                self._drained.add(slot)
            else:
                slot.connection.is_drained = True
        self.core.drain(self.now)
        return self._obey()

    def resize(self, **options: Any) -> list[Told]:
        self.config = dataclasses.replace(self.config, **options)
        self.core.resize(self.config, self.now)
        return self._obey()

    def close(self) -> list[Told]:
        self.is_closing = True
        lane = [slot for slot in self.core.slots if slot.in_lane and slot.state is not CLOSING]
        expected = sum(1 if slot.state is READ_ON else len(self._uses_of(slot)) for slot in lane)
        feeds = self.core.close(self.now)
        assert feeds == expected, f"{expected} feeds have ended, not {feeds}"
        return self._obey()

    def end_uses(self) -> list[Told]:
        self.core.end_uses(self.now)
        return self._obey()

    # ---- what a test asks

    def slot(self, number: int) -> Slot:
        return next(slot for slot in self.core.slots if slot.number == number)

    def states(self) -> dict[int, str]:
        """Each connection's state, by its number."""
        return {slot.number: State(slot.state).name.lower().replace("_", " ") for slot in self.core.slots}

    def loads(self) -> dict[int, int]:
        """How many requests each shared connection carries, by its number."""
        return {slot.number: slot.load for slot in self.core.slots if slot.state is SHARED}

    def line(self) -> list[str]:
        """Who waits, oldest first."""
        return list(self.waiting)

    # ---- carrying out orders

    def _obey(self) -> list[Told]:
        told = []
        orders = self.core.orders
        while orders:
            told.append(self._carry_out(orders.popleft()))
        if self.is_verified:
            self.verify()
        return told

    def _carry_out(self, order: Order) -> Told:
        if isinstance(order, Serve):
            self._begin_use(self.waiting[order.ticket.name], order.slot)
            return ("serve", order.ticket.name, order.slot.number)
        if isinstance(order, Refuse):
            assert not order.ticket.is_done, f"{order.ticket} was cancelled before it was refused"
            del self.waiting[order.ticket.name]
            order.ticket.is_done = True
            return ("refuse", order.ticket.name, str(order.why))
        if isinstance(order, Report):
            self._note_report(order.stage)
            return ("report", str(order.stage))
        slot = order.slot
        if isinstance(order, Close):
            return self._begin_close(order)
        assert slot not in self.work, f"{order} while {self.work[slot]} is under way"
        assert not self.is_closing or isinstance(order, AwaitReaders), f"{order} while the pool closes"
        self.work[slot] = order
        if isinstance(order, Open):
            self._verify_opening()
            return ("open", slot.number)
        if isinstance(order, Prepare):
            return ("reset" if order.is_reset else "check", slot.number)
        return ("await readers", slot.number, order.grace)

    def _note_report(self, stage: OutageStage) -> None:
        is_first, is_well = self.outage is None, not self.core.census().is_down
        assert (stage is OutageStage.BEGAN) is is_first, f"an outage {stage} after {self.outage}"
        assert stage is not OutageStage.LASTS or self.outage is OutageStage.BEGAN, "an outage lasts twice"
        is_over = is_well and self.now >= self.up_at + PROBATION_SECONDS
        assert stage is not OutageStage.ENDED or is_over, "an outage has ended too early"
        self.outage = None if stage is OutageStage.ENDED else stage

    def _begin_close(self, order: Close) -> Told:
        slot = order.slot
        before = self.work.get(slot)
        for use in self._uses_of(slot):
            use.is_over = True
        if order.politely:
            assert not isinstance(before, (Open, Close)), f"{order} while {before} is under way"
            is_unread = not slot.connection.is_read or slot.connection.is_grace_over
            assert is_unread or self.is_closing, f"{slot} is closed while it is read"
            self.work[slot] = order
            return ("close", slot.number, str(order.reason))
        if not isinstance(before, Open):  # an opening that is aborted may still succeed in the same moment
            self.work.pop(slot, None)
        if slot.connection is not None:
            self._close(slot)
        return ("abort", slot.number, str(order.reason))

    def _close(self, slot: Slot) -> None:
        assert not slot.connection.is_closed, f"{slot} is closed twice"
        slot.connection.is_closed = True
        self.closed_total += 1

    def _end_work(self, number: int, kind: type[Any]) -> Any:
        order = next(order for order in self.work.values() if order.slot.number == number)  # type: ignore[union-attr]
        assert isinstance(order, kind), order
        del self.work[order.slot]
        return order

    def _begin_use(self, ticket: Ticket, slot: Slot) -> None:
        """Whether this caller may have this connection now."""
        name, need = ticket.name, ticket.need
        connection, others = slot.connection, self._uses_of(slot)
        assert not self.is_closing, f"{name} is served while the pool closes"
        assert not ticket.is_done, f"{name} was cancelled before it was served"
        assert not connection.is_closed, f"{name} is served by a closed connection"
        assert not connection.is_dead, f"{name} is served by a dead connection"
        assert not connection.is_drained, f"{name} is served by a drained connection"
        assert slot.doom is None, f"{name} is served by {slot}"
        assert slot not in self.work, f"{name} is served by a connection with {self.work[slot]} under way"
        assert all(use.need is need for use in others), f"{name} shares {slot} with others"
        assert not others or need is not LEASE, f"{name} leases a connection that is in use"
        assert need is not QUERY or len(others) < self.config.max_in_flight, f"{slot} carries too many"
        joins_feed = need is FEED and others
        assert joins_feed or self.now < slot.expires_at, f"{name} is served by an expired connection"
        if not others:
            assert not connection.is_suspect, f"{name} is served without a check though another one was lost"
            assert not connection.is_dirty, f"{name} is served by a connection that was not reset"
            if self.config.check is not None:
                assert connection.checked_at == self.now, f"{name} is served without a check"
            elif self.config.check_idle:
                assert self.now - connection.heard_at <= self.config.check_idle, f"{name} is served without a check"
        if name in self.waiting:
            passed = FEED if need is not FEED and self._is_lane_full() else None
            older = [other for other in self.waiting.values() if not other.is_done and other.need is not passed]
            assert joins_feed or older[0] is ticket, f"{name} overtakes {older[0]}"
            del self.waiting[name]
        ticket.is_done = True
        self.uses[name] = Use(name, need, slot)

    def _uses_of(self, slot: Slot) -> list[Use]:
        return [use for use in self.uses.values() if use.slot is slot and not use.is_over]

    def _is_lane_full(self) -> bool:
        """Then feeds that wait need no connection of the size, and others may overtake them."""
        core = self.core
        staying = [slot for slot in core.slots if slot.doom is None and slot.state is not CLOSING]
        lane = [
            slot
            for slot in staying
            if slot.beside
            or any(use.need is FEED for use in self._uses_of(slot))
            or (slot.is_doubted and slot.shares is core._feeds)  # its feeds may have ended
        ]
        return len(lane) >= self.config.feed_limit

    def _verify_opening(self) -> None:
        """Whether the connection that has just been ordered is needed, and may be opened now."""
        assert self.core.slots.size <= self.config.pool_size, "one too many is opened"
        opening = sum(isinstance(order, Open) for order in self.work.values())
        inside = self.core.slots.inside
        missing = self.config.smallest_size - (self.core.slots.size - inside[CLOSING] - inside[OPENING])
        blocked = FEED if self._is_lane_full() else None
        waiting = [ticket for ticket in self.waiting.values() if ticket.need is not blocked]
        crowded = [slot for slot in self.core.slots if slot.shares is self.core._queries and slot.load >= CROWDED]
        assert opening <= max(len(waiting), missing, len(crowded) > 0), f"{opening} are opened for {waiting}"
        if self.is_down:
            assert opening == 1, "in an outage one opening at a time is tried"
            is_late = self.now >= self.failed_at + self.least_pause
            assert is_late or (self.is_hopeless and self.waiting), "in an outage it is tried without a pause"

    # ---- what holds after each fact

    def verify(self) -> None:
        """Assert that the core believes what is true, and that nobody waits beside what could serve him."""
        core = self.core
        core.check()
        for slot in core.slots:
            work, uses = self.work.get(slot), self._uses_of(slot)
            expected: type[Any] | None = WORK.get(slot.state)
            if slot.state is SHARED and slot.is_doubted:
                expected = Prepare
            assert type(work) is (expected or type(None)), f"{slot} has {work} under way"
            if slot.state is SHARED:
                assert slot.load == len(uses), f"{slot} carries {len(uses)}"
            else:
                assert len(uses) == (slot.state is LEASED), f"{slot} is used by {len(uses)}"
            assert slot.connection is None or not slot.connection.is_closed, f"{slot} was closed"
        for slot, work in self.work.items():
            assert slot in list(core.slots) or isinstance(work, Open), f"{work} of nothing is under way"
        assert core.slots.size <= max(self._last_size, self.config.pool_size), "the pool has grown above its size"
        self._last_size = core.slots.size
        if self.is_closing:
            assert not core.slots.inside[OPENING], "a closing pool opens connections"
            waiting = [ticket for ticket in self.waiting.values() if not ticket.is_done]
            assert not waiting, f"{waiting} wait for a closing pool"
            return
        is_down = core.census().is_down
        assert is_down or not self.is_down, "an outage was not noticed"
        assert self.outage is not None or not is_down, "an outage was not reported"
        is_asked = core.wake_at <= self.up_at + PROBATION_SECONDS
        assert is_down or self.outage is None or is_asked, "the end of an outage will not be reported"
        staying = sum(not (slot.beside or slot.doom or slot.state is CLOSING) for slot in core.slots)
        assert staying <= self.config.pool_size or not core.slots.inside[IDLE], "one that is too many stays idle"
        live = core.slots.size - core.slots.inside[CLOSING]
        if live < self.config.smallest_size and core.slots.size < self.config.pool_size:
            assert core.census().is_down, "fewer than min_size are open"
            assert core.wake_at < NEVER or core.slots.inside[OPENING], "nobody opens min_size after an outage"
        if self.waiting and not any(ticket.is_done for ticket in self.waiting.values()):
            self._verify_line()

    def _verify_line(self) -> None:
        """Only for the caller who has waited longest: the others must not overtake it. And for every feed."""
        core = self.core
        inside = core.slots.inside
        feeds = [ticket for ticket in self.waiting.values() if ticket.need is FEED]
        blocked = FEED if self._is_lane_full() else None
        doubted = [slot for slot in core.slots if slot.is_doubted and slot.doom is None]
        assert not feeds or not blocked or doubted, f"{feeds} wait for a lane that is full"
        first = next((ticket for ticket in self.waiting.values() if ticket.need is not blocked), None)
        for slot in core.slots:
            if slot.state is not SHARED or not slot.takes_more or slot.connection.is_dead:
                continue
            carried = self._uses_of(slot)[0].need
            if carried is FEED:
                assert not feeds, f"{feeds} wait beside {slot}"
            elif first is not None and first.need is QUERY and self.now < slot.expires_at:
                assert slot.load >= self.config.max_in_flight, f"{first} waits beside {slot}"
        if first is None:
            return
        fit = [slot for slot in core.slots if slot.state is IDLE and self._is_fit(slot)]
        assert not fit, f"{first} waits beside {fit}"
        assert not inside[IDLE] or inside[PREPARING], f"{first} waits beside an idle connection"
        if core.slots.size < self.config.pool_size and not inside[OPENING] and not inside[PREPARING]:
            assert core.census().is_down, f"{first} waits, and no connection is opened"
            assert core.wake_at < NEVER, f"{first} waits, and nobody will try again"

    def _is_fit(self, slot: Slot) -> bool:
        """Whether this one, which is idle, may be used without a check."""
        connection = slot.connection
        if connection.is_dead or self.now >= slot.expires_at:
            return False
        if self.config.check is not None:
            return bool(connection.checked_at == self.now)
        return not self.config.check_idle or self.now - connection.heard_at <= self.config.check_idle


WORK: dict[Any, type[Any]] = {OPENING: Open, PREPARING: Prepare, READ_ON: AwaitReaders, CLOSING: Close}
"""What is under way with a connection in this state."""
