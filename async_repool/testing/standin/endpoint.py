"""A listening port with faults: the common part of the stand-in server and the proxy.

This module accepts connections, reads, sends and cuts. It does not know what a query or an answer means.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Coroutine, Iterable
from ssl import SSLContext
from types import TracebackType
from typing import Any, Final, Protocol, Self, cast

from ..faults import Fault, Faults
from .wire import HEADER

_MOST_HELD: Final = 1024  # a connection with so many delayed answers is not read any further
_BACKLOG: Final = 1024


class ClientConnection(asyncio.Protocol):
    """One accepted connection. Every answer goes through ``send``, which applies the faults.

    This base class never answers: it is the connection of a mute server.
    """

    transport: asyncio.Transport

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._faults = endpoint.faults
        self._inbox = bytearray()
        self._held: deque[tuple[float, bytes | None, bool]] = deque()  # due, answer (None: close), is frame
        self._timer: asyncio.TimerHandle | None = None
        self._is_backed_up = False
        self._is_reading = True

    # For subclasses:

    def process(self) -> None:
        """Handle the complete messages in ``_inbox``. Called only while ``may_read`` is true."""
        self._inbox.clear()

    def lost(self) -> None:
        """Called when the connection is gone."""

    @property
    def may_read(self) -> bool:
        """Whether to read more from the client."""
        return not (self._faults.is_frozen or self._is_backed_up or len(self._held) >= _MOST_HELD)

    # For all connections:

    def send(self, answers: Iterable[tuple[bytes, bool]]) -> None:
        """Send answers. Each comes with a flag: is it a frame?"""
        if self._faults.is_calm and not self._held:
            self.transport.write(b"".join([answer for answer, _ in answers]))
            return
        delay = self._faults.delay
        due = self._endpoint.loop.time() + delay
        for answer, is_frame in answers:
            self._held.append((due, answer, is_frame))
            if delay:
                self._faults.count(Fault.DELAY)
        self.update()

    def end(self) -> None:
        """Close the connection after all delayed answers are sent."""
        self._held.append((0.0, None, False))
        self.update()

    def cut(self, *, orderly: bool = False) -> None:
        """Reset the connection. If ``orderly``, close it after all written bytes are sent."""
        self._held.clear()
        if orderly:
            self.transport.close()
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            set_to_reset(sock)
        self.transport.abort()

    def update(self) -> None:
        """Apply the active faults: send the answers that are due, and read or stop reading."""
        self._release()
        if self._inbox and self.may_read:
            self.process()
        may_read = self.may_read
        if may_read != self._is_reading and not self.transport.is_closing():
            self._is_reading = may_read
            if may_read:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def _release(self) -> None:
        now = self._endpoint.loop.time()
        while self._held and not self._faults.is_frozen:
            due, answer, is_frame = self._held[0]
            if due > now:
                if self._timer is None:
                    self._timer = self._endpoint.loop.call_at(due, self._on_timer)
                return
            self._held.popleft()
            if answer is None:
                self.cut(orderly=True)
            else:
                self._write(answer, self._faults.for_answer(is_frame))

    def _on_timer(self) -> None:
        self._timer = None
        self.update()

    def _write(self, answer: bytes, fault: Fault | None) -> None:
        if fault is Fault.GARBAGE:
            answer = self._faults.random_bytes(64)
        elif fault is Fault.BAD_JSON:
            answer = answer[: HEADER.size] + b"{" * (len(answer) - HEADER.size)
        elif fault is Fault.WRONG_TOKEN:
            token, size = HEADER.unpack_from(answer)
            answer = HEADER.pack((token + 1_000_000) % 2**64, size) + answer[HEADER.size :]
        elif fault is Fault.HALF_ANSWER:
            answer = answer[: len(answer) // 2]
        self.transport.write(answer)
        if fault in (Fault.RESET, Fault.EOF, Fault.HALF_ANSWER):
            # A reset discards bytes that are not sent yet. The loop sends an answer at once if the socket takes it.
            self.cut(orderly=fault is not Fault.RESET)

    # asyncio.Protocol:

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self._endpoint.add(self)
        self.update()

    def data_received(self, data: bytes) -> None:
        self._inbox += data
        if self.may_read and not self._held:
            self.process()  # the common case, without a delay
        self.update()

    def pause_writing(self) -> None:
        self._is_backed_up = True
        self.update()

    def resume_writing(self) -> None:
        self._is_backed_up = False
        self.update()

    def connection_lost(self, exc: Exception | None) -> None:
        self._held.clear()
        self._inbox.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._endpoint.discard(self)
        self.lost()


def set_to_reset(sock: Any) -> None:
    """Make ``close()`` of a socket reset the connection."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Link(Protocol):
    """A connection that an endpoint opened to another server for a client."""

    def abort(self) -> None:
        """Abort the connection."""


class Endpoint:
    """A listening port with faults. It calls ``accept()`` itself, because a fault may stop it.

    It needs an event loop with ``add_reader``: any loop but the proactor loop of Windows.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self, *, host: str, port: int, ssl: SSLContext | None, faults: Faults | None) -> None:
        self.faults = Faults() if faults is None else faults
        self._host = host
        self._port = port
        self._ssl = ssl
        self._family = socket.AF_INET
        self._address: tuple[Any, ...] = ()
        self._socket: socket.socket | None = None
        self._is_listening = self._is_accepting = False
        self._connections: set[ClientConnection] = set()
        self._links: set[Link] = set()  # ``stop`` waits for these as well
        self._total = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def __repr__(self) -> str:
        state = "closed" if self._socket is None else f"{self.connections} connections"
        return f"<{type(self).__name__} {self.host}:{self.port}, {state}>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def host(self) -> str:
        """The host that the endpoint listens on, as given."""
        return self._host

    @property
    def port(self) -> int:
        """The port that the endpoint listens on. Before the first ``start``, the port as given, which may be 0."""
        return self._port

    @property
    def connections(self) -> int:
        """The number of open connections, including mute ones."""
        return len(self._connections)

    @property
    def connections_total(self) -> int:
        """The number of connections that were ever accepted."""
        return self._total

    @property
    def open_connections(self) -> list[ClientConnection]:
        """The open connections."""
        return list(self._connections)

    async def start(self) -> None:
        """Start listening. Waits only for the look-up of the host's name.

        Raises ``OSError`` if the port cannot be used. After ``stop``, it listens on the same port again. If cancelled,
        it has not started.
        """
        if self._socket is not None:
            raise RuntimeError(f"{self!r} is already started")
        self.loop = asyncio.get_running_loop()
        found = await self.loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        self._family, self._address = found[0][0], found[0][4]
        self._bind()
        self.faults.attach(self)
        self.update()

    async def stop(self) -> None:
        """Stop listening, and reset all connections. Waits until they are gone. May be called again.

        If cancelled while it waits, nothing is left to do: the connections end without it.
        """
        self.faults.detach(self)
        self._unbind()
        for connection in self.open_connections:
            connection.cut()
        for link in list(self._links):
            link.abort()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._is_empty.wait()

    async def restart(self) -> None:
        """``stop``, then ``start`` on the same port."""
        await self.stop()
        await self.start()

    # For the faults and the connections:

    def connection(self) -> ClientConnection:
        """Make the object for a connection that is about to be accepted."""
        raise NotImplementedError

    def add(self, protocol: ClientConnection | Link) -> None:
        """Record an open connection of a client, or a link."""
        if isinstance(protocol, ClientConnection):
            self._connections.add(protocol)
        else:
            self._links.add(protocol)
        self._is_empty.clear()

    def discard(self, protocol: ClientConnection | Link) -> None:
        """Record that a connection or a link is gone."""
        if isinstance(protocol, ClientConnection):
            self._connections.discard(protocol)
        else:
            self._links.discard(protocol)
        if not (self._connections or self._links):
            self._is_empty.set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task. ``stop`` cancels it and waits for it."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def update(self) -> None:
        """Apply the active faults to the port and to all connections."""
        if self._socket is not None:
            self._update_listening(self._socket)
        for connection in self.open_connections:
            connection.update()

    def _update_listening(self, sock: socket.socket) -> None:
        if self.faults.is_refusing:
            if self._is_listening:
                # Bind without listen(): the kernel refuses connections, and nobody else can take the port.
                self._unbind()
                self._bind()
            return
        if not self._is_listening:
            sock.listen(_BACKLOG)
            self._is_listening = True
        if self._is_accepting is self.faults.is_frozen:
            self._is_accepting = not self.faults.is_frozen
            if self._is_accepting:
                self.loop.add_reader(sock, self._accept, sock)
            else:
                self.loop.remove_reader(sock)

    def _bind(self) -> None:
        # asyncio sets TCP_NODELAY on accepted sockets only if the protocol is given.
        sock = socket.socket(self._family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self._address[0], self._port, *self._address[2:]))
            if not self.faults.is_refusing:
                sock.listen(_BACKLOG)  # only listen() reports that somebody else listens on the port
                self._is_listening = True
        except BaseException:
            sock.close()
            raise
        self._socket = sock
        self._port = sock.getsockname()[1]

    def _unbind(self) -> None:
        if self._socket is None:
            return
        if self._is_accepting:
            self.loop.remove_reader(self._socket)
        self._socket.close()
        self._socket = None
        self._is_listening = self._is_accepting = False

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_BACKLOG):
            try:
                sock, _address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            self._total += 1
            sock.setblocking(False)
            self._admit(sock, self.faults.for_connection())
            if self.faults.is_frozen or self.faults.is_refusing:
                return

    def _admit(self, sock: socket.socket, fault: Fault | None) -> None:
        if fault in (Fault.RESET, Fault.EOF):
            if fault is Fault.RESET:
                set_to_reset(sock)
            sock.close()
            return
        task = self.spawn(self._connect(sock, is_mute=fault is Fault.MUTE))
        task.add_done_callback(lambda task: sock.close() if task.cancelled() else None)

    async def _connect(self, sock: socket.socket, is_mute: bool) -> None:
        connection = ClientConnection(self) if is_mute else self.connection()
        try:
            await self.loop.connect_accepted_socket(lambda: connection, sock, ssl=None if is_mute else self._ssl)
        except OSError:
            sock.close()  # the client has gone, or the TLS handshake failed
        except asyncio.CancelledError:
            self.discard(connection)  # uvloop closes the transport without a call of connection_lost()
            raise
