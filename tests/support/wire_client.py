"""A raw RethinkDB client for tests: it sends exactly the given bytes and returns exactly the bytes that came back.

This module has the client's side of the wire again, and imports nothing of async_repool. So the tests trust neither the
driver's nor the stand-in server's view of the protocol.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import struct
from types import TracebackType
from typing import Any, Self

MAGIC = struct.pack("<L", 0x34C2BDC3)
START, CONTINUE, STOP, NOREPLY_WAIT, SERVER_INFO = 1, 2, 3, 4, 5
ATOM, SEQUENCE, PARTIAL, WAIT_COMPLETE = 1, 2, 3, 4
CLIENT_ERROR, COMPILE_ERROR, RUNTIME_ERROR = 16, 17, 18
SECONDS_TO_ANSWER = 10.0  # only a failing test waits so long

# Terms, by their numbers in the public protocol.
MAKE_ARRAY, VAR, DB, TABLE, GET, MUL, ADD, MAP, FILTER, COUNT = 2, 10, 14, 15, 16, 26, 24, 38, 39, 43
UPDATE, DELETE, INSERT, DB_CREATE, DB_DROP, TABLE_CREATE, TABLE_DROP = 53, 54, 56, 57, 58, 60, 61
FUNC, UPCASE, SUM, CHANGES, BRACKET, RANGE, LT = 69, 141, 145, 152, 170, 173, 19

Answer = dict[str, Any]


def query(term: object, **options: object) -> str:
    return json.dumps([START, term, options])


def squares(count: int) -> list[Any]:
    """The sum of the first squares. This query takes long if ``count`` is large."""
    square = [FUNC, [[MAKE_ARRAY, [1]], [MUL, [[VAR, [1]], [VAR, [1]]]]]]
    return [SUM, [[MAP, [[RANGE, [count]], square]]]]


class WireClient:
    """One connection. ``async with WireClient(host, port) as wire`` connects and logs in."""

    def __init__(self, host: str, port: int, user: str = "admin", password: str = "") -> None:
        self._address = host, port
        self._login = user, password
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        await self.connect()
        try:
            last = (await self.log_in(*self._login))[-1]
            assert last["success"], last
        except BaseException:
            self.abort()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(*self._address)

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):  # the other side was first
            await self._writer.wait_closed()

    def abort(self) -> None:
        self._writer.transport.abort()

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def drain(self) -> None:
        await self._writer.drain()

    async def read_exactly(self, size: int) -> bytes:
        async with asyncio.timeout(SECONDS_TO_ANSWER):
            return await self._reader.readexactly(size)

    async def read_to_end(self) -> bytes:
        """All bytes until the connection ends. Raises ``ConnectionResetError`` if it is reset."""
        async with asyncio.timeout(SECONDS_TO_ANSWER):
            return await self._reader.read()

    async def read_message(self) -> Answer:
        """A message of the login."""
        async with asyncio.timeout(SECONDS_TO_ANSWER):
            text = await self._reader.readuntil(b"\0")
        message: Answer = json.loads(text[:-1])
        return message

    async def log_in(self, user: str, password: str) -> list[Answer]:
        """The server's messages. In the last one, ``success`` is false if the server refused the login."""
        nonce = base64.b64encode(os.urandom(18)).decode()
        first = f"n={user.replace('=', '=3D').replace(',', '=2C')},r={nonce}"
        self.write(hello(authentication="n,," + first))
        replies = [await self.read_message()]
        if replies[-1]["success"]:
            replies.append(await self.read_message())
        if not replies[-1]["success"]:
            return replies
        answer = replies[-1]["authentication"]
        fields = dict(part.split("=", 1) for part in answer.split(","))
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(fields["s"]), int(fields["i"]))
        key = hmac.digest(salted, b"Client Key", "sha256")
        signed = f"{first},{answer},c=biws,r={fields['r']}"
        signature = hmac.digest(hashlib.sha256(key).digest(), signed.encode(), "sha256")
        proof = base64.b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True))).decode()
        self.write(json.dumps({"authentication": f"c=biws,r={fields['r']},p={proof}"}).encode() + b"\0")
        replies.append(await self.read_message())
        if replies[-1]["success"]:
            server_key = hmac.digest(salted, b"Server Key", "sha256")
            expected = base64.b64encode(hmac.digest(server_key, signed.encode(), "sha256")).decode()
            assert replies[-1]["authentication"] == "v=" + expected, "the server's signature is wrong"
        return replies

    def send(self, token: int, text: str | bytes) -> None:
        body = text.encode() if isinstance(text, str) else text
        self.write(struct.pack("<QL", token, len(body)) + body)

    async def receive(self) -> tuple[int, Answer]:
        token, size = struct.unpack("<QL", await self.read_exactly(12))
        return token, json.loads(await self.read_exactly(size))

    async def ask(self, token: int, text: str) -> Answer:
        """Send one query and return the next answer, which must be for it."""
        self.send(token, text)
        answered, answer = await self.receive()
        assert answered == token
        return answer

    async def ask_all(self, token: int, text: str) -> list[Answer]:
        """All answers to one query, including the rest of a stream."""
        answers = [await self.ask(token, text)]
        while answers[-1]["t"] == PARTIAL:
            answers.append(await self.ask(token, f"[{CONTINUE}]"))
        return answers

    async def run(self, term: object) -> Any:
        """The value of a term, or all its rows. Fails if the answer is an error."""
        answers = await self.ask_all(1, query(term))
        assert answers[-1]["t"] in (ATOM, SEQUENCE), answers[-1]
        rows = [row for answer in answers for row in answer["r"]]
        return rows[0] if answers[-1]["t"] == ATOM else rows


def hello(**changes: object) -> bytes:
    """The client's first message, including the magic number."""
    message = {
        "protocol_version": 0,
        "authentication_method": "SCRAM-SHA-256",
        "authentication": "n,,n=admin,r=abc",
    }
    return MAGIC + json.dumps(message | changes).encode() + b"\0"
