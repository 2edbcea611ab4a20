"""Connections to RethinkDB: how one is opened, and the driver's connection made safe to cancel and to share.

Here is the only import of ``rethinkdb``: :data:`R`, :class:`RethinkDBConnector`, and what it opens. Nothing here knows
the pool, its sizes, or who waits for a connection. How bytes become frames is in ``_frames.py``.

The rule that everything below rests on: the server answers each START, CONTINUE, STOP, NOREPLY_WAIT and SERVER_INFO
with exactly one frame on its token (a ``noreply`` START with none). So a token *owes* as many frames as requests were
sent on it less frames that came, and whoever stops caring about a token only has to remember that number.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import json
import math
import os
import re
import socket
import ssl as tls
import threading
import weakref
from base64 import standard_b64decode
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from rethinkdb import RethinkDB, ql2_pb2
from rethinkdb.ast import ReQLDecoder, ReQLEncoder, RqlQuery
from rethinkdb.asyncio_net import net_asyncio
from rethinkdb.errors import (
    ReqlAuthError,
    ReqlAvailabilityError,
    ReqlCursorEmpty,
    ReqlDriverError,
    ReqlError,
    ReqlRuntimeError,
    ReqlTimeoutError,
)
from rethinkdb.handshake import HandshakeV1_0
from rethinkdb.net import DEFAULT_PORT, Response, maybe_profile

from ..errors import ConnectFailed, ConnectionLost, NotSent
from ._frames import HEADER_BYTES, FrameError, FrameReader, frame_token, pack_frame

__all__ = ["R", "RethinkDBConnection", "RethinkDBConnector", "RethinkDBCursor", "RethinkDBStream"]

_QueryType = ql2_pb2.Query.QueryType
_Answer = ql2_pb2.Response.ResponseType
_Note = ql2_pb2.Response.ResponseNote
_FEED_NOTES = frozenset({_Note.SEQUENCE_FEED, _Note.ATOM_FEED, _Note.ORDER_BY_LIMIT_FEED, _Note.UNIONED_FEED})
_CONTINUE = b"[%d]" % _QueryType.CONTINUE
_STOP = b"[%d]" % _QueryType.STOP

DEFAULT_TIMEOUT = 20.0
"""Seconds to open a connection, where nobody says otherwise. The driver's value."""

KEEPALIVE_OPTIONS = (
    ("TCP_KEEPIDLE", 30),  # seconds of silence before the first probe; below the 60 s after which some NATs forget
    ("TCP_KEEPALIVE", 30),  # the same under its name on macOS
    ("TCP_KEEPINTVL", 15),  # seconds between probes
    ("TCP_KEEPCNT", 4),  # unanswered probes until the peer is given up: 90 s after its last word
    # Milliseconds that written data may stay unacknowledged; bounds what keepalive does not see. As long as keepalive
    # takes, since Linux lets it overrule TCP_KEEPCNT, and no shorter, since it also ends a peer that lives but is too
    # busy to read.
    ("TCP_USER_TIMEOUT", 90_000),
)
"""How soon a peer that vanished without a word is noticed, where the platform has the option."""

MAX_QUERY_BYTES = 134_217_727
"""Longest query that the server takes. After refusing a longer one it ends the connection, and with it the queries of
everybody else, so such a query is refused here in the server's words."""

MOST_UNANSWERED = 1_000
"""Queries that are sent before others are answered. The server takes 1,024 on one connection, and a STOP needs a place
too: with none left, nothing could be stopped any more.
"""

MOST_FORGOTTEN = 500
"""Forgotten queries that may still be to be answered on a connection that somebody else is given."""

LONG_BATCH_BYTES = 16_384
"""A batch of so many bytes takes 100 µs and more to decode: the next one is asked for before that, and at once, so that
the server works meanwhile. Results of more than one batch come a tenth sooner."""

FLUSH_BYTES = 65_536
"""With so much to write, the end of the loop's turn is not waited for. It is the transport's own high-water mark, so
that a burst of queries meets back-pressure instead of memory."""

READ_BYTES = 24_576
"""Most bytes that are read at once. The queries that follow the answers of one read are sent together, after the last
of them was decoded. With as much as asyncio reads, the server waits meanwhile, and answers that are slow to decode, of
some 15 kB with a time in each row, take a quarter longer (measured); with less than this, large documents do."""

MAX_GREETING_BYTES = 65_536
"""Longest message of the log-in that is read. RethinkDB's have less than 200 bytes."""

MAX_INLINE_ROUNDS = 16_384
"""PBKDF2 rounds that are computed in the event loop, once per connector: 4 ms. More go to a thread. RethinkDB uses
4,096 by default and 1 for an empty password."""

MAX_ROUNDS = 4_000_000
"""PBKDF2 rounds, 1 s of work, beyond which a server is refused. The thread that does the work cannot be cancelled."""


class _ConnectionClosed(ReqlDriverError, ReqlRuntimeError):  # type: ignore[misc]
    """The connection is gone. The driver raises the one class from queries and the other from cursors; this is both."""

    def __init__(self, message: str, was_sent: bool) -> None:
        super().__init__(message)
        self.was_sent = was_sent  # whether the query was handed to the socket; what became of it then, nobody knows

    def for_pool(self) -> ConnectionLost | NotSent:
        """The same, in the pool's words."""
        return (ConnectionLost if self.was_sent else NotSent)(self.message)


# --- opening --------------------------------------------------------------------------------------


class _Dialer:
    """Opens sockets to one server and logs in as one user. Shared by all connections of a connector.

    Keeps the password, because each connection proves it again, and the last salted one, because that takes 1 ms and
    more to compute and stays the same until the password changes.
    """

    def __init__(
        self,
        host: str,
        port: int,
        user: str,
        passwords: list[bytes],
        ca_certs: str | os.PathLike[str] | None,
        json_encoder: Callable[..., Any],
        json_decoder: Callable[..., Any],
    ) -> None:
        self.host, self.port, self.user = host, port, user
        self.endpoint = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.json_encoder, self.json_decoder = json_encoder, json_decoder
        self._passwords = passwords  # what to try, in this order; one is left after the first success
        self._ca_certs = ca_certs
        self._tls: tls.SSLContext | None = None
        self._salted: tuple[tuple[bytes, bytes, int], bytes] | None = None
        self._deriving = threading.Lock()  # taken in worker threads only

    async def open(self, timeout: float) -> tuple[asyncio.Transport, socket.socket]:
        """A socket that is logged in, within ``timeout`` seconds for name look-up, TCP, TLS and log-in together.

        Raises :class:`ReqlAuthError` where the user or password is refused, else :class:`ReqlDriverError` with the
        error of the operating system, if there was one, as cause. If cancelled, the socket is aborted.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        log_in = _LogIn()
        try:
            async with asyncio.timeout(timeout):
                for password in self._passwords[:-1]:
                    with contextlib.suppress(ReqlAuthError):
                        return await self._open(log_in, password)
                    log_in = _LogIn()
                return await self._open(log_in, self._passwords[-1])
        except ReqlAuthError:
            raise
        except (OSError, UnicodeError, ReqlError) as error:  # UnicodeError: of a host that can be no name
            reason = "no answer" if isinstance(error, TimeoutError) and not error.args else str(error)
            raise ReqlDriverError(
                f"Could not connect to {self.endpoint} as {self.user!r}: {reason or type(error).__name__} while "
                f"{log_in.stage}, after {loop.time() - started:.2f} of {timeout:g} s. {log_in.hint}"
            ) from error

    async def _open(self, log_in: _LogIn, password: bytes) -> tuple[asyncio.Transport, socket.socket]:
        loop = asyncio.get_running_loop()
        if self._ca_certs is not None and self._tls is None:
            log_in.enter(f"loading the certificates of ssl={{'ca_certs': {os.fspath(self._ca_certs)!r}}}", _CHECK_TLS)
            self._tls = _tls_context(self._ca_certs)  # blocks for the time of reading a file, once
        sock = await self._dial(log_in)
        try:
            if self._tls is not None:
                log_in.enter("setting up TLS", _CHECK_TLS)
            server_name = self.host if self._tls is not None else None
            await loop.create_connection(lambda: log_in, sock=sock, ssl=self._tls, server_hostname=server_name)
            log_in.enter("logging in", "Is this RethinkDB's driver port (28015 by default)? Does it want TLS (`ssl`)?")
            await self._prove(log_in, password)
        except BaseException:
            # Whatever interrupted it: nothing may be left of a socket that nobody will own.
            log_in.abort()
            sock.close()
            raise
        if self._passwords != [password]:
            self._passwords = [password]
        return log_in.transport, sock

    async def _dial(self, log_in: _LogIn) -> socket.socket:
        """A connected TCP socket, to the first of the host's addresses that can be reached."""
        loop = asyncio.get_running_loop()
        log_in.enter("looking up the host's name", "Check `host`, and the name service of this machine.")
        try:
            flags = socket.AI_NUMERICHOST  # never blocks, and saves the trip to a thread
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=flags)
        except socket.gaierror:
            found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        log_in.enter("connecting by TCP", "Check `host` and `port`; is the server up, and can it be reached from here?")
        failures: list[OSError] = []
        for family, kind, protocol, _, address in found:
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError as error:  # such as IPv6 on a machine without
                failures.append(error)
                continue
            try:
                sock.setblocking(False)
                _set_options(sock)
                await loop.sock_connect(sock, address)
            except BaseException as error:
                sock.close()
                if not isinstance(error, OSError):
                    raise
                failures.append(error)
            else:
                return sock
        raise failures[-1]

    async def _prove(self, log_in: _LogIn, password: bytes) -> None:
        handshake = _Handshake(self, password)
        message: bytes | None = None
        while (request := handshake.advance(message)) is not None:
            if request:
                log_in.transport.write(request)
            message = await log_in.next_message()
            challenge = _challenge(message)
            if challenge is not None:
                handshake.salted = await self._salt(password, *challenge)
        log_in.check_nothing_left()

    async def _salt(self, password: bytes, salt: bytes, rounds: int) -> bytes:
        """PBKDF2, computed once for all connections; beyond some milliseconds, in a thread."""
        key = password, salt, rounds
        if self._salted is not None and self._salted[0] == key:
            return self._salted[1]
        if not 1 <= rounds <= MAX_ROUNDS:
            raise ReqlDriverError(f"the server asks for {rounds:,} rounds of PBKDF2; {MAX_ROUNDS:,} is the most")
        if rounds > MAX_INLINE_ROUNDS:
            return await asyncio.get_running_loop().run_in_executor(None, self._derive_in_thread, key)
        return self._derive(key)

    def _derive_in_thread(self, key: tuple[bytes, bytes, int]) -> bytes:
        with self._deriving:  # whoever comes second finds the result of the first
            salted = self._salted
            return salted[1] if salted is not None and salted[0] == key else self._derive(key)

    def _derive(self, key: tuple[bytes, bytes, int]) -> bytes:
        result = hashlib.pbkdf2_hmac("sha256", *key)
        self._salted = key, result
        return result


def _challenge(message: bytes) -> tuple[bytes, int] | None:
    """Salt and rounds, if this message of the log-in has them. What is wrong with another is the driver's to say."""
    try:
        fields = dict(part.split("=", 1) for part in json.loads(message)["authentication"].split(","))
        return standard_b64decode(fields["s"]), int(fields["i"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


class _Handshake(HandshakeV1_0):  # type: ignore[misc]
    """The driver's log-in, given the password as bytes and salted beforehand."""

    salted: bytes | None = None

    def __init__(self, dialer: _Dialer, password: bytes) -> None:
        super().__init__(dialer.json_decoder(), dialer.json_encoder(), dialer.host, dialer.port, dialer.user, "")
        self._password = password
        self._pbkdf2_hmac = self._give_salted

    def _give_salted(self, *_: object) -> bytes | None:
        return self.salted

    def advance(self, message: bytes | None) -> bytes | None:
        """What to send after ``message``: ``None`` when logged in, empty where another message must be read first."""
        try:
            request = self.next_message(message)
        except ReqlError:
            raise
        except Exception as error:  # nothing is awaited here: whatever the driver makes of a strange message
            said = (message or b"")[:80]
            raise ReqlDriverError(f"the peer's message is no log-in of RethinkDB: {said!r}") from error
        return None if request is None else request or b""  # the driver's "nothing to send" is a str


_READING_SPACES: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview] = weakref.WeakKeyDictionary()


class _Reader(asyncio.BufferedProtocol):
    """Reads into space that all connections of an event loop share, since each empties it at once.

    A plain protocol is given bytes for which asyncio allocates 256 KiB each time. Where malloc maps and unmaps that
    anew, it is a fifth of what a small query costs (measured on glibc, in some processes); in others this gains 3 %.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        space = _READING_SPACES.get(loop)
        if space is None:
            space = memoryview(bytearray(READ_BYTES))
            if not isinstance(loop, getattr(asyncio, "ProactorEventLoop", ())):  # which fills it at any time
                _READING_SPACES[loop] = space
        self._space = space

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._space

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._space[:nbytes]))

    def data_received(self, data: bytes) -> None:
        raise NotImplementedError


class _LogIn(_Reader):
    """Reads the log-in's messages, which end in NUL, and remembers how far an attempt has come."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        super().__init__()
        self.stage = self.hint = ""
        self._buffer = bytearray()
        self._error: Exception | None = None
        self._arrival: asyncio.Future[None] | None = None

    def enter(self, stage: str, hint: str) -> None:
        """What is being done now, and what to do about it should it fail."""
        self.stage, self.hint = stage, hint

    async def next_message(self) -> bytes:
        """Wait, as long as the caller allows, for one message. Raises where the peer goes away or sends too much."""
        while (end := self._buffer.find(b"\0")) < 0:
            if len(self._buffer) > MAX_GREETING_BYTES:
                raise ReqlDriverError(f"the peer sent {len(self._buffer):,} bytes that are no log-in of RethinkDB")
            if self._error is not None:
                raise self._error
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        message = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return message

    def check_nothing_left(self) -> None:
        """Raise where the peer has said more than a log-in has, or has gone since."""
        if self._buffer:
            raise ReqlDriverError("the peer sent more than the log-in")
        if self._error is not None:
            raise self._error

    def abort(self) -> None:
        """Release the socket, if there is a transport yet."""
        if hasattr(self, "transport"):
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._wake()

    def eof_received(self) -> None:
        self.connection_lost(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self._error is None:
            said = bytes(self._buffer[:80])
            self._error = error or ReqlDriverError(
                "the peer ended the connection" + (f" after {said!r}" if said else " without a word")
            )
        self._wake()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)


_CHECK_TLS = (
    "Check `ssl`: the certificate of the authority, the name in the server's certificate, and whether it speaks TLS."
)


def _tls_context(ca_certs: str | os.PathLike[str]) -> tls.SSLContext:
    context = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)  # verifies the certificate and the host's name
    context.load_verify_locations(ca_certs)
    return context


def _set_options(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE_OPTIONS:
        option = getattr(socket, name, None)
        if option is not None:
            with contextlib.suppress(OSError):  # named by Python, unknown to this kernel
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


# --- queries on an open socket --------------------------------------------------------------------


class _Request:
    """A query whose task waits for its answer."""

    __slots__ = ("covers", "future", "is_noreply", "payload", "query")

    def __init__(self, query: Any, payload: bytes, future: asyncio.Future[Any], is_noreply: bool) -> None:
        self.query = query
        self.payload = payload  # empty once written
        self.future = future
        self.is_noreply = is_noreply
        self.covers = 0  # NOREPLY_WAIT: how many noreply queries had been sent before it


class _Stream:
    """A cursor as the connection knows it: weakly, so that its user can drop it."""

    __slots__ = ("_held", "_readers", "cursor", "owed", "token")

    def __init__(self, cursor: RethinkDBCursor, token: int, owed: int, collected: Callable[[Any], None]) -> None:
        self.cursor = weakref.ref(cursor, collected)
        self.token = token
        self.owed = owed  # frames to come: 1 while a CONTINUE is unanswered
        self._held: RethinkDBCursor | None = None
        self._readers = 0

    # While a task waits for rows the connection holds the cursor: nothing else need hold that task, whose only other
    # reference may be in a future of this very cursor, and the collector would take both.
    def hold(self, cursor: RethinkDBCursor) -> None:
        self._held = cursor
        self._readers += 1

    def release(self) -> None:
        self._readers -= 1
        if not self._readers:
            self._held = None


class _Wire(_Reader):
    """Queries and answers on one socket: what the driver calls the connection instance, without its reader task.

    Answers are resolved where bytes arrive, and what one turn of the loop writes leaves in one piece.
    """

    def __init__(self, parent: RethinkDBConnection, transport: asyncio.Transport, sock: socket.socket) -> None:
        super().__init__()
        self._parent = parent
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._socket = sock
        self._frames = FrameReader()
        self._out: list[bytes] = []  # written at the end of this turn of the loop
        self._out_bytes = 0
        self._is_paused = False  # the peer does not read
        self._blocked: OrderedDict[int, _Request] = OrderedDict()  # not written yet; empty unless paused
        self._waiting: dict[int, _Request] = {}  # each owes one frame
        self._streams: dict[int, _Stream] = {}  # cursors with rows to come; the server holds each
        self._swallowed: dict[int, int] = {}  # forgotten: frames owed, at least one
        self._noreply_sent = 0
        self._noreply_done = 0  # of these, how many a NOREPLY_WAIT has covered
        self._is_inherited = False  # over a fork
        self._reason: str | None = None  # why no query may be sent any more; None while open
        self._cause: BaseException | None = None
        self.lost_reason: str | None = None  # the same, if nobody here asked for it
        self._lost_callbacks: list[Callable[[], None]] = []
        self._ended = asyncio.Event()  # the socket is released
        self._progress = asyncio.Event()  # pulses when a query or a stream has ended
        transport.set_protocol(self)
        _wires.add(self)

    # --- what the driver's classes and ours ask ---

    def is_open(self) -> bool:
        return self._reason is None and not self._transport.is_closing()

    def is_usable(self) -> bool:
        """Whether it is open and not clogged. Asked for every lease and query, so it calls nothing of its own."""
        return self._reason is None and len(self._swallowed) <= MOST_FORGOTTEN and not self._transport.is_closing()

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

    async def wait_until(self, is_done: Callable[[], bool]) -> None:
        """Wait until ``is_done()``, which is asked again whenever a query or stream has ended."""
        while not is_done():
            await self._progress.wait()

    def on_lost(self, callback: Callable[[], None]) -> None:
        if self.lost_reason is not None:
            self._loop.call_soon(callback)
        elif self._reason is None:
            self._lost_callbacks.append(callback)

    # --- sending ---

    async def run_query(self, query: Any, noreply: bool) -> Any:
        """Send a query and wait for its answer; for a ``noreply`` one, wait only while the peer does not read.

        If cancelled: never sent if it was still waiting to be, else forgotten and stopped on the server.
        """
        if self._reason is not None:
            raise self.closed_error(was_sent=False)
        payload = self._parent._encode(query)
        size = len(payload) - HEADER_BYTES
        if size > MAX_QUERY_BYTES:
            raise ReqlDriverError(f"Query size ({size}) greater than maximum ({MAX_QUERY_BYTES}).")
        # The server answers whatever is not JSON's true; a term is written as what it builds to.
        is_noreply = (noreply.build() if isinstance(noreply, RqlQuery) else noreply) is True
        request = _Request(query, payload, self._loop.create_future(), is_noreply)
        del payload
        if self._blocked or self._must_wait():
            self._blocked[query.token] = request
        else:
            self._post(request)
        try:
            return await request.future
        except BaseException:
            self._forget(request)  # nothing is left to forget if this is the query's own error
            raise
        finally:
            del request  # or an error that is kept would keep the request, and with it the query

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
        if out and not self._transport.is_closing():  # else they stay, for _settle() to know what was never sent
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            self._out_bytes = 0
            self._transport.write(data)

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._post_blocked()

    @property
    def is_clogged(self) -> bool:
        """Whether so many forgotten queries are still to be answered that the next user should not wait for them."""
        return len(self._swallowed) > MOST_FORGOTTEN

    def _must_wait(self) -> bool:
        return self._is_paused or len(self._waiting) + len(self._swallowed) >= MOST_UNANSWERED

    def _post_blocked(self) -> None:
        # First come, first served. Posting may fill the transport again and pause within this loop.
        while self._blocked and not self._must_wait():
            _, request = self._blocked.popitem(last=False)
            if not request.future.done():  # done: cancelled in this turn of the loop, and its task has not run yet
                self._post(request)

    # --- forgetting ---

    def _forget(self, request: _Request) -> None:
        """The task of this query no longer waits. CONTINUE and STOP are not held up by back-pressure: there are few."""
        token = request.query.token
        if self._blocked.pop(token, None) is None:
            if self._waiting.pop(token, None) is not None:
                self._abandon(request, owed=1)
            else:
                self.stop_stream(token)  # its first rows came, but its task was cancelled before it took the cursor
        self._pulse()

    def _abandon(self, request: _Request, owed: int) -> None:
        if request.query.type == _QueryType.START:
            self._stop(request.query.token, owed)
        elif owed:
            self._swallowed[request.query.token] = owed  # STOP means nothing to NOREPLY_WAIT and SERVER_INFO

    def _stop(self, token: int, owed: int) -> None:
        """End a query or stream on the server. Right whatever came of it meanwhile: STOP has an answer of its own."""
        if self._reason is None and not self._loop.is_closed():
            self._swallowed[token] = owed + 1
            self._send(pack_frame(token, _STOP))

    def stop_stream(self, token: int) -> None:
        """End a stream on the server and forget it. Does nothing where it has ended."""
        stream = self._streams.pop(token, None)
        if stream is not None:
            self._stop(token, stream.owed)
            self._pulse()

    def _collected(self, token: int, _reference: Any) -> None:
        """A cursor was collected: in any thread, in the middle of anything, perhaps while the interpreter ends."""
        try:
            self._loop.call_soon_threadsafe(self.stop_stream, token)
        except Exception:  # the loop is closed, and the stream ends with the socket; nothing is awaited here
            return

    def add_stream(self, cursor: RethinkDBCursor, token: int, owed: int) -> _Stream:
        stream = _Stream(cursor, token, owed, partial(self._collected, token))
        self._streams[token] = stream
        return stream

    def continue_stream(self, stream: _Stream) -> None:
        stream.owed += 1
        self._send(pack_frame(stream.token, _CONTINUE))

    # --- receiving ---

    def data_received(self, data: bytes) -> None:
        try:
            for token, body in self._frames.feed(data):
                self._receive(token, body)
            token_ahead = self._frames.partial_token
            if token_ahead is not None:
                self._check_known(token_ahead)  # now, not after the gigabyte that a stray header may announce
        except FrameError as error:
            self.fail(str(error), error)
        except Exception as error:  # nothing is awaited here: whatever the driver makes of a strange answer
            self.fail(f"sent an answer that cannot be read: {type(error).__name__}: {error}", error)
        if self._blocked:
            self._post_blocked()
        self._pulse()

    def _check_known(self, token: int) -> None:
        known = token in self._waiting or token in self._streams or token in self._swallowed
        if not known and self._reason is None:
            raise FrameError(f"sent an answer to a query that was not asked (token {token})")

    def _receive(self, token: int, body: bytes | bytearray) -> None:
        request = self._waiting.get(token)
        if request is not None:
            if request.future.done():
                # Cancelled in this very turn of the loop, and its task has not run yet: forget it in its place. What
                # the answer is does not matter; if it has opened a stream, STOP ends that too.
                del self._waiting[token]
                self._abandon(request, owed=0)
                return
            self._answer(request, body)
            del self._waiting[token]  # only now: if the answer is broken, the query is still there to fail
            return
        stream = self._streams.get(token)
        if stream is not None:
            self._feed(stream, body)
            return
        owed = self._swallowed.get(token)
        if owed is None:
            self._check_known(token)
        elif owed > 1:
            self._swallowed[token] = owed - 1
        else:
            del self._swallowed[token]

    def _answer(self, request: _Request, body: bytes | bytearray) -> None:
        query, future = request.query, request.future
        owed = 0  # frames, should it turn out to be a stream
        if len(body) >= LONG_BATCH_BYTES and body.startswith(_PARTIAL_START):
            owed = 1
            self._send(pack_frame(query.token, _CONTINUE))
            self._flush()
        try:
            answer = self._parent._decode(query, body)
            kind = answer.type
            value = answer.data[0] if kind == _Answer.SUCCESS_ATOM or kind == _Answer.SERVER_INFO else None
            failure = None if kind in _SUCCESSES else answer.make_error(query)
        except Exception as error:  # nothing is awaited here
            if _type_of(body) == _Answer.SUCCESS_PARTIAL:
                self._stop(query.token, owed)
            if isinstance(error, StopIteration):  # which a future cannot hold
                error = RuntimeError(f"the decoder raised {error!r}")
            future.set_exception(error)
            return
        if failure is not None:
            future.set_exception(failure)
        elif kind == _Answer.SUCCESS_ATOM or kind == _Answer.SERVER_INFO:
            future.set_result(maybe_profile(value, answer))
        elif kind == _Answer.SUCCESS_PARTIAL or kind == _Answer.SUCCESS_SEQUENCE:
            future.set_result(maybe_profile(RethinkDBCursor(self, query, answer, owed), answer))
        else:
            self._noreply_done = max(self._noreply_done, request.covers)
            future.set_result(None)

    def _feed(self, stream: _Stream, body: bytes | bytearray) -> None:
        if not stream.owed:
            raise FrameError(f"sent rows that were not asked for (token {stream.token})")
        stream.owed -= 1
        cursor = stream.cursor()
        if cursor is None:
            return  # collected; stop_stream() is on its way
        if len(body) >= LONG_BATCH_BYTES and body.startswith(_PARTIAL_START):
            cursor.maybe_fetch_batch()
            self._flush()
        try:
            answer = self._parent._decode(cursor.query, body)
        except Exception as error:  # nothing is awaited here
            if _type_of(body) == _Answer.SUCCESS_PARTIAL:
                self.stop_stream(stream.token)
            else:
                del self._streams[stream.token]
            cursor.lose(error)
            return
        if answer.type != _Answer.SUCCESS_PARTIAL:
            del self._streams[stream.token]
        cursor.extend(answer)

    def eof_received(self) -> None:
        where = "" if self._frames.is_between_frames else " in the middle of an answer"
        self.fail(f"ended the connection{where}", None)

    # --- ending ---

    def fail(self, what: str, cause: BaseException | None) -> None:
        """The peer went away or broke the protocol: everything on this connection gets one clear error."""
        reason = f"{self._parent.endpoint} {what}"
        if self._reason is None:
            self.lost_reason = reason
            callbacks, self._lost_callbacks = self._lost_callbacks, []
            for callback in callbacks:
                self._loop.call_soon(callback)
            self._settle(f"Connection is closed ({reason}).", cause)
        elif self._waiting:
            self._reason, self._cause = f"Connection is closed ({reason} before its noreply writes were done).", cause
        self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.fail(f"was lost: {error}" if error else "was lost", error)
        self._ended.set()

    def closed_error(self, *, was_sent: bool) -> Exception:
        """A fresh error for each, since each gets a traceback of its own."""
        error = _ConnectionClosed(self._reason or "Connection is closed.", was_sent)
        error.__cause__ = self._cause
        return error

    def _settle(self, reason: str, cause: BaseException | None) -> None:
        """Accept no more queries, and resolve whatever somebody waits for. The first reason stands."""
        if self._reason is None:
            self._reason, self._cause = reason, cause
        requests = [*self._waiting.values(), *self._blocked.values()]
        unsent = {*map(frame_token, self._out), *self._blocked}
        streams = list(self._streams.values())
        for table in (self._out, self._waiting, self._blocked, self._streams, self._swallowed):
            table.clear()
        self._out_bytes = 0
        for request in requests:
            if not request.future.done():
                request.future.set_exception(self.closed_error(was_sent=request.query.token not in unsent))
        for stream in streams:
            cursor = stream.cursor()
            if cursor is not None:
                cursor.lose(self.closed_error(was_sent=True))
        self._pulse()

    async def close(self, noreply_wait: bool, token: int) -> None:
        """Fail what still runs, wait for noreply writes if there are any, and end the connection.

        May wait for ever on a peer that is frozen. If interrupted, the connection is aborted.
        """
        if self.is_open():
            self._flush()  # first, so that what leaves now is not taken for what was never sent
            self._settle("Connection is closed.", None)
            try:
                if noreply_wait and self.pending_noreply:
                    await self._wait_noreply(token)
                self._flush()
                self._transport.close()
                await self._ended.wait()
            except BaseException:
                self.abort()
                raise
        elif not (self._is_inherited or self._loop.is_closed()):
            await self._ended.wait()

    async def _wait_noreply(self, token: int) -> None:
        future = self._loop.create_future()
        query = net_asyncio.Query(_QueryType.NOREPLY_WAIT, token, None, None)
        self._post(_Request(query, pack_frame(token, b"[%d]" % _QueryType.NOREPLY_WAIT), future, False))
        await future

    def disown(self) -> None:
        """In a child of fork(), which shares socket and selector with its parent: nothing may be done with either."""
        self._is_inherited = True
        self._reason = "Connection is closed (it was inherited over fork(), and belongs to the parent)."
        self._out.clear()
        self._blocked.clear()

    def abort(self) -> None:
        """End the connection now; the socket goes in the next turn of the loop. Never raises."""
        if self._is_inherited:
            return
        self._settle("Connection is closed (aborted).", None)
        self._lost_callbacks.clear()
        try:
            self._transport.abort()
        except Exception:  # the loop is closed; nothing is awaited here
            self._socket.close()

    def _pulse(self) -> None:
        self._progress.set()
        self._progress.clear()


_wires: weakref.WeakSet[_Wire] = weakref.WeakSet()


def _disown_wires() -> None:
    for wire in list(_wires):
        wire.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_wires)


class _Response(Response):  # type: ignore[misc]
    """An answer, decoded: the driver's, with the notes, which the driver leaves out."""

    def __init__(self, token: int, text: str, decode: Callable[[str], Any]) -> None:
        answer = decode(text)
        self.token = token
        self.type = answer["t"]
        self.data = answer["r"]
        self.backtrace = answer.get("b")
        self.profile = answer.get("p")
        self.error_type = answer.get("e")
        self.notes = answer.get("n")  # what kind of changefeed it is; empty where it is none


_SUCCESSES = frozenset(
    {
        _Answer.SUCCESS_ATOM,
        _Answer.SUCCESS_PARTIAL,
        _Answer.SUCCESS_SEQUENCE,
        _Answer.SERVER_INFO,
        _Answer.WAIT_COMPLETE,
    }
)
_PARTIAL_START = b'{"t":%d,' % _Answer.SUCCESS_PARTIAL
_ANSWER_START = re.compile(rb'\s*\{\s*"t"\s*:\s*(\d+)\s*,\s*"r"\s*:\s*\[')
_PLAIN_DECODER = json.JSONDecoder()
_raw_decode = _PLAIN_DECODER.raw_decode
_ENCODER = ReQLEncoder()
_PLAIN_OPTIONS = (RqlQuery, str, int, float, type(None))


def _decode_plain(text: str) -> Any:
    """As JSONDecoder.decode(), which looks for space before and behind with regular expressions."""
    if text[:1] == "{":
        value, end = _raw_decode(text)
        if end == len(text):
            return value
    return _PLAIN_DECODER.decode(text)


def _type_of(body: bytes | bytearray) -> int:
    """The type of an answer that could not be decoded. Raises FrameError where the fault is not the decoder's."""
    try:
        answer = json.loads(str(body, "utf-8"))
    except ValueError as error:
        raise FrameError(f"sent an answer that is not valid JSON: {bytes(body[:80])!r}") from error
    except RecursionError:  # too deep for Python, which is the affair of the query that asked for it
        match = _ANSWER_START.match(body)
        if match is None:
            raise FrameError(f"sent JSON that is no answer: {bytes(body[:80])!r}") from None
        return int(match[1])
    if not isinstance(answer, dict) or not isinstance(answer.get("t"), int) or not isinstance(answer.get("r"), list):
        raise FrameError(f"sent JSON that is no answer: {bytes(body[:80])!r}")
    kind: int = answer["t"]
    if kind in (_Answer.SUCCESS_ATOM, _Answer.SERVER_INFO) and not answer["r"]:
        raise FrameError(f"sent an answer without a value: {bytes(body[:80])!r}")
    return kind


# --- what users hold ------------------------------------------------------------------------------


class RethinkDBCursor(net_asyncio.AsyncioCursor):  # type: ignore[misc]
    """The driver's cursor, held weakly by its connection: dropped by its user, it is stopped on the server.

    Reads ahead: a batch is asked for while the one before is read, and no more than that, also of a changefeed. It may
    be read by several tasks. It outlives the lease that it was opened on, but not the connection.
    """

    def __init__(self, wire: _Wire, query: Any, first: Any, owed: int) -> None:
        self.conn = wire
        self.query = query
        self.is_feed = bool(first.notes) and not _FEED_NOTES.isdisjoint(first.notes)
        self.items: deque[Any] = deque()
        self.error: Exception | None = None  # after the items; ReqlCursorEmpty where all went well
        self.threshold = 1  # rows; with fewer than this the next batch is asked for
        self._changed = asyncio.Event()  # pulses when rows or the end have come
        self._stream: _Stream | None = None
        if first.type == _Answer.SUCCESS_PARTIAL:
            self._stream = wire.add_stream(self, query.token, owed)
        self.extend(first)

    @property
    def outstanding_requests(self) -> int:
        """Frames that the server owes to this cursor."""
        return 0 if self._stream is None else self._stream.owed

    def __aiter__(self) -> RethinkDBCursor:
        return self

    async def __anext__(self) -> Any:
        """Wait for the next row, as long as it takes. If cancelled, no row is lost."""
        try:
            return await self._get_next(None)
        except ReqlCursorEmpty:
            raise StopAsyncIteration from None

    async def fetch_next(self, wait: bool | float = True) -> bool:
        """Wait until there is a row, an error or the end; true unless it is the end.

        ``wait`` is whether to wait, or for how many seconds; :class:`ReqlTimeoutError` after that. If cancelled, no row
        is lost.
        """
        await self._wait_rows(self._wait_to_timeout(wait))
        return bool(self.items) or not isinstance(self.error, ReqlCursorEmpty)

    async def _get_next(self, timeout: float | None) -> Any:
        if not self.items:
            await self._wait_rows(timeout)
            if not self.items:
                assert self.error is not None
                raise self.error.with_traceback(None)  # it may be raised again and again
        # From here on nothing waits, so a row that was taken is a row that is returned.
        row = self.items.popleft()
        self.maybe_fetch_batch()
        return row

    async def _wait_rows(self, timeout: float | None) -> None:
        stream = self._stream
        if self.items or self.error is not None or stream is None:
            return
        stream.hold(self)
        try:
            async with asyncio.timeout(timeout):
                while not self.items and self.error is None:
                    await self._changed.wait()
        except TimeoutError:
            if not self.items and self.error is None:
                raise ReqlTimeoutError() from None
        finally:
            stream.release()

    async def read_all(self) -> list[Any]:
        """The rows that are left, as a list. If cancelled, the stream is stopped on the server.

        Raises TypeError, and stops it, where it is a changefeed that has not ended.
        """
        rows: list[Any] = []
        try:
            if self.is_feed and self.error is None:
                raise TypeError("the query is a changefeed, which run() would read for ever: use changes() or stream()")
            while self.items or self.error is None:
                await self._wait_rows(None)
                rows += self.items
                self.items.clear()
                self.maybe_fetch_batch()
        except BaseException:
            self.close_nowait()
            raise
        if not isinstance(self.error, ReqlCursorEmpty):
            assert self.error is not None
            raise self.error.with_traceback(None)
        return rows

    async def close(self) -> None:
        """Stop the stream on the server. Does not wait; rows that have come can still be read."""
        self.close_nowait()

    async def aclose(self) -> None:
        """The same, for :func:`contextlib.aclosing`."""
        self.close_nowait()

    def __exit__(self, *_: object) -> None:
        self.close_nowait()

    def close_nowait(self) -> bool:
        """The same; false where it had ended."""
        if self.error is not None:
            return False
        self.lose(self._empty_error())
        self.conn.stop_stream(self.query.token)
        return True

    def maybe_fetch_batch(self) -> None:
        """For the connection too: ask for the next batch, if it is time."""
        stream = self._stream
        if self.error is None and stream is not None and not stream.owed and len(self.items) < self.threshold:
            self.conn.continue_stream(stream)

    def extend(self, answer: Any) -> None:
        """For the connection: a batch has come."""
        if answer.type == _Answer.SUCCESS_PARTIAL:
            self.maybe_fetch_batch()  # before the rows are counted: one batch ahead
            self.threshold = max(1, len(answer.data))
            self.items.extend(answer.data)
        elif answer.type == _Answer.SUCCESS_SEQUENCE:
            self.items.extend(answer.data)
            self.error = self._empty_error()
        else:
            self.error = answer.make_error(self.query)
        self._wake()

    def lose(self, error: Exception) -> None:
        """For the connection: nothing more will come, and this is why."""
        if self.error is None:
            self.error = error
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed.clear()


class RethinkDBStream:
    """The rows of one query as they come: a :class:`~async_repool.connectors.Stream`.

    Holds its cursor and nothing else. So if it is dropped, the cursor is, and is stopped on the server.
    """

    __slots__ = ("__weakref__", "_cursor", "_rows")

    def __init__(self, value: RethinkDBCursor | list[Any]) -> None:
        self._cursor = None if isinstance(value, list) else value
        self._rows: deque[Any] = deque(value) if isinstance(value, list) else value.items

    @property
    def is_feed(self) -> bool:
        """Whether it is a changefeed."""
        return self._cursor is not None and self._cursor.is_feed

    def __aiter__(self) -> RethinkDBStream:
        return self

    async def __anext__(self) -> Any:
        """Wait for the next row, as long as it takes. If cancelled, no row is lost.

        Raises :class:`~async_repool.errors.ConnectionLost` where the connection has ended before the last row.
        """
        if self._cursor is None:
            if not self._rows:
                raise StopAsyncIteration
            return self._rows.popleft()
        try:
            return await self._cursor._get_next(None)
        except ReqlCursorEmpty:
            raise StopAsyncIteration from None
        except _ConnectionClosed as error:
            raise error.for_pool() from error

    def close(self) -> bool:
        """Stop it on the server, at once. Rows that have come can still be read. False where it had ended there."""
        return self._cursor is not None and self._cursor.close_nowait()


class RethinkDBConnection(net_asyncio.Connection):  # type: ignore[misc]
    """The driver's asyncio connection, safe to cancel and to share between tasks.

    Use it as the driver's: ``query.run(connection)``, ``use()``, ``server()``, ``noreply_wait()``, ``close()``,
    ``reconnect()``, ``async with``. A query that is cancelled is stopped on the server and disturbs no other. Not to be
    used from other threads or event loops.
    """

    def __init__(
        self,
        host: str,
        port: int,
        db: str | None,
        auth_key: str | None,
        user: str,
        password: str | None,
        timeout: float,
        ssl: Mapping[str, Any],
        _handshake_version: int,
        *,
        dialer: _Dialer | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("io_loop", None)  # the driver takes one and does not use it here
        unknown = kwargs.keys() - {"json_encoder", "json_decoder"}
        if unknown:
            raise TypeError(f"connect() got unexpected arguments: {', '.join(sorted(unknown))}")
        # The base class must not see the password: it would keep it, once for each connection.
        super().__init__(host, port, db, None, user, None, timeout, ssl, _handshake_version, **kwargs)
        if auth_key is not None and password is not None:
            raise ReqlDriverError("`auth_key` and `password` are both set.")
        if dialer is None:
            passwords = _passwords((password or auth_key or "",))
            certificates = ssl["ca_certs"] if ssl else None
            dialer = _Dialer(host, self.port, user, passwords, certificates, self._json_encoder, self._json_decoder)
        self._dialer = dialer
        self._server_id: str | None = None  # as the first check() found it
        self._instance: _Wire | None = None
        self._lost_callbacks: tuple[Callable[[], None], ...] = ()
        self._ends = 0  # how often it was closed or aborted

    @property
    def endpoint(self) -> str:
        """``"host:port"``."""
        return self._dialer.endpoint

    @property
    def in_flight(self) -> int:
        """Queries that are not answered yet, those included that wait because the server does not read."""
        return 0 if self._instance is None else self._instance.in_flight

    @property
    def open_cursors(self) -> int:
        """Cursors and changefeeds that have rows to come on the server."""
        return 0 if self._instance is None else self._instance.open_cursors

    @property
    def pending_noreply(self) -> int:
        """``noreply`` queries sent since the last ``noreply_wait()``; :meth:`close` waits for them."""
        return 0 if self._instance is None else self._instance.pending_noreply

    @property
    def is_clogged(self) -> bool:
        """Whether the server still works on so many cancelled queries that others would have to wait."""
        return self._instance is not None and self._instance.is_clogged

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for an answer or reads a cursor."""
        return not self.in_flight and not self.open_cursors

    @property
    def lost_reason(self) -> str | None:
        """What the peer did, if it ended the connection or broke the protocol; ``None`` otherwise."""
        return None if self._instance is None else self._instance.lost_reason

    async def wait_idle(self) -> None:
        """Wait until nobody waits for an answer or reads a cursor, as long as that takes, or the connection is lost."""
        wire = self._instance
        if wire is not None:
            await wire.wait_until(lambda: not wire.in_flight and not wire.open_cursors)

    async def check(self) -> None:
        """Ask the server who it is; raise :class:`ReqlDriverError` unless it is still the one that the first check
        found.

        Waits for ever, if the server is frozen. If cancelled, the connection remains usable.
        """
        server_id = (await self.server())["id"]
        if self._server_id not in (None, server_id):
            raise ReqlDriverError(
                f"the server at {self.endpoint} is another one now: {server_id}, not {self._server_id}"
            )
        self._server_id = server_id

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, from the event loop, when the connection dies other than by close or abort; once more
        if it dies again after :meth:`reconnect`.
        """
        self._lost_callbacks += (callback,)
        if self._instance is not None:
            self._instance.on_lost(callback)

    def check_open(self) -> None:
        """Raise :class:`ReqlDriverError`, saying why, where the connection is not open."""
        if self._instance is None:
            raise ReqlDriverError("Connection is closed.")
        if not self._instance.is_open():
            raise self._instance.closed_error(was_sent=False)

    async def _open(self, timeout: float, ends: int = 0) -> None:
        """Connect and log in within ``timeout`` seconds, or raise ReqlDriverError. If cancelled, leaves nothing. Where
        it was ended oftener than ``ends`` times, it remains so.
        """
        transport, sock = await self._dialer.open(timeout)
        if self._ends != ends:
            transport.abort()
            raise ReqlDriverError("Connection is closed (that was asked for while it was opened).")
        if self._instance is not None:
            self._instance.abort()  # another task may have been faster
        self._instance = _Wire(self, transport, sock)
        for callback in self._lost_callbacks:
            self._instance.on_lost(callback)

    async def reconnect(self, noreply_wait: bool = True, timeout: float | None = None) -> RethinkDBConnection:
        """Close, then connect again within ``timeout`` seconds (``None``: as long as the first time)."""
        ends = self._ends
        await self._close(noreply_wait)
        await self._open(self.connect_timeout if timeout is None else timeout, ends)
        return self

    async def close(self, noreply_wait: bool = True) -> None:
        """End the connection; queries and cursors that still run get an error.

        With ``noreply_wait`` waits until the server has done the ``noreply`` queries, if there are any: for ever on a
        server that is frozen, so bound it. If interrupted, the connection is aborted. May be called twice. A
        :meth:`reconnect` that is under way fails.
        """
        self._ends += 1
        await self._close(noreply_wait)

    async def _close(self, noreply_wait: bool) -> None:
        if self._instance is not None:
            await self._instance.close(noreply_wait, self._new_token())

    def abort(self) -> None:
        """End the connection now, without waiting; a :meth:`reconnect` that is under way fails. Never raises; may be
        called twice.
        """
        self._ends += 1
        if self._instance is not None:
            self._instance.abort()

    def __repr__(self) -> str:
        if not self.is_open():
            return (
                f"<{type(self).__name__} {self.endpoint} closed{': ' + self.lost_reason if self.lost_reason else ''}>"
            )
        return f"<{type(self).__name__} {self.endpoint} {self.in_flight} in flight, {self.open_cursors} cursors>"

    def _encode(self, query: Any) -> bytes:
        """The frame of a query, byte for byte as the driver would write it.

        Where the encoder is the driver's and no option needs more than JSON, without the terms that the driver makes of
        the options and without an encoder for each query.
        """
        if query._json_encoder is None and self._json_encoder is ReQLEncoder:
            options = query.global_optargs
            if options is not None and (not options or all(isinstance(o, _PLAIN_OPTIONS) for o in options.values())):
                return pack_frame(query.token, _ENCODER.encode([query.type, query.term, options]).encode())
            return cast(bytes, query.serialize(_ENCODER))
        return cast(bytes, query.serialize(self._get_json_encoder(query)))

    def _decode(self, query: Any, body: bytes | bytearray) -> Any:
        """The answer, as the driver would decode it.

        The driver makes a decoder for each answer, which looks at every object for a pseudo-type. Where the text has
        none, spelt out or escaped, one plain decoder gives the same result: in half the time if the answer is small.
        """
        text = str(body, "utf-8")
        if query._json_decoder is None and self._json_decoder is ReQLDecoder:
            # Two searches for one character cost a tenth of those for the words, and nearly always are enough.
            has_neither = "$" not in text and "\\" not in text
            if has_neither or ("$reql_type$" not in text and "\\u" not in text):
                return _Response(query.token, text, _decode_plain)
        return _Response(query.token, text, self._get_json_decoder(query).decode)


class _AsyncRethinkDB(RethinkDB):  # type: ignore[misc]
    """The driver's ``r``, set to asyncio. ``R.connect()`` opens a :class:`RethinkDBConnection`."""

    def __init__(self) -> None:
        super().__init__()
        self.set_loop_type("asyncio")
        self.connection_type = RethinkDBConnection


R = _AsyncRethinkDB()


# --- the connector --------------------------------------------------------------------------------


class RethinkDBConnector:
    """Knows how to connect, check, close and abort RethinkDB connections, and to run queries on them: a
    :class:`~async_repool.connectors.QueryConnector`.

    Takes what the driver's ``r.connect()`` takes, with the same defaults: ``host``, ``port``, ``db``, ``user``,
    ``password`` (or ``auth_key``), ``timeout`` (seconds for the whole of :meth:`connect`), ``ssl={"ca_certs": path}``,
    ``json_encoder``, ``json_decoder`` (classes), ``io_loop`` (which is not used), and ``url``, whose parts win over the
    other arguments. Raises ``ValueError`` or ``TypeError`` where one is wrong; no message carries a password.

    A password may be percent-encoded in the ``url``, which the driver does not decode, and may be other than ASCII,
    which the driver sends as Latin-1. The driver's reading is tried first, the other where the server refuses that.
    """

    def __init__(
        self,
        *,
        host: str | None = None,
        port: int | str | None = None,
        db: str | None = None,
        auth_key: str | None = None,
        user: str | None = None,
        password: str | None = None,
        timeout: float | None = None,
        ssl: Mapping[str, Any] | None = None,
        url: str | None = None,
        json_encoder: Callable[..., Any] | None = None,
        json_decoder: Callable[..., Any] | None = None,
        io_loop: object = None,
        _handshake_version: int | None = None,
    ) -> None:
        del io_loop  # the driver takes one and does not use it here
        arguments: dict[str, Any] = {"host": host, "port": port, "db": db, "auth_key": auth_key, "user": user}
        arguments |= {"password": password, "timeout": timeout}
        is_encoded = False
        if url is not None and url != "":
            found = _from_url(url)
            is_encoded = "password" in found
            if "password" in found or "auth_key" in found:  # they are one thing under two names
                arguments |= {"password": None, "auth_key": None}
            arguments |= found
        for name in ("host", "db", "auth_key", "user", "password"):
            _check_text(name, arguments[name])
        if arguments["password"] and arguments["auth_key"]:
            raise ValueError("password and auth_key are both set; give one")
        if _handshake_version not in (None, 10):
            raise ValueError(
                f"_handshake_version must be 10, the only one that the driver has, not {_handshake_version!r}"
            )
        for name, codec in (("json_encoder", json_encoder), ("json_decoder", json_decoder)):
            if codec is not None and not callable(codec):
                raise TypeError(f"{name} must be a class or function that makes one, not {codec!r}")
        self._host = _host(arguments["host"])
        self._port = _port(arguments["port"])
        self._db: str | None = arguments["db"]
        self._user: str = _user(arguments["user"])
        self._timeout = _timeout(arguments["timeout"])
        self._ssl = _ssl(ssl)
        self._codecs = {
            name: codec for name, codec in (("json_encoder", json_encoder), ("json_decoder", json_decoder)) if codec
        }
        secret = arguments["password"] or arguments["auth_key"] or ""
        self._dialer = _Dialer(
            self._host,
            self._port,
            self._user,
            _passwords((secret, unquote(secret)) if is_encoded else (secret,)),
            self._ssl.get("ca_certs"),
            json_encoder or ReQLEncoder,
            json_decoder or ReQLDecoder,
        )

    @property
    def endpoint(self) -> str:
        """``"host:port"``."""
        return self._dialer.endpoint

    @property
    def connect_timeout(self) -> float:
        """Seconds that :meth:`connect` may take: the argument ``timeout``."""
        return self._timeout

    async def connect(self) -> RethinkDBConnection:
        """Open a connection within :attr:`connect_timeout`: name look-up, TCP, TLS and log-in together.

        Raises :class:`~async_repool.ConnectFailed`; its cause is the error of the driver or of the operating system,
        and it is permanent where the user or the password is refused. If cancelled, no socket and no task is left.
        """
        connection = RethinkDBConnection(
            self._host, self._port, self._db, None, self._user, None, self._timeout, self._ssl, 10,
            dialer=self._dialer, **self._codecs,
        )  # fmt: skip
        try:
            await connection._open(self._timeout)
        except ReqlAuthError as error:
            message = f"{error.message} (user {self._user!r}). Check `user` and `password`."
            raise ConnectFailed(message, is_permanent=True) from error
        except ReqlDriverError as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            raise ConnectFailed(error.message) from cause
        return connection

    def is_open(self, connection: RethinkDBConnection, /) -> bool:
        """Whether the connection is usable as far as is known here, and not clogged by forgotten queries."""
        wire = connection._instance
        return wire is not None and wire.is_usable()

    def on_lost(self, connection: RethinkDBConnection, callback: Callable[[], None], /) -> None:
        """Call ``callback`` once when the connection has died other than by :meth:`close` or :meth:`abort`."""
        connection.on_lost(callback)

    def has_streams(self, connection: RethinkDBConnection, /) -> bool:
        """Whether somebody still reads from it: a cursor, a changefeed, or a query whose answer is to come."""
        return not connection.is_idle

    async def wait_streams(self, connection: RethinkDBConnection, /) -> None:
        """Wait until :meth:`has_streams` is false."""
        await connection.wait_idle()

    async def check(self, connection: RethinkDBConnection, /) -> None:
        """Ask the server who it is. For ever, if it is frozen. If cancelled, the connection remains usable."""
        await connection.check()

    async def close(self, connection: RethinkDBConnection, /) -> None:
        """Wait for ``noreply`` writes, if there are any, and end the connection. If cancelled, it is aborted."""
        await connection.close()

    def abort(self, connection: RethinkDBConnection, /) -> None:
        """End the connection now, without waiting. Never raises."""
        connection.abort()

    async def run(self, connection: RethinkDBConnection, query: Any, options: dict[str, Any], /) -> Any:
        """Run a query and return its value; a sequence whole, as a list. ``options`` are the driver's.

        With ``profile=True`` the value is the driver's ``{"value": …, "profile": …}``; with ``noreply=True`` None.

        Raises :class:`~async_repool.errors.NotSent` or :class:`~async_repool.errors.ConnectionLost` where the
        connection has ended, from the driver's error; ``TypeError`` where ``query`` is none, or is a changefeed, which
        has no last row; and the driver's errors. If cancelled, the query is stopped on the server.
        """
        _check_query(query)
        try:
            value = await connection._start(query, **options)
            if type(value) is RethinkDBCursor:
                return await value.read_all()
            if "profile" in options and isinstance(value, dict) and type(value.get("value")) is RethinkDBCursor:
                value["value"] = await value["value"].read_all()
        except _ConnectionClosed as error:
            raise error.for_pool() from error
        return value

    async def open_stream(
        self, connection: RethinkDBConnection, query: Any, options: dict[str, Any], /
    ) -> RethinkDBStream:
        """Run a query whose value is a sequence, and return as soon as its first rows are there.

        Raises ``TypeError`` where the value is no sequence, and for the options ``noreply`` and ``profile``, which have
        no place in a stream; otherwise as :meth:`run`. If cancelled, the query is stopped on the server.
        """
        _check_query(query)
        for option in ("noreply", "profile"):
            if options.get(option):
                raise TypeError(f"a stream of rows has no place for {option}: run the query with run() instead")
        try:
            value = await connection._start(query, **options)
        except _ConnectionClosed as error:
            raise error.for_pool() from error
        if not isinstance(value, RethinkDBCursor | list):
            raise TypeError(f"the value of the query is no sequence of rows but {type(value).__name__}: use run()")
        return RethinkDBStream(value)

    def may_pass(self, error: BaseException, /) -> bool:
        """Whether a changefeed that ended or was refused with this error may be opened again: the server starts, shuts
        down, moves data, or has lost another server. False for the end of a connection, which has errors of its own.
        """
        return isinstance(error, ReqlAvailabilityError) and _PASSING.match(error.message) is not None

    def __repr__(self) -> str:
        security = " with TLS" if self._ssl else ""
        return f"<{type(self).__name__} {self._user}@{self.endpoint}{security}>"


class RotatingConnector(RethinkDBConnector):
    """A connector that asks for its arguments at every opening, for secrets that change.

    :param ask: called without arguments; returns a mapping of those of :class:`RethinkDBConnector`, or an awaitable of
        one. What it raises, the opening raises.
    :param timeout: seconds for the whole of :meth:`connect`, whatever the arguments say; None: what they say, from the
        second opening on, for the first has to be bounded before they are known: by 20 s.
    """

    def __init__(self, ask: Callable[[], Any], timeout: float | None) -> None:
        self._ask = ask
        self._own_timeout = timeout
        self._arguments: dict[str, Any] | None = None
        self._current: RethinkDBConnector | None = None  # kept as long as the arguments stay the same

    @property
    def endpoint(self) -> str:
        """``"host:port"``, as it was last time."""
        return "a server that was not asked for yet" if self._current is None else self._current.endpoint

    @property
    def connect_timeout(self) -> float:
        """Seconds that :meth:`connect` may take, as it was last time."""
        if self._own_timeout is not None:
            return self._own_timeout
        return DEFAULT_TIMEOUT if self._current is None else self._current.connect_timeout

    async def connect(self) -> RethinkDBConnection:
        """Ask for the arguments, then as :meth:`RethinkDBConnector.connect`. If cancelled, leaves nothing behind."""
        arguments = self._ask()
        if inspect.isawaitable(arguments):
            arguments = await arguments
        if not isinstance(arguments, Mapping):
            raise TypeError(
                "the callable that was given for the connect() arguments must return a mapping of them, not "
                f"{type(arguments).__name__}"
            )
        arguments = dict(arguments)
        if self._own_timeout is not None:
            arguments["timeout"] = self._own_timeout
        if self._current is None or arguments != self._arguments:
            self._current, self._arguments = RethinkDBConnector(**arguments), arguments
        return await self._current.connect()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.endpoint}>"


# What the server says, by its source, while it starts, shuts down, moves a table's data, or has lost another server. It
# has the same classes of errors for what will not pass by itself, such as a table that does not exist.
_PASSING = re.compile(
    r"(?:Cannot perform (?:read|write): |cannot subscribe to table `[^`]*`: )?"
    r"(?:Changefeed aborted \(unavailable\)"
    r"|Subscription destroyed \(shutting down"
    r"|Query terminated by an unknown cause"  # but not by the `rethinkdb.jobs` table: somebody wanted that
    r"|Feed aborted before initial values were read"
    r"|Read aborted by unshard operation"
    r"|Unable to retrieve (?:the )?start stamp|Empty start stamps"
    r"|Failed to retrieve the table configuration"
    r"|cannot compute sharding scheme because primary replicas are unavailable"
    r"|too many primary replicas available"
    r"|primary replica for shard .* not available|no replica is available|No replicas are ready"
    r"|This server does not have any data available for the given table"
    r"|The primary replica is currently changing"
    r"|The primary replica isn't connected to a quorum"
    r"|lost contact with primary replica|Lost contact with replica|The primary replica lost contact"
    r"|The server\(s\) hosting table `[^`]*` are currently unreachable|We lost contact with the server"
    r"|Index `.*` on table `[^`]*` was accessed before its construction was finished)"
)


def _check_query(query: object) -> None:
    if not isinstance(query, RqlQuery):
        raise TypeError(f"query must be a ReQL query such as R.table('users').get(1), not {type(query).__name__}")


def _from_url(url: object) -> dict[str, Any]:
    """The arguments that a url has, by name. Read as the driver reads it: a percent-encoded password stays as it is."""
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, not {type(url).__name__}")
    # The url itself is in no message: it may hold a password, in a place where nobody expects it.
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("url is malformed: check its port, its brackets, and percent-encode the password") from None
    if not parts.scheme or not url.startswith(f"{url[: len(parts.scheme)]}://"):
        raise ValueError("url must look like rethinkdb://user:password@host:port/db?timeout=20")
    if "#" in url or "@" in parts.path or "@" in parts.query:
        raise ValueError("url has a '#', '/' or '?' in its user or password: percent-encode it")
    found: dict[str, Any] = {
        "host": host,
        "port": port,
        "user": parts.username,
        "password": parts.password,
        "db": parts.path.replace("/", "") or None,
    }
    for name, value in parse_qsl(parts.query):
        if name == "auth_key":
            found[name] = value
        elif name == "timeout":
            try:
                found[name] = float(value)
            except ValueError:
                raise ValueError("timeout in the url must be a number of seconds") from None
        else:
            raise ValueError("url may have the options auth_key and timeout and no other")
    return {name: value for name, value in found.items() if value not in (None, "")}


def _passwords(readings: tuple[str, ...]) -> list[bytes]:
    """The bytes that a password may stand for, without repetition. First what the driver would send: Latin-1."""
    found: dict[bytes, None] = {}
    for reading in readings:
        with contextlib.suppress(UnicodeEncodeError):
            found[reading.encode("latin-1")] = None
        found[reading.encode("utf-8", "surrogatepass")] = None  # what the server has hashed
    return list(found)


def _check_text(name: str, value: object) -> None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")


def _host(value: str | None) -> str:
    host = value or "localhost"
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ValueError(f"host can be no name or address: {value!r} ({error})") from None
    return host


def _port(value: int | str | None) -> int:
    if value is None or value == "":
        return int(DEFAULT_PORT)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"port must be an int, not {type(value).__name__}")
    try:
        port = int(value)
    except ValueError:
        raise ValueError(f"port must be a number, not {value!r}") from None
    if not 1 <= port <= 65535:
        raise ValueError(f"port must be between 1 and 65535, not {value!r}")
    return port


def _user(value: str | None) -> str:
    user = value or "admin"
    if not user.isascii():
        raise ValueError(f"user must be ASCII, which is all that the driver can log in with, not {value!r}")
    return user


def _timeout(value: float | None) -> float:
    if value is None:
        return DEFAULT_TIMEOUT
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"timeout must be a number of seconds, not {type(value).__name__}")
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"timeout must be a number of seconds above 0, not {value!r}")
    return float(value) or DEFAULT_TIMEOUT  # 0 has always meant the default


def _ssl(value: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if not value:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"ssl must be a mapping such as {{'ca_certs': path}}, not {type(value).__name__}")
    if set(value) != {"ca_certs"}:
        raise ValueError(f"ssl must have the key 'ca_certs' and no other, not {sorted(map(str, value))}")
    if not isinstance(value["ca_certs"], str | os.PathLike):
        raise TypeError(f"ssl['ca_certs'] must be a path, not {type(value['ca_certs']).__name__}")
    return dict(value)
