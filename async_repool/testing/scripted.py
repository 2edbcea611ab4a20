"""A connector with a remote control: no server, no sockets, and every failure on demand.

Here are :class:`ScriptedConnector`, its connections and streams, and the behaviours that a test gives them. It keeps
every promise of the ``QueryConnector`` protocol except where it is told to break one. It knows nothing of pools,
drivers or pytest, and runs on any event loop; on that of ``virtual_clock`` nothing takes real time::

    connector = ScriptedConnector()
    connector.connects.then(ok(), error(OSError("refused")), slow(2), never())   # the next four
    connector.checks.always(error(ConnectionResetError()))                      # all others
    held = connector.closes.hold()                                              # the next one waits here …
    held.release()                                                              # … for this
    connector.streams.then(ok([1, 2]), feed(3))                                 # a sequence; a changefeed …
    connector.opened_streams[-1].send(4)                                        # … which has news
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


# ---------------------------------------------------------------------- what a call may do


class Behaviour(ABC):
    """What one call does. Made by :func:`ok`, :func:`feed`, :func:`error`, :func:`slow`, :func:`never` and
    :meth:`Verb.hold`.
    """

    @abstractmethod
    async def _play(self) -> Any:
        """Wait as long as it should take; return the result, or raise."""


def ok(result: object = _DEFAULT, *, turns: int = 1) -> Behaviour:
    """Succeed.

    :param result: what a query returns; without it, the options it was run with. The rows of a stream, which come at
        once and are all; without them, a stream that the test sends rows to. No other verb returns anything of yours.
    :param turns: turns of the event loop that it takes. Real connectors never take less than 1; 0: does not wait at
        all.
    """
    return _Ok(result, turns)


def feed(*rows: object, turns: int = 1) -> Behaviour:
    """Open a changefeed: `rows` come at once, and the test sends what follows. For streams only.

    :param turns: turns of the event loop that it takes.
    """
    return _Ok(_FeedRows(rows), turns)


def error(exception: BaseException, *, turns: int = 1) -> Behaviour:
    """Raise `exception`: that very object, each time. A :exc:`~async_repool.errors.NotSent` says that the query was
    never sent, though the connection seemed to be open.

    :param turns: turns of the event loop that it takes before that.
    """
    return _Error(exception, turns)


def slow(seconds: float, then: Behaviour | None = None) -> Behaviour:
    """Take `seconds` of the loop's time, and then behave like `then`; ``None``: succeed."""
    return _Slow(seconds, ok(turns=0) if then is None else then)


def never() -> Behaviour:
    """Wait until cancelled."""
    return _Never()


class _FeedRows(NamedTuple):
    """What a stream is opened with that is a changefeed."""

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
        # Without the frames of the last time, or it would keep alive whatever called then.
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
        """Whether the call has come."""
        return self._entered.is_set()

    async def wait_entered(self) -> None:
        """Wait, as long as it takes, until the call has come. Cancelling it changes nothing."""
        await self._entered.wait()

    def release(self, then: Behaviour | None = None) -> None:
        """Let the call go on, and behave like `then`; ``None``: succeed. If the call has not come yet, it will not
        wait.
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
    """The remote control of one of the connector's verbs, and the count of its calls."""

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
        """One-time behaviours that no call has come for yet."""
        return len(self._next)

    def then(self, *behaviours: Behaviour) -> None:
        """Append to what the next calls do, one each."""
        self._next.extend(behaviours)

    def always(self, behaviour: Behaviour) -> None:
        """Set what calls do that no one-time behaviour is left for. Calls that are under way do not change."""
        self._always = behaviour

    def hold(self) -> Held:
        """Append a one-time behaviour that waits until it is released by hand."""
        held = Held()
        self.then(held)
        return held

    async def _play(self, connection: ScriptedConnection | None = None) -> Any:
        """Do what is next in the script; and fail as soon as `connection` ends, if there is one."""
        behaviour = self._next.popleft() if self._next else self._always
        self.started_total += 1
        self.in_progress += 1
        self.max_in_progress = max(self.max_in_progress, self.in_progress)
        try:
            # Inside of the count: what ends with its connection has failed, and was not cancelled by anybody.
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
    """One query that was run on a connection."""

    term: Any
    options: dict[str, Any]


class ScriptedStream:
    """A cursor or a changefeed that is open on a connection: the test's end of it, with the remote control.

    It can be read from as well. What :meth:`ScriptedConnector.open_stream` hands out is another object, the reader's
    end, so that a stream that its reader drops is seen to be closed, although the test holds this one.
    """

    def __init__(self, connection: ScriptedConnection, query: Query | None = None) -> None:
        self.connection = connection
        self.query = query
        """What it was opened with; ``None`` where the test opened it."""
        self.is_feed = False
        """Whether it says that it is a changefeed. The test may set it."""
        self.is_closed = False
        """Whether its reader has stopped it, or dropped it, before it had ended."""
        self.is_ended = False
        """Whether nothing more comes from the peer: :meth:`end`, :meth:`fail`, or the connection has ended."""
        self._rows: deque[Any] = deque()
        self._last_error: BaseException | None = None  # after the rows; None: they were all
        self._news = asyncio.Event()  # set while there are rows or nothing more comes

    @property
    def is_open(self) -> bool:
        """Whether somebody still reads from it, as far as the connection knows: neither closed nor ended."""
        return not (self.is_closed or self.is_ended)

    @property
    def unread(self) -> int:
        """Rows that were sent and that nobody has read yet."""
        return len(self._rows)

    # For the test.

    def send(self, *rows: Any) -> None:
        """Rows come. They go nowhere where the stream was closed or its connection has ended: a peer cannot know.

        Raises :exc:`RuntimeError` after :meth:`end` and :meth:`fail`.
        """
        if self.is_ended and self.connection.is_open():
            raise RuntimeError("the stream has ended: nothing can be sent after that")
        if self.is_open:
            self._rows.extend(rows)
            self._news.set()

    def end(self) -> None:
        """The peer has sent its last row. May be called twice."""
        self._finish(None)

    def fail(self, error: BaseException) -> None:
        """After the rows that were sent, the peer says `error`. Does nothing to a stream that is closed or ended."""
        self._finish(error)

    # The Stream protocol.

    def __aiter__(self) -> ScriptedStream:
        return self

    async def __anext__(self) -> Any:
        """Wait for the next row, as long as it takes. If cancelled, no row is lost. Several tasks may read."""
        while not self._rows and self.is_open:
            self._news.clear()
            await self._news.wait()
        # From here on nothing waits, so a row that was taken is a row that is returned.
        if self._rows:
            return self._rows.popleft()
        if self._last_error is None:
            raise StopAsyncIteration
        raise self._last_error.with_traceback(None)  # it may be raised again and again

    def close(self) -> bool:
        """The reader stops it; rows that have come can still be read. True unless it was closed or ended before."""
        if not self.is_open:
            return False
        self.is_closed = True
        self._let_go()
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
            self._let_go()

    def _let_go(self) -> None:
        self.connection._forget_stream(self)
        _wake(self._news)


class _ReadersEnd:
    """A stream as its reader holds it. Dropped, it is closed."""

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
    """The connection has ended: not an error of the script's, which is raised as it is."""


class ScriptedConnection:
    """What :class:`ScriptedConnector` opens: as much of a driver's connection as a lease forwards to, and a record."""

    def __init__(self, connector: ScriptedConnector, number: int) -> None:
        self.number = number
        """1 for the first that the connector ever opened."""
        self.db: str | None = None
        self.queries: list[Query] = []
        """What was run on it, in order."""
        self.opened_at = _now()
        """The loop's time; ``None`` where no loop runs, here and below."""
        self.lost_at: float | None = None
        self.ended_at: float | None = None
        self.ended_by: str | None = None
        """``"close"`` or ``"abort"``, by the connector; ``"user"``, by its own :meth:`close`; ``None``: not yet."""
        self.is_lost = False
        self.extra_closes = 0
        """Times the connector's ``close`` was called after the connector's ``close`` or ``abort`` had ended it
        already.
        """
        self.extra_aborts = 0
        """The same for ``abort``."""
        self.max_in_flight = 0
        """The most queries that were in progress at once."""
        self.has_mixed = False
        """Whether a query of a lease and one of the connector's were ever in progress at once."""
        self._connector = connector
        self._in_flight = {"lease": 0, "connector": 0}
        self._guards: set[asyncio.Timeout] = set()
        self._streams: dict[ScriptedStream, None] = {}  # those that are open, in order
        self._no_streams = asyncio.Event()
        self._no_streams.set()
        self._lost_callbacks: list[Callable[[], None]] = []

    # What a driver's connection offers.

    def is_open(self) -> bool:
        """Whether neither side has ended it."""
        return self.ended_by is None and not self.is_lost

    def use(self, db: str) -> None:
        """Make `db` the default database."""
        self.db = db

    async def close(self, noreply_wait: bool = True) -> None:
        """What a user may call on a lease: takes a turn of the loop, whatever is scripted for the connector's
        ``close``.
        """
        await asyncio.sleep(0)
        self._end("user")

    async def _start(self, term: Any, **options: Any) -> Any:
        """Run a query, as of a lease: record it, and do as ``connector.queries`` says. By default returns `options`."""
        self._require_open()
        result = await self._ask(self._connector.queries, Query(term, options), asked_by="lease")
        return options if result is _DEFAULT else result

    async def server(self) -> dict[str, Any]:
        """Tell who is at the other end."""
        await asyncio.sleep(0)
        self._require_open()
        return {"id": "00000000-0000-0000-0000-000000000000", "name": "scripted", "proxy": False}

    async def noreply_wait(self) -> None:
        """Wait for a turn of the loop."""
        await asyncio.sleep(0)
        self._require_open()

    # For the test.

    @property
    def in_flight(self) -> int:
        """Queries that are in progress on it, from leases and from the connector. A stream that is open is none."""
        return sum(self._in_flight.values())

    @property
    def open_streams(self) -> list[ScriptedStream]:
        """Those that are neither closed nor ended, in the order in which they were opened."""
        return list(self._streams)

    def open_stream(self) -> ScriptedStream:
        """Open something that is read from until its :meth:`~ScriptedStream.end`, or until the connection ends."""
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
        """What queries and streams fail with that the peer has heard of."""
        error = ConnectionLost(f"connection {self.number} is {self._status()}: it ended before {before} had come")
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
        """Do `work`; but raise ConnectionResetError as soon as the connection ends, as a driver does."""
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
            self._let_go()

    def _lose(self, *, is_told: bool) -> None:
        if not self.is_open():
            return
        self.is_lost = True
        self.lost_at = _now()
        callbacks = self._lost_callbacks if is_told else []
        self._let_go()
        for callback in callbacks:
            self._tell(callback)

    def _let_go(self) -> None:
        now = _now()
        for guard in self._guards if now is not None else ():
            guard.reschedule(now)
        self._guards.clear()
        self._lost_callbacks = []
        for stream in self.open_streams:
            stream._finish(self._lost_error("the last row"))

    def _when_lost(self, callback: Callable[[], None]) -> None:
        if self.is_lost:
            self._tell(callback)
        elif self.ended_by is None:
            self._lost_callbacks.append(callback)

    def _tell(self, callback: Callable[[], None]) -> None:
        # Later, as a transport does; and by then it may have been ended by us, after which nobody is told.
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
    """A ``QueryConnector`` that does what the test says, and remembers what it was asked to do.

    :param endpoint: shown in errors and logs of whatever uses it.
    :param connect_timeout: seconds; what it says of itself, nothing here is bounded by it.
    """

    def __init__(self, *, endpoint: str = "scripted:28015", connect_timeout: float = 20.0) -> None:
        self.endpoint = endpoint
        self.connect_timeout = connect_timeout
        self.connects = Verb("connect")
        self.checks = Verb("check")
        self.closes = Verb("close")
        self.queries = Verb("query")
        """Those of :meth:`run`, and of leases. What is cancelled was stopped on the server."""
        self.streams = Verb("open_stream")
        self.passing_errors: tuple[type[BaseException], ...] = ()
        """What :meth:`may_pass` says yes to."""
        self.connections: list[ScriptedConnection] = []
        """All that were ever opened, in order."""
        self.opened_streams: list[ScriptedStream] = []
        """The same of streams."""
        self.max_open = 0
        """The most connections that were open at once."""
        self.max_open_or_connecting = 0
        """The most that were open or being opened at once: what a server would have seen."""
        self._open: dict[int, ScriptedConnection] = {}
        self._waits_in_progress = 0

    # The record.

    @property
    def open_connections(self) -> list[ScriptedConnection]:
        """Those that were neither closed nor aborted: they take a socket, whether or not the peer has ended them."""
        return list(self._open.values())

    @property
    def closed_connections(self) -> list[ScriptedConnection]:
        """Those that ended politely, in the order in which they were opened."""
        return [connection for connection in self.connections if connection.ended_by in ("close", "user")]

    @property
    def aborted_connections(self) -> list[ScriptedConnection]:
        """Those that were aborted, in the order in which they were opened."""
        return [connection for connection in self.connections if connection.ended_by == "abort"]

    @property
    def open_streams(self) -> list[ScriptedStream]:
        """Those that are neither closed nor ended, in the order in which they were opened."""
        return [stream for stream in self.opened_streams if stream.is_open]

    @property
    def double_closes(self) -> list[ScriptedConnection]:
        """Those whose ``close`` was called when the connector had ended them already. It is allowed."""
        return [connection for connection in self.connections if connection.extra_closes]

    @property
    def double_aborts(self) -> list[ScriptedConnection]:
        """Those whose ``abort`` was called when the connector had ended them already. It is allowed."""
        return [connection for connection in self.connections if connection.extra_aborts]

    def assert_nothing_left(self) -> None:
        """Raise :class:`AssertionError`, saying what is left, unless every connection was ended and no call is under
        way.
        """
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
        """The peer ends `connection`: it is not open any more, its streams end, and ``on_lost`` is called in the next
        turn.

        Must be called from the event loop. Does nothing to a connection that has ended.

        :param is_told: false for a connector that cannot tell: ``on_lost`` is not called.
        """
        connection._lose(is_told=is_told)

    def __repr__(self) -> str:
        return (
            f"<ScriptedConnector {self.endpoint} {len(self.open_connections)} open, "
            f"{self.connects.in_progress} connecting, {len(self.connections)} opened in all>"
        )

    # The Connector protocol.

    async def connect(self) -> ScriptedConnection:
        """Do as :attr:`connects` says. If cancelled, nothing was opened."""
        self._count(connecting=self.connects.in_progress + 1)
        await self.connects._play()
        connection = ScriptedConnection(self, len(self.connections) + 1)
        self.connections.append(connection)
        self._open[connection.number] = connection
        self._count(connecting=self.connects.in_progress)
        return connection

    def is_open(self, connection: ScriptedConnection, /) -> bool:
        """Whether neither side has ended it."""
        return connection.is_open()

    def on_lost(self, connection: ScriptedConnection, callback: Callable[[], None], /) -> None:
        """Call `callback` in the turn of the loop after :meth:`drop`; in the next one, where that was already."""
        connection._when_lost(callback)

    def has_streams(self, connection: ScriptedConnection, /) -> bool:
        """Whether one of its streams is neither closed nor ended. Rows that have come already do not count."""
        return bool(connection._streams)

    async def wait_streams(self, connection: ScriptedConnection, /) -> None:
        """Wait until no stream is left. Cancelling it changes nothing."""
        self._waits_in_progress += 1
        try:
            while connection._streams:
                await connection._no_streams.wait()
        finally:
            self._waits_in_progress -= 1

    async def check(self, connection: ScriptedConnection, /) -> None:
        """Do as :attr:`checks` says. Raises :exc:`ConnectionResetError` where the connection ends, or has ended."""
        connection._require_open()
        await self.checks._play(connection)

    async def close(self, connection: ScriptedConnection, /) -> None:
        """Do as :attr:`closes` says, and end the connection where that succeeds. Ended already: only record it."""
        if connection.ended_by is not None:
            connection.extra_closes += connection.ended_by != "user"
            return
        await self.closes._play()
        connection._end("close")

    def abort(self, connection: ScriptedConnection, /) -> None:
        """End the connection. Ended already: only record it."""
        if connection.ended_by is not None:
            connection.extra_aborts += connection.ended_by != "user"
        connection._end("abort")

    # The QueryConnector protocol.

    async def run(self, connection: ScriptedConnection, query: Any, options: dict[str, Any], /) -> Any:
        """Do as :attr:`queries` says, and return its result; by default `options`.

        Raises :exc:`NotSent` where the connection has ended, :exc:`ConnectionLost` where it ends meanwhile. If
        cancelled, :attr:`queries` counts it.
        """
        result = await self._send(self.queries, connection, Query(query, dict(options)))
        return options if result is _DEFAULT else result

    async def open_stream(self, connection: ScriptedConnection, query: Any, options: dict[str, Any], /) -> Stream:
        """Do as :attr:`streams` says, and open a stream of its result: the last one of :attr:`opened_streams`.

        Raises what :meth:`run` does, and :exc:`TypeError` where the result is no sequence. If cancelled, no stream was
        opened.
        """
        asked = Query(query, dict(options))
        result = await self._send(self.streams, connection, asked)
        rows, is_feed = (result.rows, True) if isinstance(result, _FeedRows) else (result, False)
        if rows is not _DEFAULT and not _is_sequence(rows):
            raise TypeError(f"the query returned {rows!r}, which is no sequence")
        stream = connection._add_stream(ScriptedStream(connection, asked))
        stream.is_feed = is_feed
        if rows is not _DEFAULT:
            stream.send(*rows)
            if not is_feed:
                stream.end()
        return _ReadersEnd(stream)

    def may_pass(self, error: BaseException, /) -> bool:
        """Whether it is one of :attr:`passing_errors`."""
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
    # Aborting never raises, not even where the loop was closed in which somebody had waited.
    with suppress(RuntimeError):
        event.set()


def _now() -> float | None:
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return None


def _conforms(connector: ScriptedConnector, stream: ScriptedStream) -> tuple[QueryConnector, Stream]:
    """For the type checker only: it refuses this where a protocol is not kept."""
    return connector, stream
