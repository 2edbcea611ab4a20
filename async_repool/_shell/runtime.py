"""The runtime: one opening of a pool in one event loop, until its end.

It tells the core what callers do, and carries out what the core orders: here are the one timer, the real clock and
those who wait, and no rule of the pool. What is done with connections is the worker's. It knows nothing of the face.
"""

from __future__ import annotations

import asyncio
from asyncio import current_task, get_running_loop
from collections.abc import Awaitable, Callable
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
from .._core.slots import CLOSING, GONE, LEASE, LEASED, PREPARING, QUERY, READ_ON, SHARED, Need, Slot
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
from ..lease import Lease, end_lease
from ..stats import CloseReport
from . import holders, messages
from .journal import NEEDS, Journal, log
from .worker import Worker


class Phase(StrEnum):
    """The life of a runtime."""

    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


OPEN: Final = Phase.OPEN

IN_USE: Final = frozenset({PREPARING, LEASED, SHARED, READ_ON})
"""The states of connections that closing waits for."""


class Feed(Protocol):
    """A feed of ``changes()``, for the end of the pool."""

    def end(self, error: Exception) -> None:
        """It ends; its reader gets this error after the changes that have come."""


class Runtime:
    """One opening of a pool. ``pool`` gives the face, if it still lives: for the callback of outages."""

    def __init__(self, config: PoolConfig, connector: Connector, journal: Journal, pool: ref[Any]) -> None:
        self.loop = get_running_loop()
        self.open_loop: asyncio.AbstractEventLoop | None = None  # the same, while callers are served
        self.phase = Phase.OPENING
        self.was_open = False
        self.is_inherited = False  # over a fork
        self.feeds: WeakSet[Feed] = WeakSet()  # that are to end with the pool
        self.pool = pool
        self.journal = journal
        self.config = config
        self._lease_type: type[Lease] = getattr(connector, "lease_type", Lease)
        # What loop.time() calls, unless the loop has a clock of its own: every acquire asks twice.
        self.time = monotonic if type(self.loop).time is asyncio.BaseEventLoop.time else self.loop.time
        self.worker = Worker(self.loop, self.time, config, connector, journal, self._obey)
        is_open, has_streams = self.worker.is_open, self.worker.has_streams
        self.core = Core(config, random, asyncio.LifoQueue(), is_open=is_open, has_streams=has_streams)
        self.worker.core = self.core
        self._callbacks: set[asyncio.Task[Any]] = set()  # of on_reconnect_failed
        self._watchers: list[asyncio.Future[None]] = []  # of those who wait for a change of connections
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self._leak_at = NEVER  # when to look for leases that are held for too long
        self._waiting = holders.WaitingTasks()
        self._deadlock_logged_at = -1  # leases that had been acquired by then: one more, and it is over
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
        """Whether nothing here has to be ended any more."""
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

    def lease_nowait(self, place: holders.Place) -> Slot | None:
        """A lease, if a connection is at hand and nobody waits. None: wait for it."""
        now = self.time()
        slot = self.core.take(LEASE, now)
        if slot is not None:
            slot.holder.begin(current_task(self.loop), now, place)
            self.journal.served(LEASE, slot.number, 0.0)
        return slot

    async def wait_for_lease(self, timeout: float | None, place: holders.Place) -> Slot:
        """A lease, after waiting in line for up to ``timeout`` seconds."""
        slot = await self.wait(LEASE, timeout)
        slot.holder.begin(current_task(self.loop), self.time(), place)
        return slot

    async def lease_for_feed(self, timeout: float | None, place: holders.Place) -> Slot:
        """A lease whose connection is in the feed lane."""
        if not self.core.has_lane():
            raise self._lane_full()
        slot = self.lease_nowait(place) or await self.wait_for_lease(timeout, place)
        is_aside = self.phase is OPEN and self.step_aside(slot)
        if not is_aside:  # the pool was closed, or another feed was quicker, while this caller waited
            self.give_back(slot)
            raise self._closed_meanwhile() if self.phase is not OPEN else self._lane_full()
        return slot

    def make_lease(self, slot: Slot) -> Lease:
        """What the user gets."""
        return self._lease_type(self, slot, slot.connection)

    def query_nowait(self) -> Slot | None:
        """A place for a query, if one is at hand and nobody waits. None: wait for it."""
        slot = self.core.take(QUERY, self.time())
        if slot is not None:
            self.journal.served(QUERY, slot.number, 0.0)
        return slot

    async def wait(self, need: Need, timeout: float | None) -> Slot:
        """Wait in line, for up to ``timeout`` seconds, for what serves this need.

        If cancelled, leaves the line; what it was given at that very moment goes to the next caller.
        """
        core, began = self.core, self.time()
        ticket: asyncio.Future[Serve | Refuse] = self.loop.create_future()
        core.join(need, ticket, began)
        self._obey()
        timer: asyncio.TimerHandle | None = None
        task = current_task(self.loop)
        has_to_wait = not ticket.done()
        if has_to_wait:
            # Not asyncio.timeout(), which costs three times as much. The timer does not cancel the task, it takes the
            # ticket out of the line, so there is nothing to win at the last moment.
            if timeout is not None:
                timer = self.loop.call_at(began + timeout, self._time_is_up, ticket)
            self._waiting.add(task)
            if core.is_leased_out:
                self._look_for_deadlock(ticket)
        try:
            outcome = await ticket
        except BaseException:
            if ticket.done() and not ticket.cancelled() and isinstance(served := ticket.result(), Serve):
                core.release(served.slot, self.time(), was_used=False)
            else:
                core.leave_line(ticket, self.time())
            self._obey()
            self.journal.tell(events.CallerGone(self.name, NEEDS[need], self.time() - began))
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if has_to_wait:
                self._waiting.remove(task)
                self.journal.waited(self.time() - began)
        if isinstance(outcome, Serve):
            self.journal.served(need, outcome.slot.number, self.time() - began)
            return outcome.slot
        raise self._refusal(outcome.why, need, self.time() - began)

    def _time_is_up(self, ticket: asyncio.Future[Serve | Refuse]) -> None:
        # Whether it is a deadlock is asked now: if the time of several is up together, the first to leave ends it.
        self.core.expire(ticket, self.time(), is_deadlock=self._is_deadlock())
        self._obey()

    def _refusal(self, why: Refusal, need: Need, waited: float) -> PoolException:
        """What a caller is told that is not served."""
        self.journal.tell(events.CallerRefused(self.name, NEEDS[need], waited, str(why)))
        failure = self.journal.last_failure
        what = f"{self.name}: {messages.asked(need, self.journal.endpoint, waited)}"
        error: PoolException
        match why:
            case Refusal.UNREACHABLE | Refusal.HOPELESS:
                text = messages.unreachable(what, self.census(), failure)
                error = ConnectFailed(text, is_permanent=why is Refusal.HOPELESS)
                error.__cause__ = messages.cause(failure)
            case Refusal.TIMED_OUT | Refusal.DEADLOCK if why is Refusal.TIMED_OUT or not self.config.debug:
                held = holders.describe(self._holders(), self.time())
                is_deadlock = why is Refusal.DEADLOCK
                error = PoolTimeout(messages.timed_out(what, self.census(), held, failure, is_deadlock=is_deadlock))
            case Refusal.DEADLOCK:
                error = PoolDeadlock(f"{self.name}: {self._describe_deadlock()}")
            case Refusal.TOO_MANY:
                error = TooManyWaiters(
                    f"{self.name}: {messages.too_many(need, self.config.max_waiting, self.census())}"
                )
            case Refusal.LANE_FULL:
                error = self._lane_full()
            case Refusal.CLOSED:
                error = self._closed_meanwhile()
        return error

    def _lane_full(self) -> PoolException:
        return FeedLaneFull(f"{self.name}: {messages.lane_full(self.config.feed_limit)}")

    def _closed_meanwhile(self) -> PoolException:
        return PoolClosed(f"{self.name}: {messages.closed_meanwhile()}")

    # ---- the end of a use

    def release(self, slot: Slot) -> None:
        """A query or a feed on this connection has ended."""
        self.core.release(slot, self.time())
        if self.core.orders:
            self._obey()

    def give_back(self, slot: Slot, *, is_read_on: bool = False) -> None:
        """A lease of this connection has ended. ``is_read_on``: a feed on it may still be read."""
        now = self.time()
        if self.journal.observer is not None and slot.state is LEASED:
            self.journal.tell(events.LeaseReturned(self.name, slot.number, now - slot.holder.since))
        self.core.release(slot, now, is_read_on=is_read_on)
        if self.core.orders:
            self._obey()

    def step_aside(self, slot: Slot) -> bool:
        """This connection serves a feed from now on, outside the pool's size. False if the feed lane is full."""
        is_aside = self.core.step_aside(slot, self.time())
        self._obey()
        return is_aside

    def doubt(self, slot: Slot) -> None:
        """A request on this connection had no answer in time: is it dead?"""
        self.core.doubt(slot, self.time())
        self._obey()

    def end_lease(self, lease: Lease, slot: Slot, call: str, *, is_feed: bool = False) -> bool:
        """``release()`` was called. False if that has to be done by the event loop, which runs in another thread."""
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
        if is_feed and slot.state is LEASED and not slot.beside and not self.core.has_lane():
            raise self._lane_full()
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
        while orders:
            self._carry_out(orders.popleft())
        self._set_timer()
        if self.phase is Phase.CLOSING and not self.core.slots and not self.worker.tasks:
            self._end()
        if self._watchers:
            watchers, self._watchers = self._watchers, []
            for watcher in watchers:
                if not watcher.done():
                    watcher.set_result(None)

    def _carry_out(self, order: Order) -> None:
        match order:
            case Serve(ticket, slot):
                if slot.state is LEASED:
                    slot.holder.hand_over(self.time())
                ticket.set_result(order)
            case Refuse(ticket):
                ticket.set_result(order)
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
        if wake_at < self._timer_at and self.phase is not Phase.CLOSED:
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
                    # Not one of the tasks that closing waits for: it may close the pool.
                    task = self.loop.create_task(_call_back(callback, pool), name=f"{self.name}: on_reconnect_failed")
                    self._callbacks.add(task)
                    task.add_done_callback(self._called_back)

    def _called_back(self, task: asyncio.Task[None]) -> None:
        self._callbacks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: on_reconnect_failed raised", self.name, exc_info=error)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        """Wait until this is so; it is asked again after each fact about connections."""
        while not is_so():
            watcher = self.loop.create_future()
            self._watchers.append(watcher)
            await watcher

    # ---- holders

    def _holders(self) -> list[holders.Holder]:
        """Of leases, those of feeds aside, which may last for days and whose end gives nobody a connection."""
        return [slot.holder for slot in self.core.slots if slot.state is LEASED and not slot.beside]

    def _is_deadlock(self) -> bool:
        return self.core.is_leased_out and holders.is_deadlock(self._holders(), self._waiting)

    def _describe_deadlock(self) -> str:
        held = self._holders()
        return messages.deadlock(len(held), holders.describe(held, self.time()))

    def _look_for_deadlock(self, ticket: asyncio.Future[Serve | Refuse]) -> None:
        if not self._is_deadlock():
            return
        acquired = self.journal.totals.acquired_total
        if self.config.debug:
            self.core.expire(ticket, self.time(), is_deadlock=True)
            self._obey()
        elif self._deadlock_logged_at != acquired:
            self._deadlock_logged_at = acquired
            log.warning("%s: %s", self.name, self._describe_deadlock())

    # ---- drain, resize, close

    async def drain(self) -> None:
        """Replace every connection; wait until the idle ones are replaced, or cannot be."""
        self.core.drain(self.time())
        closing = [slot for slot in self.core.slots if slot.state is CLOSING]
        self._obey()
        await self._until(lambda: all(slot.state is GONE for slot in closing))
        await self._until(lambda: not self.census().opening)
        census = self.census()
        if census.is_down and census.is_short and self.phase is OPEN:
            failure = self.journal.last_failure
            raise ConnectFailed(
                f"{self.name}: {messages.could_not_replace(self.journal.endpoint, failure)}"
            ) from messages.cause(failure)

    def resize(self, config: PoolConfig) -> None:
        """The options about sizes have changed."""
        self.config = config
        self.core.resize(config, self.time())
        self._obey()

    async def close(self, timeout: float | None) -> None:
        """End it. Leases, queries and readers have ``timeout`` seconds. If cancelled, the closing goes on by itself."""
        if self.phase in (Phase.OPENING, OPEN):
            self._begin_close()
        try:
            async with asyncio.timeout(timeout):
                await self._until(self._is_unused)
        except TimeoutError:
            self._end_uses()
        await self._until(lambda: self.phase is Phase.CLOSED)

    def _begin_close(self) -> None:
        now, census = self.time(), self.census()
        self.phase, self.open_loop, self._closing_since = Phase.CLOSING, None, now
        feeds = [slot for slot in self.core.slots if slot.beside and slot.doom is None and slot.state is not CLOSING]
        self.report = CloseReport(
            leases_waited_for=census.leased,
            queries_waited_for=census.queries,
            feeds_ended=sum(max(1, slot.load) for slot in feeds),
        )
        self.core.close(now)
        for task in self._callbacks - {current_task()}:
            task.cancel()
        ended, self.feeds = list(self.feeds), WeakSet()
        for feed in ended:
            feed.end(PoolClosed(f"{self.name}: the pool was closed while a feed was open"))
        self._obey()

    def _is_unused(self) -> bool:
        return not any(slot.state in IN_USE for slot in self.core.slots)

    def _end_uses(self) -> None:
        census = self.census()
        self.report = replace(self.report, leases_aborted=census.leased, queries_aborted=census.queries)
        self.core.end_uses(self.time())
        self._obey()

    def _end(self) -> None:
        """Nothing is left."""
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
        """The pool was forgotten, or its event loop was closed: end what is left, without waiting."""
        connections = [slot.connection for slot in self.core.slots if slot.connection is not None]
        self.core.forget()
        self.phase, self.open_loop = Phase.CLOSED, None
        if self._timer is not None:
            self._timer.cancel()
        for connection in connections:
            self.worker.abort(connection)
        if not self.loop.is_closed():
            for task in self.worker.tasks | self._callbacks:
                task.cancel()

    # ---- what the shell asks

    def census(self) -> Census:
        """How many connections and callers there are now of what."""
        return self.core.census()

    def uses(self) -> tuple[int, int]:
        """Leases that are out, those of feeds too, and queries under way."""
        return sum(slot.state is LEASED for slot in self.core.slots), self.census().queries

    def unusable(self, call: str) -> PoolException:
        """Why a call cannot be served now."""
        if self.is_inherited:
            return PoolException(f"{self.name}: {messages.inherited(call)}")
        if self.phase is OPEN:
            return PoolException(f"{self.name}: {messages.other_loop(call)}")
        phase = self.phase if self.was_open or self.phase is not Phase.CLOSED else None
        return PoolClosed(f"{self.name}: {messages.not_open(call, phase)}")


async def _call_back(callback: Callable[[Any], object], pool: Any) -> None:
    result = callback(pool)
    if isinstance(result, Awaitable):
        await result
