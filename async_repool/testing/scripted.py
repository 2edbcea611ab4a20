"""A connector with a remote control: no server, no sockets, and every failure on demand.

Here are :class:`ScriptedConnector`, its connections, and the behaviours that a test gives them. It keeps every promise
of the ``Connector`` protocol except where it is told to break one. It knows nothing of pools, drivers or pytest, and
runs on any event loop; on that of ``virtual_clock`` nothing takes real time::

    connector = ScriptedConnector()
    connector.connects.then(ok(), error(OSError("refused")), slow(2), never())   # the next four
    connector.checks.always(error(ConnectionResetError()))                      # all others
    held = connector.closes.hold()                                              # the next one waits here …
    held.release()                                                              # … for this
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from async_repool.connectors import Connector

__all__ = [
    "Behaviour",
    "Held",
    "Query",
    "ScriptedConnection",
    "ScriptedConnector",
    "ScriptedStream",
    "Verb",
    "error",
    "never",
    "ok",
    "slow",
]

_DEFAULT: Final = object()


# ---------------------------------------------------------------------- what a call may do


class Behaviour(ABC):
    """What one call does. Made by :func:`ok`, :func:`error`, :func:`slow`, :func:`never` and :meth:`Verb.hold`."""

    @abstractmethod
    async def _play(self) -> Any:
        """Wait as long as it should take; return the result, or raise."""


def ok(result: object = _DEFAULT, *, turns: int = 1) -> Behaviour:
    """Succeed.

    :param result: what a query returns; without it, the options it was run with. No other verb returns anything of
        yours.
    :param turns: turns of the event loop that it takes. Real connectors never take less than 1; 0: does not wait at
        all.
    """
    return _Ok(result, turns)


def error(exception: BaseException, *, turns: int = 1) -> Behaviour:
    """Raise `exception`: that very object, each time.

    :param turns: turns of the event loop that it takes before that.
    """
    return _Error(exception, turns)


def slow(seconds: float, then: Behaviour | None = None) -> Behaviour:
    """Take `seconds` of the loop's time, and then behave like `then`; ``None``: succeed."""
    return _Slow(seconds, ok(turns=0) if then is None else then)


def never() -> Behaviour:
    """Wait until cancelled."""
    return _Never()


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

    async def _play(self) -> Any:
        behaviour = self._next.popleft() if self._next else self._always
        self.started_total += 1
        self.in_progress += 1
        self.max_in_progress = max(self.max_in_progress, self.in_progress)
        try:
            result = await behaviour._play()
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
    """Something open on a connection, such as a cursor or a changefeed, that somebody still reads from."""

    def __init__(self, connection: ScriptedConnection) -> None:
        self._connection = connection

    def end(self) -> None:
        """It has been read to its end. May be called twice."""
        self._connection._end_stream(self)


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
        self._connector = connector
        self._guards: set[asyncio.Timeout] = set()
        self._streams: set[ScriptedStream] = set()
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
        """Run a query: record it, and do as ``connector.queries`` says. By default returns `options`."""
        self._require_open()
        self.queries.append(Query(term, options))
        result = await self._while_open(self._connector.queries)
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

    def open_stream(self) -> ScriptedStream:
        """Open something that is read from until its :meth:`~ScriptedStream.end`, or until the connection ends."""
        self._require_open()
        stream = ScriptedStream(self)
        self._streams.add(stream)
        self._no_streams.clear()
        return stream

    def __repr__(self) -> str:
        return f"<ScriptedConnection {self.number}, {self._status()}>"

    # For the connector.

    def _status(self) -> str:
        if self.ended_by is not None:
            return {"close": "closed", "abort": "aborted", "user": "closed by its user"}[self.ended_by]
        return "lost, but neither closed nor aborted" if self.is_lost else "open"

    def _require_open(self) -> None:
        if not self.is_open():
            raise ConnectionResetError(f"connection {self.number} is {self._status()}")

    async def _while_open(self, verb: Verb) -> Any:
        """Do as `verb` says; but raise ConnectionResetError as soon as the connection ends, as a driver does."""
        try:
            async with asyncio.timeout(None) as guard:
                self._guards.add(guard)
                try:
                    result = await verb._play()
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
        self._streams.clear()
        if now is not None:  # else nobody waits, for no loop runs
            self._no_streams.set()

    def _when_lost(self, callback: Callable[[], None]) -> None:
        if self.is_lost:
            self._tell(callback)
        elif self.ended_by is None:
            self._lost_callbacks.append(callback)

    def _tell(self, callback: Callable[[], None]) -> None:
        # Later, as a transport does; and by then it may have been ended by us, after which nobody is told.
        asyncio.get_running_loop().call_soon(lambda: callback() if self.ended_by is None else None)

    def _end_stream(self, stream: ScriptedStream) -> None:
        self._streams.discard(stream)
        if not self._streams:
            self._no_streams.set()


class ScriptedConnector:
    """A ``Connector`` that does what the test says, and remembers what it was asked to do.

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
        self.connections: list[ScriptedConnection] = []
        """All that were ever opened, in order."""
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
        verbs = (self.connects, self.checks, self.closes, self.queries)
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
        """Whether one of its streams has not ended."""
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
        await connection._while_open(self.checks)

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

    def _count(self, *, connecting: int) -> None:
        is_open = len(self._open)
        self.max_open = max(self.max_open, is_open)
        self.max_open_or_connecting = max(self.max_open_or_connecting, is_open + connecting)


def _now() -> float | None:
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return None


def _conforms(connector: ScriptedConnector) -> Connector:
    """For the type checker only: it refuses this where the protocol is not kept."""
    return connector
