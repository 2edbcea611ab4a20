"""The face of the pool: :class:`AsyncConnectionPool`, its options and its documented calls.

It holds a :class:`Runtime`, which is one opening of the pool in one event loop, or None. That says whether the pool is
open, is closed, belongs to another loop, or was inherited over ``fork()``. Connections, tasks and rules are elsewhere.
"""

from __future__ import annotations

import inspect
import itertools
import warnings
from asyncio import get_running_loop
from collections.abc import Callable, Mapping
from dataclasses import replace
from sys import _getframe
from types import TracebackType
from typing import Any, Literal, NoReturn, cast
from weakref import ref

from ._shell import holders, messages, queries
from ._shell.journal import Journal, log
from ._shell.runtime import Phase, Runtime
from .config import UNSET, PoolConfig, PoolOptions, Unpack, Unset, check_names, check_seconds
from .connectors import Connector, QueryConnector
from .connectors.rethinkdb import R, RethinkDBConnector
from .errors import LeaseError, PoolClosed, PoolException
from .feeds import Feed, StreamContext
from .lease import DONE, Done, FeedContext, Lease, LeaseContext, parts_of
from .stats import CloseReport, PoolStats

__all__ = ["AsyncConnectionPool", "PoolException", "R"]

_pool_numbers = itertools.count(1)


class AsyncConnectionPool:
    """A pool of connections to one RethinkDB server, for the tasks of one event loop.

    :meth:`init_pool` or ``async with pool:`` opens it. :meth:`run`, :meth:`stream` and :meth:`changes` send queries,
    many at a time on each connection. :meth:`acquire` and :meth:`connect` lease a connection to one user. Callers are
    served strictly first come, first served. Cancelling a call at any await loses nothing.

    :param rethinkdb_connection_kwargs: a mapping of ``r.connect()`` arguments; or a callable, sync or async, that
        returns one, for secrets that change: the pool calls it for each new connection; or a
        :class:`~async_repool.Connector` for any other kind of connection.

    :class:`~async_repool.config.PoolConfig` has the options, with their units and defaults. A bad value raises
    ``TypeError`` or ``ValueError``, which names the option and the value. Nothing is opened here.
    """

    def __init__(
        self,
        rethinkdb_connection_kwargs: Mapping[str, Any] | Callable[[], Any] | Connector,
        pool_size: int = PoolConfig.pool_size,
        connection_ttl: float | None = PoolConfig.connection_ttl,
        **options: Unpack[PoolOptions],
    ) -> None:
        check_names(options)
        config = PoolConfig(pool_size=pool_size, connection_ttl=connection_ttl, **options)
        self._config = config
        self._connector = _connector(rethinkdb_connection_kwargs, config.connect_timeout)
        self._query_connector = self._connector if isinstance(self._connector, QueryConnector) else None
        self._keeps_stacks = config.debug
        self._journal = Journal(config.name or f"pool-{next(_pool_numbers)}", self._connector, config.observer)
        self._runtime: Runtime | None = None

    # ---- opening and closing

    async def init_pool(self) -> None:
        """Open ``min_size`` connections, all at once. Does nothing if the pool is open already.

        Waits until they are open, each for up to ``connect_timeout``. If one cannot be opened, closes the others and
        raises :class:`ConnectFailed` with the driver's error as cause; it may be called again. If cancelled, closes
        what it opened. After :meth:`close` or :meth:`release_pool` it opens the pool again, in the event loop
        that is running.
        """
        runtime = self._present_runtime()
        if runtime is not None:
            if runtime.open_loop is get_running_loop():
                return
            if runtime.is_inherited or runtime.phase is not Phase.CLOSED:
                raise runtime.unusable("init_pool()")
        self._runtime = Runtime(self._config, self._connector, self._journal, ref(self))
        await self._runtime.open()

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
        """End the pool: refuse new callers and all who wait with :class:`PoolClosed`, and close every connection.

        Ends feeds at once. Waits up to ``timeout`` seconds (None: for ever) for leases, queries under way, and cursors
        and streams that are still read. Then it aborts those that are left: their users see that the connection is
        closed. Each connection may take ``close_timeout`` more to close politely.

        If cancelled, the closing goes on by itself: call it again to wait for its end. May be called twice, and on a
        pool that was never opened. Returns what became of leases, queries and feeds when the pool was last closed.
        """
        check_seconds("timeout", timeout)
        runtime = self._present_runtime()
        if runtime is None:
            return CloseReport()
        if runtime.is_inherited or (runtime.phase is not Phase.CLOSED and runtime.loop is not get_running_loop()):
            raise runtime.unusable("close()")
        await runtime.close(timeout)
        return runtime.report

    async def release_pool(self) -> None:
        """Close every connection, as :meth:`close` does, if no lease is out and no query is under way.

        If there are any, raises :class:`PoolException`, which says how many, and changes nothing.
        """
        runtime = self._present_runtime()
        if runtime is not None and not runtime.is_inherited:
            leases, queries = runtime.uses()
            if leases or queries:
                raise PoolException(f"{self.name}: {messages.in_use(leases, queries)}")
        await self.close(timeout=0)

    async def drain(self) -> None:
        """Replace every connection, for example after a failover or a change of passwords.

        Idle connections are closed and replaced now. A leased one is closed when it is released, a shared one when its
        last query has ended, and one that is still read when its last cursor or feed has ended.

        Waits until the idle ones are replaced, at most ``close_timeout + connect_timeout``. Raises
        :class:`ConnectFailed` if the new ones cannot be opened; the pool goes on trying. If cancelled, the work goes on
        by itself.
        """
        await self._usable("drain()").drain()

    def resize(self, *, pool_size: int | None = None, min_size: int | None = None) -> None:
        """Change ``pool_size``, ``min_size`` or both. None leaves a size as it is. Does not wait.

        If the pool grows, it opens connections for the callers in line at once. If it shrinks, it closes surplus idle
        connections now, and the others when nobody uses them any more. A ``min_size`` or ``max_feed_connections`` that
        was never given follows ``pool_size``. On a closed pool, the next :meth:`init_pool` uses the new sizes.

        :raises ValueError: a size is wrong, and named. Nothing has changed then.
        :raises PoolException: the pool is open in another event loop, or is being opened or closed.
        """
        config = self._config
        if pool_size is not None:
            config = replace(config, pool_size=pool_size, min_size=config.min_size if min_size is None else min_size)
        elif min_size is not None:
            config = replace(config, min_size=min_size)
        runtime = self._runtime
        if runtime is not None and runtime.phase is not Phase.CLOSED:
            try:
                self._usable("resize()").resize(config)
            except RuntimeError:  # no event loop runs in this thread
                raise runtime.unusable("resize()") from None
        self._config = config

    def __del__(self) -> None:
        runtime: Runtime | None = getattr(self, "_runtime", None)
        if runtime is None or runtime.is_over or runtime.phase is Phase.CLOSING:
            return  # a closing goes on by itself
        warnings.warn(f"unclosed {self!r}: await its close(), or use `async with`", ResourceWarning, source=self)
        if runtime.loop.is_closed():
            runtime.abandon()
        else:
            runtime.loop.call_soon_threadsafe(runtime.abandon)  # the collector may run in any thread

    # ---- acquire and release

    async def acquire(self, timeout: float | None | Unset = UNSET) -> Lease:
        """Lease a connection. Give it back with :meth:`release`.

        Takes an idle connection at once. If there is none, waits in line, strictly first come, first served, while the
        pool opens a connection if it has fewer than ``pool_size``. If cancelled, the caller leaves the line, and its
        turn goes to the next.

        :param timeout: seconds to wait. None: for ever. Not given: the pool's ``acquire_timeout``. 0: take only a
            connection that is ready now and needs no check.
        :raises PoolTimeout: no connection became free in time.
        :raises ConnectFailed: a connection was needed and could not be opened in time; the cause is the driver's error.
            If waiting cannot help, as with a wrong password, it is raised at once.
        :raises TooManyWaiters: ``max_waiting`` callers wait already.
        :raises PoolClosed: the pool is not open, or was closed meanwhile.
        :raises PoolException: the pool was opened in another event loop.
        """
        seconds = self._config.acquire_timeout if timeout is UNSET else self._seconds_to_wait(timeout)
        caller = _getframe(1)
        place: holders.Place = (caller.f_code, caller.f_lasti, None)
        if not holders.is_awaiting(caller):
            place = holders.OWN_TASK
        elif self._keeps_stacks:
            place = holders.with_stack(caller)
        runtime = self._usable("acquire()")
        lease = runtime.lease_nowait(place)
        return runtime.make_lease(await runtime.wait_for_slot(seconds), place) if lease is None else lease

    def release(self, conn: Lease) -> Done:
        """Give a lease back, at once. The result may be awaited, but need not be: it is done already.

        The connection goes to the caller who has waited longest, or becomes idle. A broken or drained one is replaced.

        In a thread without an event loop, while the loop of the pool runs in another thread, it only returns a
        coroutine for that loop: ``asyncio.run_coroutine_threadsafe(pool.release(conn), loop)``.

        :raises LeaseError: the lease was released before, or belongs to another pool. Nothing has changed then.
        :raises PoolException: the pool was opened in another event loop. The lease is still live then.
        """
        return self._release(conn, "release()", is_feed=False)

    def release_to_looped(self, conn: Lease) -> Done:
        """Give a lease back whose connection serves a feed. The connection leaves the pool until the feed has ended.

        Works as :meth:`release`. If ``max_feed_connections`` connections serve feeds already, raises
        :class:`~async_repool.errors.FeedLaneFull`, and the lease is still live.
        """
        return self._release(conn, "release_to_looped()", is_feed=True)

    def _release(self, lease: Lease, call: str, *, is_feed: bool) -> Done:
        parts = parts_of(lease)
        if parts is None:
            raise LeaseError(f"{self.name}: {messages.no_lease(call, lease)}")
        runtime, slot = parts
        if runtime.journal is not self._journal:
            raise LeaseError(f"{self.name}: {messages.of_another_pool(runtime.name)}")
        if runtime.end_lease(lease, slot, call, is_feed=is_feed):
            return DONE
        return cast(Done, _call_there(runtime, lease, slot, call, is_feed))

    def connect(self, looped_mode: bool = False, *, timeout: float | None | Unset = UNSET) -> LeaseContext:
        """``async with pool.connect() as connection:`` acquires a lease, and releases it at the end of the block.

        Entering waits, raises and is cancelled as :meth:`acquire`.

        :param looped_mode: for a feed that lives long. The connection leaves the pool until the feed has ended, and
            another one may take its place. If ``max_feed_connections`` connections serve feeds already, entering raises
            :class:`~async_repool.errors.FeedLaneFull`.
        """
        context = FeedContext if looped_mode else LeaseContext
        seconds = self._config.acquire_timeout if timeout is UNSET else self._seconds_to_wait(timeout)
        caller = _getframe(1)
        place = holders.with_stack(caller) if self._keeps_stacks else (caller.f_code, caller.f_lasti, None)
        return context(self._usable, seconds, place)

    # ---- queries

    async def run(self, query: Any, *, timeout: float | None = None, retry: bool = False, **options: Any) -> Any:
        """Run a query beside others on one connection, and return its value. A sequence comes whole, as a list.

        Sends it on the least loaded connection at once. If every connection carries ``max_in_flight`` queries or is
        leased, waits in line for up to ``acquire_timeout``. If cancelled or timed out, the query is stopped on the
        server, and no other query notices.

        If the connection ended before the query was sent, it is sent on another one.

        :param timeout: seconds for the wait in line and the query together. None: as long as the query takes.
        :param retry: whether to send the query again if its connection was lost after it was sent. Only for queries
            that may be done twice.
        :param options: the driver's, for ``query.run()``: ``db``, ``noreply``, ``time_format``, ``profile``, …
        :raises QueryTimeout: the time was over after the query was sent. It may have been done or not.
        :raises ConnectionLost: the connection ended after the query was sent. It may have been done or not.
        :raises PoolException: any other one means that the query was never sent; :meth:`acquire` lists them.
        :raises Exception: the driver's error, if the server refused or failed the query.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        connector = self._query_connector or self._cannot_share("run()")
        runtime = self._usable("a query")
        value, number, began = await queries.run(runtime, connector.run, query, timeout, retry, options)
        if self._journal.observer is None:
            self._journal.totals.queries_done_total += 1  # as query_done(), without a call for each query
        else:
            self._journal.query_done(number, runtime.time() - began)
        return value

    def stream(self, query: Any, *, timeout: float | None = None, retry: bool = False, **options: Any) -> StreamContext:
        """``async with pool.stream(query) as rows: async for row in rows:`` reads a sequence in batches, as they come.

        Entering waits and raises as :meth:`run`. Reading waits until the next row comes, without limit, and raises
        :class:`~async_repool.errors.ConnectionLost` if the connection ended before the last row. Leaving stops the
        query on the server if it has rows left. While the stream is read, its connection serves others as well.

        :param timeout: seconds until the first rows are there, the wait in line included. None: as long as it takes.
        :param retry: as for :meth:`run`, until the first rows are there.
        :param options: the driver's, for ``query.run()``.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        connector = self._query_connector or self._cannot_share("stream()")
        return StreamContext(self.name, queries.StreamSource(self._usable, connector, query, timeout, retry, options))

    def changes(
        self, query: Any, *, timeout: float | None = None, on_gap: Literal["tell", "raise"] = "tell", **options: Any
    ) -> Feed:
        """Follow a changefeed that survives its connection::

            async with pool.changes(R.table("heroes").changes()) as feed:
                async for change in feed:
                    ...

        Many feeds share one connection, which does not count against ``pool_size``. If it is lost, or the server
        restarts, the feed is opened again, after pauses that grow to 5 s, for as long as it takes. What changed
        meanwhile was missed: a :class:`FeedGap` comes instead. A query with ``include_initial=True`` gets all initial
        values again after the gap.

        The first opening raises what :meth:`run` raises. Later the feed ends with the driver's error if the server
        refuses the query, for example because its table was dropped, and with :class:`PoolClosed` if the pool is
        closed. Cancelling a read loses no change, and the feed may be read on. See :class:`~async_repool.feeds.Feed`
        for how to stop it.

        :param timeout: seconds that one opening may take, the first or a later one. None: ``connect_timeout``.
        :param on_gap: ``"raise"``: the feed ends with :class:`~async_repool.errors.ConnectionLost`, instead of a gap.
        :param options: the driver's, for ``query.run()``.
        """
        if timeout is not None:
            check_seconds("timeout", timeout, positive=True)
        if on_gap not in ("tell", "raise"):
            raise ValueError(f"on_gap must be 'tell' or 'raise', not {on_gap!r}")
        connector = self._query_connector or self._cannot_share("changes()")
        return Feed(self.name, queries.FeedOpener(self._usable, connector, query, timeout, on_gap, options))

    # ---- what the pool reports

    @staticmethod
    async def check_connection(connection: Any) -> None:
        """A ready-made ``check``: ask the server who it is. Raises if it is not the server of the first check.

        One round trip. If cancelled, the connection remains usable.
        """
        await connection.check()

    @property
    def name(self) -> str:
        """The pool's name."""
        return self._journal.name

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
        return self._runtime is None or not self._runtime.census().idle

    def stats(self) -> PoolStats:
        """A snapshot: gauges of how the pool is now, and totals of what it has done so far."""
        runtime = self._runtime
        return self._journal.stats(self._config, None if runtime is None else runtime.census())

    def __repr__(self) -> str:
        runtime = self._runtime
        if runtime is None or runtime.phase is Phase.CLOSED:
            return f"<AsyncConnectionPool {self.name!r} closed>"
        return f"<AsyncConnectionPool {self.name!r} {runtime.phase} {messages.status(runtime.census())}>"

    # ---- what the pool refuses

    def _usable(self, call: str) -> Runtime:
        """The runtime, if it serves callers of the event loop that runs."""
        runtime = self._runtime
        if runtime is None:
            raise PoolClosed(f"{self.name}: {messages.not_open(call, None)}")
        if runtime.open_loop is not get_running_loop():
            raise runtime.unusable(call)
        return runtime

    def _present_runtime(self) -> Runtime | None:
        """The runtime. If its event loop was closed before the pool was, the runtime is ended first."""
        runtime = self._runtime
        if runtime is not None and runtime.loop.is_closed() and not runtime.is_over:
            log.warning("%s: its event loop was closed before the pool was; close the pool first", self.name)
            runtime.abandon()
        return runtime

    def _seconds_to_wait(self, timeout: float | None | Unset) -> float | None:
        if isinstance(timeout, Unset):
            return self._config.acquire_timeout
        check_seconds("timeout", timeout)
        return timeout

    def _cannot_share(self, call: str) -> NoReturn:
        raise PoolException(f"{self.name}: {messages.cannot_share(call, self._connector)}")


async def _call_there(runtime: Runtime, lease: Lease, slot: Any, call: str, is_feed: bool) -> None:
    runtime.end_lease(lease, slot, call, is_feed=is_feed)


def _signature() -> inspect.Signature:
    """The constructor's, with each option and its default, for ``help()`` and editors that run the code."""
    signature = inspect.signature(AsyncConnectionPool.__init__)
    parameters = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    parameters += [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=getattr(PoolConfig, name), annotation=annotation
        )
        for name, annotation in PoolConfig.__annotations__.items()
        if name in PoolOptions.__annotations__
    ]
    return signature.replace(parameters=parameters)


AsyncConnectionPool.__init__.__signature__ = _signature()  # type: ignore[attr-defined]


def _connector(
    arguments: Mapping[str, Any] | Callable[[], Any] | Connector, connect_timeout: float | None
) -> Connector:
    """Make a connector from the first argument of the pool."""
    if isinstance(arguments, Mapping):
        if connect_timeout is not None:
            arguments = {**arguments, "timeout": connect_timeout}
        return RethinkDBConnector(**arguments)
    if isinstance(arguments, Connector):
        return arguments
    if callable(arguments):
        return RethinkDBConnector(arguments=arguments, timeout=connect_timeout)
    raise TypeError(
        "rethinkdb_connection_kwargs must be a mapping of r.connect() arguments, a callable or a Connector, not "
        f"{type(arguments).__name__}"
    )
