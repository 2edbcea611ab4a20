"""The stand-in server: RethinkDB's protocol in the process of the test, over data in memory.

This module knows tokens, streams, STOP, noreply, and how a server starts and stops. Terms, frames and faults are
elsewhere. The server is a test double: it answers as RethinkDB does, keeps nothing on disk, and knows only some terms.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from ssl import SSLContext
from typing import Any, Final

from ..faults import Faults
from . import wire
from .changefeed import Feed
from .endpoint import ClientConnection, Endpoint
from .evaluator import answers, query_session
from .streams import PAUSE, Steps
from .tables import World, number, type_name
from .wire import ATOM, CLIENT_ERROR, PARTIAL, QueryError

_BATCH_ROWS: Final = 512
_MOST_RUNNING: Final = 1024  # queries that one connection runs at once; more wait, as on RethinkDB


class StandInServer(Endpoint):
    """A RethinkDB server for tests, in the test's own event loop.

        async with StandInServer() as server:
            conn = await r.connect(server.host, server.port)

    ``users`` maps names to passwords (default: ``admin`` without a password). ``port`` 0 picks a free port. The server
    speaks TLS if it is given an ``ssl`` context. It makes its own ``faults`` unless it is given some. Its data survive
    ``stop`` and ``restart``.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        users: Mapping[str, str] | None = None,
        ssl: SSLContext | None = None,
        faults: Faults | None = None,
    ) -> None:
        super().__init__(host=host, port=port, ssl=ssl, faults=faults)
        self.id = str(uuid.uuid4())
        self.queries_total = 0  #: queries that were ever started, including noreply queries
        self.world = World()
        self.accounts = wire.Accounts({"admin": ""} if users is None else users)

    @property
    def url(self) -> str:
        """``rethinkdb://host:port``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"rethinkdb://{host}:{self.port}"

    @property
    def running_queries(self) -> int:
        """The number of queries that the server works on now. A changefeed that waits for a change does not count."""
        return sum(len(session.running) for session in self._sessions)

    @property
    def open_streams(self) -> int:
        """The number of cursors and changefeeds that are neither exhausted nor stopped."""
        return sum(query.is_stream for session in self._sessions for query in session.queries.values())

    def clear(self) -> None:
        """Drop all data. Changefeeds end with an error, as they do if their table is dropped."""
        for name in list(self.world.databases):
            self.world.drop(name)
        self.world = World()

    @property
    def _sessions(self) -> list[_Session]:
        return [connection for connection in self.open_connections if isinstance(connection, _Session)]

    def connection(self) -> ClientConnection:
        """Make the object for a client's connection."""
        return _Session(self)


class _Session(ClientConnection):
    """One client's connection: first its login, then its queries by token."""

    def __init__(self, server: StandInServer) -> None:
        super().__init__(server)
        self.server = server
        self.queries: dict[int, _Query] = {}  # by token, while the token is in use
        self.running: set[_Query] = set()  # those that the event loop will call again
        self._noreply: set[_Query] = set()  # noreply queries that have not ended
        self._noreply_waits: list[tuple[int, set[_Query]]] = []
        self._handshake = wire.Handshake(server.accounts)
        self._to_skip = 0  # remaining bytes of a query that was too large
        self._outbox: list[tuple[bytes, bool]] | None = None  # answers collected while several queries are read

    # --- reading ---

    @property
    def may_read(self) -> bool:
        return super().may_read and len(self.running) < _MOST_RUNNING

    def process(self) -> None:
        if not self._handshake.is_done:
            self.send([(answer, False) for answer in self._handshake.feed(self._inbox)])
            if self._handshake.is_refused:
                self._inbox.clear()
                self.end()
            if not self._handshake.is_done:
                return
        self._outbox = []
        try:
            self._process_frames()
        finally:
            collected, self._outbox = self._outbox, None
        if collected:
            self.send(collected)

    def _process_frames(self) -> None:
        inbox, offset = self._inbox, 0
        while self.may_read:
            if self._to_skip:
                skipped = min(self._to_skip, len(inbox) - offset)
                offset, self._to_skip = offset + skipped, self._to_skip - skipped
            frame = wire.next_frame(inbox, offset)
            if frame is None:
                break
            token, size, start = frame
            if size > wire.MAX_QUERY_SIZE:
                message = f"Query size ({size}) greater than maximum ({wire.MAX_QUERY_SIZE})."
                self.answer(token, QueryError(CLIENT_ERROR, message).as_answer())
                self._to_skip, offset = size, start
            elif len(inbox) - start < size:
                break
            else:
                offset = start + size
                self._receive(token, bytes(inbox[start:offset]))
        del inbox[:offset]

    def _receive(self, token: int, body: bytes) -> None:
        try:
            self._dispatch(token, _parse(body))
        except QueryError as error:
            self.answer(token, error.as_answer())
        except Exception as error:
            self.answer(token, _internal_error(error))

    def _dispatch(self, token: int, query: list[Any]) -> None:
        kind = query[0]
        if kind == wire.START:
            self._start(token, query)
        elif kind == wire.CONTINUE:
            self._query(token).go_on()
        elif kind == wire.STOP:
            self._stop(token)
        elif kind == wire.NOREPLY_WAIT:
            self._noreply_waits.append((token, set(self._noreply)))
            self._answer_noreply_waits()
        elif kind == wire.SERVER_INFO:
            info = {"id": self.server.id, "name": "stand_in", "proxy": False}
            self.answer(token, {"t": wire.SERVER_INFO_ANSWER, "r": [info]})
        else:
            raise _unparsable(f"Unrecognized QueryType: {kind}.")

    def _start(self, token: int, query: list[Any]) -> None:
        if len(query) < 2:
            raise _unparsable("Expected a term after a START.")
        options = query[2] if len(query) > 2 else {}
        if type(options) is not dict:
            raise _unparsable(f"Expected global optargs as an object, but found {type_name(options)}.")
        if token in self.queries:
            raise QueryError(CLIENT_ERROR, f"ERROR: duplicate token {token}")
        session, given = query_session(self.server.world, options)
        self.server.queries_total += 1
        if type(query[1]) not in (list, dict) and not options:
            value = number(query[1]) if type(query[1]) in (int, float) else query[1]
            self.answer(token, {"t": ATOM, "r": [value]})  # a value needs no evaluation
            return
        batch_rows = max(1, int(given.get("max_batch_rows", _BATCH_ROWS)))
        rows = answers(session, query[1], batch_rows)
        started = _Query(self, token, rows, batch_rows, is_noreply=given.get("noreply") is True)
        self.queries[token] = started
        if started.is_noreply:
            self._noreply.add(started)
        started.go_on()

    def _stop(self, token: int) -> None:
        query = self._query(token)
        # One answer to the STOP, and one to each request that the query has not answered yet.
        owed = 1 if query.is_noreply else query.owed + 1
        self.forget(query)
        for _ in range(owed):
            self.answer(token, {"t": wire.SEQUENCE, "r": []})

    def _query(self, token: int) -> _Query:
        query = self.queries.get(token)
        if query is None:
            raise QueryError(CLIENT_ERROR, f"Token {token} not in stream cache.")
        return query

    # --- answering ---

    def answer(self, token: int, answer: Mapping[str, Any]) -> None:
        if self.transport.is_closing():
            return
        try:
            packed = wire.pack_answer(token, answer)
        except QueryError as error:  # it has a value without a JSON form
            packed = wire.pack_answer(token, error.as_answer())
        message = (packed, True)
        if self._outbox is None:
            self.send([message])
        else:
            self._outbox.append(message)

    def forget(self, query: _Query) -> None:
        """Remove a query, and stop it if it has not ended."""
        del self.queries[query.token]
        self._noreply.discard(query)
        query.close()
        self._answer_noreply_waits()

    def _answer_noreply_waits(self) -> None:
        for wait in list(self._noreply_waits):
            if not wait[1] & self._noreply:
                self._noreply_waits.remove(wait)
                self.answer(wait[0], {"t": wire.WAIT_COMPLETE, "r": []})

    def lost(self) -> None:
        self._noreply_waits.clear()
        for query in list(self.queries.values()):
            self.forget(query)


class _Query:
    """One query from its START to its last answer. It runs in small steps between other callbacks of the loop."""

    def __init__(self, session: _Session, token: int, rows: Steps, batch_rows: int, *, is_noreply: bool) -> None:
        self.token = token
        self.owed = 0  # requests of the client that are not answered yet
        self.is_noreply = is_noreply
        self.is_stream = False
        self._session = session
        self._rows = rows
        self._batch_rows = batch_rows
        self._feed: Feed | None = None
        self._is_ended = False

    def go_on(self) -> None:
        """The client requests an answer, by START or CONTINUE."""
        self.owed += 1
        if self._feed is not None:
            self._deliver()
        elif self not in self._session.running:
            self._step()

    def close(self) -> None:
        self._is_ended = True
        self._session.running.discard(self)
        self._rows.close()
        if self._feed is not None:
            self._feed.close()

    def _step(self) -> None:
        if self._is_ended:
            return
        try:
            item = next(self._rows)
            if item is PAUSE:
                self._schedule()
            elif self.is_noreply:
                self._session.forget(self)
            elif type(item) is Feed:
                self._open(item)
            else:
                self._give(*item)
        except QueryError as error:
            self._end(error.as_answer())
        except Exception as error:
            self._end(_internal_error(error))

    def _schedule(self) -> None:
        self._session.running.add(self)
        self._session.server.loop.call_soon(self._scheduled)

    def _scheduled(self) -> None:
        if self._is_ended:
            return
        running = self._session.running
        was_full = len(running) >= _MOST_RUNNING
        running.discard(self)
        if self._feed is None:
            self._step()
        else:
            self._deliver()
        if was_full and len(running) < _MOST_RUNNING:
            self._session.update()

    def _give(self, kind: int, rows: list[Any]) -> None:
        answer: dict[str, Any] = {"t": kind, "r": rows}
        if kind != ATOM:
            answer["n"] = []
        if kind != PARTIAL:
            self._end(answer)
            return
        self._answer(answer)
        self.is_stream = True
        if self.owed:
            self._schedule()

    def _open(self, feed: Feed) -> None:
        self._feed = feed
        self.is_stream = True
        feed.open(self._wake)
        self._answer({"t": PARTIAL, "r": feed.take(self._batch_rows), "n": [feed.note]})

    def _wake(self) -> None:
        """The feed has changes. Deliver them in the next turn, so that all changes of one write come in one answer."""
        if self.owed and self not in self._session.running:
            self._schedule()

    def _deliver(self) -> None:
        feed = self._feed
        assert feed is not None
        while self.owed and feed.is_ready and not self._is_ended:
            rows = feed.take(self._batch_rows)
            if rows:
                self._answer({"t": PARTIAL, "r": rows, "n": [feed.note]})
            elif feed.error is not None:
                self._end(feed.error.as_answer())

    def _end(self, answer: Mapping[str, Any]) -> None:
        owed = 0 if self.is_noreply else self.owed
        self._session.forget(self)
        for _ in range(owed):
            self._session.answer(self.token, answer)
            answer = QueryError(CLIENT_ERROR, f"Token {self.token} not in stream cache.").as_answer()

    def _answer(self, answer: Mapping[str, Any]) -> None:
        self.owed -= 1
        self._session.answer(self.token, answer)


def _internal_error(error: Exception) -> dict[str, Any]:
    """A bug in this server is answered with an error: it must not look like a lost connection."""
    message = f"The stand-in server failed: {type(error).__name__}: {error}"
    return QueryError(wire.RUNTIME_ERROR, message, wire.INTERNAL).as_answer()


def _unparsable(message: str) -> QueryError:
    return QueryError(CLIENT_ERROR, f"Server could not parse query: {message}")


def _parse(body: bytes) -> list[Any]:
    try:
        query = json.loads(body)
    except (ValueError, RecursionError):
        raise QueryError(CLIENT_ERROR, "Client is buggy (failed to deserialize query).") from None
    if type(query) is not list:
        raise _unparsable(f"Expected a query to be an array, but found {type_name(query)}.")
    if not 1 <= len(query) <= 3:
        raise _unparsable(f"Expected 1 to 3 elements in the top-level query, but found {len(query)}.")
    return query
