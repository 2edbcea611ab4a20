"""The sizes of a pool can be changed while it is open."""

from __future__ import annotations

import asyncio

import pytest

from async_repool import AsyncConnectionPool, PoolException, TooManyWaiters
from async_repool.testing.scripted import ScriptedConnector, error, ok, slow
from pool_kit import acquire_soon, drop_all, feeding, open_pool, opened, run_soon, stop, turn

pytestmark = [pytest.mark.virtual_time, pytest.mark.usefixtures("repeatable")]


async def test_growing_serves_who_waits_at_once() -> None:
    async with open_pool(pool_size=1) as pool:
        lease = await pool.acquire()
        waiting = [await acquire_soon(pool) for _ in range(2)]
        pool.resize(pool_size=3)
        for other in await asyncio.gather(*waiting):
            pool.release(other)
        pool.release(lease)
        assert (pool.pool_size, pool.stats().max_size, pool.stats().size) == (3, 3, 3)


async def test_a_min_size_that_was_not_given_follows_pool_size() -> None:
    async with open_pool(pool_size=1) as pool:
        pool.resize(pool_size=3)
        await turn()
        assert (pool.stats().min_size, pool.stats().idle) == (3, 3)
        pool.resize(min_size=1)
        pool.resize(pool_size=5)
        await turn()
        assert (pool.stats().min_size, pool.stats().idle) == (1, 3)


async def test_shrinking_closes_idle_connections_now_the_longest_unused_first() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=3) as pool:
        pool.resize(pool_size=1)
        await turn()
        assert [connection.number for connection in connector.open_connections] == [3]
        assert pool.stats().closed_by_reason == {"surplus": 2}


async def test_shrinking_closes_what_is_leased_when_it_comes_home() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=3) as pool:
        leases = [await pool.acquire() for _ in range(3)]
        waiting = await acquire_soon(pool)
        pool.resize(pool_size=2)
        pool.release(leases[0])
        await turn()
        assert not waiting.done(), "its place is gone"
        pool.release(leases[1])
        pool.release(await waiting)
        pool.release(leases[2])
        await turn()
        assert (pool.stats().size, pool.stats().closed_by_reason) == (2, {"surplus": 1})


async def test_shrinking_under_a_steady_load_of_queries_reaches_the_new_size() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=4) as pool:

        async def user() -> None:
            for _ in range(20):
                await pool.run("a query")

        users = [asyncio.create_task(user()) for _ in range(12)]
        await asyncio.sleep(5.5)
        assert pool.stats().shared == 4
        pool.resize(pool_size=2)
        await asyncio.sleep(2)
        assert (pool.stats().size, pool.stats().shared) == (2, 2)
        await asyncio.gather(*users)


async def test_the_feed_lane_follows_pool_size_unless_it_has_a_limit_of_its_own() -> None:
    async with open_pool(pool_size=1) as pool, pool.connect(looped_mode=True):
        with pytest.raises(PoolException, match="max_feed_connections=1"):
            await pool.connect(looped_mode=True).__aenter__()
        pool.resize(pool_size=2)
        async with pool.connect(looped_mode=True):
            pass


async def test_bad_sizes_are_refused_and_change_nothing() -> None:
    async with open_pool(pool_size=3, min_size=2) as pool:
        with pytest.raises(ValueError, match="min_size=2 is more than pool_size=1"):
            pool.resize(pool_size=1)
        with pytest.raises(ValueError, match="min_size=4 is more than pool_size=3"):
            pool.resize(min_size=4)
        with pytest.raises(TypeError, match="pool_size must be an int, not 'many'"):
            pool.resize(pool_size="many")
        assert (pool.stats().min_size, pool.stats().max_size) == (2, 3)


async def test_a_pool_that_is_not_open_is_opened_with_the_new_sizes() -> None:
    connector = ScriptedConnector()
    pool = AsyncConnectionPool(connector, pool_size=1)
    pool.resize(pool_size=2)
    async with pool:
        assert pool.stats().idle == 2
    pool.resize(pool_size=1)
    async with pool:
        assert pool.stats().idle == 1
    connector.assert_nothing_left()


async def test_a_pool_that_is_being_closed_cannot_be_resized_and_closes() -> None:
    async with open_pool(pool_size=1) as pool:
        lease = await pool.acquire()
        closing = asyncio.create_task(pool.close(timeout=5))
        await turn()
        with pytest.raises(PoolException, match=r"resize\(\) while the pool is closing"):
            pool.resize(pool_size=2)
        pool.release(lease)
        await closing


async def test_queries_that_wait_are_served_by_a_pool_that_grows() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(5))
    async with open_pool(connector, pool_size=1, max_in_flight=1) as pool:
        first, second = await run_soon(pool), await run_soon(pool)
        pool.resize(pool_size=2)
        await asyncio.sleep(5.1)
        assert first.done()
        assert second.done()


async def test_growing_serves_no_more_callers_than_the_new_size_and_the_first_in_line_first() -> None:
    async with open_pool(pool_size=1) as pool:
        lease = await pool.acquire()
        waiting = [await acquire_soon(pool) for _ in range(3)]
        pool.resize(pool_size=3)
        await turn()
        assert [task.done() for task in waiting] == [True, True, False]
        pool.release(lease)
        for task in waiting:
            pool.release(await task)


async def test_shrinking_closes_surplus_connections_of_every_use() -> None:
    connector = feeding()
    connector.queries.always(slow(20))
    async with open_pool(connector, pool_size=6, min_size=5, max_idle=None) as pool:
        lease = await pool.acquire()
        queries = [await run_soon(pool) for _ in range(2)]
        changes = await opened(pool)
        connector.connects.then(slow(5))
        leases = [await pool.acquire() for _ in range(2)]
        opening = await acquire_soon(pool)
        pool.resize(pool_size=1, min_size=0)
        await asyncio.sleep(10)
        for each in (lease, *leases, await opening):
            pool.release(each)
        await asyncio.gather(*queries)
        await asyncio.sleep(10)
        assert pool.stats().size == 1
        await stop(changes)
        await asyncio.sleep(10)
        assert pool.stats().size == 1


async def test_shrinking_while_connections_open_leaves_no_more_than_pool_size() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=4, min_size=1) as pool:
        connector.connects.always(slow(3))
        waiting = [await acquire_soon(pool, timeout=60) for _ in range(4)]
        pool.resize(pool_size=2)
        await asyncio.sleep(10)
        for task in waiting:
            pool.release(await task)
            await asyncio.sleep(1)
        assert pool.stats().size == 2


async def test_max_waiting_callers_may_wait_in_a_pool_with_more_leases_than_its_new_size() -> None:
    async with open_pool(pool_size=3, max_waiting=1) as pool:
        leases = [await pool.acquire() for _ in range(3)]
        pool.resize(pool_size=1)
        waiting = await acquire_soon(pool)
        with pytest.raises(TooManyWaiters):
            await pool.acquire()
        for lease in leases:
            pool.release(lease)
        pool.release(await waiting)


async def test_growing_again_serves_who_waits_before_the_surplus_leases_are_released() -> None:
    async with open_pool(pool_size=3) as pool:
        leases = [await pool.acquire() for _ in range(3)]
        pool.resize(pool_size=1)
        waiting = [await acquire_soon(pool) for _ in range(2)]
        pool.release(leases[0])
        pool.resize(pool_size=4)
        await turn(10)
        assert [task.done() for task in waiting] == [True, True]
        for lease in (*leases[1:], *await asyncio.gather(*waiting)):
            pool.release(lease)


async def test_callers_that_wait_in_an_outage_are_served_by_a_pool_that_was_made_smaller() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2) as pool:
        connector.connects.always(error(OSError("refused")))
        drop_all(connector)
        await asyncio.sleep(10)
        pool.resize(pool_size=4)
        waiting = [await acquire_soon(pool, timeout=60) for _ in range(4)]
        await asyncio.sleep(1)
        pool.resize(pool_size=1)
        connector.connects.always(ok())
        for task in waiting:
            pool.release(await task)
        await asyncio.sleep(10)
        assert pool.stats().size == 1
        assert connector.max_open_or_connecting <= 4
