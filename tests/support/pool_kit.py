"""What the tests of the pool on the scripted connector share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from async_repool import AsyncConnectionPool, Lease
from async_repool.testing import ScriptedConnector


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
