"""A server that sends exactly the frames that a test gives it, and a connection to it: both ends of one link.

It is for cases that a real server must not or rarely does produce: an unknown token, half a frame, two answers in one
packet, an answer in the same turn of the loop as a cancellation. The server knows only the login.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any, TypeVar

import pytest
from rethinkdb.errors import ReqlDriverError, ReqlError

from async_repool.connectors.rethinkdb import R, RethinkDBConnection, RethinkDBConnector, RethinkDBCursor

asyncio_only = pytest.mark.skipif(
    os.environ.get("ASYNC_REPOOL_TEST_LOOP") == "uvloop",
    reason="about the order of things in one turn of asyncio's loop",
)
CONNECTOR = RethinkDBConnector()
ONE = R.expr(1)

HEADER = struct.Struct("<QL")
START, CONTINUE, STOP, NOREPLY_WAIT, SERVER_INFO = 1, 2, 3, 4, 5
ATOM, SEQUENCE, PARTIAL, WAIT_COMPLETE, SERVER_INFO_ANSWER = 1, 2, 3, 4, 5
CLIENT_ERROR, COMPILE_ERROR, RUNTIME_ERROR = 16, 17, 18


def frame(token: int, body: bytes) -> bytes:
    return HEADER.pack(token, len(body)) + body


def pack(token: int, kind: int, *rows: Any, **more: Any) -> bytes:
    return frame(token, json.dumps({"t": kind, "r": list(rows), **more}).encode())


class Peer:
    """The server's end of one connection, after the login."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def request(self) -> tuple[int, Any]:
        """The next frame that the client sends: its token and its query."""
        token, body = await self.raw_request()
        return token, json.loads(body)

    async def raw_request(self) -> tuple[int, bytes]:
        async with asyncio.timeout(5):
            token, size = HEADER.unpack(await self.reader.readexactly(HEADER.size))
            return token, await self.reader.readexactly(size)

    async def has_nothing_more(self) -> bool:
        """Whether the client, left alone for some turns of the loop, sends nothing."""
        try:
            async with asyncio.timeout(0.02):
                await self.reader.readexactly(1)
        except TimeoutError:
            return True
        return False

    def send(self, data: bytes) -> None:
        """Bytes that the client can read in the next turn of the loop."""
        self.writer.write(data)

    def answer(self, token: int, kind: int, *rows: Any, **more: Any) -> None:
        self.send(pack(token, kind, *rows, **more))

    def end(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SOL_SOCKET, SO_LINGER: a reset instead of an end
        self.writer.transport.abort()

    async def is_left(self) -> None:
        """Wait until the client has gone."""
        async with asyncio.timeout(5):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass


class ScriptedServer:
    """Accepts connections, logs them in, and hands each to the test."""

    def __init__(self, password: bytes = b"", user: str = "admin", rounds: int = 1) -> None:
        self.password, self.user, self.rounds = password, user, rounds
        self.salt = b"sixteen bytes of"
        self.accepted = 0
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.host, self.port = "127.0.0.1", 0

    async def peer(self) -> Peer:
        """The next connection that has logged in."""
        async with asyncio.timeout(5):
            return await self._peers.get()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection. A test may replace this to be something other than a RethinkDB server."""
        magic = await reader.readexactly(4)
        assert magic == struct.pack("<L", 0x34C2BDC3)
        hello = json.loads((await reader.readuntil(b"\0"))[:-1])
        first = hello["authentication"].removeprefix("n,,")
        fields = dict(part.split("=", 1) for part in first.split(","))
        nonce = fields["r"] + "scripted"
        challenge = f"r={nonce},s={base64.b64encode(self.salt).decode()},i={self.rounds}"
        version = {"success": True, "min_protocol_version": 0, "max_protocol_version": 0, "server_version": "2.4.4"}
        self.say(writer, version)
        self.say(writer, {"success": True, "authentication": challenge})
        proof = json.loads((await reader.readuntil(b"\0"))[:-1])["authentication"]
        salted = hashlib.pbkdf2_hmac("sha256", self.password, self.salt, self.rounds)
        message = f"{first},{challenge},c=biws,r={nonce}".encode()
        key = hmac.digest(salted, b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(key).digest(), message, "sha256")
        expected = base64.b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True))).decode()
        if fields["n"] != self.user:
            self.say(writer, {"success": False, "error": "Unknown user", "error_code": 17})
            writer.close()
        elif proof != f"c=biws,r={nonce},p={expected}":
            self.say(writer, {"success": False, "error": "Wrong password", "error_code": 12})
            writer.close()
        else:
            verdict = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), message, "sha256")
            self.say(writer, {"success": True, "authentication": "v=" + base64.b64encode(verdict).decode()})
            self._peers.put_nowait(Peer(reader, writer))

    def say(self, writer: asyncio.StreamWriter, message: Any) -> None:
        writer.write(json.dumps(message).encode() + b"\0")

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.append(writer)
        try:
            await self.serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    @asynccontextmanager
    async def running(self, ssl: SSLContext | None = None) -> AsyncIterator[ScriptedServer]:
        server = await asyncio.start_server(self._accept, self.host, 0, ssl=ssl, limit=2**26)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in self._writers:
                with suppress(AttributeError):  # Python 3.11.2, on a TLS transport that was closed twice
                    writer.transport.abort()
            await asyncio.sleep(0)
            await server.wait_closed()


@dataclass
class Link:
    """A connection and the server's end of it."""

    connection: RethinkDBConnection
    peer: Peer

    def run(self, query: Any = ONE, **options: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(query.run(self.connection, **options))

    async def started(self, query: Any = ONE, **options: Any) -> tuple[asyncio.Task[Any], int]:
        """A query that has reached the server, and its token."""
        task = self.run(query, **options)
        token, request = await self.peer.request()
        assert request[0] == START
        return task, token

    async def streaming(self, *rows: Any) -> tuple[RethinkDBCursor, int]:
        """A cursor with a first batch, and its token. The next batch has been asked for."""
        task, token = await self.started()
        self.peer.answer(token, PARTIAL, *rows)
        await self.expect(token, CONTINUE)
        return await task, token

    async def idle(self, *rows: Any) -> tuple[RethinkDBCursor, int]:
        """A cursor that has read ahead enough. Neither side waits for the other."""
        cursor, token = await self.streaming(*rows)
        self.peer.answer(token, PARTIAL, *rows)
        await self.works()
        return cursor, token

    async def expect(self, token: int, kind: int) -> None:
        assert await self.peer.request() == (token, [kind])

    async def works(self) -> None:
        """Require that the connection still works: a query reaches the server, and its answer arrives."""
        task, token = await self.started(R.expr("ping"))
        self.peer.answer(token, ATOM, "pong")
        assert await task == "pong"

    async def fails(self, match: str) -> ReqlError:
        """Require that the connection has ended with this reason."""
        await self.peer.is_left()
        assert not self.connection.is_open()
        with pytest.raises(ReqlDriverError, match=match) as caught:
            await R.expr(1).run(self.connection)
        error: ReqlError = caught.value
        return error


class PoolLink(Link):
    """The same, but queries run as the pool runs them."""

    def run(self, query: Any = ONE, **options: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(CONNECTOR.run(self.connection, query, options))

    def open(self, query: Any = ONE, **options: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(CONNECTOR.open_stream(self.connection, query, options))


AnyLink = TypeVar("AnyLink", bound=Link)


@asynccontextmanager
async def linked(kind: type[AnyLink]) -> AsyncIterator[AnyLink]:
    async with ScriptedServer().running() as server:
        connection = await RethinkDBConnector(host=server.host, port=server.port).connect()
        yield kind(connection, await server.peer())
        connection.abort()
