"""Changefeeds on a server, through the driver."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from rethinkdb.errors import ReqlOpFailedError

from async_repool import AsyncConnectionPool, FeedGap, R
from async_repool.errors import ConnectionLost
from async_repool.testing import FaultProxy, StandInServer
from live_kit import PATIENCE, RESOLUTION, Watched, a_database, a_table, ids, rows, until


async def test_a_feed_brings_each_change_once_and_in_order(pool: AsyncConnectionPool, table: Any) -> None:
    async with pool.changes(table.changes()) as feed:
        reading = asyncio.create_task(ids(feed, 300))
        for n in range(300):
            await pool.run(table.insert({"id": n}))
        assert await reading == list(range(300))
        writing = asyncio.gather(*(count_up(pool, table, n) for n in range(10)))
        async with asyncio.timeout(PATIENCE):
            changes = [await anext(feed) for _ in range(100)]
        await writing
    for n in range(10):  # of each document in order, whatever the others do
        seen = [change["new_val"]["count"] for change in changes if change["new_val"]["id"] == n]
        assert seen == list(range(1, 11))


async def count_up(pool: AsyncConnectionPool, table: Any, n: int) -> None:
    for count in range(1, 11):
        await pool.run(table.get(n).update({"count": count}))


async def test_a_feed_may_begin_with_all_there_is_or_follow_one_document(pool: AsyncConnectionPool, table: Any) -> None:
    await pool.run(table.insert(rows(10)))
    async with (
        pool.changes(table.changes(include_initial=True)) as whole,
        pool.changes(table.get(3).changes(include_initial=True)) as one,
        pool.changes(table.filter({"kind": "a"}).changes()) as some,
    ):
        assert sorted(await ids(whole, 10)) == list(range(10))
        assert await ids(one, 1) == [3]
        await pool.run(table.get(3).update({"kind": "a"}))
        assert (await ids(whole, 1), await ids(one, 1), await ids(some, 1)) == ([3], [3], [3])
        await pool.run(table.get(3).delete())
        assert (await ids(whole, 1), await ids(one, 1), await ids(some, 1)) == ([None], [None], [None])


async def test_two_hundred_feeds_on_one_pool_and_a_query_beside_them(watched: Watched) -> None:
    async with AsyncConnectionPool(watched.arguments, 2) as pool, a_database(pool, f"repool_{watched.mark}") as table:
        async with contextlib.AsyncExitStack() as stack:
            feeds = [
                await stack.enter_async_context(pool.changes(table.get(n).changes(), timeout=PATIENCE))
                for n in range(200)
            ]
            await watched.holds(200)
            assert pool.stats().changefeeds == 200
            assert pool.stats().feeds <= 2, "they share connections"
            await asyncio.gather(*(pool.run(table.insert({"id": n})) for n in range(200)))
            assert await asyncio.gather(*(ids(feed, 1) for feed in feeds)) == [[n] for n in range(200)]
            assert await pool.run(table.count()) == 200
        await watched.holds(0)
        assert (pool.stats().changefeeds, pool.stats().feeds) == (0, 0)
        del feeds


async def test_a_feed_of_a_dropped_table_ends_with_the_drivers_error(pool: AsyncConnectionPool, db: str) -> None:
    other = await a_table(pool, R.db(db), "other")
    async with pool.changes(other.changes()) as feed:
        await pool.run(other.insert({"id": 1}))
        assert await ids(feed, 1) == [1]
        await pool.run(R.db(db).table_drop("other"))
        with pytest.raises(ReqlOpFailedError, match="does not exist|unavailable"):
            await ids(feed, 10)  # after a gap, where a thread of the server learns of it late
        with pytest.raises(StopAsyncIteration):
            await anext(feed)
    assert pool.stats().closed_by_reason.keys() <= {"feed ended"}, "the connection was as good as before"


@contextlib.asynccontextmanager
async def a_feed_through_a_proxy(
    arguments: dict[str, Any], pool: AsyncConnectionPool, table: Any, **how: Any
) -> AsyncIterator[tuple[FaultProxy, Any]]:
    """It can be broken, while ``pool`` goes past the proxy."""
    async with FaultProxy(arguments["host"], arguments["port"]) as proxy:
        to_proxy = {**arguments, "host": proxy.host, "port": proxy.port}
        async with AsyncConnectionPool(to_proxy, 1, name="fragile") as fragile:
            async with fragile.changes(table.changes(include_initial=True), **how) as feed:
                yield proxy, feed
            assert fragile.stats().feeds == 0


async def test_a_feed_survives_its_connection_and_tells_of_the_gap(
    arguments: dict[str, Any], pool: AsyncConnectionPool, table: Any
) -> None:
    await pool.run(table.insert({"id": 1}))
    async with a_feed_through_a_proxy(arguments, pool, table) as (proxy, feed):
        assert await ids(feed, 1) == [1]
        for n in range(2, 5):
            before = datetime.now(UTC)
            proxy.faults.cut()
            await pool.run(table.insert({"id": n}))
            async with asyncio.timeout(PATIENCE):
                gap = await anext(feed)
            assert isinstance(gap, FeedGap)
            assert before - RESOLUTION <= gap.broke_at <= gap.resumed_at <= datetime.now(UTC)
            assert gap.reason.startswith("ConnectionLost: ")
            assert sorted(await ids(feed, n)) == list(range(1, n + 1)), "all initial values again"
        await pool.run(table.insert({"id": 5}))
        assert await ids(feed, 1) == [5]


async def test_a_feed_may_end_at_its_first_gap(
    arguments: dict[str, Any], pool: AsyncConnectionPool, table: Any
) -> None:
    await pool.run(table.insert({"id": 1}))
    async with a_feed_through_a_proxy(arguments, pool, table, on_gap="raise") as (proxy, feed):
        assert await ids(feed, 1) == [1]
        proxy.faults.cut()
        with pytest.raises(ConnectionLost):
            await ids(feed, 1)
        with pytest.raises(StopAsyncIteration):
            await anext(feed)


async def test_feeds_survive_a_restart_of_the_server_and_begin_anew() -> None:
    async with StandInServer() as server:
        arguments = {"host": server.host, "port": server.port}
        async with AsyncConnectionPool(arguments, 2) as pool, a_database(pool, "heroes") as table:
            await pool.run(table.insert([{"id": n} for n in range(20)]))
            async with (
                pool.changes(table.changes(include_initial=True)) as whole,
                pool.changes(table.changes()) as plain,
            ):
                assert sorted(await ids(whole, 20)) == list(range(20))
                for n in range(20, 23):
                    await server.restart()
                    await pool.run(table.insert({"id": n}), retry=True)  # which nobody saw
                    assert await ids(whole, 1) == [FeedGap]
                    assert sorted(await ids(whole, n + 1)) == list(range(n + 1))
                    assert await ids(plain, 1) == [FeedGap]
                    await pool.run(table.get(n).update({"is": "seen"}))
                    assert (await ids(whole, 1), await ids(plain, 1)) == ([n], [n])

            async def has_none() -> bool:
                return server.open_streams == 0

            await until(has_none)
