"""Draining: new connections take the place of all that were open."""

from __future__ import annotations

import asyncio

import pytest

from async_repool import ConnectFailed, FeedGap
from async_repool.testing.scripted import ScriptedConnector, error, ok, slow
from pool_kit import acquire_soon, feeding, finish, newest, now, number, open_pool, opened, run_soon, stop, terms

pytestmark = [pytest.mark.virtual_time, pytest.mark.usefixtures("repeatable")]


# ---- leases


async def test_drain_replaces_idle_connections_now_and_leased_ones_when_they_come_home() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector) as pool:
        lease = await pool.acquire()
        await pool.drain()
        assert [connection.number for connection in connector.open_connections] == [3, 4, 5]
        assert lease.is_open()
        pool.release(lease)
        await asyncio.sleep(1)
        assert [connection.number for connection in connector.open_connections] == [4, 5, 6]
        assert pool.stats().closed_by_reason == {"drained": 3}


async def test_drain_raises_where_the_new_connections_cannot_be_opened_and_the_pool_goes_on_trying() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector) as pool:
        refused = OSError("refused")
        connector.connects.then(error(refused), error(refused), error(refused))
        with pytest.raises(ConnectFailed, match=r"drain\(\).*refused") as caught:
            await pool.drain()
        assert caught.value.__cause__ is refused
        await asyncio.sleep(60)
        assert pool.stats().idle == 3


async def test_drain_serves_who_waits_with_new_connections() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        lease = await pool.acquire()
        waiting = await acquire_soon(pool)
        await pool.drain()
        pool.release(lease)
        lease = await waiting
        assert number(lease) == 2
        pool.release(lease)


async def test_drain_ends_if_leases_close_their_connections_again_and_again() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=4) as pool:
        connector.connects.always(slow(1))

        async def user(delay: float) -> None:
            await asyncio.sleep(delay)
            while True:
                async with pool.connect() as lease:
                    await asyncio.sleep(0.1)
                    await lease.close()  # as after a server that hangs up

        users = [asyncio.create_task(user(number * 0.3)) for number in range(4)]
        await asyncio.sleep(5)
        async with asyncio.timeout(100):
            await pool.drain()
        await finish(users)


# ---- queries


async def test_drain_lets_queries_end_and_gives_new_ones_a_new_connection() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(10, ok("old")), slow(20, ok("old")))
    async with open_pool(connector, pool_size=3) as pool:
        old = [await run_soon(pool) for _ in range(2)]
        await pool.drain()
        assert await pool.run("new", db="new") == {"db": "new"}
        assert "new" in terms(connector.connections[-1])
        assert await asyncio.gather(*old) == ["old", "old"]
        await asyncio.sleep(1)
        assert pool.stats().closed_by_reason == {"drained": 3}
        assert {connection.ended_by for connection in connector.connections[:3]} == {"close"}


async def test_drain_does_not_wait_for_queries() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(1000))
    async with open_pool(connector, pool_size=2) as pool:
        long = await run_soon(pool)
        await pool.drain()
        assert now() == 0
        await finish([long])


# ---- feeds


async def test_feeds_stay_on_a_drained_connection_and_new_ones_go_to_a_new_one() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, max_feed_connections=1) as pool:
        old = [await opened(pool) for _ in range(2)]
        await pool.drain()
        new = await opened(pool)
        assert newest(connector).connection is not connector.opened_streams[0].connection, "though the lane is full"
        connector.opened_streams[0].send(1)
        assert await anext(old[0]) == 1
        await stop(*old)
        await asyncio.sleep(1)
        assert connector.connections[0].ended_by == "close"
        assert pool.stats().closed_by_reason["drained"] == 2
        assert pool.stats().changefeeds == 1
        await stop(new)


async def test_a_drained_connection_of_the_lane_that_is_lost_moves_its_feeds() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool)
        await pool.drain()
        connector.drop(connector.connections[0])
        assert isinstance(await anext(changes), FeedGap)
        assert pool.stats().feeds == 1
        await stop(changes)


# ---- in an outage


async def test_drain_in_an_outage_says_that_there_is_one() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2) as pool:
        connector.connects.always(error(OSError("down")))
        connector.drop(connector.connections[0])
        await asyncio.sleep(20)
        with pytest.raises(ConnectFailed, match=r"drain\(\)"):
            await pool.drain()
        connector.connects.always(ok())


async def test_drain_in_an_outage_counts_a_connection_that_is_being_pinged_among_those_that_are_open() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2, min_size=1, ping_interval=30) as pool:
        async with pool.connect():
            connector.connects.always(error(OSError("down")))
            with pytest.raises(ConnectFailed):
                await pool.acquire(timeout=1)
        connector.connects.always(ok())
        ping = connector.checks.hold()
        await ping.wait_entered()
        await pool.drain()  # raises nothing: min_size connections are open, and this one is replaced after its ping
        ping.release()
        await asyncio.sleep(1)
        assert [connection.number for connection in connector.open_connections] == [2]
