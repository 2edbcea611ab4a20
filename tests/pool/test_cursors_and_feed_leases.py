"""Cursors that are read after their lease, and leases that serve feeds."""

from __future__ import annotations

import asyncio

import pytest

from async_repool import LeaseError, PoolException
from async_repool.testing.scripted import ScriptedConnector
from pool_kit import number, open_pool, turn

pytestmark = pytest.mark.virtual_time


async def test_an_expired_connection_that_is_still_read_closes_when_the_last_cursor_has_ended() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, connection_ttl=10, cursor_grace=60) as pool:
        async with pool.connect():
            cursor = connector.connections[0].open_stream()
        await asyncio.sleep(20)
        async with pool.connect() as lease:
            assert number(lease) == 2, "its reader costs no capacity"
        assert pool.stats().retired == 1
        assert connector.connections[0].is_open()
        cursor.end()
        await turn()
        assert connector.closed_connections == [connector.connections[0]]


async def test_a_reader_has_cursor_grace_and_no_longer() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, cursor_grace=60) as pool:
        connector.connections[0].open_stream()
        await pool.drain()
        await asyncio.sleep(59)
        assert connector.connections[0].is_open()
        await asyncio.sleep(2)
        assert not connector.connections[0].is_open()


async def test_close_waits_for_cursors_as_for_leases() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        cursor = connector.connections[0].open_stream()
        asyncio.get_running_loop().call_later(3, cursor.end)
        await pool.close(timeout=10)
        assert asyncio.get_running_loop().time() == pytest.approx(3)
        await pool.init_pool()
        connector.connections[1].open_stream()
        await pool.close(timeout=10)
        assert asyncio.get_running_loop().time() == pytest.approx(13)


async def test_a_feed_leaves_the_pool_and_another_connection_takes_its_place() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool, pool.connect(looped_mode=True) as feed:
        assert number(feed) == 1
        assert pool.stats().feeds == 1
        async with pool.connect() as lease:
            assert number(lease) == 2


async def test_a_feed_that_ended_is_returned_if_there_is_room_and_else_closed() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, min_size=0) as pool:
        async with pool.connect(looped_mode=True):
            pass
        assert (pool.stats().idle, pool.stats().feeds) == (1, 0)
        async with pool.connect(looped_mode=True), pool.connect():
            pass
        await turn()
        assert (pool.stats().idle, pool.stats().feeds) == (1, 0)
        assert pool.stats().closed_by_reason == {"feed ended": 1}


async def test_a_feed_that_is_read_on_after_its_block_stays_in_the_lane_until_it_ends() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        async with pool.connect(looped_mode=True):
            feed = connector.connections[0].open_stream()
        await asyncio.sleep(86_400)
        assert pool.stats().feeds == 1
        assert connector.connections[0].is_open()
        feed.end()
        await turn()
        assert pool.stats().feeds == 0


async def test_release_to_looped_takes_the_connection_of_a_feed_out_of_the_pool() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        lease = await pool.acquire()
        feed = connector.connections[0].open_stream()
        await pool.release_to_looped(lease)
        async with pool.connect() as other:
            assert number(other) == 2
        assert pool.stats().feeds == 1
        with pytest.raises(LeaseError):
            lease.is_open()
        feed.end()
        await turn()
        assert pool.stats().feeds == 0


async def test_the_feed_lane_has_a_limit_and_says_so() -> None:
    async with open_pool(pool_size=2, max_feed_connections=1) as pool, pool.connect(looped_mode=True) as feed:
        with pytest.raises(PoolException, match="main: max_feed_connections=1"):
            async with pool.connect(looped_mode=True):
                pass
        async with pool.connect() as lease:
            with pytest.raises(PoolException, match="max_feed_connections=1"):
                pool.release_to_looped(lease)
            assert lease.is_open()
        assert feed.is_open()
        assert pool.stats().leased == 0


async def test_the_feed_lane_that_filled_up_while_a_caller_waited_refuses_it_and_keeps_its_connection() -> None:
    async with open_pool(pool_size=1, max_feed_connections=1) as pool:
        lease = await pool.acquire()

        async def feed() -> None:
            async with pool.connect(looped_mode=True):
                await asyncio.sleep(10)

        feeds = [asyncio.create_task(feed()) for _ in range(2)]
        await turn()
        pool.release(lease)
        await turn()
        with pytest.raises(PoolException, match="max_feed_connections=1"):
            await feeds[1]
        await feeds[0]
        assert pool.stats().idle == 1


async def test_close_ends_feeds_at_once() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool, pool.connect(looped_mode=True) as feed:
        connector.connections[0].open_stream()
        await pool.close(timeout=60)
        assert asyncio.get_running_loop().time() == pytest.approx(0)
        assert not feed.is_open()


async def test_release_pool_counts_the_leases_of_feeds() -> None:
    async with open_pool(pool_size=1) as pool, pool.connect(looped_mode=True):
        with pytest.raises(PoolException, match="1 connection"):
            await pool.release_pool()
