"""The feed lane: feeds share connections of their own, and wait in line for them."""

from __future__ import annotations

import asyncio

import pytest

from async_repool import FeedGap, PoolTimeout, TooManyWaiters
from async_repool.errors import FeedLaneFull
from async_repool.testing.scripted import ScriptedConnection, ScriptedConnector, error, feed, slow
from pool_kit import (
    acquire_soon,
    anything,
    drop_all,
    feeding,
    is_whole,
    newest,
    now,
    open_pool,
    opened,
    read_soon,
    run_soon,
    stop,
    turn,
)

pytestmark = [pytest.mark.virtual_time, pytest.mark.usefixtures("repeatable")]


# ---- the lane


async def test_many_feeds_share_one_connection_beside_those_of_the_pool() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=2) as pool:
        feeds = [await opened(pool, number) for number in range(100)]
        assert (pool.stats().feeds, pool.stats().changefeeds) == (1, 100)
        leases = [await pool.acquire() for _ in range(2)]
        assert len(connector.open_connections) == 3
        for number in (0, 77, 99):
            connector.opened_streams[number].send(number)
            assert await anext(feeds[number]) == number
        for lease in leases:
            pool.release(lease)
        await stop(*feeds)
        assert await is_whole(pool)


async def test_the_connection_that_goes_to_the_lane_is_replaced() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=2) as pool:
        await asyncio.sleep(1)
        changes = await opened(pool)
        await asyncio.sleep(1)
        assert (pool.stats().idle, pool.stats().feeds) == (2, 1)
        await stop(changes)


async def test_feeds_that_are_refused_cost_no_connection() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=2) as pool:
        connector.streams.then(*[error(LookupError("no such table"))] * 20)
        for _ in range(4):
            refused = await asyncio.gather(*(opened(pool) for _ in range(5)), return_exceptions=True)
            assert refused == [anything(LookupError)] * 5
            await asyncio.sleep(1)
        assert (pool.stats().opened_total, pool.stats().idle) == (2, 2)


async def test_feeds_that_wait_for_their_tables_after_a_restart_cost_no_connections() -> None:
    connector = feeding()
    connector.passing_errors = (LookupError,)
    async with open_pool(connector, pool_size=3) as pool:
        feeds = [await opened(pool) for _ in range(5)]
        await asyncio.sleep(1)
        assert pool.stats().opened_total == 4
        reads = [await read_soon(changes) for changes in feeds]
        refusals = [error(LookupError("the table is not ready"))] * 50
        connector.streams.then(*refusals)
        drop_all(connector)
        await asyncio.sleep(120)
        assert [await read for read in reads] == [anything(FeedGap)] * 5
        assert pool.stats().opened_total == 8, "as many as there were"
        await stop(*feeds)


async def test_a_connection_of_the_lane_that_is_lost_takes_no_new_feed_though_nobody_was_told() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        feeds = [await opened(pool) for _ in range(2)]
        await asyncio.sleep(1)
        connector.drop(connector.connections[0], is_told=False)
        feeds.append(await opened(pool))
        assert newest(connector).connection.number == 2
        assert (pool.stats().feeds, pool.stats().changefeeds) == (1, 1)
        assert [await anext(changes) for changes in feeds[:2]] == [anything(FeedGap)] * 2
        assert (pool.stats().feeds, pool.stats().changefeeds) == (1, 3)
        await stop(*feeds)
        assert await is_whole(pool)


async def test_feeds_that_are_opened_at_once_share_one_connection() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=3, min_size=0) as pool:
        feeds = [pool.changes(number) for number in range(20)]
        tasks = [asyncio.create_task(changes.__anext__()) for changes in feeds]
        await asyncio.sleep(1)
        assert (pool.stats().feeds, pool.stats().changefeeds) == (1, 20)
        await stop(*feeds)
        assert await asyncio.gather(*tasks, return_exceptions=True) == [anything(StopAsyncIteration)] * 20
        assert len(connector.connections) == 1


@pytest.mark.parametrize("call", ["changes", "connect"])
async def test_a_pool_without_a_lane_has_no_feeds(call: str) -> None:
    async with open_pool(feeding(), max_feed_connections=0) as pool:
        with pytest.raises(FeedLaneFull, match="main: max_feed_connections=0"):
            if call == "changes":
                await anext(pool.changes("a feed"))
            else:
                await pool.connect(looped_mode=True).__aenter__()
        assert await is_whole(pool)


async def test_leases_of_feeds_fill_the_lane_too() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=3, max_feed_connections=2) as pool:
        async with pool.connect(looped_mode=True), pool.connect(looped_mode=True):
            with pytest.raises(FeedLaneFull, match="main: max_feed_connections=2 connections serve feeds; end one"):
                await anext(pool.changes("a feed"))
        changes = await opened(pool)
        async with pool.connect(looped_mode=True):
            with pytest.raises(FeedLaneFull):
                await pool.connect(looped_mode=True).__aenter__()
            other = await opened(pool)
            assert pool.stats().feeds == 2, "feeds go on sharing"
        await stop(changes, other)
        assert await is_whole(pool)


async def test_a_feed_is_refused_at_once_where_the_lane_is_full_whoever_waits() -> None:
    async with open_pool(feeding(), pool_size=1, max_feed_connections=0) as pool, pool.connect():
        leasing = await acquire_soon(pool)
        with pytest.raises(FeedLaneFull):
            await anext(pool.changes("a feed"))
        assert now() == 0
        leasing.cancel()


async def test_a_feed_in_line_takes_the_place_in_the_lane_that_becomes_free() -> None:
    async with open_pool(feeding(), pool_size=1, max_feed_connections=1) as pool:
        lease = await pool.acquire()
        task = await read_soon(pool.changes("a feed"))
        pool.release_to_looped(lease)  # nothing is read from it, so its place in the lane is free again …
        await turn()
        assert pool.stats().changefeeds == 1, "… and was given to who waited"
        task.cancel()


async def test_a_feed_in_line_is_refused_when_a_lease_fills_the_lane_for_good() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, max_feed_connections=1) as pool:
        lease = await pool.acquire()
        cursor = connector.connections[0].open_stream()
        query = await run_soon(pool)
        task = await read_soon(pool.changes("a feed"))
        connector.connects.always(slow(5))
        pool.release_to_looped(lease)
        await asyncio.sleep(1)
        assert not query.done()
        with pytest.raises(FeedLaneFull):
            await task
        await query
        cursor.end()


async def test_another_connection_carries_feeds_where_the_first_is_full_and_one_is_idle() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=2, max_in_flight=3) as pool:
        feeds = [await opened(pool, number) for number in range(3)]
        assert pool.stats().feeds == 1
        feeds.append(await opened(pool, 3))
        assert (pool.stats().feeds, pool.stats().changefeeds) == (2, 4)
        feeds += [await opened(pool, number) for number in range(2)]
        loads = sorted(len(connection.open_streams) for connection in connector.connections)
        assert loads[-2:] == [3, 3], "the least loaded takes the next"
        await stop(*feeds)


@pytest.mark.parametrize("why", ["the lane is full", "no connection is idle"])
async def test_where_there_is_no_other_connection_for_feeds_one_carries_more(why: str) -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, max_in_flight=2, max_feed_connections=2) as pool:
        lane = pool.connect(looped_mode=True)
        if why == "the lane is full":
            await lane.__aenter__()
            feeds = [await opened(pool, number) for number in range(5)]
            await lane.__aexit__(None, None, None)
        else:
            feeds = [await opened(pool, 0)]
            async with pool.connect():
                feeds += [await opened(pool, number) for number in range(1, 5)]
        assert max(len(connection.open_streams) for connection in connector.connections) == 5
        await stop(*feeds)
        assert await is_whole(pool)


async def test_the_connection_of_the_last_feed_goes_back_where_the_pool_has_room() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, min_size=0) as pool:
        await stop(await opened(pool), await opened(pool))
        assert (pool.stats().idle, pool.stats().feeds) == (1, 0)
        async with pool.connect() as lease:
            assert lease.number == 1


async def test_the_connection_of_the_last_feed_is_closed_where_the_pool_has_no_room() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        feeds = [await opened(pool) for _ in range(3)]
        await asyncio.sleep(1)
        await stop(*feeds[:2])
        assert connector.connections[0].is_open()
        await stop(feeds[2])
        await asyncio.sleep(1)
        assert connector.connections[0].ended_by == "close"
        assert pool.stats().closed_by_reason == {"feed ended": 1}


async def test_a_connection_is_reset_after_its_last_feed() -> None:
    reset: list[int] = []

    async def note(connection: ScriptedConnection) -> None:
        reset.append(connection.number)

    async with open_pool(feeding(), pool_size=1, min_size=0, reset=note) as pool:
        feeds = [await opened(pool), await opened(pool)]
        await stop(*feeds)
        await turn()
        assert reset == [1]
        assert await is_whole(pool)


async def test_a_connection_is_checked_before_it_carries_feeds() -> None:
    connector = feeding()

    async def check(connection: ScriptedConnection) -> None:
        if connection.number == 1:
            raise OSError("unfit")
        await asyncio.sleep(1)

    async with open_pool(connector, pool_size=1, check=check) as pool:
        changes = pool.changes("a feed")
        task = await read_soon(changes)
        await asyncio.sleep(2)
        assert newest(connector).connection.number == 2
        task.cancel()


async def test_the_age_of_its_connection_does_not_end_a_feed() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, connection_ttl=100) as pool:
        changes = await opened(pool)
        await asyncio.sleep(10_000)
        newest(connector).send(1)
        assert await anext(changes) == 1
        other = await opened(pool)
        assert newest(connector).connection.number == 1
        await stop(changes, other)
        await asyncio.sleep(1)
        assert connector.connections[0].ended_by == "close", "it is too old for anything else"


async def test_a_connection_that_a_stream_is_read_from_keeps_its_place_in_the_lane_after_the_last_feed() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, max_feed_connections=1) as pool:
        async with pool.stream("a slow reader"):
            connector.streams.always(feed())
            await stop(await opened(pool))
            with pytest.raises(FeedLaneFull):
                await opened(pool)
        await turn()
        await stop(await opened(pool))
        assert await is_whole(pool)


# ---- the line


async def test_feeds_wait_in_line_as_others_do_until_one_of_them_has_a_connection() -> None:
    connector = feeding()
    served: list[str] = []
    async with open_pool(connector, pool_size=1) as pool:
        first = await pool.acquire()

        async def lease() -> None:
            async with pool.connect():
                served.append("lease")
                await asyncio.sleep(1)

        async def query() -> None:
            await pool.run("a query")
            served.append("query")

        async def follow() -> None:
            async with pool.changes("a feed"):
                served.append("feed")

        async with asyncio.TaskGroup() as group:
            for use in (lease, follow, query, lease, follow):
                group.create_task(use())
                await turn()
            pool.release(first)
        assert served == ["lease", "feed", "feed", "query", "lease"]


async def test_a_feed_that_can_share_does_not_wait_behind_those_who_cannot() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool)
        async with pool.connect():
            leasing = await acquire_soon(pool)
            other = await opened(pool)
            leasing.cancel()
        await stop(changes, other)


async def test_endless_queries_do_not_starve_a_feed() -> None:
    connector = feeding()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=1) as pool:

        async def user() -> None:
            while True:
                await pool.run("a query")

        users = []
        for _ in range(10):
            users.append(asyncio.create_task(user()))
            await asyncio.sleep(0.1)
        began = now()
        async with pool.changes("a feed"):
            assert now() - began < 1.2
            await asyncio.sleep(1)
            assert pool.stats().queries_in_flight > 0
        for task in users:
            task.cancel()
        await asyncio.gather(*users, return_exceptions=True)


async def test_a_feed_that_waits_is_bounded_by_acquire_timeout() -> None:
    async with open_pool(feeding(), pool_size=1, acquire_timeout=7) as pool, pool.connect():
        with pytest.raises(PoolTimeout, match="main: no connection to scripted:28015 after waiting 7.0 s"):
            await anext(pool.changes("a feed"))
        assert now() == pytest.approx(7)


async def test_feeds_in_line_count_against_max_waiting() -> None:
    async with open_pool(feeding(), pool_size=1, max_waiting=1) as pool:
        lease = await pool.acquire()
        task = await read_soon(pool.changes("a feed"))
        with pytest.raises(TooManyWaiters, match=r"main: changes\(\) was refused, max_waiting=1"):
            await anext(pool.changes("a feed"))
        pool.release(lease)
        await turn()
        task.cancel()
