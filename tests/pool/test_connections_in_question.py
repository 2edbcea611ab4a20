"""A query or feed that times out puts its connection in question."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from async_repool import FeedGap
from async_repool.errors import ConnectionLost, QueryTimeout
from async_repool.testing.scripted import ScriptedConnection, ScriptedConnector, error, feed, never, ok, slow
from pool_kit import feeding, finish, is_whole, newest, now, open_pool, opened, read_soon, run_soon, stop, turn

pytestmark = [pytest.mark.virtual_time, pytest.mark.usefixtures("repeatable")]


# ---- queries


async def test_a_dead_connection_is_discarded_when_a_query_on_it_times_out_and_the_others_are_told() -> None:
    connector = ScriptedConnector()
    connector.queries.always(never())
    connector.checks.always(never())
    async with open_pool(connector, pool_size=1, check_timeout=5) as pool:
        others = [await run_soon(pool) for _ in range(3)]
        with pytest.raises(QueryTimeout):
            await pool.run("a query", timeout=10)
        outcomes = await asyncio.gather(*others, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ConnectionLost] * 3
        assert now() == pytest.approx(15), "and not after the hours that TCP may take"
        connector.checks.always(ok())
        connector.queries.always(ok(1))
        assert await pool.run("a query") == 1
        assert connector.connections[0].ended_by == "abort"
        assert pool.stats().closed_by_reason == {"unfit": 1}


async def test_a_dead_connection_is_discarded_when_its_only_query_times_out() -> None:
    connector = ScriptedConnector()
    connector.queries.then(never())
    connector.checks.then(error(OSError("no route to host")))
    async with open_pool(connector, pool_size=1) as pool:
        with pytest.raises(QueryTimeout):
            await pool.run("a query", timeout=10)
        assert await pool.run("a query") == {}
        assert [connection.ended_by for connection in connector.connections] == ["abort", None]


async def test_a_connection_that_passes_its_check_after_a_timeout_is_kept() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(20, ok("slow")), never())
    async with open_pool(connector, pool_size=1) as pool:
        other = await run_soon(pool)
        with pytest.raises(QueryTimeout):
            await pool.run("a query", timeout=5)
        await turn()
        assert connector.checks.succeeded_total == 1
        assert await pool.run("a query") == {}
        assert (await other, len(connector.connections)) == ("slow", 1)


async def test_a_connection_in_question_takes_no_new_queries_and_then_those_that_waited() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(20), never())
    held = connector.checks.hold()
    async with open_pool(connector, pool_size=1) as pool:
        other = await run_soon(pool)
        with pytest.raises(QueryTimeout):
            await pool.run("a query", timeout=5)
        waiting = [await run_soon(pool) for _ in range(3)]
        assert (pool.stats().queries_waiting, pool.stats().queries_in_flight) == (3, 1), "the check is no query"
        held.release()
        await asyncio.gather(*waiting)
        assert now() == pytest.approx(5)
        await other


async def test_many_timeouts_at_once_ask_once() -> None:
    connector = ScriptedConnector()
    connector.queries.always(never())
    connector.checks.then(slow(1))
    async with open_pool(connector, pool_size=1) as pool:
        tasks = [await run_soon(pool, timeout=5) for _ in range(50)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {QueryTimeout}
        await asyncio.sleep(2)
        assert connector.checks.started_total == 1
        assert pool.stats().idle == 1


async def test_a_connection_in_question_is_not_leased() -> None:
    connector = ScriptedConnector()
    connector.queries.then(never())
    connector.checks.then(slow(3))
    async with open_pool(connector, pool_size=1) as pool:
        with pytest.raises(QueryTimeout):
            await pool.run("a query", timeout=5)
        async with pool.connect():
            assert now() == pytest.approx(8)


async def test_when_a_connection_in_question_is_dead_its_idle_siblings_are_checked() -> None:
    connector = ScriptedConnector()
    connector.queries.then(never())
    connector.checks.then(error(OSError("dead")))
    async with open_pool(connector, pool_size=3) as pool:
        with pytest.raises(QueryTimeout):
            await pool.run("a query", timeout=5)
        await asyncio.sleep(1)
        assert connector.checks.started_total >= 3


@pytest.mark.parametrize("event", ["drain", "close", "drop", "expire"])
async def test_whatever_happens_to_a_connection_in_question_it_ends_once(event: str) -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(30), never())
    connector.checks.then(slow(4))
    async with open_pool(connector, pool_size=1, connection_ttl=8 if event == "expire" else 0) as pool:
        other = await run_soon(pool)
        with pytest.raises(QueryTimeout):
            await pool.run("a query", timeout=5)
        if event == "drain":
            await pool.drain()
        elif event == "close":
            await pool.close(timeout=2)
            assert now() == pytest.approx(7)
            assert type(other.exception()) is ConnectionLost
            return
        elif event == "drop":
            connector.drop(connector.connections[0])
        else:
            await asyncio.sleep(4)
        await asyncio.gather(other, return_exceptions=True)
        await asyncio.sleep(10)
        assert await pool.run("a query") == {}
        assert [connection.is_open() for connection in connector.connections] == [False, True]


# ---- feeds


async def test_a_dead_connection_of_the_lane_is_not_used_for_feed_after_feed() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, connect_timeout=5, check_timeout=5) as pool:
        changes = await opened(pool)
        reading = await read_soon(changes)
        await asyncio.sleep(1)

        class Vanished(ScriptedConnection):
            """What it is sent goes nowhere."""

        play, dead = connector.open_stream, connector.connections[0]

        async def open_stream(connection: ScriptedConnection, query: Any, options: dict[str, Any], /) -> Any:
            if connection is dead:
                await asyncio.get_running_loop().create_future()
            return await play(connection, query, options)

        connector.open_stream = open_stream  # type: ignore[method-assign]
        connector.checks.always(never())
        with pytest.raises(QueryTimeout):
            await anext(pool.changes("another"))
        await asyncio.sleep(10)
        third = await opened(pool, "a third")
        assert pool.stats().changefeeds >= 1
        assert not dead.is_open(), "as with a query that had no answer, its connection is in question"
        assert isinstance(await reading, FeedGap)
        await stop(changes, third)


async def test_feeds_that_come_while_the_only_connection_of_the_lane_is_in_question_wait_for_it() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, max_feed_connections=1) as pool:
        changes = await opened(pool)
        await asyncio.sleep(1)
        connector.streams.then(never())
        connector.checks.then(slow(3))
        with pytest.raises(QueryTimeout):
            await anext(pool.changes("a slow one", timeout=2))
        other = await opened(pool)
        assert now() == pytest.approx(6)
        assert (pool.stats().feeds, pool.stats().changefeeds) == (1, 2)
        newest(connector).send(1)
        assert await anext(other) == 1
        await stop(changes, other)
        assert await is_whole(pool)


@pytest.mark.parametrize("event", ["drop", "close", "drain"])
async def test_whatever_happens_to_a_connection_of_the_lane_in_question_it_ends_once(event: str) -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool)
        await asyncio.sleep(1)
        connector.streams.then(never())
        connector.checks.then(slow(4))
        with pytest.raises(QueryTimeout):
            await anext(pool.changes("a slow one", timeout=2))
        await asyncio.sleep(1)
        if event == "drop":
            connector.drop(connector.connections[0])
            assert isinstance(await anext(changes), FeedGap)
        elif event == "close":
            await pool.close()
            await pool.init_pool()
        else:
            await pool.drain()
        await asyncio.sleep(10)
        await stop(changes)
        gc.collect()  # an error that nobody has taken is told now
        assert await is_whole(pool)
        assert connector.connections[0].ended_by is not None


async def test_the_lane_has_no_more_than_max_feed_connections_while_one_is_in_question() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=3, max_feed_connections=1) as pool:
        opening = connector.streams.hold()
        feeds = [pool.changes("slow", timeout=100)]
        reads = [await read_soon(feeds[0])]  # is being opened on the first connection
        connector.streams.then(never())
        feeds.append(pool.changes("late", timeout=1))
        reads.append(await read_soon(feeds[1]))  # beside it
        connector.checks.always(slow(3))
        connector.streams.always(feed())
        await asyncio.sleep(1.5)  # the connection is in question now
        feeds.append(pool.changes("another"))
        reads.append(await read_soon(feeds[2]))
        opening.release(feed())
        await turn()
        assert pool.stats().feeds <= 1
        await finish(reads)
        await stop(*feeds)


async def test_a_feed_that_waits_for_a_connection_in_question_keeps_no_lease_from_an_idle_one() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=2, max_feed_connections=1) as pool:
        first = await opened(pool)
        connector.streams.then(never())
        connector.checks.always(slow(4))
        with pytest.raises(QueryTimeout):
            await anext(pool.changes("late", timeout=1))  # the connection of the lane is in question for 4 s
        other = pool.changes("another")
        reading = await read_soon(other)
        assert pool.stats().idle > 0
        async with pool.connect(timeout=1):
            pass
        await finish([reading])
        await stop(first, other)
