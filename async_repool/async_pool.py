"""The shell: :class:`AsyncConnectionPool` and its one housekeeping task.

It reports facts to the ledger and carries out its orders: here are the event loop, the real clock, real randomness and
the log, and no arithmetic on sizes or ages. It knows nothing of RethinkDB's protocol.

How a slot moves: callers never open, check, reset or close a connection themselves. A task that the pool owns does it,
and its done-callback reports to the ledger; a caller only ever takes an idle slot, or a place on a shared one, or waits
in line. So whoever is cancelled, and whenever, takes nothing down: what was half done goes on and serves the next in
line.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import os
import random
import sys
import warnings
import weakref
from asyncio import current_task, get_running_loop
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from functools import partial
from sys import _getframe
from time import monotonic
from types import MappingProxyType, TracebackType
from typing import Any, Final, Literal, NoReturn, TypeVar, cast

from . import _holders
from ._ledger import CHECK, NEVER, Check, CloseReason, Ledger, LedgerState, Refusal, Slot, SlotState
from ._waiting_room import Need, Ticket, WaitingRoom
from .config import UNSET, Hook, PoolConfig, Unset, check_seconds
from .connectors import Connector, QueryConnector, Stream
from .connectors.rethinkdb import R, RethinkDBConnector, RotatingConnector
from .errors import (
    ConnectFailed,
    ConnectionLost,
    FeedLaneFull,
    LeaseError,
    NotSent,
    PoolClosed,
    PoolDeadlock,
    PoolException,
    PoolTimeout,
    QueryTimeout,
    TooManyWaiters,
)
from .lease import DONE, Done, FeedContext, Lease, LeaseContext
from .stats import CloseReport, PoolStats
from .streams import Feed, StreamContext

__all__ = ["AsyncConnectionPool", "PoolException", "R"]

LEASED: Final = SlotState.LEASED  # reading a member off its enum class is slow
SHARED: Final = SlotState.SHARED
LEASE, QUERY, FEED = Need.LEASE, Need.QUERY, Need.FEED

MOST_ATTEMPTS: Final = 5
"""How often one query is tried, where trying again is safe, before the last error is raised."""

PATIENCE_SECONDS: Final = 0.1
"""How long after its time an opening is cancelled. A connector that keeps the time itself says what took so long."""

CANCEL_SECONDS: Final = 1.0
"""How long a hook may take to end when it is cancelled, before its connection is aborted and it is left alone."""

log = logging.getLogger("async_repool")

_F = TypeVar("_F", bound=Callable[..., Any])


def _coroutine_function(function: _F) -> _F:
    """Mark a function that returns a coroutine as one that may be awaited, for those who ask before they call."""
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(function)
    function._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
    return function


_pool_numbers = itertools.count(1)


# Pools that hold connections. A child of fork() must not touch them: it shares the sockets with its parent, and the
# selector that watches them.
_live_pools: weakref.WeakSet[AsyncConnectionPool] = weakref.WeakSet()


# A task that nobody holds is collected together with the pool, and asyncio complains.
_housekeepers: set[asyncio.Task[None] | None] = set()


def _disown_pools() -> None:
    for pool in list(_live_pools):
        pool._is_inherited = True
        pool._loop = pool._open_loop = None
        pool._ledger.bury()  # a lease that ends here gives nothing back


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_pools)


class _Closing:
    """What became of leases, queries and feeds, while the pool closes."""

    def __init__(self, began: float, leases: int, queries: int) -> None:
        self.began = self.ended = began
        self.leases = leases
        self.leases_aborted = 0
        self.queries = queries
        self.queries_aborted = 0
        self.feeds_ended = 0
        self.is_over = False  # the time that leases, queries and readers had

    def report(self) -> CloseReport:
        return CloseReport(
            leases_waited_for=self.leases,
            leases_aborted=self.leases_aborted,
            queries_waited_for=self.queries,
            queries_aborted=self.queries_aborted,
            feeds_ended=self.feeds_ended,
            seconds=self.ended - self.began,
        )


class AsyncConnectionPool:
    """A pool of connections to one RethinkDB server, for the tasks of one event loop.

    Connections are opened by :meth:`init_pool`, or by ``async with pool:``. :meth:`run`, :meth:`stream` and
    :meth:`changes` run queries, many at a time on each connection; :meth:`acquire` and :meth:`connect` hand out a
    connection to one user. All are served strictly first come, first served. Cancelling a call at any await loses
    nothing.

    :param rethinkdb_connection_kwargs: a mapping of ``r.connect()`` arguments; a callable, sync or async, that returns
        one and is asked at every opening, for secrets that change; or a :class:`~async_repool.Connector` for any other
        kind of connection.

    The options, their units and defaults are those of :class:`~async_repool.config.PoolConfig`. Raises ``TypeError`` or
    ``ValueError`` naming the option and its value. Nothing is opened here.
    """

    def __init__(
        self,
        rethinkdb_connection_kwargs: Mapping[str, Any] | Callable[[], Any] | Connector,
        pool_size: int = PoolConfig.pool_size,
        connection_ttl: float | None = PoolConfig.connection_ttl,
        *,
        min_size: int | None = PoolConfig.min_size,
        max_idle: float | None = PoolConfig.max_idle,
        acquire_timeout: float | None = PoolConfig.acquire_timeout,
        connect_timeout: float | None = PoolConfig.connect_timeout,
        close_timeout: float = PoolConfig.close_timeout,
        check_timeout: float = PoolConfig.check_timeout,
        check_idle: float | None = PoolConfig.check_idle,
        ping_interval: float = PoolConfig.ping_interval,
        reconnect_timeout: float | None = PoolConfig.reconnect_timeout,
        cursor_grace: float = PoolConfig.cursor_grace,
        max_feed_connections: int | None = PoolConfig.max_feed_connections,
        max_in_flight: int = PoolConfig.max_in_flight,
        max_waiting: int = PoolConfig.max_waiting,
        configure: Hook | None = PoolConfig.configure,
        check: Hook | None = PoolConfig.check,
        reset: Hook | None = PoolConfig.reset,
        on_reconnect_failed: Callable[[Any], object] | None = PoolConfig.on_reconnect_failed,
        leak_threshold: float | None = PoolConfig.leak_threshold,
        debug: bool = PoolConfig.debug,
        name: str | None = PoolConfig.name,
    ) -> None:
        self._config = PoolConfig(
            pool_size=pool_size,
            connection_ttl=connection_ttl,
            min_size=min_size,
            max_idle=max_idle,
            acquire_timeout=acquire_timeout,
            connect_timeout=connect_timeout,
            close_timeout=close_timeout,
            check_timeout=check_timeout,
            check_idle=check_idle,
            ping_interval=ping_interval,
            reconnect_timeout=reconnect_timeout,
            cursor_grace=cursor_grace,
            max_feed_connections=max_feed_connections,
            max_in_flight=max_in_flight,
            max_waiting=max_waiting,
            configure=configure,
            check=check,
            reset=reset,
            on_reconnect_failed=on_reconnect_failed,
            leak_threshold=leak_threshold,
            debug=debug,
            name=name,
        )
        self._connector = _connector(rethinkdb_connection_kwargs, connect_timeout)
        self._query_connector = self._connector if isinstance(self._connector, QueryConnector) else None
        self._check = self._connector.check if check is None else check
        self._reset = reset
        self._leak_threshold = leak_threshold
        self._place_of = _holders.place_and_stack if debug else _holders.place
        self._name = name or f"pool-{next(_pool_numbers)}"
        self._ledger = Ledger(self._config, random.random)
        self._room: WaitingRoom[Slot] = WaitingRoom()
        self._waiting_tasks = _holders.WaitingTasks()
        self._deadlock_logged_at = -1  # how many leases had been acquired by then: one more, and it is over
        self._loop: asyncio.AbstractEventLoop | None = None  # from init_pool() until everything is closed
        self._time: Callable[[], float] = _no_time  # of that loop
        self._open_loop: asyncio.AbstractEventLoop | None = None  # the same, while leases may be had
        self._generation = 0  # how often it was opened
        self._was_open = False
        self._is_inherited = False  # over a fork
        self._housekeeper: asyncio.Task[None] | None = None
        self._bell = asyncio.Event()  # wakes the housekeeper; bound to the loop, as the two below
        self._wake_at = NEVER  # when it wakes by itself
        self._tasks: set[asyncio.Task[Any]] = set()  # all others that the pool owns
        self._opening: set[asyncio.Task[Any]] = set()  # those of them that open connections
        self._preparing: set[asyncio.Task[Any]] = set()  # those of them that check or reset connections
        self._reading: set[asyncio.Task[Any]] = set()  # those of them that wait until cursors have ended
        self._callbacks: set[asyncio.Task[Any]] = set()  # of on_reconnect_failed
        self._feeds: weakref.WeakSet[Feed] = weakref.WeakSet()  # of changes(), all that may be open
        self._trailing: set[Slot] = set()  # carriers without feeds whose connection is still read from
        self._leases_home = asyncio.Event()  # while closing: no lease is out, no query is under way, no cursor is read
        self._all_closed = asyncio.Event()  # while closing: nothing is left
        self._last_failure: BaseException | None = None  # of opening a connection
        self._outage_was_logged = False
        self._closing = _Closing(0.0, 0, 0)
        self._waited_total = 0
        self._waited_seconds_total = 0.0
        self._timeouts_total = 0
        self._cancelled_total = 0
        self._refused_total = 0
        self._queries_done_total = 0
        self._queries_stopped_total = 0
        self._queries_lost_total = 0

    # ---- opening and closing

    async def init_pool(self) -> None:
        """Open ``min_size`` connections, all at once. Does nothing where the pool is open already.

        Waits until they are open, each up to ``connect_timeout``. Where one cannot be opened, closes the others and
        raises :class:`ConnectFailed` with the driver's error as cause; it may then be called again. If cancelled,
        closes what it opened and leaves nothing behind. After :meth:`close` or :meth:`release_pool` it opens the pool
        again, in the event loop that runs then.
        """
        loop = asyncio.get_running_loop()
        if self._open_loop is loop:
            return
        self._bury()
        if self._is_inherited or self._ledger.state is not LedgerState.CLOSED:
            raise self._unusable("init_pool()")
        self._loop = loop
        # What loop.time() calls, unless the loop has a clock of its own: every acquire asks twice.
        self._time = monotonic if type(loop).time is asyncio.BaseEventLoop.time else loop.time
        self._generation += 1
        generation = self._generation
        _live_pools.add(self)
        self._was_open = False
        self._deadlock_logged_at = -1
        self._closing = _Closing(0.0, 0, 0)
        self._bell, self._wake_at = asyncio.Event(), NEVER
        self._leases_home = asyncio.Event()
        self._all_closed = asyncio.Event()
        self._ledger.open()
        self._tend()
        try:
            if self._opening:
                await asyncio.wait(self._opening, return_when=asyncio.FIRST_EXCEPTION)
        except BaseException:
            self._begin_close()
            await self._all_closed.wait()
            raise
        if not self._ledger.is_opening or self._generation != generation:
            raise PoolClosed(f"{self._name}: the pool was closed while init_pool() was opening it")
        if self._ledger.is_outage:
            failure = self._last_failure
            self._begin_close()
            await self._all_closed.wait()
            raise ConnectFailed(
                f"{self._name}: init_pool() could not open {self._ledger.min_size} connections to "
                f"{self._connector.endpoint}: {_sentence(failure)} All are closed; init_pool() may be called again"
            ) from _cause(failure)
        self._ledger.opened_all()
        self._open_loop = loop
        self._was_open = True
        self._housekeeper = loop.create_task(
            _keep_house(weakref.ref(self), self._bell), name=f"{self._name}: housekeeping"
        )
        _housekeepers.add(self._housekeeper)
        self._housekeeper.add_done_callback(_housekeepers.discard)

    async def __aenter__(self) -> AsyncConnectionPool:
        """:meth:`init_pool`."""
        await self.init_pool()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """:meth:`close`."""
        await self.close()

    async def close(self, timeout: float | None = 10.0) -> CloseReport:
        """End the pool: lease nothing more, wake all who wait with :class:`PoolClosed`, and close every connection.

        Feeds are ended at once. Leases, queries under way, and cursors and streams that are still read, are waited for
        up to ``timeout`` seconds (None: for ever), then aborted: their users see that the connection is closed. Each
        connection may take ``close_timeout`` more to close politely. If cancelled, the closing goes on by itself: every
        connection is closed when it comes home; call it again to wait for that. May be called twice, and on a pool that
        was never opened. Returns what became of leases, queries and feeds when the pool was last closed.
        """
        check_seconds("timeout", timeout)
        self._bury()
        if not self._is_inherited and self._ledger.state is LedgerState.CLOSED:
            return self._closing.report()
        if self._loop is not asyncio.get_running_loop():
            raise self._unusable("close()")
        housekeeper = self._housekeeper
        if self._ledger.state is not LedgerState.CLOSING:
            self._begin_close()
        closing = self._closing
        try:
            async with asyncio.timeout(timeout):
                await self._leases_home.wait()
        except TimeoutError:
            self._abort_users()
        await self._all_closed.wait()
        if housekeeper is not None:
            await asyncio.wait([housekeeper])
        return closing.report()

    async def release_pool(self) -> None:
        """Close every connection, as :meth:`close`, where no lease is out and no query is under way.

        Otherwise raises :class:`PoolException` saying how many, and changes nothing.
        """
        self._bury()
        leases, queries = self._ledger.leases, self._ledger.queries
        if leases or queries:
            raise PoolException(
                f"{self._name}: release_pool() while {leases} connection(s) are still leased and {queries} queries are "
                "under way. Release them first, or use close(), which waits for them"
            )
        if self._is_inherited or self._loop not in (None, asyncio.get_running_loop()):
            raise self._unusable("release_pool()")
        await self.close(timeout=0)

    async def drain(self) -> None:
        """Replace every connection, as after a fail-over or a change of passwords.

        Idle connections are closed and replaced now; a leased one is closed when it comes home, a shared one when its
        last query has ended, one that is still read when its last cursor or feed has ended. Waits until the idle ones
        are replaced, at most ``close_timeout + connect_timeout``. Raises :class:`ConnectFailed` where the new ones
        cannot be opened; housekeeping goes on trying. If cancelled, the work goes on by itself.
        """
        self._check_open("drain()")
        slots = self._ledger.drain(self._time())
        self._room.remove(slots)
        closing = [task for slot in slots if (task := self._close_slot(slot, CloseReason.DRAINED))]
        self._tend()
        if closing:
            await asyncio.wait(closing)
        if self._opening:
            await asyncio.wait(self._opening)
        if self._ledger.is_outage and self._ledger.is_short:
            raise ConnectFailed(
                f"{self._name}: drain() closed the old connections, but could not open new ones to "
                f"{self._connector.endpoint}: {_sentence(self._last_failure)} The pool goes on trying"
            ) from _cause(self._last_failure)

    def _bury(self) -> None:
        """Where the event loop of the pool was closed before the pool was: end what is left, so that it may be opened
        again.
        """
        if self._loop is None or not self._loop.is_closed():
            return
        log.warning("%s: its event loop was closed before the pool was; close the pool first", self._name)
        for slot in (*self._ledger.slots, *self._ledger.lane):
            if slot.connection is not None:
                self._connector.abort(slot.connection)
        self._ledger.bury()
        self._room = WaitingRoom()
        self._waiting_tasks = _holders.WaitingTasks()
        for tasks in (self._tasks, self._opening, self._preparing, self._reading, self._callbacks):
            tasks.clear()
        self._trailing.clear()
        _housekeepers.discard(self._housekeeper)
        self._housekeeper = self._loop = self._open_loop = None
        _live_pools.discard(self)

    def _begin_close(self) -> None:
        self._open_loop = None
        self._closing = _Closing(self._time(), self._ledger.leased, self._ledger.queries)
        slots = self._ledger.close(self._closing.began)
        self._room.remove(slots)
        for slot in slots:
            self._close_slot(slot, CloseReason.POOL_CLOSED)
        for slot in [slot for slot in self._ledger.lane if slot.state is not SlotState.RETIRED]:
            work = _close(self._connector, slot.connection, self._config.close_timeout)
            self._spawn("close", work, self._closed_apart(slot))
            self._closing.feeds_ended += slot.in_flight if slot.state is SlotState.CARRIER else 1
            self._ledger.abandon(slot, CloseReason.POOL_CLOSED, self._time())
        for task in self._opening:
            task.cancel()
        for task in self._callbacks - {asyncio.current_task()}:
            task.cancel()
        if self._housekeeper is not None:
            self._housekeeper.cancel()
            self._housekeeper = None
        self._room.refuse_all(
            PoolClosed(f"{self._name}: the pool was closed while this caller waited for a connection")
        )
        feeds, self._feeds = list(self._feeds), weakref.WeakSet()
        for feed in feeds:
            feed._pool_closed(PoolClosed(f"{self._name}: the pool was closed while a feed was open"))
        self._settle_close()

    def _abort_users(self) -> None:
        self._closing.queries_aborted = self._ledger.queries
        self._closing.leases_aborted = self._ledger.leased
        for slot in [slot for slot in self._ledger.slots if slot.state in (LEASED, SHARED)]:
            self._connector.abort(slot.connection)
            self._ledger.abandon(slot, CloseReason.POOL_CLOSED, self._time())
        self._closing.is_over = True
        for task in self._reading | self._preparing:
            task.cancel()
        self._settle_close()

    def _settle_close(self) -> None:
        """While closing: tell those who wait for it how far it is."""
        ledger = self._ledger
        if ledger.state is not LedgerState.CLOSING:
            return
        if not ledger.leased and not ledger.shared and not ledger.lane and not self._preparing:
            self._leases_home.set()
            if not ledger.size and not self._tasks:
                ledger.closed_all()
                self._closing.ended = self._time()
                _live_pools.discard(self)
                self._loop = None
                self._all_closed.set()

    def __del__(self) -> None:
        ledger = getattr(self, "_ledger", None)
        if ledger is None or ledger.state is LedgerState.CLOSED or self._is_inherited:
            return
        warnings.warn(f"unclosed {self!r}: await its close(), or use `async with`", ResourceWarning, source=self)
        connections = [slot.connection for slot in (*ledger.slots, *ledger.lane) if slot.connection is not None]
        work = partial(_abandon, self._connector, connections, self._housekeeper)
        loop = self._loop
        if loop is None or loop.is_closed():
            _housekeepers.discard(self._housekeeper)
            _abandon(self._connector, connections, None)
        else:
            loop.call_soon_threadsafe(work)  # the collector may run in any thread

    # ---- acquire and release

    @_coroutine_function
    def acquire(self, timeout: float | None | Unset = UNSET) -> Coroutine[Any, Any, Lease]:
        """Lease a connection; give it back with :meth:`release`.

        Takes an idle connection at once. Where there is none, waits in line for up to ``timeout`` seconds (None: for
        ever; not given: the pool's ``acquire_timeout``), strictly first come, first served, while the pool opens a
        connection if it may. With 0, only what is at hand counts; a connection that is due for a check is not. If
        cancelled, the caller leaves the line and its turn goes to the next.

        :raises PoolTimeout: no connection became free in time.
        :raises ConnectFailed: a connection was needed and could not be opened; the cause is the driver's error.
        :raises TooManyWaiters: ``max_waiting`` callers wait already.
        :raises PoolClosed: the pool is not open, or was closed meanwhile.
        :raises PoolException: the pool was opened in another event loop.
        """
        if timeout is not UNSET:
            check_seconds("timeout", timeout)
        # Who acquires is who calls, though a task of wait_for() or gather() may do it.
        try:
            task = current_task()
        except RuntimeError:  # no loop runs yet
            task = None
        return self._acquire(timeout, self._place_of(_getframe(1)), task)

    async def _acquire(
        self, timeout: float | None | Unset, place: _holders.Place, asker: asyncio.Task[Any] | None
    ) -> Lease:
        task = current_task()
        if asker is not task and asker is not None and task is not None:
            if getattr(task.get_coro(), "cr_code", None) is not _ACQUIRE:
                asker = None  # it gave the work to a task that goes on with the lease
            elif _waits_for(asker, task):
                task = asker
        if asker is task:
            asker = None
        slot = self._acquire_nowait(place, task, asker) or await self._wait_for_lease(timeout, place, task, asker)
        return Lease(self, slot)

    def release(self, conn: Lease) -> Done:
        """Give a lease back, at once. What it returns may be awaited, and is done already.

        The connection goes to whoever has waited longest, or back to the idle ones; a broken or drained one is
        replaced. In a thread without an event loop, while that of the pool runs in another, it does nothing but return
        a coroutine for that one: ``asyncio.run_coroutine_threadsafe(pool.release(conn), loop)``.

        :raises LeaseError: the lease was released before, or is of another pool; nothing has changed then.
        :raises PoolException: called in another event loop than the pool was opened in; the lease is still live then.
        """
        slot = self._end(conn, "release()")
        if slot is None:
            return cast(Done, self._call_there(self.release, conn))
        self._give_back(slot)
        return DONE

    def connect(self, looped_mode: bool = False, *, timeout: float | None | Unset = UNSET) -> LeaseContext:
        """``async with pool.connect() as connection:`` acquires a lease and releases it at the end of the block.

        Waits, raises and is cancelled as :meth:`acquire`.

        :param looped_mode: for a feed that lives long. The connection leaves the pool, where another may take its
            place, until the feed has ended; at most ``max_feed_connections`` do so, or :class:`PoolException` is
            raised.
        """
        if timeout is not UNSET:
            check_seconds("timeout", timeout)
        place = self._place_of(_getframe(1))
        return FeedContext(self, timeout, place) if looped_mode else LeaseContext(self, timeout, place)

    def release_to_looped(self, conn: Lease) -> Done:
        """Give a lease back whose connection serves a feed: it leaves the pool until the feed has ended.

        As :meth:`release`; and raises :class:`PoolException`, with the lease still live, where the feed lane is full.
        """
        is_leased = isinstance(conn, Lease) and conn._slot.state is LEASED
        if is_leased and self._open_loop is not None and not self._ledger.has_feed_room():
            raise self._feed_lane_full()
        slot = self._end(conn, "release_to_looped()")
        if slot is None:
            return cast(Done, self._call_there(self.release_to_looped, conn))
        if slot.state is LEASED and self._open_loop is not None:
            self._ledger.to_feed_lane(slot)
            self._release_feed(slot)
            self._tend()
        else:
            self._give_back(slot)
        return DONE

    def _acquire_nowait(
        self, place: _holders.Place, task: asyncio.Task[Any] | None = None, asker: asyncio.Task[Any] | None = None
    ) -> Slot | None:
        """An idle slot, leased to the task, or the one that runs; None if the caller has to wait in line."""
        loop = get_running_loop()
        if loop is not self._open_loop:
            raise self._unusable("acquire()")
        while (slot := self._room.take_nowait()) is not None:
            now = self._time()
            try:  # as _is_open(), without a call for each lease
                is_open = self._connector.is_open(slot.connection)
            except Exception:
                is_open = self._is_open(slot)
            order = self._ledger.lease(slot, now, is_open)
            if order is None:
                slot.holder.begin(task or current_task(loop), now, place, asker)
                if self._leak_threshold is not None:
                    self._watch_holder(now, self._leak_threshold)
                return slot
            self._carry_out(slot, order)
            if order is CHECK and self._config.check is not None:
                return None  # all of them would have to be checked
        return None

    def _watch_holder(self, now: float, leak_threshold: float) -> None:
        """A lease begins: the housekeeper is to look when it has lasted too long."""
        if self._wake_at > now + leak_threshold:
            self._bell.set()

    def _carry_out(self, slot: Slot, order: CloseReason | Check) -> None:
        """What the ledger ordered instead of a lease."""
        if order is CHECK:
            self._prepare(slot, self._check, is_checked=True)
        else:
            self._close_slot(slot, order)

    async def _wait_for_lease(
        self,
        timeout: float | None | Unset,
        place: _holders.Place,
        task: asyncio.Task[Any] | None = None,
        asker: asyncio.Task[Any] | None = None,
    ) -> Slot:
        task = task or current_task()
        timeout = self._config.acquire_timeout if isinstance(timeout, Unset) else timeout
        slot = await self._wait_in_line(LEASE, timeout, task)
        now = self._time()
        slot.holder.begin(task, now, place, asker)
        if self._leak_threshold is not None:
            self._watch_holder(now, self._leak_threshold)
        return slot

    async def _wait_in_line(self, need: Need, timeout: float | None, task: asyncio.Task[Any] | None = None) -> Slot:
        """A slot that serves the need, after waiting for up to ``timeout`` seconds."""
        room = self._room
        if self._config.max_waiting and not self._ledger.admits(self._leases_wanted(), room.waiting_for(QUERY)):
            self._refused_total += 1
            raise TooManyWaiters(
                f"{self._name}: {_CALLS[need]} was refused, max_waiting={self._config.max_waiting} callers wait "
                f"already ({self._situation()})"
            )
        began = self._time()
        task = task or current_task()
        ticket: Ticket[Slot] = room.join(need)
        # Not asyncio.timeout(), which costs three times as much: the timer does not cancel the task, it takes the
        # ticket out of the line, so there is nothing to win at the last moment.
        timer = None if timeout is None else get_running_loop().call_at(began + timeout, self._time_is_up, ticket)
        self._waiting_tasks.add(task)
        try:
            if self._ledger.can_grow or room.has_idle:
                self._tend()
            if self._ledger.is_leased_out:
                self._look_for_deadlock()
            return await ticket
        except BaseException as error:
            # From the hand-over on the slot is this caller's, though it may never have seen it: cancelled or out of
            # time at that very moment, it passes the slot on.
            unseen = room.leave(ticket)
            if unseen is not None:
                self._pass_on(unseen, need)
            if room.waiting:
                self._serve_line()  # whoever stood behind may need something else
            if isinstance(error, asyncio.CancelledError):
                self._cancelled_total += 1
                raise
            if isinstance(error, PoolDeadlock):
                raise
            if isinstance(error, PoolClosed):
                raise PoolClosed(str(error)) from None  # each caller its own
            explained = self._explain(error, need, self._time(), began)
            raise explained from explained.__cause__
        finally:
            if timer is not None:
                timer.cancel()
            self._waiting_tasks.remove(task)
            self._waited_total += 1
            self._waited_seconds_total += self._time() - began

    def _pass_on(self, slot: Slot, need: Need) -> None:
        """A slot was handed to a caller who never saw it."""
        if need is LEASE:
            self._come_home(slot, self._ledger.pass_on(slot, self._time(), self._is_open(slot)))
        elif need is QUERY:
            self._leave(slot)
        else:
            self._leave_feed(slot)

    def _serve_line(self) -> None:
        """Serve whoever has waited longest, then the next, until one of them has to wait on.

        Nothing that is called here may call it again: it would serve the same caller twice.
        """
        while (need := self._next_need()) is not None and (slot := self._find(need)) is not None:
            self._hand_over(slot, need)
        for ticket in self._room.in_line_for(FEED):  # a place beside other feeds is nothing that anybody else waits for
            place = self._place_feed()
            if place is None:
                break
            self._room.serve(ticket, place)

    def _next_need(self) -> Need | None:
        """What whoever has waited longest needs; None if nobody waits. Feeds that the lane has no place for any more
        are refused.
        """
        while (need := self._room.next_need) is FEED:
            if self._ledger.has_feed_place():
                break
            self._room.refuse(self._feed_lane_full())
        return need

    def _find(self, need: Need) -> Slot | None:
        """A slot for the need, which nobody else may have come for before; None where there is none now."""
        if need is QUERY:
            return self._place()
        if need is FEED:
            slot = self._place_feed()
            return slot if slot is not None or not self._ledger.has_feed_room() else self._take_idle(FEED)
        return self._take_idle(need)

    def _take_idle(self, need: Need) -> Slot | None:
        """An idle slot, put to use. Those that have to be checked or closed first are sent there."""
        room = self._room
        checks = self._ledger.max_size
        if self._config.check is not None:  # each has to be checked; then no more than the line needs
            checks = self._leases_wanted() + (need is QUERY or not room.waiting)
        while self._ledger.checking < checks and (slot := room.pop_nowait()) is not None:
            if self._put_to_use(slot, need):
                return slot
        return None

    def _put_to_use(self, slot: Slot, need: Need, *, is_checked: bool = False) -> bool:
        """Lease an idle slot, which is not in the room any more, or share it. False where the ledger ordered something
        else, which is carried out.
        """
        ledger = self._ledger
        begin = ledger.share if need is QUERY else ledger.lease if need is LEASE else ledger.carry
        order = begin(slot, self._time(), self._is_open(slot), is_checked=is_checked)
        if order is not None:
            self._carry_out(slot, order)
        return order is None

    def _hand_over(self, slot: Slot, need: Need) -> None:
        if need is LEASE:
            slot.holder.hand_over(self._time())
        self._room.hand_over(slot)

    def _leases_wanted(self) -> int:
        """Connections that those in line need for themselves. All feeds in line can do with one."""
        return self._room.waiting_for(LEASE) + min(1, self._room.waiting_for(FEED))

    def _look_for_deadlock(self) -> None:
        was_logged = self._deadlock_logged_at == self._ledger.acquired_total
        if not self._is_deadlock() or (was_logged and not self._config.debug):
            return
        held = _holders.describe((slot.holder for slot in self._ledger.slots), self._time())
        what = (
            f"{self._name}: deadlock: each of the {self._ledger.leased} leases is held by a task that itself waits for "
            f"one.{held}\nAcquire one lease at a time in a task, or raise pool_size"
        )
        if self._config.debug:
            raise PoolDeadlock(what)
        self._deadlock_logged_at = self._ledger.acquired_total
        log.warning("%s", what)

    def _time_is_up(self, ticket: Ticket[Slot]) -> None:
        """A caller has waited for as long as it would. Whether it is in a deadlock is asked now: where the time of
        several is up together, the first of them to leave ends it.
        """
        self._room.expire(ticket, _InDeadlock() if self._is_deadlock() else TimeoutError())

    def _is_deadlock(self) -> bool:
        # Leases of feeds are beside the size: their end gives nobody a slot.
        holders = (slot.holder for slot in self._ledger.slots)
        return self._ledger.is_leased_out and _holders.is_deadlock(holders, self._waiting_tasks)

    def _all_holders(self) -> Iterator[_holders.Holder]:
        """Of the leases that are out."""
        return (slot.holder for slot in self._ledger.leased_slots())

    def _explain(self, error: BaseException, need: Need, now: float, began: float) -> BaseException:
        """What a caller is told whose wait ended in ``error``."""
        what = "a query was never sent, no connection" if need is QUERY else "no connection"
        asked = f"{self._name}: {what} to {self._connector.endpoint} after waiting {now - began:.1f} s"
        explained: PoolException
        if isinstance(error, TimeoutError):
            self._timeouts_total += 1
            if not self._ledger.is_outage:
                advice = "Release leases sooner, or raise pool_size"
                if self._ledger.shared:
                    advice = "Let leases and queries take less time, or raise pool_size or max_in_flight"
                if self._ledger.connecting:
                    advice = (
                        f"Connections were being opened or checked; the last failure: {_describe(self._last_failure)}"
                    )
                if isinstance(error, _InDeadlock):
                    advice = "It is a deadlock: each is held by a task that itself waits for one"
                held = _holders.describe(self._all_holders(), now)
                explained = PoolTimeout(f"{asked} ({self._situation()}). {advice}.{held and ' Leased to:'}{held}")
                explained.__cause__ = None
                return explained
        if isinstance(error, (TimeoutError, ConnectFailed)):
            failure = self._last_failure
            explained = ConnectFailed(
                f"{asked}, the last attempt failed: {_describe(failure)} ({self._situation()})",
                is_permanent=self._ledger.is_hopeless,
            )
            explained.__cause__ = _cause(failure)
            return explained
        return error

    def _end(self, lease: Lease, call: str) -> Slot | None:
        """End a lease, take its slot. None where that has to be done in another thread, which runs the pool's loop."""
        if not isinstance(lease, Lease):
            raise LeaseError(f"{self._name}: {call} takes a lease that this pool's acquire() gave, not {lease!r}")
        try:
            loop: asyncio.AbstractEventLoop | None = get_running_loop()
        except RuntimeError:
            if self._is_inherited:
                raise self._unusable(call) from None
            loop = self._loop
            if loop is not None and loop.is_running():
                return None
            if loop is not None and loop.is_closed():
                raise self._unusable(call) from None
        if loop is not self._loop and (self._is_inherited or not lease._was_ended_by_pool):
            raise self._unusable(call)
        return lease._end(self)

    @staticmethod
    async def _call_there(call: Callable[[Lease], object], lease: Lease) -> None:
        call(lease)

    def _give_back(self, slot: Slot) -> None:
        """A lease has ended: its slot comes home."""
        if slot.state is not LEASED:
            self._release_feed(slot)
        elif self._reset is not None:
            self._ledger.hold_released(slot)
            self._prepare(slot, self._reset)
        else:
            ledger = self._ledger
            try:
                is_open = self._connector.is_open(slot.connection)
            except Exception:
                is_open = self._is_open(slot)
            reason = ledger.release(slot, self._time(), is_open)
            if reason is not None or ledger.watches_idle or not self._room.put_nowait(slot):
                self._come_home(slot, reason)

    def _lease_collected(self, slot: Slot) -> None:
        loop = self._loop
        if loop is None or loop.is_closed() or slot.state not in (SlotState.LEASED, SlotState.FEED):
            return
        loop.call_soon_threadsafe(self._take_back, slot)  # the collector may run in any thread

    def _take_back(self, slot: Slot) -> None:
        if slot.state not in (SlotState.LEASED, SlotState.FEED):
            return  # the pool was closed meanwhile
        what = slot.holder.describe(self._time())
        log.warning("%s: a lease was dropped without release, and is taken back: %s", self._name, what)
        self._give_back(slot)

    def _release_feed(self, slot: Slot) -> None:
        if slot.state is SlotState.GONE:
            return  # the pool ended this lease
        connection = slot.connection
        if self._is_open(slot) and self._has_streams(connection):
            self._ledger.trail(slot)
            task = self._spawn("feed", self._connector.wait_streams(connection), partial(self._feed_ended, slot))
            self._reading.add(task)
        else:
            self._feed_ended(slot)

    def _feed_ended(self, slot: Slot, task: asyncio.Task[Any] | None = None) -> None:
        if task is not None:
            self._reading.discard(task)
        if slot.state is SlotState.GONE:
            return
        if task is not None and task.cancelled():
            self._connector.abort(slot.connection)
            self._ledger.closed(slot, CloseReason.FEED_ENDED)
            return
        reason = self._ledger.feed_ended(slot, self._time(), self._is_open(slot))
        if reason is None and self._reset is not None:
            self._ledger.hold(slot, self._time())
            self._prepare(slot, self._reset)
        else:
            self._come_home(slot, reason)

    async def _acquire_feed(self, timeout: float | None | Unset, place: _holders.Place) -> Slot:
        if not self._ledger.has_feed_room():
            raise self._feed_lane_full()
        slot = self._acquire_nowait(place) or await self._wait_for_lease(timeout, place)
        if self._open_loop is None:  # feeds are ended when the closing begins: no other may begin after that
            self._give_back(slot)
            raise PoolClosed(f"{self._name}: the pool was closed while this caller waited for a connection")
        if not self._ledger.has_feed_room():  # another feed was quicker while this one waited
            self._give_back(slot)
            raise self._feed_lane_full()
        self._ledger.to_feed_lane(slot)
        self._tend()
        return slot

    # ---- queries

    async def run(self, query: Any, *, timeout: float | None = None, retry: bool = False, **options: Any) -> Any:
        """Run a query, beside others on one connection, and return its value; a sequence whole, as a list.

        Takes a place on the least loaded connection at once; where each carries ``max_in_flight`` queries or is leased,
        waits in line for up to ``acquire_timeout``. ``timeout`` is seconds for all of it, waiting and query; None: as
        long as the query takes. If cancelled or timed out, the query is stopped on the server, and nobody else notices.

        A query that could not be sent is sent elsewhere. One that was sent is not repeated where its answer got lost,
        unless ``retry`` says that doing it twice does no harm.

        :param options: the driver's, for ``query.run()``: ``db``, ``noreply``, ``time_format``, ``profile``, …
        :raises QueryTimeout: time was up after it had been sent: it may have been done or not.
        :raises ConnectionLost: the connection ended after it had been sent: it may have been done or not.
        :raises PoolException: any other: it was never sent, for the reasons that :meth:`acquire` gives.
        :raises Exception: the driver's error, where the server refused it or failed.
        """
        connector = self._query_connector or self._sharing("run()")
        value = await self._run_shared(connector.run, query, timeout, retry, options)
        self._queries_done_total += 1
        return value

    def stream(self, query: Any, *, timeout: float | None = None, retry: bool = False, **options: Any) -> StreamContext:
        """``async with pool.stream(query) as rows: async for row in rows:`` reads a sequence in batches, as they come.

        Entering waits and raises as :meth:`run`; ``timeout`` is seconds until the first rows are there. Leaving stops
        the query on the server, if it has rows left. Reading waits for as long as the next row takes, and raises
        :class:`~async_repool.errors.ConnectionLost` where the connection ended before the last row. While it is read,
        the connection serves others too.

        :param options: the driver's, for ``query.run()``.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        return StreamContext(self, query, timeout, retry, options)

    def changes(
        self, query: Any, *, timeout: float | None = None, on_gap: Literal["tell", "raise"] = "tell", **options: Any
    ) -> Feed:
        """``async for change in pool.changes(R.table("heroes").changes()):`` follows a changefeed that survives.

        Its connection is in the feed lane, and carries other feeds too. Where it ends, or the server restarts, the feed
        is opened again, after growing pauses of up to 5 s, for as long as it takes. What happened meanwhile was missed:
        a :class:`FeedGap` comes in place of it, or with ``on_gap="raise"``
        :class:`~async_repool.errors.ConnectionLost` is raised at once instead. A query with ``include_initial=True``
        gets all initial values again after the gap.

        Ends with the error of the driver where the server refuses the query, as after the table was dropped, and with
        :class:`PoolClosed` where the pool is closed. At first, raises what :meth:`run` raises. If cancelled, no change
        is lost and it may be read on; left or dropped, it is stopped on the server; ``await feed.aclose()`` does so
        too.

        :param timeout: seconds that one opening may take, the first or a later one. None: ``connect_timeout``.
        :param options: the driver's, for ``query.run()``.
        """
        if timeout is not None:
            check_seconds("timeout", timeout, positive=True)
        if on_gap not in ("tell", "raise"):
            raise ValueError(f"on_gap must be 'tell' or 'raise', not {on_gap!r}")
        connector = self._query_connector or self._sharing("changes()")
        return Feed(self, connector, query, self._connect_timeout() if timeout is None else timeout, on_gap, options)

    async def _run_shared(
        self,
        run: Callable[[Any, Any, dict[str, Any]], Awaitable[Any]],
        query: Any,
        timeout: float | None,
        retry: bool,
        options: dict[str, Any],
    ) -> Any:
        """Do ``run`` on a shared connection. The one place that says what is tried again."""
        deadline = None
        if timeout is not None:
            check_seconds("timeout", timeout)
            deadline = self._time() + timeout
        lost: ConnectionLost | None = None  # how it was lost when it was last sent
        attempt = 0
        while True:
            attempt += 1
            try:
                slot = self._place_nowait() or await self._wait_in_line(QUERY, self._time_to_wait(deadline))
            except PoolException as error:
                if lost is None:
                    raise
                raise self._lost_query(lost) from error  # it is not sent again, but it was sent
            try:
                if slot.connection is None:
                    raise NotSent("the pool ended the connection")
                if deadline is None:
                    return await run(slot.connection, query, options)
                async with asyncio.timeout_at(deadline) as limit:
                    return await run(slot.connection, query, options)
            except NotSent as error:
                if attempt >= MOST_ATTEMPTS:
                    raise (self._never_sent(error) if lost is None else self._lost_query(lost)) from error
            except ConnectionLost as error:
                lost = error
                if not retry or attempt >= MOST_ATTEMPTS:
                    raise self._lost_query(error) from error.__cause__
            except asyncio.CancelledError:
                self._queries_stopped_total += 1
                raise
            except TimeoutError:
                if deadline is None or not limit.expired():
                    self._queries_done_total += 1
                    raise
                self._queries_stopped_total += 1
                self._question(slot)
                raise QueryTimeout(
                    f"{self._name}: a query had no answer from {self._connector.endpoint} within {timeout:g} s, and "
                    "was stopped; it may have been done or not"
                ) from None
            except BaseException:
                self._queries_done_total += 1
                raise
            finally:
                self._leave(slot)

    async def _open_stream(self, query: Any, timeout: float | None, retry: bool, options: dict[str, Any]) -> Stream:
        connector = self._query_connector or self._sharing("stream()")
        stream: Stream = await self._run_shared(connector.open_stream, query, timeout, retry, options)
        return stream

    def _stream_left(self, *, was_cut: bool, was_lost: bool) -> None:
        self._queries_stopped_total += was_cut
        self._queries_lost_total += was_lost
        self._queries_done_total += not (was_cut or was_lost)

    def _time_to_wait(self, deadline: float | None) -> float | None:
        """Seconds that a query may wait in line."""
        longest = self._config.acquire_timeout
        if deadline is None:
            return longest
        left = max(0.0, deadline - self._time())
        return left if longest is None else min(left, longest)

    def _never_sent(self, error: NotSent) -> ConnectFailed:
        return ConnectFailed(
            f"{self._name}: a query was never sent: {MOST_ATTEMPTS} connections to {self._connector.endpoint} in turn "
            f"ended before that, the last one so: {error}"
        )

    def _lost_query(self, error: ConnectionLost) -> ConnectionLost:
        self._queries_lost_total += 1
        return ConnectionLost(
            f"{self._name}: the connection ended before a query was answered, which may have been done or not: "
            f"{str(error).rstrip('.')}. Repeat it if that does no harm; retry=True does so"
        )

    def _place_nowait(self) -> Slot | None:
        """A place on a shared slot, with one more query on it; None if the caller has to wait in line."""
        if get_running_loop() is not self._open_loop:
            raise self._unusable("a query")
        return None if self._room.waiting else self._place()

    def _place(self) -> Slot | None:
        """The same, whoever waits. What else is to be done is left to the housekeeper, for the line may be at work."""
        ledger = self._ledger
        if ledger.idle and (slot := self._take_idle(QUERY)) is not None:
            return slot
        was_crowded = ledger.is_crowded
        while (slot := ledger.join(self._time())) is not None:
            try:  # as _is_open(), without a call for each query
                is_open = self._connector.is_open(slot.connection)
            except Exception:
                is_open = self._is_open(slot)
            if is_open:
                if ledger.is_crowded and not was_crowded:
                    self._bell.set()
                return slot
            if ledger.turn_away(slot):
                self._close_slot(slot, ledger.unshare(slot, self._time(), is_open=False) or CloseReason.BROKEN)
                self._bell.set()
        return None

    def _leave(self, slot: Slot) -> None:
        """A query on a shared slot has ended."""
        if slot.state is not SHARED:
            return  # the pool ended it
        if self._ledger.leave(slot):
            self._unshare(slot)
        elif self._room.waiting:
            self._serve_line()

    def _unshare(self, slot: Slot) -> None:
        reason = self._ledger.unshare(slot, self._time(), self._is_open(slot))
        if reason is not None or self._ledger.watches_idle or not self._room.put_nowait(slot):
            self._come_home(slot, reason)

    def _question(self, slot: Slot) -> None:
        """A query or feed on this slot had no answer in time: it may be slow, or the connection is dead."""
        if slot.state in (SHARED, SlotState.CARRIER) and self._ledger.question(slot):
            work = _call(self._connector.check, self._connector, slot.connection, self._config.check_timeout)
            self._preparing.add(self._spawn("check", work, partial(self._answered, slot)))

    def _answered(self, slot: Slot, task: asyncio.Task[Any]) -> None:
        self._preparing.discard(task)
        is_good = not task.cancelled() and task.exception() is None
        if slot.state not in (SHARED, SlotState.CARRIER):
            return  # the pool ended it
        is_last = self._ledger.answered(slot, is_good=is_good)
        if not is_good:
            log.debug("%s: a connection in use is discarded, its check failed: %s", self._name, _outcome(task))
            if slot.state is SHARED:
                self._connector.abort(slot.connection)  # its queries fail now, instead of waiting for ever
            else:
                self._end_carrier(slot)
            self._ping(self._ledger.suspect(self._time()))
        if slot.state is SHARED and is_last:
            self._unshare(slot)
        elif slot.state is SlotState.CARRIER and is_last:
            self._carries_nothing(slot)
        self._tend()

    # ---- feeds

    async def _open_feed(self, query: Any, timeout: float, options: dict[str, Any]) -> tuple[Slot, Stream]:
        """Open a feed on a connection of the lane, within ``timeout`` seconds after there is one."""
        connector = self._query_connector
        assert connector is not None
        attempt = 0
        while True:
            attempt += 1
            slot = await self._acquire_feed_place()
            limit = asyncio.timeout(timeout)
            try:
                if slot.connection is None:  # lost at the very moment when it was handed over
                    raise NotSent("the connection ended")
                async with limit:
                    stream = await connector.open_stream(slot.connection, query, options)
                if self._ledger.feed_opened(slot):
                    self._bell.set()
                return slot, stream
            except NotSent as error:
                self._leave_feed(slot)
                if attempt >= MOST_ATTEMPTS:
                    raise self._never_sent(error) from error
            except BaseException as error:
                if isinstance(error, TimeoutError) and limit.expired():
                    self._question(slot)
                self._leave_feed(slot)
                if isinstance(error, TimeoutError) and limit.expired():
                    raise QueryTimeout(
                        f"{self._name}: a feed had no answer from {self._connector.endpoint} within {timeout:g} s, and "
                        "was stopped"
                    ) from None
                raise

    async def _acquire_feed_place(self) -> Slot:
        if get_running_loop() is not self._open_loop:
            raise self._unusable("changes()")
        slot = self._place_feed()
        if slot is None and not self._ledger.has_feed_place():
            raise self._feed_lane_full()
        if slot is None and not self._room.waiting and self._ledger.has_feed_room():
            slot = self._take_idle(FEED)
        if slot is None:
            slot = await self._wait_in_line(FEED, self._config.acquire_timeout)
        self._tend()  # the pool's size may have shrunk by the connection that went to the lane
        return slot

    def _place_feed(self) -> Slot | None:
        """A place on a connection of the lane, which takes nothing from anybody. None where another should be had."""
        ledger = self._ledger
        while (slot := ledger.carrier()) is not None and not self._is_open(slot):
            self._end_carrier(slot)
        if slot is None or (ledger.idle and not self._room.waiting and ledger.wants_carrier()):
            return None
        ledger.add_feed(slot)
        return slot

    def _leave_feed(self, slot: Slot) -> None:
        """A feed on a carrier has ended."""
        if slot.state is SlotState.CARRIER and self._ledger.remove_feed(slot):
            self._carries_nothing(slot)

    def _carries_nothing(self, slot: Slot) -> None:
        if not self._is_open(slot) or not self._has_streams(slot.connection):
            self._feed_ended(slot)
        elif slot not in self._trailing:  # streams that were opened before it went to the lane
            self._trailing.add(slot)
            work = self._connector.wait_streams(slot.connection)
            self._reading.add(self._spawn("feed", work, partial(self._trailed, slot)))

    def _trailed(self, slot: Slot, task: asyncio.Task[Any]) -> None:
        self._reading.discard(task)
        self._trailing.discard(slot)
        if slot.state is SlotState.CARRIER and not slot.in_flight:
            self._feed_ended(slot)

    def _feed_collected(self, slot: Slot) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._leave_feed, slot)  # the collector may run in any thread

    def _end_carrier(self, slot: Slot) -> None:
        """A connection of the lane is lost: its feeds are told by themselves, and its place in the lane is free."""
        self._connector.abort(slot.connection)
        self._ledger.abandon(slot, CloseReason.BROKEN, self._time())

    # ---- slots

    def _come_home(self, slot: Slot, reason: CloseReason | None, *, is_checked: bool = False) -> None:
        """A slot was made idle (``reason`` None) or is closing: serve whoever has waited longest, or keep it."""
        if reason is not None:
            self._close_slot(slot, reason)
        elif (need := self._next_need()) is None or (need is FEED and not self._ledger.has_feed_room()):
            self._room.keep_nowait(slot)
            if self._ledger.watches_idle and self._ledger.idle_alarm(self._time()) < self._wake_at:
                self._bell.set()
            return
        elif self._put_to_use(slot, need, is_checked=is_checked):
            self._hand_over(slot, need)
            self._serve_line()
            return
        self._tend()

    def _prepare(self, slot: Slot, hook: Hook, *, is_checked: bool = False) -> None:
        """Run a check or a reset on a connecting slot."""
        work = _call(hook, self._connector, slot.connection, self._config.check_timeout)
        self._preparing.add(self._spawn("check or reset", work, partial(self._prepared, slot, is_checked)))

    def _prepared(self, slot: Slot, is_checked: bool, task: asyncio.Task[Any]) -> None:
        self._preparing.discard(task)
        error = ConnectionAbortedError("its check was cancelled") if task.cancelled() else task.exception()
        if error is not None:
            log.debug("%s: a connection is discarded, its check or reset failed: %s", self._name, _describe(error))
            self._last_failure = error
            self._close_slot(slot, self._ledger.unfit(slot, self._time(), self._is_open(slot)))
            if is_checked:
                self._ping(self._ledger.suspect(self._time()))
        else:
            reason = self._ledger.prepared(slot, self._time(), self._is_open(slot))
            self._come_home(slot, reason, is_checked=is_checked)
        self._tend()

    def _open(self, slot: Slot) -> None:
        """Open a connection for a connecting slot."""
        opened: list[Any] = []
        work = _open(self._connector, self._config.configure, self._connect_timeout(), opened)
        task = self._spawn("open", work, partial(self._opened, slot, opened))
        self._opening.add(task)

    def _opened(self, slot: Slot, opened: list[Any], task: asyncio.Task[Any]) -> None:
        self._opening.discard(task)
        if task.cancelled():
            for connection in opened:  # it was cancelled in its last step
                self._connector.abort(connection)
            if self._ledger.state is LedgerState.CLOSING:
                self._ledger.open_cancelled(slot)
            else:
                self._open_failed(slot, ConnectionAbortedError("the opening was cancelled"))
        elif (error := task.exception()) is not None:
            self._open_failed(slot, error)
        else:
            (connection,) = opened
            if self._outage_was_logged:
                self._outage_was_logged = False
                log.info("%s: connected to %s again", self._name, self._connector.endpoint)
            slot.holder = _holders.Holder()
            reason = self._ledger.opened(slot, connection, self._time())
            self._come_home(slot, reason)
            self._tend()  # where an outage has ended, the others may follow
            self._connector.on_lost(connection, partial(_lost, weakref.ref(self), slot, id(connection)))

    def _open_failed(self, slot: Slot, error: BaseException) -> None:
        is_hopeless = isinstance(error, ConnectFailed) and error.is_permanent
        if not (self._outage_was_logged and self._ledger.is_outage) and self._ledger.state is LedgerState.OPEN:
            self._outage_was_logged = True
            log.warning("%s: cannot connect to %s: %s", self._name, self._connector.endpoint, _describe(error))
        self._last_failure = error
        refusal = self._ledger.open_failed(slot, self._time(), is_hopeless=is_hopeless)
        if refusal is Refusal.OLDEST:
            self._room.refuse(ConnectFailed("could not connect"))
        elif refusal is Refusal.ALL:
            self._room.refuse_all(ConnectFailed("could not connect"))
        if self._ledger.state is LedgerState.OPEN:  # a failure while opening ends init_pool()
            self._tend()

    def _close_slot(self, slot: Slot, reason: CloseReason) -> asyncio.Task[Any] | None:
        """Close the connection of a closing slot, or of one in the lane. Returns the task that does it, if it takes
        any.
        """
        connection = slot.connection
        log.debug("%s: closing a connection: %s", self._name, reason)
        is_open = self._is_open(slot)
        is_read = is_open and self._has_streams(connection)
        if not is_open or (is_read and self._closing.is_over):
            self._connector.abort(connection)
            self._ledger.closed(slot, reason)
            self._settle_close()
            self._bell.set()  # another one may be wanted in its place
            return None
        if is_read:
            self._ledger.retire(slot)
            work = _wait_streams(self._connector, connection, self._config.cursor_grace)
            task = self._spawn("last cursor", work, partial(self._retired, slot, reason))
            self._reading.add(task)
            return None
        return self._close_now(slot, reason)

    def _close_now(self, slot: Slot, reason: CloseReason) -> asyncio.Task[Any]:
        work = _close(self._connector, slot.connection, self._config.close_timeout)
        return self._spawn("close", work, partial(self._closed, slot, reason))

    def _retired(self, slot: Slot, reason: CloseReason, task: asyncio.Task[Any]) -> None:
        self._reading.discard(task)
        if task.cancelled():
            self._connector.abort(slot.connection)
            self._ledger.closed(slot, reason)
        else:
            self._close_now(slot, reason)

    def _closed(self, slot: Slot, reason: CloseReason, task: asyncio.Task[Any]) -> None:
        if task.cancelled() or task.exception() is not None:
            log.debug("%s: a connection would not close politely and was aborted: %s", self._name, _outcome(task))
            self._connector.abort(slot.connection)
        self._ledger.closed(slot, reason)
        self._tend()

    def _closed_apart(self, slot: Slot) -> Callable[[asyncio.Task[Any]], None]:
        """For a connection that the ledger does not know any more."""
        connection = slot.connection

        def closed(task: asyncio.Task[Any]) -> None:
            if task.cancelled() or task.exception() is not None:
                self._connector.abort(connection)

        return closed

    def _slot_lost(self, slot: Slot, connection_id: int) -> None:
        """A connection died. Idle, or a carrier of feeds, it goes; in other use, it goes when it comes home. Its
        siblings may have died too.
        """
        if id(slot.connection) != connection_id:
            return  # it is in nobody's hands any more
        if slot.state is SlotState.IDLE:
            self._room.remove((slot,))
            failures = self._ledger.connect_failures_total
            reason = self._ledger.lost(slot, self._time())
            if self._ledger.connect_failures_total > failures:
                self._last_failure = ConnectionResetError("a connection was lost as soon as it was open")
            self._close_slot(slot, reason)
        elif slot.state is SlotState.CARRIER:
            self._end_carrier(slot)
        self._ping(self._ledger.suspect(self._time()))
        self._tend()

    # ---- housekeeping

    def _tend(self) -> float:
        """Carry out what the ledger orders. Returns when it wants to be asked again."""
        if self._room.waiting:
            self._serve_line()
        now = self._time()
        orders = self._ledger.tend(now, self._leases_wanted(), self._room.waiting_for(QUERY))
        if orders.close:
            self._room.remove([slot for slot, _ in orders.close])
        for slot, reason in orders.close:
            self._close_slot(slot, reason)
        self._ping(orders.check)
        for slot in orders.open:
            self._open(slot)
        if orders.has_outage_lasted:
            self._tell_outage()
        wake_at = min(orders.wake_at, self._tell_leaks(now))
        if wake_at < self._wake_at:
            self._bell.set()
        self._wake_at = wake_at
        return wake_at

    def _ping(self, slots: list[Slot]) -> None:
        """Check slots that the ledger holds for it, all together."""
        if slots:
            self._room.remove(slots)
        for slot in slots:
            self._prepare(slot, self._check, is_checked=True)

    def _tell_outage(self) -> None:
        log.warning(
            "%s: no connection to %s for %g s: %s",
            *(self._name, self._connector.endpoint, self._config.reconnect_timeout, _describe(self._last_failure)),
        )
        if self._config.on_reconnect_failed is not None:
            # Not one of the tasks that closing waits for: it may close the pool.
            assert self._loop is not None
            task = self._loop.create_task(
                _call_back(self._config.on_reconnect_failed, self), name=f"{self._name}: on_reconnect_failed"
            )
            self._callbacks.add(task)
            task.add_done_callback(self._called_back)

    def _called_back(self, task: asyncio.Task[Any]) -> None:
        self._callbacks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: on_reconnect_failed raised", self._name, exc_info=error)

    def _tell_leaks(self, now: float) -> float:
        """Log who holds a lease for too long. Returns when to look again."""
        threshold = self._leak_threshold
        if threshold is None:
            return NEVER
        # Leases of feeds may last for days.
        holders = [slot.holder for slot in self._ledger.slots if slot.state is LEASED]
        for holder in _holders.leaks(holders, now, threshold):
            log.warning(
                "%s: a lease is held by %s; it is now in\n%s", self._name, holder.describe(now), holder.stack_now()
            )
        return _holders.next_leak(holders, threshold)

    def _spawn(
        self, purpose: str, work: Coroutine[Any, Any, Any], done: Callable[[asyncio.Task[Any]], None]
    ) -> asyncio.Task[Any]:
        """Run ``work`` in a task of the pool's; ``done`` takes its outcome, even if it never started."""
        assert self._loop is not None
        task = self._loop.create_task(work, name=f"{self._name}: {purpose}")
        self._tasks.add(task)
        task.add_done_callback(partial(self._task_done, done))
        return task

    def _task_done(self, done: Callable[[asyncio.Task[Any]], None], task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        done(task)
        self._settle_close()

    # A connector that raises where it must not costs its connection, and nothing else.

    def _is_open(self, slot: Slot) -> bool:
        try:
            return self._connector.is_open(slot.connection)
        except Exception:
            log.exception("%s: is_open() of the connector raised", self._name)
            return False

    def _has_streams(self, connection: Any) -> bool:
        try:
            return self._connector.has_streams(connection)
        except Exception:
            log.exception("%s: has_streams() of the connector raised", self._name)
            return False

    def _connect_timeout(self) -> float:
        timeout = self._config.connect_timeout
        return self._connector.connect_timeout if timeout is None else timeout

    # ---- what the pool tells

    @staticmethod
    async def check_connection(connection: Any) -> None:
        """A ready-made ``check``: ask the server who it is, and raise unless it is the one that this connection reached
        at first.

        One round trip. If cancelled, the connection remains usable.
        """
        await connection.check()

    @property
    def name(self) -> str:
        """The pool's name."""
        return self._name

    @property
    def pool_size(self) -> int:
        """Most connections open at once."""
        return self._config.pool_size

    @property
    def connection_ttl(self) -> float | None:
        """Seconds that a connection may live. 0 or None: for ever."""
        return self._config.connection_ttl

    @property
    def empty(self) -> bool:
        """Whether no connection is idle."""
        return not self._room.has_idle

    def stats(self) -> PoolStats:
        """How the pool is now, and what it has done so far."""
        ledger = self._ledger
        return PoolStats(
            name=self._name,
            min_size=ledger.min_size,
            max_size=ledger.max_size,
            size=ledger.size,
            idle=ledger.idle,
            leased=ledger.leased,
            shared=ledger.shared,
            connecting=ledger.connecting,
            closing=ledger.closing,
            waiting=self._room.waiting,
            feeds=ledger.feeds,
            retired=ledger.retired,
            queries_in_flight=ledger.queries,
            queries_waiting=self._room.waiting_for(QUERY),
            changefeeds=ledger.carried,
            acquired_total=ledger.acquired_total,
            waited_total=self._waited_total,
            waited_seconds_total=self._waited_seconds_total,
            timeouts_total=self._timeouts_total,
            cancelled_total=self._cancelled_total,
            refused_total=self._refused_total,
            queries_done_total=self._queries_done_total,
            queries_stopped_total=self._queries_stopped_total,
            queries_lost_total=self._queries_lost_total,
            opened_total=ledger.opened_total,
            connect_failures_total=ledger.connect_failures_total,
            closed_total=ledger.closed_by_reason.total(),
            closed_by_reason=MappingProxyType({str(reason): n for reason, n in ledger.closed_by_reason.items()}),
        )

    def __repr__(self) -> str:
        ledger = self._ledger
        status = ledger.state.value
        if ledger.state is not LedgerState.CLOSED:
            status += f" {ledger.leased}/{ledger.max_size} leased, "
            if ledger.shared:
                status += f"{ledger.shared} shared by {ledger.queries} queries, "
            status += f"{self._room.waiting} waiting"
        return f"<AsyncConnectionPool {self._name!r} {status}>"

    def _situation(self) -> str:
        ledger = self._ledger
        shared = f"{ledger.shared} shared by {ledger.queries} queries, " if ledger.shared else ""
        return (
            f"{ledger.leased} of {ledger.max_size} leased, {shared}{ledger.idle} idle, {ledger.connecting} connecting, "
            f"{ledger.closing} closing, {self._room.waiting} waiting"
        )

    # ---- what the pool refuses

    def _check_open(self, call: str) -> None:
        if asyncio.get_running_loop() is not self._open_loop:
            raise self._unusable(call)

    def _unusable(self, call: str) -> PoolException:
        """Why a call cannot be served in the pool's present state."""
        state = self._ledger.state
        if self._is_inherited:
            return PoolException(
                f"{self._name}: {call} on a pool that was inherited over fork(); its connections belong to the parent. "
                "Open a pool after the fork, in each process"
            )
        if state is LedgerState.OPENING:
            return PoolClosed(f"{self._name}: {call} while init_pool() is still opening the pool; await that first")
        if state is LedgerState.CLOSING:
            return PoolClosed(f"{self._name}: {call} while the pool is closing; init_pool() opens it again after that")
        if state is LedgerState.OPEN:
            return PoolException(
                f"{self._name}: {call} outside the event loop in which the pool was opened; a pool serves one loop, "
                "open one in each"
            )
        if self._was_open:
            return PoolClosed(f"{self._name}: {call} on a closed pool; init_pool() opens it again")
        return PoolClosed(
            f"{self._name}: {call} on a pool that is not open yet; await init_pool(), or use `async with pool:`"
        )

    def _sharing(self, call: str) -> NoReturn:
        raise PoolException(
            f"{self._name}: {call} needs a connector that runs queries, a QueryConnector; {self._connector!r} is none. "
            "Use acquire() or connect()"
        )

    def _feed_lane_full(self) -> PoolException:
        return FeedLaneFull(
            f"{self._name}: max_feed_connections={self._config.feed_limit} connections serve feeds; end one, or "
            "raise max_feed_connections"
        )


class _InDeadlock(TimeoutError):
    """The time of a caller in a deadlock was up."""


_ACQUIRE: Final = AsyncConnectionPool._acquire.__code__

_CALLS: Final = {LEASE: "acquire()", QUERY: "a query", FEED: "changes()"}


def _waits_for(task: asyncio.Task[Any], other: asyncio.Task[Any] | None) -> bool:
    """Whether a task is in a ``wait_for()`` that has the other do its work, as that of Python 3.11 does."""
    frame = _holders.innermost_frame(task)
    return frame is not None and frame.f_code is asyncio.wait_for.__code__ and frame.f_locals.get("fut") is other


def _no_time() -> float:
    raise AssertionError("a pool that was never opened asked for the time")


# What the pool's tasks do. None of them holds the pool: a forgotten one can be collected.


async def _open(connector: Connector, configure: Hook | None, timeout: float, opened: list[Any]) -> None:
    """Append to ``opened``, so that the connection is not lost where the task is cancelled in its last step."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    async with asyncio.timeout_at(deadline + PATIENCE_SECONDS):
        connection = await connector.connect()
    if configure is not None:
        try:
            await _call(configure, connector, connection, deadline - loop.time())
        except BaseException:
            connector.abort(connection)
            raise
    opened.append(connection)


async def _call(hook: Hook, connector: Connector, connection: Any, timeout: float) -> None:
    """Run a hook for up to ``timeout`` seconds, in a task of its own: one that does not end when it is cancelled, or
    waits for a frozen server before it does, must not keep the slot.
    """
    work = asyncio.ensure_future(hook(connection))
    work.add_done_callback(_look_at_outcome)  # whatever becomes of this task
    try:
        await asyncio.wait([work], timeout=timeout)
        if work.done():
            error = None if work.cancelled() else work.exception()
            if error is not None and not isinstance(error, Exception):  # it has left the event loop already
                raise RuntimeError(f"the hook raised {error!r}")
            work.result()
            return
    finally:
        if not work.done():
            work.cancel()
            await asyncio.wait([work], timeout=CANCEL_SECONDS)
            if not work.done():
                connector.abort(connection)  # whatever it still awaits on it fails now
    raise TimeoutError


def _look_at_outcome(work: asyncio.Future[Any]) -> None:
    if not work.cancelled():
        work.exception()


async def _call_back(callback: Callable[[Any], object], pool: AsyncConnectionPool) -> None:
    result = callback(pool)
    if isinstance(result, Awaitable):
        await result


async def _wait_streams(connector: Connector, connection: Any, grace: float) -> None:
    try:
        async with asyncio.timeout(grace):
            await connector.wait_streams(connection)
    except TimeoutError:
        pass  # the readers see that the connection is closed


async def _close(connector: Connector, connection: Any, timeout: float) -> None:
    async with asyncio.timeout(timeout):
        await connector.close(connection)


async def _keep_house(pool: weakref.ref[AsyncConnectionPool], bell: asyncio.Event) -> None:
    """Ask the ledger whenever it wanted to be asked. Holds no pool while it sleeps."""
    while True:
        bell.clear()
        this = pool()
        if this is None:
            return
        wake_at = this._tend()
        del this
        try:
            async with asyncio.timeout_at(None if wake_at == NEVER else wake_at):
                await bell.wait()
        except TimeoutError:
            pass


def _lost(pool: weakref.ref[AsyncConnectionPool], slot: Slot, connection_id: int) -> None:
    this = pool()
    if this is not None:
        this._slot_lost(slot, connection_id)


def _abandon(connector: Connector, connections: Iterable[Any], housekeeper: asyncio.Task[None] | None) -> None:
    """End what a forgotten pool held."""
    for connection in connections:
        connector.abort(connection)
    if housekeeper is not None:
        housekeeper.cancel()


def _connector(
    arguments: Mapping[str, Any] | Callable[[], Any] | Connector, connect_timeout: float | None
) -> Connector:
    """The one place where ``connect()`` arguments become a connector."""
    if isinstance(arguments, Mapping):
        if connect_timeout is not None:
            arguments = {**arguments, "timeout": connect_timeout}
        return RethinkDBConnector(**arguments)
    if isinstance(arguments, Connector):
        return arguments
    if callable(arguments):
        return RotatingConnector(arguments, connect_timeout)
    raise TypeError(
        "rethinkdb_connection_kwargs must be a mapping of r.connect() arguments, a callable or a Connector, not "
        f"{type(arguments).__name__}"
    )


def _describe(error: BaseException | None) -> str:
    """One line about an error; a bare TimeoutError says nothing of itself."""
    if error is None:
        return "none"
    text = str(error)
    if text and isinstance(error, ConnectFailed):  # of the connector, which says more than its cause
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _sentence(error: BaseException | None) -> str:
    text = _describe(error)
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _cause(error: BaseException | None) -> BaseException | None:
    """What a connector's :class:`ConnectFailed` came from; any other error as it is."""
    return error.__cause__ if isinstance(error, ConnectFailed) and error.__cause__ is not None else error


def _outcome(task: asyncio.Task[Any]) -> str:
    return "cancelled" if task.cancelled() else _describe(task.exception())
