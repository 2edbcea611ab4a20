"""A suite that checks whether a connector keeps the promises of its protocols.

This module has :func:`check_connector`, with one function for each promise. It does not know a particular connector, a
pool, a driver or a test framework. It runs on any event loop, real or virtual.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import math
import os
import stat
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from async_repool.connectors import Connector, QueryConnector, Stream
from async_repool.errors import ConnectionLost, NotSent

__all__ = ["ConformanceError", "SampleQueries", "check_connector"]

# How long sockets and tasks may take to go. A transport closes in a later turn of the loop, and a server in the same
# process has to notice that first.
_SETTLE_TURNS: Final = 5
_SETTLE_WAITS: Final = 100
_SETTLE_WAIT_SECONDS: Final = 0.01

_CONNECTOR_MEMBERS: Final = ("endpoint", "connect_timeout", "connect", "is_open", "on_lost", "check", "close", "abort")
_STREAM_MEMBERS: Final = ("has_streams", "wait_streams")
_QUERY_MEMBERS: Final = ("run", "open_stream", "is_transient")

_QUERIES_AT_ONCE: Final = 100
_ROWS: Final = 1000  # more than one batch, if rows come in batches

_Check = Callable[["_Suite"], Coroutine[Any, Any, None]]
_QueryCheck = Callable[["_Suite", QueryConnector, "SampleQueries"], Coroutine[Any, Any, None]]


class ConformanceError(AssertionError):
    """A connector breaks promises. The message and :attr:`problems` list them all."""

    def __init__(self, connector: str, problems: list[str]) -> None:
        self.problems = tuple(problems)
        count = "1 promise" if len(problems) == 1 else f"{len(problems)} promises"
        super().__init__(f"{connector} breaks {count}:\n" + "\n".join(f"- {problem}" for problem in problems))


@dataclass(frozen=True, kw_only=True)
class SampleQueries:
    """Queries for :func:`check_connector`, which does not know the peer's language. For RethinkDB: ``r.expr``,
    ``r.range``, ``r.range()``, and a query that waits for something that never happens.
    """

    value: Callable[[int], Any]
    """Makes a query whose value is the given number."""
    rows: Callable[[int], Any]
    """Makes a query whose value is the sequence 0, 1, 2, … with the given number of rows."""
    endless: Any
    """A query whose value is a sequence that does not end while the suite runs."""
    slow: Any
    """A query that gets no answer while the suite runs."""


async def check_connector(
    connector: Connector,
    *,
    queries: SampleQueries | None = None,
    connections: int = 10,
    cancel_points: int = 100,
    seconds: float = 30.0,
) -> None:
    """Check every promise of a connector, with a healthy peer. Raises :class:`ConformanceError` with all broken
    promises.

    Opens and ends some dozens of connections. If cancelled, it aborts them. The promises of streams are checked if the
    connector has ``has_streams()`` and ``wait_streams()``. A connector without both is complete.

    The suite counts the sockets of this process to find leaked ones. So nothing else should open or close sockets
    meanwhile, except the peer. If the platform does not list sockets (Linux and macOS do), the suite finds only leaked
    tasks and ``ResourceWarning``.

    :param queries: the queries for a ``QueryConnector``. ``None``: the promises of ``QueryConnector`` are not checked.
    :param connections: how many connections to open at once. The peer must allow so many.
    :param cancel_points: the largest number of awaits to cancel at, for each verb. Each await is cancelled twice: while
        it waits, and just after its wait has ended.
    :param seconds: the time limit for each promise, on the loop's clock.
    """
    suite = _Suite(connector, connections, cancel_points)
    gc.collect()  # objects from before must not be reported
    for name, check in (*_CHECKS, *_stream_checks(connector), *_query_checks(connector, queries), _LAST_CHECK):
        is_kept = await suite.try_out(name, check, seconds)
        if check is _connect_gives_an_open_connection and not is_kept:
            break  # all other checks would only report the same
    if suite.problems:
        raise ConformanceError(type(connector).__name__, suite.problems)


class _BrokenPromise(AssertionError):
    """A promise that was not kept."""


class _Suite:
    """The state that all checks share: the connector, its open connections, and the problems."""

    def __init__(self, connector: Connector, connections: int, cancel_points: int) -> None:
        self.connector = connector
        self.connections = connections
        self.cancel_points = cancel_points
        self.problems: list[str] = []
        self.doing = ""
        """The call in progress, which the report names if it fails or takes too long."""
        self._opened: list[Any] = []

    async def connect(self) -> Any:
        """A new connection. It is aborted after the check."""
        self.doing = "connect()"
        return await self.open()

    async def open(self) -> Any:
        """The same, without a change of :attr:`doing`."""
        connection = await self.connector.connect()
        self._opened.append(connection)
        return connection

    async def try_out(self, name: str, check: _Check, seconds: float) -> bool:
        """Run one check and record its problems. Returns whether the promise is kept."""
        loop = asyncio.get_running_loop()
        before = _Snapshot()
        with _collecting_reports(loop) as reports:
            self.doing = ""
            task = loop.create_task(check(self), name=f"check_connector: {name}")
            try:
                await asyncio.wait({task}, timeout=seconds)
            finally:
                is_late = task.cancel()
                aborted = self._abort_opened()
            await asyncio.sleep(0)
            found = [*self._findings(task, is_late, seconds), *aborted]
            if not found:
                await before.settle()
                found = before.leaks()
            del task
            gc.collect(1)  # the oldest generation takes long, so it is collected once, at the end
            await asyncio.sleep(0)
        self.problems += [f"{name}: {finding}" for finding in (*found, *reports)]
        return not found

    def _abort_opened(self) -> list[str]:
        found = []
        while self._opened:
            try:
                self.connector.abort(self._opened.pop())
            except Exception as error:
                found = [f"abort() raised {error!r}"]
        return found

    def _findings(self, task: asyncio.Task[None], is_late: bool, seconds: float) -> Iterator[str]:
        if is_late:
            yield f"not done after {seconds:g} s: {self.doing or 'it'} did not end"
            if not task.done():
                yield f"{self.doing or 'it'} cannot be cancelled"
        elif task.cancelled():
            yield f"{self.doing} raised CancelledError, but nobody cancelled it"
        elif (error := task.exception()) is not None:
            yield str(error) if isinstance(error, _BrokenPromise) else f"{self.doing} raised {error!r}"


# ---------------------------------------------------------------------- leaked tasks and sockets


class _Snapshot:
    """The tasks and the sockets at one moment, to find those that are new later."""

    def __init__(self) -> None:
        self._tasks = asyncio.all_tasks()
        self._sockets = _open_sockets()

    async def settle(self) -> None:
        """Wait a short time for new tasks and sockets to go."""
        for _ in range(_SETTLE_TURNS):
            await asyncio.sleep(0)
        for _ in range(_SETTLE_WAITS):
            if not self.leaks():
                break
            await asyncio.sleep(_SETTLE_WAIT_SECONDS)

    def leaks(self) -> list[str]:
        """The tasks and sockets that are new since then, as problems."""
        found = [f"left a task: {task.get_name()}, {task.get_coro()}" for task in self._new_tasks()]
        sockets = _open_sockets()
        if sockets is not None and self._sockets is not None and sockets > self._sockets:
            found.append(f"left sockets open: {sockets - self._sockets}")
        return found

    def _new_tasks(self) -> list[asyncio.Task[Any]]:
        return sorted(asyncio.all_tasks() - self._tasks, key=lambda task: task.get_name())


def _open_sockets() -> int | None:
    """The number of open sockets of this process. ``None``: the platform does not list them."""
    for directory in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return sum(_is_socket(int(name)) for name in os.listdir(directory))
    return None


def _is_socket(descriptor: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:
        return False  # the descriptor that listed the directory


@contextlib.contextmanager
def _collecting_reports(loop: asyncio.AbstractEventLoop) -> Iterator[list[str]]:
    """Collect warnings, and errors that asyncio only logs."""
    reports: list[str] = []

    def handler(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        reports.append(f"the event loop reported: {context.get('message')} ({context.get('exception')!r})")

    usual_handler = loop.get_exception_handler()
    loop.set_exception_handler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield reports
        reported = (ResourceWarning, RuntimeWarning)
        reports += [f"warned: {warning.message}" for warning in caught if issubclass(warning.category, reported)]
    finally:
        loop.set_exception_handler(usual_handler)


# ---------------------------------------------------------------------- cancelling at an await


class _Interrupted:
    """Awaits a coroutine, and cancels its task at the coroutine's wait number `point`.

    The cancellation comes soon after the wait begins. If `when_woken`, it comes when the wait has ended and the task
    has not run yet, so that it replaces the result.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], point: int, *, when_woken: bool) -> None:
        self.was_reached = False
        self._coroutine = coroutine
        self._point = point
        self._when_woken = when_woken

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._coroutine.__await__()
        resume: Callable[[], Any] = lambda: steps.send(None)  # noqa: E731
        waits = 0
        while True:
            try:
                awaited = resume()
            except StopIteration as stop:
                return stop.value
            waits += 1
            if waits == self._point:
                self._interrupt(awaited)
            try:
                yield awaited
            except BaseException as error:
                resume = _thrower(steps, error)
            else:
                resume = lambda: steps.send(None)  # noqa: E731

    def _interrupt(self, awaited: Any) -> None:
        self.was_reached = True
        task = asyncio.current_task()
        assert task is not None
        if self._when_woken and isinstance(awaited, asyncio.Future):
            # This callback runs first, because the task adds its own callback later.
            awaited.add_done_callback(lambda _: task.cancel())
        else:
            asyncio.get_running_loop().call_soon(task.cancel)


def _thrower(steps: Generator[Any, Any, Any], error: BaseException) -> Callable[[], Any]:
    return lambda: steps.throw(error)


async def _interrupt(
    suite: _Suite, verb: str, call: Callable[[], Coroutine[Any, Any, Any]], point: int, *, when_woken: bool
) -> bool:
    """Cancel one call at one await. Returns whether the call came so far.

    Raises _BrokenPromise unless the call ended as cancelled.
    """
    moment = "when woken from" if when_woken else "in"
    suite.doing = f"{verb}, cancelled {moment} its wait number {point},"
    interrupted = _Interrupted(call(), point, when_woken=when_woken)

    async def wait() -> Any:
        return await interrupted

    task = asyncio.get_running_loop().create_task(wait(), name=f"check_connector: {verb}")
    try:
        await asyncio.wait({task})
    finally:
        task.cancel()
    if not interrupted.was_reached:
        task.result()  # nobody cancelled it, so its error is a failure
        return False
    if not task.cancelled():
        error = task.exception()
        how = "did not raise CancelledError" if error is None else f"raised {error!r} instead of CancelledError"
        raise _BrokenPromise(f"{suite.doing} {how}")
    return True


def _points(suite: _Suite) -> Iterator[tuple[int, bool]]:
    for point in range(1, suite.cancel_points + 1):
        yield point, False
        yield point, True


# ---------------------------------------------------------------------- the promises


def _require(kept: bool, otherwise: str) -> None:
    if not kept:
        raise _BrokenPromise(otherwise)


async def _has_all_methods(suite: _Suite) -> None:
    missing = _missing(suite.connector, *_CONNECTOR_MEMBERS)
    _require(not missing, f"the Connector protocol also needs {', '.join(missing)}")


def _missing(connector: object, *members: str) -> list[str]:
    return [name for name in members if getattr(connector, name, None) is None]


async def _endpoint_is_text(suite: _Suite) -> None:
    endpoint: object = suite.connector.endpoint
    _require(isinstance(endpoint, str) and endpoint != "", f"it must be a str that is not empty, not {endpoint!r}")


async def _connect_timeout_is_positive(suite: _Suite) -> None:
    seconds: object = suite.connector.connect_timeout
    is_right = isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and 0 < seconds < math.inf
    _require(is_right, f"it must be a finite number of seconds above 0, not {seconds!r}")


async def _connect_gives_an_open_connection(suite: _Suite) -> None:
    connection = await suite.connect()
    suite.doing = "is_open()"
    _require(suite.connector.is_open(connection) is True, "is_open() of a new connection is not True")


async def _check_passes(suite: _Suite) -> None:
    connection = await suite.connect()
    suite.doing = "check() of a new connection"
    await suite.connector.check(connection)
    _require(suite.connector.is_open(connection), "the connection is not open after check()")
    suite.doing = "a second check()"
    await suite.connector.check(connection)


async def _close_closes(suite: _Suite) -> None:
    connection = await suite.connect()
    suite.doing = "close()"
    await suite.connector.close(connection)
    _require(not suite.connector.is_open(connection), "the connection is still open after close()")


async def _close_may_be_called_twice(suite: _Suite) -> None:
    connection = await suite.connect()
    suite.doing = "close()"
    await suite.connector.close(connection)
    suite.doing = "close() of a closed connection"
    await suite.connector.close(connection)
    aborted = await suite.connect()
    suite.connector.abort(aborted)
    suite.doing = "close() of an aborted connection"
    await suite.connector.close(aborted)


async def _abort_ends_at_once(suite: _Suite) -> None:
    connection = await suite.connect()
    suite.doing = "abort()"
    abort: Callable[[Any], object] = suite.connector.abort
    returned = abort(connection)
    if inspect.iscoroutine(returned):
        returned.close()
    _require(not inspect.isawaitable(returned), "abort() must do its work at once, not return something to await")
    _require(not suite.connector.is_open(connection), "the connection is still open after abort()")


async def _abort_may_be_called_at_any_time(suite: _Suite) -> None:
    connection = await suite.connect()
    suite.doing = "abort()"
    suite.connector.abort(connection)
    suite.doing = "a second abort()"
    suite.connector.abort(connection)
    closed = await suite.connect()
    suite.doing = "close()"
    await suite.connector.close(closed)
    suite.doing = "abort() of a closed connection"
    suite.connector.abort(closed)


async def _on_lost_reports_only_losses(suite: _Suite) -> None:
    called: list[str] = []
    closed, aborted = await suite.connect(), await suite.connect()
    suite.doing = "on_lost()"
    suite.connector.on_lost(closed, lambda: called.append("close()"))
    suite.connector.on_lost(aborted, lambda: called.append("abort()"))
    suite.doing = "close()"
    await suite.connector.close(closed)
    suite.connector.abort(aborted)
    await asyncio.sleep(0.05)  # a real peer needs time to notice and answer
    _require(not called, f"its callback was called after {' and after '.join(called)}")


async def _many_connections_can_be_opened_at_once(suite: _Suite) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(suite.connect()) for _ in range(suite.connections)]
    connections = [task.result() for task in tasks]
    _require(len({id(connection) for connection in connections}) == suite.connections, "some are the same object")
    _require(all(map(suite.connector.is_open, connections)), "some are not open")
    suite.doing = "check() of all at once"
    async with asyncio.TaskGroup() as group:
        for connection in connections:
            group.create_task(suite.connector.check(connection))
    suite.connector.abort(connections[0])
    _require(all(map(suite.connector.is_open, connections[1:])), "abort() of one ended others too")


async def _connect_can_be_cancelled(suite: _Suite) -> None:
    for point, when_woken in _points(suite):
        before = _Snapshot()
        if not await _interrupt(suite, "connect()", suite.open, point, when_woken=when_woken):
            return
        await before.settle()
        _require(not before.leaks(), f"{suite.doing} {' and '.join(before.leaks())}")


async def _check_can_be_cancelled(suite: _Suite) -> None:
    connection = await suite.connect()
    for point, when_woken in _points(suite):
        is_reached = await _interrupt(
            suite, "check()", lambda: suite.connector.check(connection), point, when_woken=when_woken
        )
        _require(suite.connector.is_open(connection), f"{suite.doing} left the connection closed")
        if not is_reached:
            return
        suite.doing = f"check() after a {suite.doing.rstrip(',')}"
        await suite.connector.check(connection)


async def _close_can_be_cancelled(suite: _Suite) -> None:
    for point, when_woken in _points(suite):
        before = _Snapshot()
        connection = await suite.connect()
        close = lambda connection=connection: suite.connector.close(connection)  # noqa: E731
        if not await _interrupt(suite, "close()", close, point, when_woken=when_woken):
            return
        interrupted, suite.doing = suite.doing, f"abort() after {suite.doing.rstrip(',')}"
        suite.connector.abort(connection)
        _require(not suite.connector.is_open(connection), f"{suite.doing} left the connection open")
        await before.settle()
        _require(not before.leaks(), f"{interrupted} and then aborted, {' and '.join(before.leaks())}")


async def _nothing_is_left_to_the_garbage_collector(suite: _Suite) -> None:
    gc.collect()  # objects that were not closed warn now


_CHECKS: Final[tuple[tuple[str, _Check], ...]] = (
    ("the protocol is complete", _has_all_methods),
    ("endpoint is text", _endpoint_is_text),
    ("connect_timeout is positive", _connect_timeout_is_positive),
    ("connect() gives an open connection", _connect_gives_an_open_connection),
    ("check() passes", _check_passes),
    ("close() closes", _close_closes),
    ("close() does nothing after the end", _close_may_be_called_twice),
    ("abort() ends at once", _abort_ends_at_once),
    ("abort() never raises", _abort_may_be_called_at_any_time),
    ("on_lost() reports only losses", _on_lost_reports_only_losses),
    ("many connections can be opened at once", _many_connections_can_be_opened_at_once),
    ("connect() can be cancelled", _connect_can_be_cancelled),
    ("check() can be cancelled", _check_can_be_cancelled),
    ("close() can be cancelled, then aborted", _close_can_be_cancelled),
)
_LAST_CHECK: Final[tuple[str, _Check]] = (
    "nothing is left to the garbage collector",
    _nothing_is_left_to_the_garbage_collector,
)


# ---------------------------------------------------------------------- the promises of a StreamingConnector


def _stream_checks(connector: Any) -> Iterator[tuple[str, _Check]]:
    """The checks of streams. There are none for a connector that does not claim to have streams."""
    missing = _missing(connector, *_STREAM_MEMBERS)
    if len(missing) == len(_STREAM_MEMBERS):
        return
    yield "the protocol of streams is complete", _has_all_stream_methods
    if not missing:
        yield "a new connection has no streams", partial(_a_new_connection_has_no_streams, connector)


async def _has_all_stream_methods(suite: _Suite) -> None:
    missing = _missing(suite.connector, *_STREAM_MEMBERS)
    _require(not missing, f"a connector with streams also needs {', '.join(missing)}")


async def _a_new_connection_has_no_streams(connector: Any, suite: _Suite) -> None:
    connection = await suite.connect()
    suite.doing = "has_streams()"
    _require(connector.has_streams(connection) is False, "has_streams() of a new connection is not False")
    suite.doing = "wait_streams() of a new connection"
    await connector.wait_streams(connection)


# ---------------------------------------------------------------------- the promises of a QueryConnector


def _query_checks(connector: Connector, queries: SampleQueries | None) -> Iterator[tuple[str, _Check]]:
    if queries is None:
        return
    yield "the protocol of queries is complete", _has_all_query_methods
    if isinstance(connector, QueryConnector):
        for name, check in _QUERY_CHECKS:
            yield name, _with(check, connector, queries)


def _with(check: _QueryCheck, connector: QueryConnector, queries: SampleQueries) -> _Check:
    return lambda suite: check(suite, connector, queries)


async def _has_all_query_methods(suite: _Suite) -> None:
    missing = _missing(suite.connector, *_STREAM_MEMBERS, *_QUERY_MEMBERS)
    _require(not missing, f"the QueryConnector protocol also needs {', '.join(missing)}")


async def _queries_share_a_connection(suite: _Suite, connector: QueryConnector, queries: SampleQueries) -> None:
    connection = await suite.connect()
    suite.doing = f"run() of {_QUERIES_AT_ONCE} queries at once"
    async with asyncio.TaskGroup() as group:
        runs = [connector.run(connection, queries.value(number), {}) for number in range(_QUERIES_AT_ONCE)]
        tasks = [group.create_task(run) for run in runs]
    _require(
        [task.result() for task in tasks] == list(range(_QUERIES_AT_ONCE)), "some queries got the answer of another one"
    )


async def _run_returns_sequences_whole(suite: _Suite, connector: QueryConnector, queries: SampleQueries) -> None:
    connection = await suite.connect()
    suite.doing = "run() of a sequence"
    rows = await connector.run(connection, queries.rows(_ROWS), {})
    _require(isinstance(rows, list), f"a sequence must be a list, not {type(rows).__name__}")
    _require_all_rows(rows)
    _require(connector.has_streams(connection) is False, "has_streams() is not False after the last row")


async def _an_ended_connection_sends_nothing(suite: _Suite, connector: QueryConnector, queries: SampleQueries) -> None:
    closed, aborted = await suite.connect(), await suite.connect()
    suite.doing = "close()"
    await connector.close(closed)
    connector.abort(aborted)
    for connection, status in (closed, "a closed"), (aborted, "an aborted"):
        run = connector.run(connection, queries.value(1), {})
        await _require_raises(suite, NotSent, f"run() on {status} connection", run)
        opening = connector.open_stream(connection, queries.rows(1), {})
        await _require_raises(suite, NotSent, f"open_stream() on {status} connection", opening)


async def _waiting_calls_fail_at_the_end(suite: _Suite, connector: QueryConnector, queries: SampleQueries) -> None:
    connection = await suite.connect()
    suite.doing = "open_stream()"
    stream = await connector.open_stream(connection, queries.endless, {})
    async with _slow_query(suite, connector, connection, queries) as run, _doing(_read_all(stream)) as read:
        await asyncio.sleep(0)
        connector.abort(connection)
        await _require_raises(suite, ConnectionLost, "run() on a connection that is aborted", run)
        await _require_raises(suite, ConnectionLost, "reading from a connection that is aborted", read)
    _require(connector.has_streams(connection) is False, "has_streams() of an aborted connection is not False")


async def _queries_can_be_cancelled(suite: _Suite, connector: QueryConnector, queries: SampleQueries) -> None:
    connection = await suite.connect()

    async def require_unharmed(answer: Awaitable[Any]) -> None:
        interrupted, suite.doing = suite.doing, f"run() beside {suite.doing.rstrip(',')}"
        _require(await answer == 2, f"{suite.doing} got a wrong answer")
        _require(connector.is_open(connection), f"{interrupted} left the connection closed")

    async with _slow_query(suite, connector, connection, queries) as slow:
        slow.cancel()
        suite.doing = "run() of a slow query, cancelled,"
        await asyncio.wait({slow})
        _require(slow.cancelled(), f"{suite.doing} did not raise CancelledError")
        await require_unharmed(connector.run(connection, queries.value(2), {}))
    run = partial(connector.run, connection, queries.value(1), {})
    open_stream = partial(connector.open_stream, connection, queries.endless, {})
    for verb, call in ("run()", run), ("open_stream()", open_stream):
        for point, when_woken in _points(suite):
            async with _doing(connector.run(connection, queries.value(2), {})) as neighbour:
                is_reached = await _interrupt(suite, verb, call, point, when_woken=when_woken)
                await require_unharmed(neighbour)
            if not is_reached:
                break
    await _wait_no_streams(suite, connector, connection, "cancelled")


async def _only_sequences_are_streams(suite: _Suite, connector: QueryConnector, queries: SampleQueries) -> None:
    connection = await suite.connect()
    opening = connector.open_stream(connection, queries.value(1), {})
    await _require_raises(suite, TypeError, "open_stream() of a query whose value is a number", opening)
    _require(connector.is_open(connection), "it left the connection closed")


async def _streams_can_be_read_to_their_end(suite: _Suite, connector: QueryConnector, queries: SampleQueries) -> None:
    connection = await suite.connect()
    suite.doing = "open_stream()"
    stream = await connector.open_stream(connection, queries.rows(_ROWS), {})
    _require(stream.is_feed is False, "is_feed of a stream that is not a changefeed is not False")
    suite.doing = "reading a stream"
    rows = await _read_all(stream)
    _require_all_rows(rows)
    await _require_raises(suite, StopAsyncIteration, "reading a stream that has ended", anext(stream))
    suite.doing = "close() of a stream that has ended"
    _require(stream.close() is False, "close() of a stream that has ended does not return False")
    await _wait_no_streams(suite, connector, connection, "read to its end")


async def _cancelled_reads_lose_no_row(suite: _Suite, connector: QueryConnector, queries: SampleQueries) -> None:
    connection = await suite.connect()
    suite.doing = "open_stream()"
    stream = await connector.open_stream(connection, queries.rows(_ROWS), {})
    rows = []

    async def read() -> None:
        rows.append(await anext(stream, None))

    while None not in rows:
        # Only the first row of a batch waits, so only these reads can be cancelled.
        await _interrupt(suite, "a read", read, 1, when_woken=len(rows) % 2 == 1)
        suite.doing = f"a read after {suite.doing.rstrip(',')}"
        await read()
    _require_all_rows(rows[: rows.index(None)])


async def _closed_streams_are_gone(suite: _Suite, connector: QueryConnector, queries: SampleQueries) -> None:
    connection = await suite.connect()
    for how in "closed", "dropped":
        suite.doing = "open_stream()"
        stream = await connector.open_stream(connection, queries.endless, {})
        _require(connector.has_streams(connection) is True, "has_streams() is not True while one is open")
        if how == "closed":
            suite.doing = "close() of a stream"
            _require(stream.close() is True, "close() of an open stream does not return True")
            suite.doing = "a second close() of a stream"
            stream.close()
        else:
            del stream
            gc.collect(1)
        await _wait_no_streams(suite, connector, connection, how)
        _require(connector.is_open(connection), f"the connection is not open after a stream was {how}")


async def _is_transient_returns_a_bool(suite: _Suite, connector: QueryConnector, queries: SampleQueries) -> None:
    suite.doing = "is_transient()"
    is_transient: object = connector.is_transient(LookupError("an unknown error"))
    _require(isinstance(is_transient, bool), f"it must be True or False, not {is_transient!r}")


def _require_all_rows(rows: list[Any]) -> None:
    found = f"{len(rows)} rows" + ", but not in order" * (len(rows) == _ROWS)
    _require(rows == list(range(_ROWS)), f"expected {_ROWS} rows in order, got {found}")


async def _require_raises(suite: _Suite, kind: type[Exception], doing: str, call: Awaitable[object]) -> None:
    suite.doing = doing
    try:
        result = await call
    except kind:
        return
    except Exception as error:
        raise _BrokenPromise(f"{doing} raised {error!r} instead of {kind.__name__}") from error
    raise _BrokenPromise(f"{doing} returned {result!r} instead of raising {kind.__name__}")


async def _read_all(stream: Stream) -> list[Any]:
    return [row async for row in stream]


async def _wait_no_streams(suite: _Suite, connector: QueryConnector, connection: Any, how: str) -> None:
    suite.doing = f"wait_streams() after a stream was {how}"
    await connector.wait_streams(connection)
    _require(connector.has_streams(connection) is False, f"has_streams() is not False after a stream was {how}")


@contextlib.asynccontextmanager
async def _doing(work: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """Do `work` in a task, which is cancelled at the end of the block."""
    task = asyncio.get_running_loop().create_task(work, name="check_connector: background")
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


@contextlib.asynccontextmanager
async def _slow_query(
    suite: _Suite, connector: QueryConnector, connection: Any, queries: SampleQueries
) -> AsyncIterator[asyncio.Task[Any]]:
    """Run the slow query in a task. The block begins when the peer has the query, as it has answered a later one."""
    async with _doing(connector.run(connection, queries.slow, {})) as task:
        await asyncio.sleep(0)
        suite.doing = "run() beside a slow query"
        await connector.run(connection, queries.value(1), {})
        if task.done():
            _require(False, f"the slow query was answered at once: {task.exception() or task.result()!r}")
        yield task


_QUERY_CHECKS: Final[tuple[tuple[str, _QueryCheck], ...]] = (
    ("queries share a connection", _queries_share_a_connection),
    ("run() returns sequences whole", _run_returns_sequences_whole),
    ("an ended connection sends nothing", _an_ended_connection_sends_nothing),
    ("waiting calls fail if the connection ends", _waiting_calls_fail_at_the_end),
    ("queries can be cancelled", _queries_can_be_cancelled),
    ("only sequences are streams", _only_sequences_are_streams),
    ("streams can be read to their end", _streams_can_be_read_to_their_end),
    ("cancelled reads lose no row", _cancelled_reads_lose_no_row),
    ("closed streams are gone", _closed_streams_are_gone),
    ("is_transient() returns a bool", _is_transient_returns_a_bool),
)
