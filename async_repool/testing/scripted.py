"""A connector without a server and without sockets. A test scripts what each call does, failures included.

This module has :class:`ScriptedConnector`, its connections and streams, and the behaviours that a test scripts. The
connector keeps every promise of the ``QueryConnector`` protocol unless the script breaks one. It does not know pools,
drivers or pytest, and runs on any event loop. On the loop of ``virtual_clock`` nothing takes real time::

    connector = ScriptedConnector()
    connector.connects.then(ok(), error(OSError("refused")), slow(2), never())   # the next four calls
    connector.checks.always(error(ConnectionResetError()))                      # all other calls
    held = connector.closes.hold()                                              # the next call waits …
    held.release()                                                              # … until it is released
    connector.streams.then(ok([1, 2]), feed(3))                                 # a sequence; a changefeed …
    connector.opened_streams[-1].send(4)                                        # … which gets another row
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from async_repool.connectors import QueryConnector, Stream
from async_repool.errors import ConnectionLost, NotSent

__all__ = [
    "Behaviour",
    "Held",
    "Query",
    "ScriptedConnection",
    "ScriptedConnector",
    "ScriptedStream",
    "Verb",
    "error",
    "feed",
    "never",
    "ok",
    "slow",
]

_DEFAULT: Final = object()


# ---------------------------------------------------------------------- behaviours


class Behaviour(ABC):
    """What one call does. :func:`ok`, :func:`feed`, :func:`error`, :func:`slow`, :func:`never` and :meth:`Verb.hold`
    make behaviours.
    """

    @abstractmethod
    async def _play(self) -> Any:
        """Wait as long as the call takes. Return its result, or raise its error."""


def ok(result: object = _DEFAULT, *, turns: int = 1) -> Behaviour:
    """Succeed.

    :param result: the value of a query (default: the query's options), or all rows of a stream (default: a stream that
        the test sends rows to). Other verbs ignore it.
    :param turns: how many turns of the event loop the call takes. Real connectors take at least 1. 0: it does not wait.
    """
    return _Ok(result, turns)


def feed(*rows: object, turns: int = 1) -> Behaviour:
    """Open a changefeed that has `rows` at once. The test sends all further rows. For streams only.

    :param turns: how many turns of the event loop the call takes.
    """
    return _Ok(_FeedRows(rows), turns)


def error(exception: BaseException, *, turns: int = 1) -> Behaviour:
    """Raise `exception`, the same object each time. :exc:`~async_repool.errors.NotSent` means that the query was never
    sent, although the connection seemed to be open.

    :param turns: how many turns of the event loop the call takes.
    """
    return _Error(exception, turns)


def slow(seconds: float, then: Behaviour | None = None) -> Behaviour:
    """Wait for `seconds` of the loop's time, then behave like `then`. ``None``: succeed."""
    return _Slow(seconds, ok(turns=0) if then is None else then)


def never() -> Behaviour:
    """Wait until cancelled."""
    return _Never()


class _FeedRows(NamedTuple):
    """The first rows of a changefeed."""

    rows: tuple[object, ...]


@dataclass(frozen=True)
class _Ok(Behaviour):
    result: object
    turns: int

    async def _play(self) -> Any:
        await _wait_turns(self.turns)
        return self.result


@dataclass(frozen=True)
class _Error(Behaviour):
    exception: BaseException
    turns: int

    async def _play(self) -> Any:
        await _wait_turns(self.turns)
        # A traceback would keep the objects of the last call alive.
        raise self.exception.with_traceback(None)


@dataclass(frozen=True)
class _Slow(Behaviour):
    seconds: float
    then: Behaviour

    async def _play(self) -> Any:
        await asyncio.sleep(self.seconds)
        return await self.then._play()


@dataclass(frozen=True)
class _Never(Behaviour):
    async def _play(self) -> Any:
        await asyncio.get_running_loop().create_future()


class Held(Behaviour):
    """One call that waits for :meth:`release`."""

    def __init__(self) -> None:
        self._then: Behaviour = ok(turns=0)
        self._entered = asyncio.Event()
        self._released = asyncio.Event()

    @property
    def is_entered(self) -> bool:
        """Whether the call has begun."""
        return self._entered.is_set()

    async def wait_entered(self) -> None:
        """Wait until the call begins, without a limit in time. Cancelling it changes nothing."""
        await self._entered.wait()

    def release(self, then: Behaviour | None = None) -> None:
        """Let the call go on, and behave like `then`. ``None``: succeed.

        A call that has not begun yet will not wait.
        """
        if then is not None:
            self._then = then
        self._released.set()

    async def _play(self) -> Any:
        self._entered.set()
        await self._released.wait()
        return await self._then._play()


async def _wait_turns(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


class Verb:
    """The script of one of the connector's verbs, and the counts of its calls."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.started_total = 0
        self.succeeded_total = 0
        self.failed_total = 0
        self.cancelled_total = 0
        self.in_progress = 0
        self.max_in_progress = 0
        self._next: deque[Behaviour] = deque()
        self._always = ok()

    @property
    def unused(self) -> int:
        """The number of one-time behaviours that no call has used yet."""
        return len(self._next)

    def then(self, *behaviours: Behaviour) -> None:
        """Add one-time behaviours: each is for one call, in order."""
        self._next.extend(behaviours)

    def always(self, behaviour: Behaviour) -> None:
        """Set what calls do if no one-time behaviour is left. Calls in progress do not change."""
        self._always = behaviour

    def hold(self) -> Held:
        """Add a one-time behaviour that waits until the test releases it."""
        held = Held()
        self.then(held)
        return held

    async def _play(self, connection: ScriptedConnection | None = None) -> Any:
        """Do what the script says next. Fail as soon as `connection` ends, if there is one."""
        behaviour = self._next.popleft() if self._next else self._always
        self.started_total += 1
        self.in_progress += 1
        self.max_in_progress = max(self.max_in_progress, self.in_progress)
        try:
            # Inside of the count: a call whose connection ends has failed, and nobody has cancelled it.
            result = await (behaviour._play() if connection is None else connection._while_open(behaviour._play()))
        except asyncio.CancelledError:
            self.cancelled_total += 1
            raise
        except BaseException:
            self.failed_total += 1
            raise
        finally:
            self.in_progress -= 1
        self.succeeded_total += 1
        return result

    def __repr__(self) -> str:
        return (
            f"<{self.name}: {self.in_progress} in progress, {self.succeeded_total} succeeded, "
            f"{self.failed_total} failed, {self.cancelled_total} cancelled>"
        )


# ---------------------------------------------------------------------- connections


class Query(NamedTuple):
    """One query that ran on a connection."""

    term: Any
    options: dict[str, Any]


class ScriptedStream:
    """A cursor or a changefeed on a connection, as the test sees it: the test sends its rows and ends it.

    It can be read as well. :meth:`ScriptedConnector.open_stream` returns another object, the reader's end. So a stream
    is closed if its reader drops it, although the test still holds this object.
    """

    def __init__(self, connection: ScriptedConnection, query: Query | None = None) -> None:
        self.connection = connection
        self.query = query
        """The query that opened it. ``None``: the test opened it."""
        self.is_feed = False
        """Whether it claims to be a changefeed. The test may set this."""
        self.is_closed = False
        """Whether its reader closed or dropped it before it ended."""
        self.is_ended = False
        """Whether the peer sends nothing more, after :meth:`end`, after :meth:`fail`, or because the connection ended.
        """
        self._rows: deque[Any] = deque()
        self._last_error: BaseException | None = None  # raised after the last row; None: StopAsyncIteration
        self._news = asyncio.Event()  # set if there are rows, or if no more rows will come

    @property
    def is_open(self) -> bool:
        """Whether it is neither closed nor ended."""
        return not (self.is_closed or self.is_ended)

    @property
    def unread(self) -> int:
        """The number of rows that were sent and not read yet."""
        return len(self._rows)

    # For the test.

    def send(self, *rows: Any) -> None:
        """Send rows. They are lost if the stream is closed or its connection has ended, because a peer cannot know
        that.

        Raises :exc:`RuntimeError` after :meth:`end` and :meth:`fail`.
        """
        if self.is_ended and self.connection.is_open():
            raise RuntimeError("the stream has ended: nothing can be sent after that")
        if self.is_open:
            self._rows.extend(rows)
            self._news.set()

    def end(self) -> None:
        """End the stream after the rows that were sent. May be called twice."""
        self._finish(None)

    def fail(self, error: BaseException) -> None:
        """End the stream with `error` after the rows that were sent. Does nothing if it is closed or has ended."""
        self._finish(error)

    # The Stream protocol.

    def __aiter__(self) -> ScriptedStream:
        return self

    async def __anext__(self) -> Any:
        """Wait for the next row, without a limit in time. If cancelled, no row is lost. Several tasks may read."""
        while not self._rows and self.is_open:
            self._news.clear()
            await self._news.wait()
        # Nothing waits after this line, so a row that is taken is also returned.
        if self._rows:
            return self._rows.popleft()
        if self._last_error is None:
            raise StopAsyncIteration
        raise self._last_error.with_traceback(None)  # it may be raised many times

    def close(self) -> bool:
        """Close the stream for its reader. Rows that were sent can still be read.

        Returns whether it was open.
        """
        if not self.is_open:
            return False
        self.is_closed = True
        self._end_all_use()
        return True

    def __repr__(self) -> str:
        kind = "changefeed" if self.is_feed else "stream"
        status = "closed" if self.is_closed else "ended" if self.is_ended else "open"
        return f"<ScriptedStream on connection {self.connection.number}: {kind} {status}, {self.unread} rows unread>"

    # For the connection.

    def _finish(self, error: BaseException | None) -> None:
        if self.is_open:
            self.is_ended = True
            self._last_error = error
            self._end_all_use()

    def _end_all_use(self) -> None:
        self.connection._forget_stream(self)
        _wake(self._news)


class _ReadersEnd:
    """The reader's end of a stream. If the reader drops it, the stream is closed."""

    def __init__(self, stream: ScriptedStream) -> None:
        self._stream = stream

    @property
    def is_feed(self) -> bool:
        return self._stream.is_feed

    def __aiter__(self) -> _ReadersEnd:
        return self

    async def __anext__(self) -> Any:
        return await self._stream.__anext__()

    def close(self) -> bool:
        return self._stream.close()

    def __del__(self) -> None:
        self._stream.close()

    def __repr__(self) -> str:
        return f"<the reader's end of {self._stream!r}>"


class _Ended(ConnectionResetError):
    """The connection has ended. This is not an error of the script, which is raised unchanged."""


class ScriptedConnection:
    """A connection of :class:`ScriptedConnector`. It has what a lease needs of a driver's connection, and a record of
    its use.
    """

    def __init__(self, connector: ScriptedConnector, number: int) -> None:
        self.number = number
        """1 for the first connection of its connector, then 2, 3, …."""
        self.db: str | None = None
        self.queries: list[Query] = []
        """The queries that ran on it, in order."""
        self.opened_at = _now()
        """The loop's time. ``None`` if no loop was running. The same is true of the next two."""
        self.lost_at: float | None = None
        self.ended_at: float | None = None
        self.ended_by: str | None = None
        """``"close"`` or ``"abort"``: by the connector. ``"user"``: by its own :meth:`close`. ``None``: it is still
        open.
        """
        self.is_lost = False
        self.extra_closes = 0
        """How often the connector's ``close`` was called after the connector had ended it."""
        self.extra_aborts = 0
        """How often the connector's ``abort`` was called after the connector had ended it."""
        self.max_in_flight = 0
        """The largest number of queries in progress at once."""
        self.has_mixed = False
        """Whether a query of a lease and a query of the connector were ever in progress at once."""
        self._connector = connector
        self._in_flight = {"lease": 0, "connector": 0}
        self._guards: set[asyncio.Timeout] = set()
        self._streams: dict[ScriptedStream, None] = {}  # the open ones, in order
        self._no_streams = asyncio.Event()
        self._no_streams.set()
        self._lost_callbacks: list[Callable[[], None]] = []

    # The methods of a driver's connection.

    def is_open(self) -> bool:
        """Whether it is open at both ends."""
        return self.ended_by is None and not self.is_lost

    def use(self, db: str) -> None:
        """Make `db` the default database."""
        self.db = db

    async def close(self, noreply_wait: bool = True) -> None:
        """Close it, as the user of a lease may do. Takes one turn of the loop, and ignores the script."""
        await asyncio.sleep(0)
        self._end("user")

    async def _start(self, term: Any, **options: Any) -> Any:
        """Run a query of a lease: record it, and follow the script of ``connector.queries``. Returns `options` by
        default.
        """
        self._require_open()
        result = await self._ask(self._connector.queries, Query(term, options), asked_by="lease")
        return options if result is _DEFAULT else result

    async def server(self) -> dict[str, Any]:
        """Describe the server."""
        await asyncio.sleep(0)
        self._require_open()
        return {"id": "00000000-0000-0000-0000-000000000000", "name": "scripted", "proxy": False}

    async def noreply_wait(self) -> None:
        """Wait for one turn of the loop."""
        await asyncio.sleep(0)
        self._require_open()

    # For the test.

    @property
    def in_flight(self) -> int:
        """The number of queries in progress, of leases and of the connector. Open streams do not count."""
        return sum(self._in_flight.values())

    @property
    def open_streams(self) -> list[ScriptedStream]:
        """Its streams that are neither closed nor ended, in the order of their opening."""
        return list(self._streams)

    def open_stream(self) -> ScriptedStream:
        """Open a stream that belongs to the test. It stays open until it is ended or closed, or the connection ends."""
        self._require_open()
        return self._add_stream(ScriptedStream(self))

    def __repr__(self) -> str:
        return f"<ScriptedConnection {self.number}, {self._status()}>"

    # For the connector.

    def _status(self) -> str:
        if self.ended_by is not None:
            return {"close": "closed", "abort": "aborted", "user": "closed by its user"}[self.ended_by]
        return "lost, but neither closed nor aborted" if self.is_lost else "open"

    def _require_open(self) -> None:
        if not self.is_open():
            raise self._ended_error()

    def _ended_error(self) -> _Ended:
        return _Ended(f"connection {self.number} is {self._status()}")

    def _lost_error(self, before: str) -> ConnectionLost:
        """The error of queries and streams that were sent to the peer."""
        told = f"connection {self.number} is {self._status()}: it ended before {before} had come"
        error = ConnectionLost(told, lost_at=self.lost_at if self.is_lost else self.ended_at)
        error.__cause__ = self._ended_error()
        return error

    async def _ask(self, verb: Verb, query: Query, *, asked_by: str) -> Any:
        self.queries.append(query)
        with self._counted(asked_by):
            return await verb._play(self)

    @contextmanager
    def _counted(self, asked_by: str) -> Iterator[None]:
        self._in_flight[asked_by] += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        self.has_mixed = self.has_mixed or all(self._in_flight.values())
        try:
            yield
        finally:
            self._in_flight[asked_by] -= 1

    async def _while_open(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do `work`. Raise ConnectionResetError as soon as the connection ends, as a driver does."""
        try:
            async with asyncio.timeout(None) as guard:
                self._guards.add(guard)
                try:
                    result = await work
                finally:
                    self._guards.discard(guard)
        except TimeoutError:
            if guard.expired():
                self._require_open()
            raise
        self._require_open()
        return result

    def _end(self, ended_by: str) -> None:
        if self.ended_by is None:
            self.ended_by = ended_by
            self.ended_at = _now()
            del self._connector._open[self.number]
            self._end_all_use()

    def _lose(self, *, is_told: bool) -> None:
        if not self.is_open():
            return
        self.is_lost = True
        self.lost_at = _now()
        callbacks = self._lost_callbacks if is_told else []
        self._end_all_use()
        for callback in callbacks:
            self._report_loss(callback)

    def _end_all_use(self) -> None:
        now = _now()
        for guard in self._guards if now is not None else ():
            guard.reschedule(now)
        self._guards.clear()
        self._lost_callbacks = []
        for stream in self.open_streams:
            stream._finish(self._lost_error("the last row"))

    def _when_lost(self, callback: Callable[[], None]) -> None:
        if self.is_lost:
            self._report_loss(callback)
        elif self.ended_by is None:
            self._lost_callbacks.append(callback)

    def _report_loss(self, callback: Callable[[], None]) -> None:
        # In the next turn, as a transport does. If the connector ends the connection before that, the loss is not
        # reported.
        asyncio.get_running_loop().call_soon(lambda: callback() if self.ended_by is None else None)

    def _add_stream(self, stream: ScriptedStream) -> ScriptedStream:
        self._connector.opened_streams.append(stream)
        self._streams[stream] = None
        self._no_streams.clear()
        return stream

    def _forget_stream(self, stream: ScriptedStream) -> None:
        self._streams.pop(stream, None)
        if not self._streams:
            _wake(self._no_streams)


class ScriptedConnector:
    """A ``QueryConnector`` that follows the script of a test, and records all calls.

    :param endpoint: the name that its user shows in errors and logs.
    :param connect_timeout: seconds. Only its user obeys it; this connector does not.
    """

    def __init__(self, *, endpoint: str = "scripted:28015", connect_timeout: float = 20.0) -> None:
        self.endpoint = endpoint
        self.connect_timeout = connect_timeout
        self.connects = Verb("connect")
        self.checks = Verb("check")
        self.closes = Verb("close")
        self.queries = Verb("query")
        """Queries of :meth:`run` and of leases. A cancelled query counts as stopped on the server."""
        self.streams = Verb("open_stream")
        self.passing_errors: tuple[type[BaseException], ...] = ()
        """The errors for which :meth:`is_transient` is true."""
        self.connections: list[ScriptedConnection] = []
        """All connections that were ever opened, in order."""
        self.opened_streams: list[ScriptedStream] = []
        """All streams that were ever opened, in order."""
        self.max_open = 0
        """The largest number of open connections at once."""
        self.max_open_or_connecting = 0
        """The largest number of connections that were open or being opened at once. A server would have seen as many.
        """
        self._open: dict[int, ScriptedConnection] = {}
        self._waits_in_progress = 0

    # The record.

    @property
    def open_connections(self) -> list[ScriptedConnection]:
        """The connections that are neither closed nor aborted. A lost connection is one of them: it holds a socket."""
        return list(self._open.values())

    @property
    def closed_connections(self) -> list[ScriptedConnection]:
        """The connections that were closed, in the order of their opening."""
        return [connection for connection in self.connections if connection.ended_by in ("close", "user")]

    @property
    def aborted_connections(self) -> list[ScriptedConnection]:
        """The connections that were aborted, in the order of their opening."""
        return [connection for connection in self.connections if connection.ended_by == "abort"]

    @property
    def open_streams(self) -> list[ScriptedStream]:
        """The streams that are neither closed nor ended, in the order of their opening."""
        return [stream for stream in self.opened_streams if stream.is_open]

    @property
    def double_closes(self) -> list[ScriptedConnection]:
        """The connections that were closed after the connector had ended them. This is allowed."""
        return [connection for connection in self.connections if connection.extra_closes]

    @property
    def double_aborts(self) -> list[ScriptedConnection]:
        """The connections that were aborted after the connector had ended them. This is allowed."""
        return [connection for connection in self.connections if connection.extra_aborts]

    def assert_nothing_left(self) -> None:
        """Raise :class:`AssertionError` if a connection is neither closed nor aborted, or a call is in progress."""
        left = [
            f"connection {connection.number}, opened at {connection.opened_at} s, is {connection._status()}"
            for connection in self.open_connections
        ]
        verbs = (self.connects, self.checks, self.closes, self.queries, self.streams)
        left += [f"{verb.in_progress} times {verb.name} in progress" for verb in verbs if verb.in_progress]
        if self._waits_in_progress:
            left.append(f"{self._waits_in_progress} times wait_streams in progress")
        if left:
            raise AssertionError("left at " + self.endpoint + ":\n  " + "\n  ".join(left))

    def drop(self, connection: ScriptedConnection, *, is_told: bool = True) -> None:
        """Let the peer end `connection`: it is lost, its streams end, and the ``on_lost`` callbacks run in the next
        turn.

        Must be called from the event loop. Does nothing to a connection that has ended.

        :param is_told: whether the connector notices the loss. If false, the ``on_lost`` callbacks do not run.
        """
        connection._lose(is_told=is_told)

    def __repr__(self) -> str:
        return (
            f"<ScriptedConnector {self.endpoint} {len(self.open_connections)} open, "
            f"{self.connects.in_progress} connecting, {len(self.connections)} opened in all>"
        )

    # The Connector protocol.

    async def connect(self) -> ScriptedConnection:
        """Follow the script of :attr:`connects`. If cancelled, nothing is opened."""
        self._count(connecting=self.connects.in_progress + 1)
        await self.connects._play()
        connection = ScriptedConnection(self, len(self.connections) + 1)
        self.connections.append(connection)
        self._open[connection.number] = connection
        self._count(connecting=self.connects.in_progress)
        return connection

    def is_open(self, connection: ScriptedConnection, /) -> bool:
        """Whether it is open at both ends."""
        return connection.is_open()

    def on_lost(self, connection: ScriptedConnection, callback: Callable[[], None], /) -> None:
        """Call `callback` in the turn after :meth:`drop`; in the next turn if the connection is lost already."""
        connection._when_lost(callback)

    def has_streams(self, connection: ScriptedConnection, /) -> bool:
        """Whether one of its streams is neither closed nor ended. Unread rows do not count."""
        return bool(connection._streams)

    async def wait_streams(self, connection: ScriptedConnection, /) -> None:
        """Wait until no stream is open. Cancelling it changes nothing."""
        self._waits_in_progress += 1
        try:
            while connection._streams:
                await connection._no_streams.wait()
        finally:
            self._waits_in_progress -= 1

    async def check(self, connection: ScriptedConnection, /) -> None:
        """Follow the script of :attr:`checks`. Raises :exc:`ConnectionResetError` if the connection ended or ends."""
        connection._require_open()
        await self.checks._play(connection)

    async def close(self, connection: ScriptedConnection, /) -> None:
        """Follow the script of :attr:`closes`, and close the connection if that succeeds.

        Only records the call if the connection has ended.
        """
        if connection.ended_by is not None:
            connection.extra_closes += connection.ended_by != "user"
            return
        await self.closes._play()
        connection._end("close")

    def abort(self, connection: ScriptedConnection, /) -> None:
        """Abort the connection. Only records the call if the connection has ended."""
        if connection.ended_by is not None:
            connection.extra_aborts += connection.ended_by != "user"
        connection._end("abort")

    # The QueryConnector protocol.

    async def run(self, connection: ScriptedConnection, query: Any, options: dict[str, Any], /) -> Any:
        """Follow the script of :attr:`queries`, and return its result; by default `options`.

        Raises :exc:`NotSent` if the connection has ended, and :exc:`ConnectionLost` if it ends during the query. If
        cancelled, :attr:`queries` counts it.
        """
        result = await self._send(self.queries, connection, Query(query, dict(options)))
        return options if result is _DEFAULT else result

    async def open_stream(self, connection: ScriptedConnection, query: Any, options: dict[str, Any], /) -> Stream:
        """Follow the script of :attr:`streams`, and open a stream of its result: the last one in
        :attr:`opened_streams`.

        Raises the same errors as :meth:`run`, and :exc:`TypeError` if the result is not a sequence. If cancelled, no
        stream is opened.
        """
        asked = Query(query, dict(options))
        result = await self._send(self.streams, connection, asked)
        rows, is_feed = (result.rows, True) if isinstance(result, _FeedRows) else (result, False)
        if rows is not _DEFAULT and not _is_sequence(rows):
            raise TypeError(f"the query returned {rows!r}, which is not a sequence")
        stream = connection._add_stream(ScriptedStream(connection, asked))
        stream.is_feed = is_feed
        if rows is not _DEFAULT:
            stream.send(*rows)
            if not is_feed:
                stream.end()
        return _ReadersEnd(stream)

    def is_transient(self, error: BaseException, /) -> bool:
        """Whether it is an instance of one of :attr:`passing_errors`."""
        return isinstance(error, self.passing_errors)

    async def _send(self, verb: Verb, connection: ScriptedConnection, query: Query) -> Any:
        if not connection.is_open():
            raise NotSent(f"connection {connection.number} is {connection._status()}")
        try:
            return await connection._ask(verb, query, asked_by="connector")
        except _Ended as ended:
            raise connection._lost_error("the answer") from ended

    def _count(self, *, connecting: int) -> None:
        is_open = len(self._open)
        self.max_open = max(self.max_open, is_open)
        self.max_open_or_connecting = max(self.max_open_or_connecting, is_open + connecting)


def _is_sequence(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))


def _wake(event: asyncio.Event) -> None:
    # abort() must never raise, but a waiter may belong to a closed loop.
    with suppress(RuntimeError):
        event.set()


def _now() -> float | None:
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return None


def _conforms(connector: ScriptedConnector, stream: ScriptedStream) -> tuple[QueryConnector, Stream]:
    """For type checkers only: they report an error here if a protocol is not kept."""
    return connector, stream
