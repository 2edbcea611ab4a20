"""How a socket to a server is opened and logged in. What is sent on it afterwards is not known here."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import ssl as tls
import threading
from base64 import standard_b64decode
from functools import lru_cache
from typing import cast

from rethinkdb.ast import ReQLDecoder, ReQLEncoder
from rethinkdb.errors import ReqlAuthError, ReqlDriverError, ReqlError
from rethinkdb.handshake import HandshakeV1_0

from .arguments import ConnectArguments

KEEPALIVE_OPTIONS = (
    ("TCP_KEEPIDLE", 30),  # seconds of silence before the first probe; some NATs forget a connection after 60 s
    ("TCP_KEEPALIVE", 30),  # the same under its name on macOS
    ("TCP_KEEPINTVL", 15),  # seconds between probes
    ("TCP_KEEPCNT", 4),  # unanswered probes before the kernel ends the connection: 90 s after the peer's last packet
    # Milliseconds that written data may stay unacknowledged. Keepalive does not see that. It is as long as keepalive
    # takes: on Linux it overrules TCP_KEEPCNT, and a shorter one would end a peer that is only too busy to read.
    ("TCP_USER_TIMEOUT", 90_000),
)
"""How soon the kernel notices a peer that vanished without a word, if the platform has the option."""

MAX_INLINE_ROUNDS = 16_384
"""PBKDF2 rounds that are computed in the event loop, once per connector: 4 ms. More are computed in a thread. RethinkDB
uses 4,096 by default and 1 for an empty password."""

MAX_ROUNDS = 4_000_000
"""Most PBKDF2 rounds that a server may ask for: 1 s of work. The thread that does it cannot be cancelled."""

_CHECK_TLS = (
    "Check `ssl`: the certificate of the authority, the name in the server's certificate, and whether it speaks TLS."
)


class Dialer:
    """Opens sockets to one server and logs in as one user. All connections of a connector share it."""

    def __init__(self, arguments: ConnectArguments) -> None:
        self.arguments = arguments
        host, port = arguments.host, arguments.port
        self.endpoint = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        # What to try; after the first success only that one. It is kept, because each connection logs in with it.
        self._passwords = arguments.passwords
        self._tls: tls.SSLContext | None = None
        # The last result is kept. It takes 1 ms and more to compute, and stays the same until the password changes.
        self._derive = lru_cache(1)(lambda *key: hashlib.pbkdf2_hmac("sha256", *key))
        self._deriving = threading.Lock()  # taken in worker threads only

    async def open(self, timeout: float) -> tuple[asyncio.Transport, socket.socket]:
        """Open a socket and log in, within ``timeout`` seconds for name look-up, TCP, TLS and log-in together.

        Raises :class:`ReqlAuthError` if the server refuses the user or the password, and :class:`ReqlDriverError` for
        everything else. Its cause is the error of the operating system, if there was one.
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
        except (OSError, UnicodeError, ReqlError) as error:  # UnicodeError: the host cannot be a name
            reason = "no answer" if isinstance(error, TimeoutError) and not error.args else str(error)
            raise ReqlDriverError(
                f"Could not connect to {self.endpoint} as {self.arguments.user!r}: {reason or type(error).__name__} "
                f"while {log_in.stage}, after {loop.time() - started:.2f} of {timeout:g} s. {log_in.hint}"
            ) from error

    async def _open(self, log_in: _LogIn, password: bytes) -> tuple[asyncio.Transport, socket.socket]:
        loop = asyncio.get_running_loop()
        if self.arguments.ssl and self._tls is None:
            ca_certs = self.arguments.ssl["ca_certs"]
            log_in.enter(f"loading the certificates of ssl={{'ca_certs': {os.fspath(ca_certs)!r}}}", _CHECK_TLS)
            context = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)  # verifies the certificate and the host's name
            context.load_verify_locations(ca_certs)  # blocks for the time of reading a file, once
            self._tls = context
        sock = await self._dial(log_in)
        try:
            host = None
            if self._tls is not None:
                host = self.arguments.host
                log_in.enter("setting up TLS", _CHECK_TLS)
            transport, _ = await loop.create_connection(lambda: log_in, sock=sock, ssl=self._tls, server_hostname=host)
            log_in.enter("logging in", "Is this RethinkDB's driver port (28015 by default)? Does it want TLS (`ssl`)?")
            await self._prove(log_in, transport, password)
        except BaseException:
            # Nobody will own this socket, whatever interrupted the log-in. Nothing of it may be left.
            if log_in.transport is not None:
                log_in.transport.abort()
            sock.close()
            raise
        self._passwords = [password]
        return transport, sock

    async def _dial(self, log_in: _LogIn) -> socket.socket:
        """A connected TCP socket, to the first of the host's addresses that can be reached."""
        loop = asyncio.get_running_loop()
        host, port = self.arguments.host, self.arguments.port
        log_in.enter("looking up the host's name", "Check `host`, and the name service of this machine.")
        try:
            flags = socket.AI_NUMERICHOST  # never blocks, and saves the trip to a thread
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
        except socket.gaierror:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        log_in.enter("connecting by TCP", "Check `host` and `port`; is the server up, and can it be reached from here?")
        failures: list[OSError] = []
        for family, kind, protocol, _, address in found:
            try:
                sock = socket.socket(family, kind, protocol)  # fails for IPv6 on a machine that has none
                try:
                    sock.setblocking(False)
                    _set_options(sock)
                    await loop.sock_connect(sock, address)
                except BaseException:
                    sock.close()
                    raise
            except OSError as error:
                failures.append(error)
            else:
                return sock
        raise failures[-1]

    async def _prove(self, log_in: _LogIn, transport: asyncio.Transport, password: bytes) -> None:
        """Exchange the messages of the driver's log-in. The salted password is made here, because the driver takes no
        bytes.
        """
        its = self.arguments
        salted: bytes | None = None
        handshake = HandshakeV1_0(ReQLDecoder(), ReQLEncoder(), its.host, its.port, its.user, "")
        handshake._pbkdf2_hmac = lambda *_: salted
        message: bytes | None = None
        while True:
            try:
                request = handshake.next_message(message)
            except ReqlError:
                raise
            except Exception as error:  # the driver may raise anything over a strange message; nothing is awaited here
                said = (message or b"")[:80]
                raise ReqlDriverError(f"the peer's message is no log-in of RethinkDB: {said!r}") from error
            if request is None:
                break
            if request:  # else another message has to be read first
                transport.write(request)
            message = await log_in.next_message()
            if (challenge := _challenge(message)) is not None:
                salted = await self._salt(password, *challenge)
        if log_in.reader.at_eof():
            await log_in.next_message()  # raises
        log_in.reader.feed_eof()  # so that read() does not wait
        if await log_in.reader.read():
            raise ReqlDriverError("the peer sent more than the log-in")

    async def _salt(self, password: bytes, salt: bytes, rounds: int) -> bytes:
        """PBKDF2, computed once for all connections. Many rounds are computed in a thread."""
        if not 1 <= rounds <= MAX_ROUNDS:
            raise ReqlDriverError(f"the server asks for {rounds:,} rounds of PBKDF2; {MAX_ROUNDS:,} is the most")
        if rounds <= MAX_INLINE_ROUNDS:
            return self._derive(password, salt, rounds)
        return await asyncio.get_running_loop().run_in_executor(None, self._derive_in_thread, password, salt, rounds)

    def _derive_in_thread(self, password: bytes, salt: bytes, rounds: int) -> bytes:
        with self._deriving:  # the second thread finds the result of the first
            return self._derive(password, salt, rounds)


def _challenge(message: bytes) -> tuple[bytes, int] | None:
    """Salt and rounds, if this message of the log-in has them. The driver checks all other messages."""
    try:
        fields = dict(part.split("=", 1) for part in json.loads(message)["authentication"].split(","))
        return standard_b64decode(fields["s"]), int(fields["i"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


class _LogIn(asyncio.StreamReaderProtocol):
    """Reads the messages of a log-in, and remembers how far the attempt has come."""

    stage = hint = ""
    transport: asyncio.Transport | None = None  # noted at once: create_connection() may be cancelled when it is made

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.reader = asyncio.StreamReader(65_536, loop)  # the longest message; RethinkDB's have less than 200 bytes
        super().__init__(self.reader, loop=loop)

    def enter(self, stage: str, hint: str) -> None:
        """Note what is done now, and what a person can do if it fails."""
        self.stage, self.hint = stage, hint

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        super().connection_made(transport)

    async def next_message(self) -> bytes:
        """Wait for one message, which ends in NUL. Raises if the peer goes away or sends too much."""
        try:
            return (await self.reader.readuntil(b"\0"))[:-1]
        except asyncio.IncompleteReadError as error:
            said = f"after {error.partial[:80]!r}" if error.partial else "without a word"
            raise ReqlDriverError(f"the peer ended the connection {said}") from None
        except asyncio.LimitOverrunError as error:
            raise ReqlDriverError(f"the peer sent {error.consumed:,} bytes that are no log-in of RethinkDB") from None


def _set_options(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE_OPTIONS:
        option = getattr(socket, name, None)
        if option is not None:
            with contextlib.suppress(OSError):  # Python knows the name, this kernel does not
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
