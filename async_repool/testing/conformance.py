"""A suite that tries any connector: does it keep the promises of the ``Connector`` protocol, and of ``QueryConnector``?

Here is :func:`check_connector`, with one function for each promise. It knows no particular connector, no pool, no
driver and no test framework, and runs on whatever event loop it is awaited in, real or virtual.
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

# How long sockets and tasks may take to go once they are given up: transports close in a later turn of the loop, and a
# server in the same process has to notice first.
_SETTLE_TURNS: Final = 5
_SETTLE_WAITS: Final = 100
_SETTLE_WAIT_SECONDS: Final = 0.01

_QUERIES_AT_ONCE: Final = 100
_ROWS: Final = 1000  # more than one batch, where rows come in batches

_Check = Callable[["_Bench"], Coroutine[Any, Any, None]]
_QueryCheck = Callable[["_Bench", QueryConnector, "SampleQueries"], Coroutine[Any, Any, None]]


class ConformanceError(AssertionError):
    """A connector breaks promises. The message lists them all; so does :attr:`problems`."""

    def __init__(self, connector: str, problems: list[str]) -> None:
        self.problems = tuple(problems)
        count = "1 promise" if len(problems) == 1 else f"{len(problems)} promises"
        super().__init__(f"{connector} breaks {count}:\n" + "\n".join(f"- {problem}" for problem in problems))


@dataclass(frozen=True, kw_only=True)
class SampleQueries:
    """What :func:`check_connector` asks a peer that only its user knows. For RethinkDB: ``r.expr``, ``r.range``,
    ``r.range()``, and a query that waits for what never happens.
    """

    value: Callable[[int], Any]
    """Makes a query whose value is that number."""
    rows: Callable[[int], Any]
    """Makes a query whose value is the sequence 0, 1, 2 … of so many rows."""
    endless: Any
    """A query whose value is a sequence that does not end while the suite runs."""
    slow: Any
    """A query that is not answered while the suite runs."""


async def check_connector(
    connector: Connector,
    *,
    queries: SampleQueries | None = None,
    connections: int = 10,
    cancel_points: int = 100,
    seconds: float = 30.0,
) -> None:
    """Try every promise of a connector, against a peer that is well. Raises :class:`ConformanceError` with all that
    break.

    Opens and ends some dozens of connections. Leaked sockets are found by counting those of this process, so nothing
    else should open or end any meanwhile, except a server that follows suit; where the platform does not tell (it does
    on Linux and macOS), only tasks and ``ResourceWarning`` are looked at. If cancelled, it aborts what it has opened.

    :param queries: what to run on a ``QueryConnector``; ``None``: only the promises of ``Connector`` are tried.
    :param connections: how many to open at once; the peer must allow as many.
    :param cancel_points: the most awaits of each verb to cancel at; each is tried twice, while it waits and just when
        its wait has ended.
    :param seconds: the most that each promise may take to try, on the loop's clock.
    """
    bench = _Bench(connector, connections, cancel_points)
    gc.collect()  # what others have left behind is not ours to report
    for name, check in (*_CHECKS, *_query_checks(connector, queries), _LAST_CHECK):
        is_kept = await bench.try_out(name, check, seconds)
        if check is _connect_gives_an_open_connection and not is_kept:
            break  # the others would only say the same
    if bench.problems:
        raise ConformanceError(type(connector).__name__, bench.problems)


class _Broken(AssertionError):
    """A promise that was not kept."""


class _Bench:
    """What the checks share: the connector, what was opened, and what has gone wrong."""

    def __init__(self, connector: Connector, connections: int, cancel_points: int) -> None:
        self.connector = connector
        self.connections = connections
        self.cancel_points = cancel_points
        self.problems: list[str] = []
        self.doing = ""
        """What is under way, for the report where it takes too long."""
        self._opened: list[Any] = []

    async def connect(self) -> Any:
        """A new connection, aborted after the check in any case."""
        self.doing = "connect()"
        return await self.open()

    async def open(self) -> Any:
        """The same, for who has said already what it is doing."""
        connection = await self.connector.connect()
        self._opened.append(connection)
        return connection

    async def try_out(self, name: str, check: _Check, seconds: float) -> bool:
        """Run one check and note what it finds, its own failure included. Returns whether the promise is kept."""
        loop = asyncio.get_running_loop()
        before = _Traces()
        with _overhearing(loop) as overheard:
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
                found = before.more()
            del task
            gc.collect(1)  # the oldest generation takes long: it comes once, at the end
            await asyncio.sleep(0)
        self.problems += [f"{name}: {finding}" for finding in (*found, *overheard)]
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
            yield f"{self.doing} raised CancelledError, and nobody had cancelled it"
        elif (error := task.exception()) is not None:
            yield str(error) if isinstance(error, _Broken) else f"{self.doing} raised {error!r}"


# ---------------------------------------------------------------------- what is left behind


class _Traces:
    """The tasks and sockets that there are at one moment, to be compared with what there is later."""

    def __init__(self) -> None:
        self._tasks = asyncio.all_tasks()
        self._sockets = _open_sockets()

    async def settle(self) -> None:
        """Wait until nothing is more than it was, but not for long."""
        for _ in range(_SETTLE_TURNS):
            await asyncio.sleep(0)
        for _ in range(_SETTLE_WAITS):
            if not self.more():
                break
            await asyncio.sleep(_SETTLE_WAIT_SECONDS)

    def more(self) -> list[str]:
        """What there is now that was not there then."""
        found = [f"left a task behind: {task.get_name()}, {task.get_coro()}" for task in self._new_tasks()]
        sockets = _open_sockets()
        if sockets is not None and self._sockets is not None and sockets > self._sockets:
            found.append(f"left sockets open: {sockets - self._sockets}")
        return found

    def _new_tasks(self) -> list[asyncio.Task[Any]]:
        return sorted(asyncio.all_tasks() - self._tasks, key=lambda task: task.get_name())


def _open_sockets() -> int | None:
    """How many sockets this process has open; ``None`` where the platform does not tell."""
    for directory in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return sum(_is_socket(int(name)) for name in os.listdir(directory))
    return None


def _is_socket(descriptor: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:
        return False  # the one that listed the directory


@contextlib.contextmanager
def _overhearing(loop: asyncio.AbstractEventLoop) -> Iterator[list[str]]:
    """Collect what otherwise would only be logged or warned of."""
    overheard: list[str] = []

    def handler(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        overheard.append(f"the event loop was told: {context.get('message')} ({context.get('exception')!r})")

    usual_handler = loop.get_exception_handler()
    loop.set_exception_handler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield overheard
        interesting = (ResourceWarning, RuntimeWarning)
        overheard += [f"warned: {warning.message}" for warning in caught if issubclass(warning.category, interesting)]
    finally:
        loop.set_exception_handler(usual_handler)


# ---------------------------------------------------------------------- cancelling at an await


class _Interrupted:
    """Awaits a coroutine, and has the task cancelled at the coroutine's `point`-th wait.

    That is: soon after the wait begins; or, with `when_woken`, when the wait has ended but the task has not run yet, so
    that the cancellation takes the place of the result.
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
            # Before the task's own callback, which it adds when it is given the future.
            awaited.add_done_callback(lambda _: task.cancel())
        else:
            asyncio.get_running_loop().call_soon(task.cancel)


def _thrower(steps: Generator[Any, Any, Any], error: BaseException) -> Callable[[], Any]:
    return lambda: steps.throw(error)


async def _interrupt(
    bench: _Bench, verb: str, call: Callable[[], Coroutine[Any, Any, Any]], point: int, *, when_woken: bool
) -> bool:
    """Cancel one call at one await. Returns whether it came so far. Raises _Broken unless it ended as cancelled."""
    moment = "when woken from" if when_woken else "in"
    bench.doing = f"{verb}, cancelled {moment} its wait number {point},"
    interrupted = _Interrupted(call(), point, when_woken=when_woken)

    async def wait() -> Any:
        return await interrupted

    task = asyncio.get_running_loop().create_task(wait(), name=f"check_connector: {verb}")
    try:
        await asyncio.wait({task})
    finally:
        task.cancel()
    if not interrupted.was_reached:
        task.result()  # it was not cancelled, so its own error is one
        return False
    if not task.cancelled():
        error = task.exception()
        how = "went on as if nothing had happened" if error is None else f"raised {error!r} instead of CancelledError"
        raise _Broken(f"{bench.doing} {how}")
    return True


def _points(bench: _Bench) -> Iterator[tuple[int, bool]]:
    for point in range(1, bench.cancel_points + 1):
        yield point, False
        yield point, True


# ---------------------------------------------------------------------- the promises


def _require(kept: bool, otherwise: str) -> None:
    if not kept:
        raise _Broken(otherwise)


async def _has_all_methods(bench: _Bench) -> None:
    _require(isinstance(bench.connector, Connector), "a method or a property of the Connector protocol is missing")


async def _endpoint_says_where(bench: _Bench) -> None:
    endpoint: object = bench.connector.endpoint
    _require(isinstance(endpoint, str) and endpoint != "", f"it must be text that is not empty, not {endpoint!r}")


async def _connect_timeout_is_positive(bench: _Bench) -> None:
    seconds: object = bench.connector.connect_timeout
    is_right = isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and 0 < seconds < math.inf
    _require(is_right, f"it must be a finite number of seconds above 0, not {seconds!r}")


async def _connect_gives_an_open_connection(bench: _Bench) -> None:
    connection = await bench.connect()
    bench.doing = "is_open()"
    _require(bench.connector.is_open(connection) is True, "is_open() of a new connection is not True")


async def _a_new_connection_has_no_streams(bench: _Bench) -> None:
    connection = await bench.connect()
    bench.doing = "has_streams()"
    _require(bench.connector.has_streams(connection) is False, "has_streams() of a new connection is not False")
    bench.doing = "wait_streams() without any"
    await bench.connector.wait_streams(connection)


async def _check_passes(bench: _Bench) -> None:
    connection = await bench.connect()
    bench.doing = "check() of a new connection"
    await bench.connector.check(connection)
    _require(bench.connector.is_open(connection), "the connection is not open any more after check()")
    bench.doing = "a second check()"
    await bench.connector.check(connection)


async def _close_closes(bench: _Bench) -> None:
    connection = await bench.connect()
    bench.doing = "close()"
    await bench.connector.close(connection)
    _require(not bench.connector.is_open(connection), "the connection is still open after close()")


async def _close_may_be_called_twice(bench: _Bench) -> None:
    connection = await bench.connect()
    bench.doing = "close()"
    await bench.connector.close(connection)
    bench.doing = "close() of a closed connection"
    await bench.connector.close(connection)
    aborted = await bench.connect()
    bench.connector.abort(aborted)
    bench.doing = "close() of an aborted connection"
    await bench.connector.close(aborted)


async def _abort_ends_at_once(bench: _Bench) -> None:
    connection = await bench.connect()
    bench.doing = "abort()"
    abort: Callable[[Any], object] = bench.connector.abort
    returned = abort(connection)
    if inspect.iscoroutine(returned):
        returned.close()
    _require(not inspect.isawaitable(returned), "abort() must do its work at once, not return something to await")
    _require(not bench.connector.is_open(connection), "the connection is still open after abort()")


async def _abort_may_be_called_at_any_time(bench: _Bench) -> None:
    connection = await bench.connect()
    bench.doing = "abort()"
    bench.connector.abort(connection)
    bench.doing = "a second abort()"
    bench.connector.abort(connection)
    closed = await bench.connect()
    bench.doing = "close()"
    await bench.connector.close(closed)
    bench.doing = "abort() of a closed connection"
    bench.connector.abort(closed)


async def _on_lost_is_for_losses(bench: _Bench) -> None:
    told: list[str] = []
    closed, aborted = await bench.connect(), await bench.connect()
    bench.doing = "on_lost()"
    bench.connector.on_lost(closed, lambda: told.append("close()"))
    bench.connector.on_lost(aborted, lambda: told.append("abort()"))
    bench.doing = "close()"
    await bench.connector.close(closed)
    bench.connector.abort(aborted)
    await asyncio.sleep(0.05)  # real peers notice, and answer
    _require(not told, f"its callback was called after {' and after '.join(told)}")


async def _many_can_be_opened_at_once(bench: _Bench) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(bench.connect()) for _ in range(bench.connections)]
    connections = [task.result() for task in tasks]
    _require(len({id(connection) for connection in connections}) == bench.connections, "some are the same object")
    _require(all(map(bench.connector.is_open, connections)), "some are not open")
    bench.doing = "check() of all at once"
    async with asyncio.TaskGroup() as group:
        for connection in connections:
            group.create_task(bench.connector.check(connection))
    bench.connector.abort(connections[0])
    _require(all(map(bench.connector.is_open, connections[1:])), "abort() of one ended others too")


async def _connect_can_be_cancelled(bench: _Bench) -> None:
    for point, when_woken in _points(bench):
        before = _Traces()
        if not await _interrupt(bench, "connect()", bench.open, point, when_woken=when_woken):
            return
        await before.settle()
        _require(not before.more(), f"{bench.doing} {' and '.join(before.more())}")


async def _check_can_be_cancelled(bench: _Bench) -> None:
    connection = await bench.connect()
    for point, when_woken in _points(bench):
        is_reached = await _interrupt(
            bench, "check()", lambda: bench.connector.check(connection), point, when_woken=when_woken
        )
        _require(bench.connector.is_open(connection), f"{bench.doing} left the connection closed")
        if not is_reached:
            return
        bench.doing = f"check() after a {bench.doing.rstrip(',')}"
        await bench.connector.check(connection)


async def _close_can_be_cancelled(bench: _Bench) -> None:
    for point, when_woken in _points(bench):
        before = _Traces()
        connection = await bench.connect()
        close = lambda connection=connection: bench.connector.close(connection)  # noqa: E731
        if not await _interrupt(bench, "close()", close, point, when_woken=when_woken):
            return
        interrupted, bench.doing = bench.doing, f"abort() after {bench.doing.rstrip(',')}"
        bench.connector.abort(connection)
        _require(not bench.connector.is_open(connection), f"{bench.doing} left the connection open")
        await before.settle()
        _require(not before.more(), f"{interrupted} and then aborted, {' and '.join(before.more())}")


async def _nothing_is_left_to_the_garbage_collector(bench: _Bench) -> None:
    gc.collect()  # what there is to say is said in warnings


_CHECKS: Final[tuple[tuple[str, _Check], ...]] = (
    ("the protocol is complete", _has_all_methods),
    ("endpoint says where", _endpoint_says_where),
    ("connect_timeout is positive", _connect_timeout_is_positive),
    ("connect() gives an open connection", _connect_gives_an_open_connection),
    ("a new connection has no streams", _a_new_connection_has_no_streams),
    ("check() passes", _check_passes),
    ("close() closes", _close_closes),
    ("close() does nothing to what has ended", _close_may_be_called_twice),
    ("abort() ends at once", _abort_ends_at_once),
    ("abort() never raises", _abort_may_be_called_at_any_time),
    ("on_lost() is for losses", _on_lost_is_for_losses),
    ("many can be opened at once", _many_can_be_opened_at_once),
    ("connect() can be cancelled", _connect_can_be_cancelled),
    ("check() can be cancelled", _check_can_be_cancelled),
    ("close() can be cancelled, then aborted", _close_can_be_cancelled),
)
_LAST_CHECK: Final[tuple[str, _Check]] = (
    "nothing is left to the garbage collector",
    _nothing_is_left_to_the_garbage_collector,
)


# ---------------------------------------------------------------------- the promises of a QueryConnector


def _query_checks(connector: Connector, queries: SampleQueries | None) -> Iterator[tuple[str, _Check]]:
    if queries is None:
        return
    yield "the protocol of queries is complete", _has_all_query_methods
    if isinstance(connector, QueryConnector):
        for name, check in _QUERY_CHECKS:
            yield name, _with(check, connector, queries)


def _with(check: _QueryCheck, connector: QueryConnector, queries: SampleQueries) -> _Check:
    return lambda bench: check(bench, connector, queries)


async def _has_all_query_methods(bench: _Bench) -> None:
    _require(isinstance(bench.connector, QueryConnector), "a method of the QueryConnector protocol is missing")


async def _queries_share_a_connection(bench: _Bench, connector: QueryConnector, queries: SampleQueries) -> None:
    connection = await bench.connect()
    bench.doing = f"run() of {_QUERIES_AT_ONCE} queries at once"
    async with asyncio.TaskGroup() as group:
        runs = [connector.run(connection, queries.value(number), {}) for number in range(_QUERIES_AT_ONCE)]
        tasks = [group.create_task(run) for run in runs]
    _require([task.result() for task in tasks] == list(range(_QUERIES_AT_ONCE)), "some got the answer of another")


async def _run_returns_sequences_whole(bench: _Bench, connector: QueryConnector, queries: SampleQueries) -> None:
    connection = await bench.connect()
    bench.doing = "run() of a sequence"
    rows = await connector.run(connection, queries.rows(_ROWS), {})
    _require(isinstance(rows, list), f"a sequence must be a list, not {type(rows).__name__}")
    _require(rows == list(range(_ROWS)), f"{len(rows)} rows came, not the {_ROWS} in their order")
    _require(connector.has_streams(connection) is False, "has_streams() is not False when all rows have come")


async def _what_has_ended_sends_nothing(bench: _Bench, connector: QueryConnector, queries: SampleQueries) -> None:
    closed, aborted = await bench.connect(), await bench.connect()
    bench.doing = "close()"
    await connector.close(closed)
    connector.abort(aborted)
    for connection, status in (closed, "a closed"), (aborted, "an aborted"):
        run = connector.run(connection, queries.value(1), {})
        await _require_raises(bench, NotSent, f"run() on {status} connection", run)
        opening = connector.open_stream(connection, queries.rows(1), {})
        await _require_raises(bench, NotSent, f"open_stream() on {status} connection", opening)


async def _who_waits_is_told_of_the_end(bench: _Bench, connector: QueryConnector, queries: SampleQueries) -> None:
    connection = await bench.connect()
    bench.doing = "open_stream()"
    stream = await connector.open_stream(connection, queries.endless, {})
    async with _slow_query(bench, connector, connection, queries) as run, _doing(_read_all(stream)) as read:
        await asyncio.sleep(0)
        connector.abort(connection)
        await _require_raises(bench, ConnectionLost, "run() on a connection that was aborted meanwhile", run)
        await _require_raises(bench, ConnectionLost, "reading from a connection that was aborted meanwhile", read)
    _require(connector.has_streams(connection) is False, "has_streams() of an aborted connection is not False")


async def _queries_can_be_cancelled(bench: _Bench, connector: QueryConnector, queries: SampleQueries) -> None:
    connection = await bench.connect()

    async def require_unnoticed(answer: Awaitable[Any]) -> None:
        interrupted, bench.doing = bench.doing, f"run() beside {bench.doing.rstrip(',')}"
        _require(await answer == 2, f"{bench.doing} got a wrong answer")
        _require(connector.is_open(connection), f"{interrupted} left the connection closed")

    async with _slow_query(bench, connector, connection, queries) as slow:
        slow.cancel()
        bench.doing = "run() of a slow query, cancelled,"
        await asyncio.wait({slow})
        _require(slow.cancelled(), f"{bench.doing} did not raise CancelledError")
        await require_unnoticed(connector.run(connection, queries.value(2), {}))
    run = partial(connector.run, connection, queries.value(1), {})
    open_stream = partial(connector.open_stream, connection, queries.endless, {})
    for verb, call in ("run()", run), ("open_stream()", open_stream):
        for point, when_woken in _points(bench):
            async with _doing(connector.run(connection, queries.value(2), {})) as neighbour:
                is_reached = await _interrupt(bench, verb, call, point, when_woken=when_woken)
                await require_unnoticed(neighbour)
            if not is_reached:
                break
    await _wait_no_streams(bench, connector, connection, "cancelled")


async def _only_sequences_are_streams(bench: _Bench, connector: QueryConnector, queries: SampleQueries) -> None:
    connection = await bench.connect()
    opening = connector.open_stream(connection, queries.value(1), {})
    await _require_raises(bench, TypeError, "open_stream() of a query whose value is a number", opening)
    _require(connector.is_open(connection), "it left the connection closed")


async def _streams_read_to_their_end(bench: _Bench, connector: QueryConnector, queries: SampleQueries) -> None:
    connection = await bench.connect()
    bench.doing = "open_stream()"
    stream = await connector.open_stream(connection, queries.rows(_ROWS), {})
    _require(stream.is_feed is False, "is_feed of a stream that is no changefeed is not False")
    bench.doing = "reading a stream"
    rows = await _read_all(stream)
    _require(rows == list(range(_ROWS)), f"{len(rows)} rows came, not the {_ROWS} in their order")
    await _require_raises(bench, StopAsyncIteration, "reading a stream that has ended", anext(stream))
    bench.doing = "close() of a stream that has ended"
    _require(stream.close() is False, "close() of a stream that has ended is not False: there was nothing to cut off")
    await _wait_no_streams(bench, connector, connection, "read to its end")


async def _cancelled_reads_lose_no_row(bench: _Bench, connector: QueryConnector, queries: SampleQueries) -> None:
    connection = await bench.connect()
    bench.doing = "open_stream()"
    stream = await connector.open_stream(connection, queries.rows(_ROWS), {})
    rows = []

    async def read() -> None:
        rows.append(await anext(stream, None))

    while None not in rows:
        # Rows that are there do not wait, so only those are interrupted that begin a batch.
        await _interrupt(bench, "a read", read, 1, when_woken=len(rows) % 2 == 1)
        bench.doing = f"a read after {bench.doing.rstrip(',')}"
        await read()
    came = rows[: rows.index(None)]
    _require(came == list(range(_ROWS)), f"{len(came)} rows came, not the {_ROWS} in their order")


async def _closed_streams_are_none(bench: _Bench, connector: QueryConnector, queries: SampleQueries) -> None:
    connection = await bench.connect()
    for how in "closed", "dropped":
        bench.doing = "open_stream()"
        stream = await connector.open_stream(connection, queries.endless, {})
        _require(connector.has_streams(connection) is True, "has_streams() is not True while one is open")
        if how == "closed":
            bench.doing = "close() of a stream"
            _require(stream.close() is True, "close() of a stream is not True: it was cut off")
            bench.doing = "a second close() of a stream"
            stream.close()
        else:
            del stream
            gc.collect(1)
        await _wait_no_streams(bench, connector, connection, how)
        _require(connector.is_open(connection), f"the connection is not open any more after a stream was {how}")


async def _may_pass_says_yes_or_no(bench: _Bench, connector: QueryConnector, queries: SampleQueries) -> None:
    bench.doing = "may_pass()"
    said: object = connector.may_pass(LookupError("nobody's error"))
    _require(isinstance(said, bool), f"it must be true or false, not {said!r}")


async def _require_raises(bench: _Bench, kind: type[Exception], doing: str, call: Awaitable[object]) -> None:
    bench.doing = doing
    try:
        result = await call
    except kind:
        return
    except Exception as error:
        raise _Broken(f"{doing} raised {error!r} instead of {kind.__name__}") from error
    raise _Broken(f"{doing} returned {result!r} instead of raising {kind.__name__}")


async def _read_all(stream: Stream) -> list[Any]:
    return [row async for row in stream]


async def _wait_no_streams(bench: _Bench, connector: QueryConnector, connection: Any, how: str) -> None:
    bench.doing = f"wait_streams() after a stream was {how}"
    await connector.wait_streams(connection)
    _require(connector.has_streams(connection) is False, f"has_streams() is not False after a stream was {how}")


@contextlib.asynccontextmanager
async def _doing(work: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """Do `work` beside; what is not done at the end is cancelled."""
    task = asyncio.get_running_loop().create_task(work, name="check_connector: beside")
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


@contextlib.asynccontextmanager
async def _slow_query(
    bench: _Bench, connector: QueryConnector, connection: Any, queries: SampleQueries
) -> AsyncIterator[asyncio.Task[Any]]:
    """Run the slow one beside, and go on when the peer has it: when it has answered what was sent after that."""
    async with _doing(connector.run(connection, queries.slow, {})) as task:
        await asyncio.sleep(0)
        bench.doing = "run() beside a slow query"
        await connector.run(connection, queries.value(1), {})
        if task.done():
            _require(False, f"the slow query was answered at once: {task.exception() or task.result()!r}")
        yield task


_QUERY_CHECKS: Final[tuple[tuple[str, _QueryCheck], ...]] = (
    ("queries share a connection", _queries_share_a_connection),
    ("run() returns sequences whole", _run_returns_sequences_whole),
    ("what has ended sends nothing", _what_has_ended_sends_nothing),
    ("who waits is told of the end", _who_waits_is_told_of_the_end),
    ("queries can be cancelled", _queries_can_be_cancelled),
    ("only sequences are streams", _only_sequences_are_streams),
    ("streams read to their end", _streams_read_to_their_end),
    ("cancelled reads lose no row", _cancelled_reads_lose_no_row),
    ("closed streams are none", _closed_streams_are_none),
    ("may_pass() says yes or no", _may_pass_says_yes_or_no),
)
