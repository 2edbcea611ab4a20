"""What the tests of the pool on the scripted connector share."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, Lease
from async_repool.feeds import Feed
from async_repool.testing.scripted import ScriptedConnection, ScriptedConnector, ScriptedStream, feed


@asynccontextmanager
async def open_pool(connector: ScriptedConnector | None = None, **options: Any) -> AsyncIterator[AsyncConnectionPool]:
    """A pool on a scripted connector. At the end it is closed, and nothing of it is left."""
    connector = ScriptedConnector() if connector is None else connector
    pool = AsyncConnectionPool(connector, **{"name": "main", **options})
    async with pool:
        yield pool
    connector.assert_nothing_left()
    stats = pool.stats()
    assert (stats.size, stats.feeds, stats.retired, stats.waiting) == (0, 0, 0, 0)
    assert stats.closed_total == stats.opened_total


async def acquire_soon(pool: AsyncConnectionPool, **arguments: Any) -> asyncio.Task[Lease]:
    """A task that has begun to acquire."""
    task = asyncio.create_task(pool.acquire(**arguments))
    await turn()
    return task


async def run_soon(pool: AsyncConnectionPool, query: Any = "a query", **arguments: Any) -> asyncio.Task[Any]:
    """A task that has begun to run a query."""
    task = asyncio.create_task(pool.run(query, **arguments))
    await turn()
    return task


async def turn(times: int = 5) -> None:
    """Let the loop turn a few times; no time passes."""
    for _ in range(times):
        await asyncio.sleep(0)


def now() -> float:
    """The loop's time."""
    return asyncio.get_running_loop().time()


def number(lease: Lease) -> int:
    """Which connection a lease is on: 1 for the first that was opened."""
    return lease.number  # type: ignore[no-any-return]


def stop_tasks(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(turn())


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---- queries

LONG = 100_000.0


def loads(connector: ScriptedConnector) -> list[int]:
    """How many queries are in progress on each open connection, in the order in which they were opened."""
    return [connection.in_flight for connection in connector.open_connections]


def terms(connection: ScriptedConnection) -> list[Any]:
    """What was run on a connection, in order."""
    return [query.term for query in connection.queries]


async def finish(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel these and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def run(pool: AsyncConnectionPool, **arguments: Any) -> object:
    return await pool.run("a query", **arguments)


async def stream(pool: AsyncConnectionPool, **arguments: Any) -> object:
    async with pool.stream("a query", **arguments):
        return None


async def follow(pool: AsyncConnectionPool, **arguments: Any) -> object:
    return await anext(pool.changes("a query", **arguments))


Call = Callable[..., Awaitable[object]]
either_call = pytest.mark.parametrize("call", [run, stream])
each_call = pytest.mark.parametrize("call", [run, stream, follow])


# ---- feeds


def feeding(**options: Any) -> ScriptedConnector:
    """A connector whose streams are changefeeds, of which the test sends the changes."""
    connector = ScriptedConnector(**options)
    connector.streams.always(feed())
    return connector


async def read_soon(changes: Feed) -> asyncio.Task[Any]:
    """A task that has begun to wait for the next change."""
    task = asyncio.create_task(changes.__anext__())
    await turn()
    return task


async def opened(pool: AsyncConnectionPool, query: Any = "a feed", **arguments: Any) -> Feed:
    """A feed that is open on the server."""
    return await pool.changes(query, **arguments).__aenter__()


async def stop(*feeds: Feed) -> None:
    for changes in feeds:
        await changes.aclose()


@asynccontextmanager
async def reading(changes: Feed) -> AsyncIterator[deque[Any]]:
    """What comes of a feed while somebody reads it; its error last."""
    items: deque[Any] = deque()

    async def read() -> None:
        try:
            async for change in changes:
                items.append(change)
        except Exception as failure:
            items.append(failure)

    task = asyncio.create_task(read())
    await turn()
    yield items
    task.cancel()
    await asyncio.wait([task])


def newest(connector: ScriptedConnector) -> ScriptedStream:
    return connector.opened_streams[-1]


def drop_all(connector: ScriptedConnector) -> None:
    for connection in connector.open_connections:
        connector.drop(connection)


async def is_whole(pool: AsyncConnectionPool) -> bool:
    """Whether nothing is in use and each connection can be had."""
    await asyncio.sleep(10)  # until what is being opened and closed is so
    stats = pool.stats()
    left = (stats.leased, stats.shared, stats.feeds, stats.retired, stats.changefeeds, stats.waiting, stats.connecting)
    leases = [await pool.acquire(timeout=60) for _ in range(stats.max_size)]
    for lease in leases:
        pool.release(lease)
    return not any(left)


def anything(kind: type) -> Any:
    """Equal to whatever is of this type."""

    class Anything:
        def __eq__(self, other: object) -> bool:
            return isinstance(other, kind)

        __hash__ = None  # type: ignore[assignment]

    return Anything()
