"""What the pool tells of itself: statistics, names and representations."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, OutcomeUnknown, PoolTimeout
from async_repool.errors import ConnectionLost
from async_repool.testing.scripted import ScriptedConnector, slow
from pool_kit import Call, acquire_soon, drop_all, feeding, open_pool, opened, read_soon, run, run_soon, stop, turn

pytestmark = [pytest.mark.virtual_time, pytest.mark.usefixtures("repeatable")]


# ---- the pool


async def test_statistics_tell_gauges_and_totals() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2) as pool:
        leases = [await pool.acquire(), await pool.acquire()]
        waiting = await acquire_soon(pool)
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=4)
        cancelled = await acquire_soon(pool)
        cancelled.cancel()
        await turn()
        stats = pool.stats()
        assert (stats.size, stats.leased, stats.idle, stats.waiting) == (2, 2, 0, 1)
        pool.release(leases[0])
        pool.release(await waiting)
        pool.release(leases[1])
        stats = pool.stats()
        assert (stats.size, stats.leased, stats.idle, stats.waiting) == (2, 0, 2, 0)
        assert (stats.acquired_total, stats.waited_total, stats.timeouts_total, stats.cancelled_total) == (3, 3, 1, 1)
        assert stats.waited_seconds_total == pytest.approx(8)
        assert (stats.opened_total, stats.connect_failures_total, stats.closed_total) == (2, 0, 0)
        with pytest.raises(AttributeError):
            stats.size = 7  # type: ignore[misc]


async def test_empty_tells_whether_no_connection_is_idle() -> None:
    async with open_pool(pool_size=1) as pool:
        assert not pool.empty
        async with pool.connect():
            assert pool.empty


def test_pools_without_a_name_are_numbered() -> None:
    one, other = AsyncConnectionPool(ScriptedConnector()), AsyncConnectionPool(ScriptedConnector())
    assert one.name != other.name
    assert one.name.startswith("pool-")
    assert repr(one) == f"<AsyncConnectionPool {one.name!r} closed>"


# ---- queries


async def test_the_statistics_tell_of_queries() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(1), slow(2), slow(3))
    async with open_pool(connector, pool_size=2, max_in_flight=1) as pool:
        tasks = [await run_soon(pool) for _ in range(3)]
        leasing = await acquire_soon(pool)
        stats = pool.stats()
        assert (stats.size, stats.shared, stats.idle, stats.leased) == (2, 2, 0, 0)
        assert (stats.queries_in_flight, stats.queries_waiting, stats.waiting) == (2, 1, 2)
        await asyncio.gather(*tasks)
        pool.release(await leasing)
        stats = pool.stats()
        assert (stats.shared, stats.idle, stats.queries_in_flight, stats.queries_waiting) == (0, 2, 0, 0)
        assert (stats.queries_done_total, stats.acquired_total, stats.waited_total) == (3, 1, 2)


async def test_the_repr_tells_of_queries() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=3) as pool:
        async with pool.connect():
            tasks = [await run_soon(pool) for _ in range(5)]
            assert repr(pool) == "<AsyncConnectionPool 'main' open 1/3 leased, 2 shared by 5 queries, 0 waiting>"
            await asyncio.gather(*tasks)
        assert repr(pool) == "<AsyncConnectionPool 'main' open 0/3 leased, 0 waiting>"


async def test_a_timeout_in_line_tells_the_situation() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(10))
    async with open_pool(connector, pool_size=1, max_in_flight=2) as pool:
        tasks = [await run_soon(pool) for _ in range(2)]
        with pytest.raises(PoolTimeout, match=r"0 of 1 leased, 1 shared by 2 queries, 0 idle, 0 connecting"):
            await pool.run("a query", timeout=1)
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("call", [run, AsyncConnectionPool.acquire], ids=["run", "acquire"])
async def test_a_timeout_beside_busy_shared_connections_does_not_blame_connecting(call: Call) -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(10))
    async with open_pool(connector, pool_size=1, max_in_flight=2) as pool:
        tasks = [await run_soon(pool) for _ in range(2)]
        with pytest.raises(PoolTimeout) as caught:
            await call(pool, timeout=1)
        assert "being opened or checked" not in str(caught.value)
        await asyncio.gather(*tasks)


# ---- feeds


async def test_the_statistics_tell_of_feeds() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=2) as pool:
        feeds = [await opened(pool) for _ in range(3)]
        async with pool.connect(looped_mode=True):
            stats = pool.stats()
            assert (stats.feeds, stats.changefeeds) == (2, 3)
            assert (stats.queries_in_flight, stats.shared, stats.leased) == (0, 0, 0), "feeds are no queries"
            assert stats.acquired_total == 1
        await stop(*feeds)
        stats = pool.stats()
        assert (stats.changefeeds, stats.queries_done_total, stats.queries_stopped_total) == (0, 0, 0)


async def test_the_repr_of_a_feed_is_its_status() -> None:
    connector = feeding()
    async with open_pool(connector) as pool:
        changes = pool.changes("a feed")
        assert repr(changes) == "<Feed of pool 'main', not open>"
        task = await read_soon(changes)
        assert repr(changes) == "<Feed of pool 'main', open>"
        await changes.aclose()
        assert repr(changes) == "<Feed of pool 'main', ended>"
        await asyncio.wait([task])
        task.exception()


@pytest.mark.parametrize("on_gap", ["raise"])
async def test_the_error_of_a_lost_feed_names_the_pool(on_gap: Any) -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool, on_gap=on_gap)
        drop_all(connector)
        with pytest.raises(ConnectionLost, match="main: ") as caught:
            await anext(changes)
        assert isinstance(caught.value, OutcomeUnknown)
