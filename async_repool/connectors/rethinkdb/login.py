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
from collections.abc import Callable
from typing import Any, cast

from rethinkdb.errors import ReqlAuthError, ReqlDriverError, ReqlError
from rethinkdb.handshake import HandshakeV1_0

from .reader import SharedBufferReader

__all__ = ["MAX_INLINE_ROUNDS", "MAX_ROUNDS", "Dialer"]

KEEPALIVE_OPTIONS = (
    ("TCP_KEEPIDLE", 30),  # seconds of silence before the first probe; some NATs forget a connection after 60 s
    ("TCP_KEEPALIVE", 30),  # the same under its name on macOS
    ("TCP_KEEPINTVL", 15),  # seconds between probes
    ("TCP_KEEPCNT", 4),  # unanswered probes before the kernel gives the peer up: 90 s after its last word
    # Milliseconds that written data may stay unacknowledged. Keepalive does not see that. It is as long as keepalive
    # takes: on Linux it overrules TCP_KEEPCNT, and a shorter one would end a peer that is only too busy to read.
    ("TCP_USER_TIMEOUT", 90_000),
)
"""How soon the kernel notices a peer that vanished without a word, if the platform has the option."""

MAX_GREETING_BYTES = 65_536
"""Longest message of the log-in that is read. RethinkDB's have less than 200 bytes."""

MAX_INLINE_ROUNDS = 16_384
"""PBKDF2 rounds that are computed in the event loop, once per connector: 4 ms. More are computed in a thread. RethinkDB
uses 4,096 by default and 1 for an empty password."""

MAX_ROUNDS = 4_000_000
"""Most PBKDF2 rounds that a server may ask for: 1 s of work. The thread that does it cannot be cancelled."""

_CHECK_TLS = (
    "Check `ssl`: the certificate of the authority, the name in the server's certificate, and whether it speaks TLS."
)


class Dialer:
    """Opens sockets to one server and logs in as one user. All connections of a connector share it.

    It keeps the password, because each connection proves it again. It also keeps the last salted password, which takes
    1 ms and more to compute and stays the same until the password changes.

    :param passwords: what to try, in this order. After the first success only that one is left.
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
        self._passwords = passwords
        self._ca_certs = ca_certs
        self._tls: tls.SSLContext | None = None
        self._salted: tuple[tuple[bytes, bytes, int], bytes] | None = None
        self._deriving = threading.Lock()  # taken in worker threads only

    async def open(self, timeout: float) -> tuple[asyncio.Transport, socket.socket]:
        """Open a socket and log in, within ``timeout`` seconds for name look-up, TCP, TLS and log-in together.

        Raises :class:`ReqlAuthError` if the server refuses the user or the password. Raises :class:`ReqlDriverError`
        for everything else; its cause is the error of the operating system, if there was one. If cancelled, the socket
        is aborted.
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
            # Nobody will own this socket, whatever interrupted the log-in. Nothing of it may be left.
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
            except OSError as error:  # such as IPv6 on a machine that has none
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
        """PBKDF2, computed once for all connections. Many rounds are computed in a thread."""
        key = password, salt, rounds
        if self._salted is not None and self._salted[0] == key:
            return self._salted[1]
        if not 1 <= rounds <= MAX_ROUNDS:
            raise ReqlDriverError(f"the server asks for {rounds:,} rounds of PBKDF2; {MAX_ROUNDS:,} is the most")
        if rounds > MAX_INLINE_ROUNDS:
            return await asyncio.get_running_loop().run_in_executor(None, self._derive_in_thread, key)
        return self._derive(key)

    def _derive_in_thread(self, key: tuple[bytes, bytes, int]) -> bytes:
        with self._deriving:  # the second thread finds the result of the first
            salted = self._salted
            return salted[1] if salted is not None and salted[0] == key else self._derive(key)

    def _derive(self, key: tuple[bytes, bytes, int]) -> bytes:
        result = hashlib.pbkdf2_hmac("sha256", *key)
        self._salted = key, result
        return result


def _challenge(message: bytes) -> tuple[bytes, int] | None:
    """Salt and rounds, if this message of the log-in has them. The driver checks all other messages."""
    try:
        fields = dict(part.split("=", 1) for part in json.loads(message)["authentication"].split(","))
        return standard_b64decode(fields["s"]), int(fields["i"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


class _Handshake(HandshakeV1_0):  # type: ignore[misc]
    """The driver's log-in, given the password as bytes and salted beforehand."""

    salted: bytes | None = None

    def __init__(self, dialer: Dialer, password: bytes) -> None:
        super().__init__(dialer.json_decoder(), dialer.json_encoder(), dialer.host, dialer.port, dialer.user, "")
        self._password = password
        self._pbkdf2_hmac = self._give_salted

    def _give_salted(self, *_: object) -> bytes | None:
        return self.salted

    def advance(self, message: bytes | None) -> bytes | None:
        """What to send after ``message``. None: logged in. Empty: another message has to be read first."""
        try:
            request = self.next_message(message)
        except ReqlError:
            raise
        except Exception as error:  # the driver may raise anything over a strange message; nothing is awaited here
            said = (message or b"")[:80]
            raise ReqlDriverError(f"the peer's message is no log-in of RethinkDB: {said!r}") from error
        return None if request is None else request or b""  # the driver's "nothing to send" is a str


class _LogIn(SharedBufferReader):
    """Reads the messages of a log-in, which end in NUL, and remembers how far the attempt has come."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        super().__init__()
        self.stage = self.hint = ""
        self._received = bytearray()
        self._error: Exception | None = None
        self._arrival: asyncio.Future[None] | None = None

    def enter(self, stage: str, hint: str) -> None:
        """Note what is done now, and what a person can do if it fails."""
        self.stage, self.hint = stage, hint

    async def next_message(self) -> bytes:
        """Wait for one message. The caller sets the limit in time.

        Raises if the peer goes away or sends too much.
        """
        while (end := self._received.find(b"\0")) < 0:
            if len(self._received) > MAX_GREETING_BYTES:
                raise ReqlDriverError(f"the peer sent {len(self._received):,} bytes that are no log-in of RethinkDB")
            if self._error is not None:
                raise self._error
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        message = bytes(self._received[:end])
        del self._received[: end + 1]
        return message

    def check_nothing_left(self) -> None:
        """Raise if the peer has sent more than a log-in, or has gone since."""
        if self._received:
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
        self._received += data
        self._wake()

    def eof_received(self) -> None:
        self.connection_lost(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self._error is None:
            said = bytes(self._received[:80])
            self._error = error or ReqlDriverError(
                "the peer ended the connection" + (f" after {said!r}" if said else " without a word")
            )
        self._wake()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)


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
            with contextlib.suppress(OSError):  # Python knows the name, this kernel does not
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
