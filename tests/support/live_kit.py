"""What the tests on a live server share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from rethinkdb.errors import ReqlOpFailedError

from async_repool import AsyncConnectionPool, FeedGap, R

PATIENCE = 20.0  # seconds, for what comes at once where nothing is wrong


# How far off ``broke_at`` may be: it is reckoned from two readings of the loop's time(), which on uvloop counts whole
# milliseconds.
RESOLUTION = timedelta(milliseconds=2)


@contextlib.asynccontextmanager
async def a_database(pool: AsyncConnectionPool, name: str) -> AsyncIterator[Any]:
    await pool.run(R.db_create(name))
    yield await a_table(pool, R.db(name), "t")
    await pool.run(R.db_drop(name))


async def a_table(pool: AsyncConnectionPool, db: Any, name: str) -> Any:
    """A new table, of which each connection knows: one thread of the server may learn of it later than another."""
    table = db.table(name)

    async def is_there() -> bool:
        with contextlib.suppress(ReqlOpFailedError):
            await pool.run(db.table_create(name))
        try:
            await asyncio.gather(*(pool.run(table.wait()) for _ in range(3 * pool.pool_size)))
            await asyncio.gather(*(pool.run(table.count()) for _ in range(3 * pool.pool_size)))
        except ReqlOpFailedError:
            return False
        return True

    await until(is_there)
    return table


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": n, "text": "x" * 50} for n in range(count)]


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@dataclass
class Watched:
    """A server, and what it holds for the queries of one test."""

    arguments: dict[str, Any]
    mark: str
    """To be in every query that is watched: only they count."""
    count: Callable[[], Awaitable[int]]

    async def holds(self, number: int) -> None:
        """Wait until it works on so many queries, or holds so many streams and feeds."""

        async def is_so() -> bool:
            return await self.count() == number

        await until(is_so)


async def ids(feed: Any, count: int) -> list[Any]:
    """Of so many changes; a gap counts as one."""
    async with asyncio.timeout(PATIENCE):
        items = [await anext(feed) for _ in range(count)]
    return [FeedGap if isinstance(item, FeedGap) else item["new_val"] and item["new_val"]["id"] for item in items]
