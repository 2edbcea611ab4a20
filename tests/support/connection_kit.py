"""What the tests of the RethinkDB connection and connector share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from async_repool.connectors.rethinkdb import R, RethinkDBConnection, RethinkDBConnector
from paths import DATA
from scripted_server import STOP, Link

CERTIFICATE = DATA / "localhost.pem"
SECRET = "t0p/s3cret"


@contextlib.asynccontextmanager
async def connected(connector: RethinkDBConnector) -> AsyncIterator[RethinkDBConnection]:
    connection = await connector.connect()
    try:
        yield connection
    finally:
        connector.abort(connection)
        await connection.close()


def connector_to(server: Any, **arguments: Any) -> RethinkDBConnector:
    return RethinkDBConnector(host=server.host, port=server.port, **arguments)


def sockets() -> Iterator[socket.socket]:
    """A copy of each TCP socket of this process, closed when the next is asked for."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    for name in os.listdir("/proc/self/fd"):
        try:
            is_socket = os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
            copy = os.dup(int(name)) if is_socket else None
        except OSError:  # the directory's own
            continue
        if copy is not None:
            with socket.socket(fileno=copy) as found:
                if found.family == socket.AF_INET:
                    yield found


def open_client_sockets(port: int) -> list[Any]:
    """The local ends of this process's sockets that are connected to a port."""
    found = []
    for candidate in sockets():
        with contextlib.suppress(OSError):
            if candidate.getpeername()[1] == port:
                found.append(candidate.getsockname())
    return found


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_so():  # noqa: ASYNC110 - what the server holds has no event
            await asyncio.sleep(0)


BULK = "x" * 16_000_000  # more than the sockets between us take in


async def blocked(link: Link) -> None:
    """Leave the connection with a peer that does not read."""
    link.peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await R.expr(BULK).run(link.connection, noreply=True)


async def cancelled(link: Link) -> int:
    """The token of a query that was cancelled while it ran."""
    task, token = await link.started()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert link.connection.is_idle
    await link.expect(token, STOP)
    return token
