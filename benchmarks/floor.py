"""The floor: a client that only writes prepared bytes and counts frames, which is the least that a client can do.

It has as many queries under way as the clients it is compared with, on as many connections; it neither makes queries
nor reads answers, and has no tasks.

It need not be the fastest. Each answer that finds the client asleep wakes it, which costs the server more than the
answer itself where both share a machine; a client that is busy, or dozes, takes many answers at once. So there is a
second floor that looks for answers only now and then: how fast the server is, if the client leaves it alone.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, cast

from rethinkdb.handshake import HandshakeV1_0
from rethinkdb.net import Query

HEADER = struct.Struct("<QL")
DOZE_SECONDS = 0.0002


class Floor(asyncio.Protocol):
    """Keeps ``in_flight`` queries under way until all are answered."""

    def __init__(self, frames: list[bytes], in_flight: int) -> None:
        self._frames: Iterator[bytes] = iter(frames)
        self._to_come = len(frames)
        self._in_flight = in_flight
        self._rest = b""
        self._transport: asyncio.Transport
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        self._write(self._in_flight)

    def close(self) -> None:
        self._transport.close()

    def _write(self, count: int) -> None:
        if data := b"".join(islice(self._frames, count)):
            self._transport.write(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        position, end, frames = 0, len(data), 0
        while end - position >= HEADER.size:
            stop = position + HEADER.size + HEADER.unpack_from(data, position)[1]
            if stop > end:
                break
            position = stop
            frames += 1
        self._rest = data[position:]
        self._to_come -= frames
        self._write(frames)
        if not self._to_come and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionResetError("the server ended the connection"))


async def connect(arguments: dict[str, Any], frames: list[bytes], in_flight: int) -> Floor:
    """A floor on a connection of its own."""
    sock = await asyncio.to_thread(_log_in, **arguments)
    _, client = await asyncio.get_running_loop().create_connection(lambda: Floor(frames, in_flight), sock=sock)
    return client


def frames(ask: Callable[[int], Any], count: int) -> list[bytes]:
    """The queries that ``ask`` makes, as the driver would write them."""
    return [cast(bytes, Query(1, token, ask(token), {}).serialize()) for token in range(count)]


async def run(clients: list[Floor], *, is_dozing: bool) -> None:
    """Until all queries of all clients are answered."""
    loop = asyncio.get_running_loop()
    done = asyncio.gather(*(client.done for client in clients))

    def doze() -> None:
        time.sleep(DOZE_SECONDS)
        if not done.done():
            loop.call_soon(doze)

    for client in clients:
        client.start()
    if is_dozing:
        doze()
    await done


def _log_in(host: str, port: int, user: str = "admin", password: str = "") -> socket.socket:
    sock = socket.create_connection((host, port), timeout=10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    handshake = HandshakeV1_0(json.JSONDecoder(), json.JSONEncoder(), host, port, user, password)
    answer = None
    with sock.makefile("rb") as reader:
        while (request := handshake.next_message(answer)) is not None:
            sock.sendall(request if isinstance(request, bytes) else request.encode())
            received = bytearray()
            while (byte := reader.read(1)) != b"\0":
                if not byte:
                    raise ConnectionResetError("the server ended the connection during the log-in")
                received += byte
            answer = bytes(received)
    sock.settimeout(None)
    return sock
