"""The runtime: one opening of a pool in one event loop, until its end.

It reports to the core what callers do, and carries out its orders. Here are the clock, the timers and the callers that
wait, and no rule of the pool. What is done with connections is in the worker. The face is not known here.
"""

from __future__ import annotations

import asyncio
from asyncio import current_task, get_running_loop
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from dataclasses import replace
from enum import StrEnum
from random import random
from time import monotonic
from typing import Any, Final, Protocol
from weakref import WeakSet, ref

from .. import _fork, events
from .._core.backoff import NEVER
from .._core.census import Census
from .._core.core import Core
from .._core.orders import Order, OutageStage, Refusal, Refuse, Report, Serve
from .._core.slots import CLOSING, FEED, GONE, LEASE, LEASED, OPENING, QUERY, Need, Reason, Slot
from ..config import PoolConfig
from ..connectors import Connector
from ..errors import (
    ConnectFailed,
    FeedLaneFull,
    PoolClosed,
    PoolDeadlock,
    PoolException,
    PoolTimeout,
    TooManyWaiters,
)
from ..lease import Lease, end_lease, is_live, slot_of
from ..stats import CloseReport
from . import holders, messages
from .idle import IdleQueue
from .journal import NEEDS, Journal, log
from .worker import Worker


class Phase(StrEnum):
    """The life of a runtime."""

    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


OPEN: Final = Phase.OPEN  # reading a member from its class takes longer than the rest of a check
ENDING: Final = Phase.CLOSING

ERRORS: Final[dict[Refusal, type[PoolException]]] = {
    Refusal.TIMED_OUT: PoolTimeout,
    Refusal.DEADLOCK: PoolTimeout,  # PoolDeadlock with debug=True
    Refusal.UNREACHABLE: ConnectFailed,
    Refusal.HOPELESS: ConnectFailed,
    Refusal.TOO_MANY: TooManyWaiters,
    Refusal.LANE_FULL: FeedLaneFull,
    Refusal.CLOSED: PoolClosed,
}

_calling_back: ContextVar[object] = ContextVar("_calling_back", default=None)
"""The runtime whose on_reconnect_failed runs here, also in tasks that the callback starts."""


class Feed(Protocol):
    """A feed of ``changes()``, for the end of the pool."""

    def end(self, error: Exception) -> None:
        """It ends; its reader gets this error after the changes that have come."""


class Runtime:
    """One opening of a pool. ``pool`` refers to the face, which ``on_reconnect_failed`` is called with."""

    def __init__(self, config: PoolConfig, connector: Connector, journal: Journal, pool: ref[Any]) -> None:
        self.loop = get_running_loop()
        self.open_loop: asyncio.AbstractEventLoop | None = None  # the same; None unless callers are served
        self.phase = Phase.OPENING
        self.was_open = False
        self.is_inherited = False  # over a fork
        self.feeds: WeakSet[Feed] = WeakSet()  # these end with the pool
        self.pool = pool
        self.journal = journal
        self.config = config
        self._totals, self._has_observer = journal.totals, journal.observer is not None
        self._lease_type: type[Lease] = getattr(connector, "lease_type", Lease)
        # Every acquire asks twice, so call what asyncio's loop.time() calls, unless the loop has a clock of its own.
        self.time = monotonic if type(self.loop).time is asyncio.BaseEventLoop.time else self.loop.time
        self.worker = Worker(self.loop, self.time, config, connector, journal, self._obey)
        # Each lease asks twice whether a connection is open; see never_raises().
        is_open = connector.is_open if hasattr(connector.is_open, "never_raises") else self.worker.is_open
        has_streams = self.worker.has_streams
        self.core = Core(config, random, IdleQueue(), is_open=is_open, has_streams=has_streams)
        self.worker.core = self.core
        self._callbacks: set[asyncio.Task[Any]] = set()  # of on_reconnect_failed
        self._watchers: list[asyncio.Future[None]] = []  # of _until()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self._leak_at = NEVER  # when to look for leases that are held for too long
        self._waiting = holders.WaitingTasks()
        self._deadlock_logged_at = -1  # acquired_total at that time; if it has grown, that deadlock is over
        self._outage_since = 0.0
        self._closing_since = 0.0
        self.report = CloseReport()  # of its closing
        _fork.register(self)

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.journal.name

    @property
    def is_over(self) -> bool:
        """Whether it is closed, or belongs to the parent of a fork."""
        return self.phase is Phase.CLOSED or self.is_inherited

    # ---- opening

    async def open(self) -> None:
        """Open ``min_size`` connections. If one cannot be opened, or if cancelled, close the others and raise."""
        failures = self.journal.totals.connect_failures_total

        def has_failed() -> bool:
            return self.journal.totals.connect_failures_total > failures or self.census().is_down

        try:
            self._tick()
            await self._until(lambda: has_failed() or self.phase is not Phase.OPENING or not self.census().is_short)
        except BaseException:
            await self.close(0)
            raise
        if self.phase is not Phase.OPENING:
            raise PoolClosed(f"{self.name}: the pool was closed while init_pool() was opening it")
        if has_failed():
            failure = self.journal.last_failure
            await self.close(0)
            text = messages.could_not_open(self.config.smallest_size, self.journal.endpoint, failure)
            raise ConnectFailed(f"{self.name}: {text}") from messages.cause(failure)
        self.phase, self.was_open, self.open_loop = OPEN, True, self.loop
        self._tick()

    # ---- callers

    def lease_nowait(self, place: holders.Place) -> Lease | None:
        """A lease, if a connection is at hand and nobody waits. None: wait for it."""
        now = self.time()
        slot = self.core.take(LEASE, now)
        if slot is None:
            return None
        try:
            holder = slot.holder  # as Holder.begin(), without a call for each lease
            holder.task_ref = None if (task := current_task(self.loop)) is None else ref(task)
            holder.since, holder.place, holder.is_dropped = now, place, False
            if self._has_observer:
                self.journal.served(LEASE, slot.number, 0.0)
            else:
                self._totals.acquired_total += 1  # as served(), without a call for each lease
            return self._lease_type(self, slot, slot.connection)
        except BaseException:
            self.give_back(slot)
            raise

    def wait_for_slot(self, timeout: float | None) -> Coroutine[Any, Any, Slot]:
        """Wait in line, for up to ``timeout`` seconds, for what :meth:`make_lease` makes a lease of.

        Not a coroutine function: each caller in line would have one more coroutine.
        """
        return self.wait(LEASE, timeout)

    def make_lease(self, slot: Slot, place: holders.Place) -> Lease:
        """The lease of a slot that was waited for."""
        try:
            slot.holder.begin(current_task(self.loop), self.time(), place)
            return self._lease_type(self, slot, slot.connection)
        except BaseException:
            self.give_back(slot)
            raise

    async def lease_for_feed(self, timeout: float | None, place: holders.Place) -> Lease:
        """A lease whose connection is in the feed lane."""
        if not self.core.has_lane():
            raise self._refusal(Refusal.LANE_FULL, FEED, 0.0)
        lease = self.lease_nowait(place)
        if lease is None:
            lease = self.make_lease(await self.wait_for_slot(timeout), place)
        slot = slot_of(lease)
        is_aside = self.phase is OPEN and self.step_aside(slot)
        if not is_aside:  # the pool was closed, or another feed was quicker, while this caller waited
            end_lease(lease, "connect()")
            self.give_back(slot)
            raise self._refusal(Refusal.LANE_FULL if self.phase is OPEN else Refusal.CLOSED, FEED, 0.0)
        return lease

    def query_nowait(self) -> Slot | None:
        """A place for a query, if one is at hand and nobody waits. None: wait for it."""
        slot = self.core.take(QUERY, self.time())
        if slot is not None and self._has_observer:  # nothing is counted here
            self.journal.served(QUERY, slot.number, 0.0)
        return slot

    async def wait(self, need: Need, timeout: float | None) -> Slot:
        """Wait in line, for up to ``timeout`` seconds, for what serves this need.

        If cancelled, leaves the line. What it was given at that very moment goes to the next caller.
        """
        core, began = self.core, self.time()
        ticket: asyncio.Future[Slot | Refusal] = self.loop.create_future()
        timer: asyncio.TimerHandle | None = None
        task: asyncio.Task[Any] | None = None
        try:
            core.join(need, ticket, began)
            if core.orders or core.wake_at < self._timer_at:  # else there is nothing to obey
                self._obey()
            if not ticket.done():
                # Not asyncio.timeout(), which costs three times as much. The timer does not cancel the task: it takes
                # the ticket out of the line, so the task cannot be served and time out at once.
                if timeout is not None:
                    timer = self.loop.call_at(began + timeout, self._time_is_up, ticket)
                task = current_task(self.loop)
                self._waiting.add(task)
                if core.is_leased_out:
                    self._look_for_deadlock(ticket)
            outcome = await ticket
        except BaseException:
            if ticket.done() and not ticket.cancelled() and isinstance(served := ticket.result(), Slot):
                core.release(served, self.time(), was_used=False)
            else:
                core.leave_line(ticket, self.time())
            if core.orders or core.wake_at < self._timer_at:
                self._obey()
            self.journal.gone(need, self.time() - began)
            raise
        finally:
            waited = self.time() - began
            if timer is not None:
                timer.cancel()
            if task is not None:
                self._waiting.remove(task)
                self._totals.waited_total += 1
                self._totals.waited_seconds_total += waited
        if isinstance(outcome, Refusal):
            raise self._refusal(outcome, need, waited)
        try:
            self.journal.served(need, outcome.number, waited)
        except BaseException:
            self.release(outcome)
            raise
        return outcome

    def _time_is_up(self, ticket: asyncio.Future[Slot | Refusal]) -> None:
        # Whether it is a deadlock is asked now: if the time of several is up together, the first to leave ends it.
        self.core.expire(ticket, self.time(), is_deadlock=self._is_deadlock())
        self._obey()

    def _refusal(self, why: Refusal, need: Need, waited: float) -> PoolException:
        """The error of a caller that is not served, which is counted here."""
        journal = self.journal
        journal.tell(events.CallerRefused(self.name, NEEDS[need], waited, str(why)))
        is_late = why in (Refusal.TIMED_OUT, Refusal.DEADLOCK)  # only then the text names holders
        held = holders.describe(self._holders(), self.time()) if is_late else ""
        text = messages.refusal(
            why, need, waited, journal.endpoint, self.census(), self.config, held, journal.last_failure
        )
        kind = PoolDeadlock if why is Refusal.DEADLOCK and self.config.debug else ERRORS[why]
        error = kind(f"{self.name}: {text}")
        if isinstance(error, ConnectFailed):
            error.is_permanent = why is Refusal.HOPELESS
            error.__cause__ = messages.cause(journal.last_failure)
        return error

    # ---- the end of a use

    def release(self, slot: Slot) -> None:
        """A query or a feed on this connection has ended."""
        self.core.release(slot, self.time())
        if self.core.orders:
            self._obey()

    def give_back(self, slot: Slot, *, is_read_on: bool = False) -> None:
        """A lease of this connection has ended. ``is_read_on``: a feed on it may still be read."""
        core = self.core
        returned = self._return_of(slot) if self._has_observer and slot.state is LEASED else None
        core.release(slot, self.time(), is_read_on=is_read_on)
        if core.orders:
            self._obey()
        if returned is not None:
            self.journal.tell(returned)

    def _return_of(self, slot: Slot) -> events.LeaseReturned:
        return events.LeaseReturned(self.name, slot.number, self.time() - slot.holder.since)

    def step_aside(self, slot: Slot) -> bool:
        """This connection serves a feed from now on, outside the pool's size. False if the feed lane is full."""
        is_aside = self.core.step_aside(slot, self.time())
        self._obey()
        return is_aside

    def doubt(self, slot: Slot) -> None:
        """A request on this connection had no answer in time: check the connection."""
        self.core.doubt(slot, self.time())
        self._obey()

    def end_lease(self, lease: Lease, slot: Slot, call: str, *, is_feed: bool = False) -> bool:
        """``release()`` was called. False if the event loop, which runs in another thread, has to do it."""
        if self.is_inherited:
            raise self.unusable(call)
        if self.phase is not Phase.CLOSED and slot.state is not GONE:
            try:
                is_here = get_running_loop() is self.loop
            except RuntimeError:
                if self.loop.is_running():
                    return False
                is_here = not self.loop.is_closed()
            if not is_here:
                raise self.unusable(call)
        is_full = is_feed and slot.state is LEASED and not slot.beside and not self.core.has_lane()
        if is_full and is_live(lease):
            raise self._refusal(Refusal.LANE_FULL, FEED, 0.0)
        end_lease(lease, call)
        self.give_back(slot, is_read_on=is_feed)
        return True

    def lease_collected(self, slot: Slot) -> None:
        """A lease was dropped without release. Called in any thread, in the middle of anything."""
        if slot.state is LEASED and not self.is_inherited and not self.loop.is_closed():
            slot.holder.is_dropped = True
            self.loop.call_soon_threadsafe(self._take_back, slot)

    def _take_back(self, slot: Slot) -> None:
        if slot.state is LEASED:  # else the pool was closed meanwhile
            what = slot.holder.describe(self.time())
            log.warning("%s: a lease was dropped without release, and is taken back: %s", self.name, what)
            self.give_back(slot)

    # ---- orders

    def _obey(self) -> None:
        """Carry out what the core orders. Nothing here waits, and nothing here decides."""
        orders = self.core.orders
        if self.loop.is_closed():
            orders.clear()  # a coroutine was collected after its loop was closed
            return
        while orders:
            self._carry_out(orders.popleft())
        if self.core.wake_at < self._timer_at or self._leak_at < self._timer_at:
            self._set_timer()
        if self.phase is ENDING and not self.core.slots and not self.worker.tasks:
            self._end()
        if self._watchers:
            watchers, self._watchers = self._watchers, []
            for watcher in watchers:
                if not watcher.done():
                    watcher.set_result(None)

    def _carry_out(self, order: Order) -> None:
        match order:
            case Serve(ticket, slot):
                if ticket.done():  # an observer cancelled it just now
                    self.core.release(slot, self.time(), was_used=False)
                    return
                if slot.state is LEASED:
                    slot.holder.hand_over(self.time())
                ticket.set_result(slot)  # not the order: both would refer to each other, for the collector to end
            case Refuse(ticket, why):
                if not ticket.done():
                    ticket.set_result(why)
            case Report(stage, was_open):
                if was_open:
                    error = ConnectionResetError("a connection was lost as soon as it was open")
                    self.journal.last_failure = error
                self._report_outage(stage)
            case _:
                self.worker.carry_out(order)

    # ---- time

    def _tick(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, NEVER
        now = self.time()
        self.core.tick(now)
        self._leak_at = self._report_leaks(now)
        self._obey()

    def _set_timer(self) -> None:
        wake_at = min(self.core.wake_at, self._leak_at)
        if self.phase is not Phase.CLOSED:
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._timer_at = self.loop.call_at(wake_at, self._tick), wake_at

    def _report_leaks(self, now: float) -> float:
        """Log who holds a lease for too long. Returns when to look again."""
        threshold = self.config.leak_threshold
        if threshold is None or self.phase is not OPEN:
            return NEVER
        held = self._holders()
        for holder in holders.leaks(held, now, threshold):
            log.warning(
                "%s: a lease is held by %s; it is now in\n%s", self.name, holder.describe(now), holder.stack_now()
            )
        return min(now + threshold, holders.next_leak(held, threshold))

    def _report_outage(self, stage: OutageStage) -> None:
        if stage is OutageStage.BEGAN:
            self._outage_since = self.time()
        if self.phase is not OPEN:
            return  # init_pool() reports it
        match stage:
            case OutageStage.BEGAN:
                self.journal.tell(events.OutageBegan(self.name, self.journal.endpoint, self.journal.last_failure))
            case OutageStage.ENDED:
                seconds = self.time() - self._outage_since
                self.journal.tell(events.OutageEnded(self.name, self.journal.endpoint, seconds))
            case OutageStage.LASTS:
                lasted = self.config.reconnect_timeout
                text = messages.outage_lasts(self.journal.endpoint, lasted, self.journal.last_failure)
                log.warning("%s: %s", self.name, text)
                pool, callback = self.pool(), self.config.on_reconnect_failed
                if callback is not None and pool is not None:
                    # Closing does not wait for this task, because it may close the pool.
                    work = _call_back(self, callback, pool)
                    task = self.loop.create_task(work, name=f"{self.name}: on_reconnect_failed")
                    self._callbacks.add(task)
                    task.add_done_callback(self._called_back)

    def _called_back(self, task: asyncio.Task[None]) -> None:
        self._callbacks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: on_reconnect_failed raised", self.name, exc_info=error)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        """Wait until this is true. It is asked again each time the core was obeyed."""
        while not is_so():
            watcher = self.loop.create_future()
            self._watchers.append(watcher)
            await watcher

    # ---- holders

    def _holders(self) -> list[holders.Holder]:
        """Of leases, without those of feeds: they may last for days, and their end gives nobody a connection."""
        return [slot.holder for slot in self.core.slots if slot.state is LEASED and not slot.beside]

    def _is_deadlock(self) -> bool:
        return self.core.is_leased_out and holders.is_deadlock(self._holders(), self._waiting)

    def _look_for_deadlock(self, ticket: asyncio.Future[Slot | Refusal]) -> None:
        if not holders.is_deadlock(self._holders(), self._waiting):
            return
        acquired = self.journal.totals.acquired_total
        if self.config.debug:
            self.core.expire(ticket, self.time(), is_deadlock=True)
            self._obey()
        elif self._deadlock_logged_at != acquired:
            self._deadlock_logged_at = acquired
            held = self._holders()
            log.warning("%s: %s", self.name, messages.deadlock(len(held), holders.describe(held, self.time())))

    # ---- drain, resize, close

    async def drain(self) -> None:
        """Replace every connection. Wait until the idle ones are replaced, or until that has failed."""
        self.core.drain(self.time())
        closing = [slot for slot in self.core.slots if slot.state is CLOSING]
        self._obey()
        await self._until(lambda: all(slot.state is GONE for slot in closing))
        opening = [slot for slot in self.core.slots if slot.state is OPENING]
        await self._until(lambda: all(slot.state is not OPENING for slot in opening))
        census = self.census()
        if census.is_down and census.is_short and self.phase is OPEN:
            failure = self.journal.last_failure
            text = messages.could_not_replace(self.journal.endpoint, failure)
            raise ConnectFailed(f"{self.name}: {text}") from messages.cause(failure)

    def resize(self, config: PoolConfig) -> None:
        """The options about sizes have changed."""
        self.config = config
        self.core.resize(config, self.time())
        self._obey()

    async def close(self, timeout: float | None) -> None:
        """Close the pool. Uses have ``timeout`` seconds to end. If cancelled, the closing goes on by itself."""
        if self.phase in (Phase.OPENING, OPEN):
            self._begin_close()
        try:
            async with asyncio.timeout(timeout):
                await self._until(lambda: not self.census().in_use)
        except TimeoutError:
            self._end_uses()
        await self._until(lambda: self.phase is Phase.CLOSED)

    def _begin_close(self) -> None:
        now, census = self.time(), self.census()
        self.phase, self.open_loop, self._closing_since = Phase.CLOSING, None, now
        returned = [self._return_of(slot) for slot in self.core.slots if slot.state is LEASED and slot.beside]
        self.report = CloseReport(
            leases_waited_for=census.leased, queries_waited_for=census.queries, feeds_ended=self.core.close(now)
        )
        if _calling_back.get() is not self:  # else it is the callback itself that closes the pool
            for task in self._callbacks:
                task.cancel()
        ended, self.feeds = list(self.feeds), WeakSet()
        for feed in ended:
            try:
                feed.end(PoolClosed(f"{self.name}: the pool was closed while a feed was open"))
            except Exception:
                log.exception("%s: a feed could not be ended", self.name)
        self._obey()
        for event in returned:
            self.journal.tell(event)

    def _end_uses(self) -> None:
        if not self.census().in_use:
            return  # another close() has ended them
        census, returned = self.census(), [self._return_of(s) for s in self.core.slots if s.state is LEASED]
        self.report = replace(self.report, leases_aborted=census.leased, queries_aborted=census.queries)
        self.core.end_uses(self.time())
        self._obey()
        for event in returned:
            self.journal.tell(event)

    def _end(self) -> None:
        """All connections are gone."""
        self.phase = Phase.CLOSED
        self.report = replace(self.report, seconds=self.time() - self._closing_since)
        if self._timer is not None:
            self._timer.cancel()

    # ---- ends without close()

    def disown(self) -> None:
        """In a child of fork(): everything belongs to the parent."""
        if self.phase is not Phase.CLOSED:
            self.is_inherited = True
            self.open_loop = None
            self.core.forget()  # a lease that ends here gives nothing back

    def abandon(self) -> None:
        """The pool was collected, or its event loop was closed: end what is left, without waiting."""
        slots = [slot for slot in self.core.slots if slot.connection is not None]
        self.core.forget()
        self.phase, self.open_loop = Phase.CLOSED, None
        if self._timer is not None:
            self._timer.cancel()
        for slot in slots:
            self.worker.abort(slot.connection)
            self.worker.tell_closed(slot, Reason.POOL_CLOSED, was_aborted=True)
        if not self.loop.is_closed():
            for task in self.worker.tasks | self._callbacks:
                task.cancel()

    # ---- what the shell asks

    def census(self) -> Census:
        """The counts now."""
        return self.core.census()

    def uses(self) -> tuple[int, int]:
        """How many leases are out, feeds included, and how many queries are under way."""
        return sum(slot.state is LEASED for slot in self.core.slots), self.census().queries

    def unusable(self, call: str) -> PoolException:
        """Why a call cannot be served now."""
        if self.is_inherited:
            return PoolException(f"{self.name}: {messages.inherited(call)}")
        if self.phase is OPEN:
            return PoolException(f"{self.name}: {messages.other_loop(call)}")
        phase = self.phase if self.was_open or self.phase is not Phase.CLOSED else None
        return PoolClosed(f"{self.name}: {messages.not_open(call, phase)}")


async def _call_back(runtime: Runtime, callback: Callable[[Any], object], pool: Any) -> None:
    _calling_back.set(runtime)
    result = callback(pool)
    if isinstance(result, Awaitable):
        await result
