"""Queries and answers on one socket. How it was opened, and what users hold, is not known here.

Everything here rests on one rule: the server answers each START, CONTINUE, STOP, NOREPLY_WAIT and SERVER_INFO with
exactly one frame on its token, and a ``noreply`` START with none. So a token *owes* as many frames as requests were
sent on it, less the frames that came. If nobody cares about a token any more, that number is all there is to remember.
"""

from __future__ import annotations

import asyncio
import socket
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rethinkdb.ast import RqlQuery
from rethinkdb.errors import ReqlDriverError
from rethinkdb.net import Query, maybe_profile

from ... import _fork
from .codec import PARTIAL_START, AnswerType, Codec, QueryType, type_of
from .cursor import AsyncioCursor, OpenStream
from .frames import HEADER_BYTES, FrameError, FrameReader, frame_token, pack_frame
from .transient import ConnectionClosed, CursorConnectionClosed

MAX_QUERY_BYTES = 134_217_727
"""Longest query that the server takes. A longer one ends the connection for everybody, so it is refused here, in the
server's words."""

MOST_UNANSWERED = 1_000
"""Most queries that are sent before one of them is answered. The server takes 1,024 on one connection, and each STOP
needs a place too. Without free places nothing could be stopped any more."""

MOST_FORGOTTEN = 500
"""Most forgotten queries that may still be unanswered on a connection that is given to the next user."""

LONG_BATCH_BYTES = 16_384
"""A batch of this size takes 100 µs and more to decode. The next one is asked for before that: the server works
meanwhile, and results of more than one batch come a tenth sooner."""

FLUSH_BYTES = 65_536
"""With so much to write, a wire does not wait for the end of the loop's turn. It is the transport's high-water mark, so
a burst of queries meets back-pressure instead of filling memory."""

READ_BYTES = 24_576
"""Most bytes that are read at once. The queries that follow the answers of one read are sent together, after the last
answer was decoded. asyncio's own 256 KiB keep the server waiting meanwhile: answers of some 15 kB that are slow to
decode, with a time in each row, then take a quarter longer (measured). A smaller buffer slows large documents down."""

_buffers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview] = weakref.WeakKeyDictionary()
# All connections of an event loop read into one buffer, because each read is copied out at once. For a plain protocol
# asyncio allocates 256 KiB at each read. If malloc maps and unmaps that memory each time, it is a fifth of the cost of
# a small query (measured on glibc, in some processes). In other processes the shared buffer gains 3 %.

_CONTINUE = b"[%d]" % QueryType.CONTINUE
_STOP = b"[%d]" % QueryType.STOP


@dataclass(slots=True, eq=False)
class _Request:
    """A query whose task waits for its answer."""

    query: Any
    payload: bytes  # empty once written
    future: asyncio.Future[Any]
    is_noreply: bool = False
    covers: int = 0  # NOREPLY_WAIT: how many noreply queries had been sent before it


class Wire(asyncio.BufferedProtocol):
    """One socket that is logged in: what the driver calls the connection instance.

    Answers are resolved when bytes arrive. What is written in one turn of the loop leaves in one piece.
    """

    def __init__(self, transport: asyncio.Transport, sock: socket.socket, codec: Codec, endpoint: str) -> None:
        self._loop = asyncio.get_running_loop()
        buffer = _buffers.get(self._loop)
        if buffer is None:
            buffer = memoryview(bytearray(READ_BYTES))
            if not isinstance(self._loop, getattr(asyncio, "ProactorEventLoop", ())):  # which fills it at any time
                _buffers[self._loop] = buffer
        self._buffer = buffer
        self._transport = transport
        self._socket = sock
        self._codec = codec
        self._endpoint = endpoint  # for errors
        self._frames = FrameReader()
        self._out: list[bytes] = []  # written at the end of this turn of the loop
        self._out_bytes = 0
        self._is_paused = False  # the peer does not read
        self._blocked: OrderedDict[int, _Request] = OrderedDict()  # not written yet; empty unless _must_wait()
        self._waiting: dict[int, _Request] = {}  # each owes one frame
        self._streams: dict[int, OpenStream] = {}  # cursors with rows to come; the server holds each
        self._forgotten: dict[int, int] = {}  # frames owed to nobody, at least one for each token
        self._noreply_sent = 0
        self._noreply_done = 0  # how many of these the server has done, by the last NOREPLY_WAIT
        self._is_inherited = False  # over a fork
        self._reason: str | None = None  # why no query may be sent any more; None while open
        self._cause: BaseException | None = None
        self._lost_at: float | None = None  # event-loop time at which it ended, for any reason
        self._ended = asyncio.Event()  # the socket is released
        self._progress = asyncio.Event()  # pulses when a query or a stream has ended
        self.lost_callbacks: list[Callable[[], None]] = []  # called when the peer ends it or breaks the protocol
        self.lost_reason: str | None = None
        """What the peer did, if it ended the connection or broke the protocol; else None."""
        self.is_usable = True
        """Whether it is open, not clogged, and no write has failed. Asked for each lease and query, so an attribute."""
        transport.set_protocol(self)
        _fork.register(self)

    # --- what the driver's classes and ours ask ---

    def is_open(self) -> bool:
        return self._reason is None and not self._transport.is_closing()

    def client_port(self) -> int | None:
        return self._transport.get_extra_info("sockname")[1] if self.is_open() else None

    def client_address(self) -> str | None:
        return self._transport.get_extra_info("sockname")[0] if self.is_open() else None

    @property
    def in_flight(self) -> int:
        return len(self._waiting) + len(self._blocked)

    @property
    def open_cursors(self) -> int:
        return len(self._streams)

    @property
    def pending_noreply(self) -> int:
        return self._noreply_sent - self._noreply_done

    async def wait_idle(self) -> None:
        """Wait until no query is in flight and no cursor is open, or until the connection has ended."""
        while self._waiting or self._blocked or self._streams:
            await self._progress.wait()

    # --- sending ---

    async def run_query(self, query: Any, noreply: Any) -> Any:
        """Send a query and wait for its answer. A ``noreply`` query waits only while the peer does not read.

        If cancelled before it was sent, it is never sent. If cancelled after that, it is stopped on the server.
        """
        if self._reason is not None:
            raise self.closed_error(was_sent=False)
        payload = self._codec.encode(query)
        size = len(payload) - HEADER_BYTES
        if size > MAX_QUERY_BYTES:
            raise ReqlDriverError(f"Query size ({size}) greater than maximum ({MAX_QUERY_BYTES}).")
        # The server leaves a query unanswered only if this option is JSON's true, perhaps made by a term.
        is_noreply = noreply is not False and (noreply.build() if isinstance(noreply, RqlQuery) else noreply) is True
        request = _Request(query, payload, self._loop.create_future(), is_noreply)
        del payload
        if self._blocked or self._must_wait():
            self._blocked[query.token] = request
        else:
            self._post(request)
        try:
            return await request.future
        except BaseException:
            self._forget(request)  # if this is the query's own error, there is nothing left to forget
            raise
        finally:
            del request  # else an error that is kept would keep the request, and with it the query

    def _post(self, request: _Request) -> None:
        if request.is_noreply:
            self._noreply_sent += 1
            request.future.set_result(None)
        else:
            request.covers = self._noreply_sent
            self._waiting[request.query.token] = request
        self._send(request.payload)
        request.payload = b""

    def _send(self, data: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes >= FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        out = self._out
        transport = self._transport
        if out and not transport.is_closing():  # else they stay, for _settle() to know what was never sent
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            self._out_bytes = 0
            transport.write(data)
            if transport.is_closing():  # the write has failed; connection_lost() comes in a later turn of the loop
                self.is_usable = False

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._post_blocked()

    def _must_wait(self) -> bool:
        return self._is_paused or len(self._waiting) + len(self._forgotten) >= MOST_UNANSWERED

    def _post_blocked(self) -> None:
        # First come, first served. Posting may fill the transport again and pause within this loop.
        while self._blocked and not self._must_wait():
            _, request = self._blocked.popitem(last=False)
            if not request.future.done():  # done: cancelled in this turn of the loop, and its task has not run yet
                self._post(request)

    # --- forgetting ---

    def _forget(self, request: _Request) -> None:
        """The task of this query no longer waits. Back-pressure does not hold up CONTINUE and STOP: there are few."""
        token = request.query.token
        if self._blocked.pop(token, None) is None:
            if self._waiting.pop(token, None) is not None:
                self._stop(token, 1, request.query.type)
            else:
                self.stop_stream(token)  # its first rows came, but its task was cancelled before it took the cursor
        self._pulse()

    def _stop(self, token: int, owed: int, kind: int = QueryType.START) -> None:
        """Nobody waits for the ``owed`` frames any more: stop the query or stream on the server."""
        if self._reason is not None or self._loop.is_closed():
            return
        if kind == QueryType.START:  # STOP means nothing to NOREPLY_WAIT and SERVER_INFO
            owed += 1  # STOP has an answer of its own, whatever became of the query
            self._send(pack_frame(token, _STOP))
        if owed:
            self._forgotten[token] = owed
            if len(self._forgotten) > MOST_FORGOTTEN:
                self.is_usable = False

    def stop_stream(self, token: int) -> None:
        """End a stream on the server and forget it. Does nothing if it has ended."""
        if (stream := self._streams.pop(token, None)) is not None:
            self._stop(token, stream.owed)
            self._pulse()

    def _collected(self, token: int, _reference: Any) -> None:
        """A cursor was collected. Called in any thread, at any moment, perhaps while the interpreter ends."""
        try:
            self._loop.call_soon_threadsafe(self.stop_stream, token)
        except Exception:  # the loop is closed, and the stream ends with the socket; nothing is awaited here
            return

    def add_stream(self, cursor: AsyncioCursor, token: int, owed: int) -> OpenStream:
        reference = weakref.ref(cursor, partial(self._collected, token))
        self._streams[token] = stream = OpenStream(reference, token, owed)
        return stream

    def continue_stream(self, stream: OpenStream) -> None:
        stream.owed += 1
        self._send(pack_frame(stream.token, _CONTINUE))

    # --- receiving ---

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for token, body in self._frames.feed(bytes(self._buffer[:nbytes])):
                self._receive(token, body)
            if (token_ahead := self._frames.partial_token) is not None:
                self._check_known(token_ahead)  # now, not after the gigabyte that a stray header may declare
        except FrameError as error:
            self.fail(str(error), error)
        except Exception as error:  # the driver may raise anything over a strange answer; nothing is awaited here
            self.fail(f"sent an answer that cannot be read: {type(error).__name__}: {error}", error)
        if self._blocked:
            self._post_blocked()
        self._pulse()

    def _check_known(self, token: int) -> None:
        known = token in self._waiting or token in self._streams or token in self._forgotten
        if not known and self._reason is None:
            raise FrameError(f"sent an answer to a query that was not asked (token {token})")

    def _receive(self, token: int, body: bytes | bytearray) -> None:
        if (request := self._waiting.get(token)) is not None:
            if not request.future.done():
                self._answer(request, body)
            else:
                # Cancelled in this very turn of the loop, and its task has not run yet: forget the query in its place.
                # The answer does not matter. If it has opened a stream, STOP ends that too.
                self._stop(token, 0, request.query.type)
            del self._waiting[token]  # only now: if the answer is broken, the query is still there to fail
        elif (stream := self._streams.get(token)) is not None:
            self._feed(stream, body)
        elif (owed := self._forgotten.get(token, 0)) > 1:
            self._forgotten[token] = owed - 1
        elif owed:
            del self._forgotten[token]
            if not self.is_usable:
                self.is_usable = self.is_open() and len(self._forgotten) <= MOST_FORGOTTEN
        else:
            self._check_known(token)

    def _answer(self, request: _Request, body: bytes | bytearray) -> None:
        query, future = request.query, request.future
        owed = 0  # frames, in case it turns out to be a stream
        if len(body) >= LONG_BATCH_BYTES and body.startswith(PARTIAL_START):
            owed = 1
            self._send(pack_frame(query.token, _CONTINUE))
            self._flush()
        try:
            answer = self._codec.decode(query, body)
            kind = answer.type
            value, has_rows = None, False
            if kind == AnswerType.SUCCESS_ATOM or kind == AnswerType.SERVER_INFO:
                value = answer.data[0]
            elif kind == AnswerType.SUCCESS_PARTIAL or kind == AnswerType.SUCCESS_SEQUENCE:
                has_rows = True
            elif kind == AnswerType.WAIT_COMPLETE:
                self._noreply_done = max(self._noreply_done, request.covers)
            else:
                future.set_exception(answer.make_error(query))
                return
        except Exception as error:  # nothing is awaited here
            if type_of(body) == AnswerType.SUCCESS_PARTIAL:
                self._stop(query.token, owed)
            if isinstance(error, StopIteration):  # which a future cannot hold
                error = RuntimeError(f"the decoder raised {error!r}")
            future.set_exception(error)
            return
        if has_rows:
            value = AsyncioCursor(self, query, answer, owed)
        future.set_result(maybe_profile(value, answer))

    def _feed(self, stream: OpenStream, body: bytes | bytearray) -> None:
        if not stream.owed:
            raise FrameError(f"sent rows that were not asked for (token {stream.token})")
        stream.owed -= 1
        cursor = stream.cursor()
        if cursor is None:
            return  # collected; stop_stream() is on its way
        if len(body) >= LONG_BATCH_BYTES and body.startswith(PARTIAL_START):
            cursor.maybe_fetch_batch()
            self._flush()
        try:
            answer = self._codec.decode(cursor.query, body)
        except Exception as error:  # nothing is awaited here
            if type_of(body) == AnswerType.SUCCESS_PARTIAL:
                self.stop_stream(stream.token)
            self._streams.pop(stream.token, None)
            cursor.lose(error)
            return
        if answer.type != AnswerType.SUCCESS_PARTIAL:
            del self._streams[stream.token]
        cursor.extend(answer)

    def eof_received(self) -> None:
        where = " in the middle of an answer" if self._frames.buffered else ""
        self.fail(f"ended the connection{where}", None)

    # --- ending ---

    def fail(self, what: str, cause: BaseException | None) -> None:
        """The peer went away or broke the protocol. Everything on this connection fails with one clear error."""
        reason = f"{self._endpoint} {what}"
        if self._reason is None:
            self.lost_reason = reason
            for callback in self.lost_callbacks:
                self._loop.call_soon(callback)
            self._settle(f"Connection is closed ({reason}).", cause)
        elif self._waiting:
            self._reason, self._cause = f"Connection is closed ({reason} before its noreply writes were done).", cause
        self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.fail(f"was lost: {error}" if error else "was lost", error)
        self._ended.set()

    def closed_error(self, *, was_sent: bool, kind: type[ConnectionClosed] = ConnectionClosed) -> ConnectionClosed:
        """A fresh error at each call, because each gets a traceback of its own."""
        error = kind(self._reason or "Connection is closed.", was_sent=was_sent, lost_at=self._lost_at)
        error.__cause__ = self._cause
        return error

    def _settle(self, reason: str, cause: BaseException | None) -> None:
        """Accept no more queries, and fail everything that somebody waits for. The first reason stands."""
        if self._reason is None:
            self._reason, self._cause, self._lost_at = reason, cause, self._loop.time()
            self.is_usable = False
        requests, streams = [*self._waiting.values(), *self._blocked.values()], [*self._streams.values()]
        unsent = {*map(frame_token, self._out), *self._blocked}
        for table in (self._out, self._waiting, self._blocked, self._streams, self._forgotten):
            table.clear()
        self._out_bytes = 0
        for request in requests:
            if not request.future.done():
                request.future.set_exception(self.closed_error(was_sent=request.query.token not in unsent))
        for stream in streams:
            if (cursor := stream.cursor()) is not None:
                cursor.lose(self.closed_error(was_sent=True, kind=CursorConnectionClosed))
        self._pulse()

    async def close(self, noreply_wait: bool, token: int) -> None:
        """Fail what still runs, wait for noreply writes if there are any, and end the connection. The wait is a query
        with this token.
        """
        if self.is_open():
            self._flush()  # first, so that what leaves now does not count as never sent
            self._settle("Connection is closed.", None)
            try:
                if noreply_wait and self.pending_noreply:
                    future = self._loop.create_future()
                    query = Query(QueryType.NOREPLY_WAIT, token, None, None)
                    self._post(_Request(query, pack_frame(token, b"[%d]" % QueryType.NOREPLY_WAIT), future))
                    await future
                self._flush()
                self._transport.close()
                await self._ended.wait()
            except BaseException:
                self.abort()
                raise
        elif not (self._is_inherited or self._loop.is_closed()):
            await self._ended.wait()

    def disown(self) -> None:
        """In a child of fork(): do nothing with socket and selector any more. The child shares both with its parent."""
        self._is_inherited = True
        self.is_usable = False
        self._reason = "Connection is closed (it was inherited over fork(), and belongs to the parent)."
        self._out.clear()
        self._blocked.clear()

    def abort(self) -> None:
        """End the connection now; the socket is released in the next turn of the loop. Never raises."""
        if self._is_inherited:
            return
        self._settle("Connection is closed (aborted).", None)
        try:
            self._transport.abort()
        except Exception:  # the loop is closed; nothing is awaited here
            self._socket.close()

    def _pulse(self) -> None:
        self._progress.set()
        self._progress.clear()
