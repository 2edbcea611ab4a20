"""The observer is given an event for whatever happens, and can harm nobody."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, ConnectFailed, PoolTimeout, TooManyWaiters, events
from async_repool.errors import ConnectionLost, FeedLaneFull, QueryTimeout
from async_repool.testing.scripted import ScriptedConnection, ScriptedConnector, error, never, ok, slow
from pool_kit import acquire_soon, feeding, finish, open_pool, run_soon, turn, warnings_of

pytestmark = [pytest.mark.virtual_time, pytest.mark.usefixtures("repeatable")]

SERVER = "scripted:28015"


def of(seen: list[events.Event], *kinds: type[events.Event]) -> list[events.Event]:
    return [event for event in seen if isinstance(event, kinds)]


async def test_it_is_given_the_life_of_a_connection() -> None:
    seen: list[events.Event] = []
    connector = ScriptedConnector()
    connector.connects.always(slow(2))
    async with open_pool(connector, pool_size=1, observer=seen.append):
        await asyncio.sleep(10)
    assert seen == [
        events.ConnectionOpened("main", 1, SERVER, 2.0),
        events.ConnectionClosed("main", 1, SERVER, 10.0, "pool closed", False),
    ]


async def test_it_is_given_checks_and_resets_with_their_outcome() -> None:
    seen: list[events.Event] = []
    unfit = OSError("unfit")

    async def check(connection: ScriptedConnection) -> None:
        await asyncio.sleep(1)
        if connection.number == 1:
            raise unfit

    async def reset(connection: ScriptedConnection) -> None:
        await asyncio.sleep(2)

    async with open_pool(pool_size=1, check=check, reset=reset, observer=seen.append) as pool:
        async with pool.connect():
            pass
        await asyncio.sleep(3)
    assert of(seen, events.ConnectionChecked) == [
        events.ConnectionChecked("main", 1, SERVER, 1.0, False, unfit),
        events.ConnectionChecked("main", 2, SERVER, 1.0, False, None),
        events.ConnectionChecked("main", 2, SERVER, 2.0, True, None),
    ]
    assert of(seen, events.ConnectionClosed)[0] == events.ConnectionClosed("main", 1, SERVER, 1.0, "unfit", False)


async def test_it_is_given_leases_with_the_time_that_they_waited_and_were_held() -> None:
    seen: list[events.Event] = []
    async with open_pool(pool_size=1, observer=seen.append) as pool:
        lease = await pool.acquire()
        waiting = await acquire_soon(pool)
        await asyncio.sleep(3)
        pool.release(lease)
        lease = await waiting
        await asyncio.sleep(5)
        pool.release(lease)
    assert of(seen, events.CallerServed, events.LeaseReturned) == [
        events.CallerServed("main", "lease", 0.0, 1),
        events.LeaseReturned("main", 1, 3.0),
        events.CallerServed("main", "lease", 3.0, 1),
        events.LeaseReturned("main", 1, 5.0),
    ]


async def test_it_is_given_callers_that_were_refused_or_gave_up() -> None:
    seen: list[events.Event] = []
    async with open_pool(pool_size=1, max_waiting=1, observer=seen.append) as pool, pool.connect():
        leaving = await acquire_soon(pool)
        with pytest.raises(TooManyWaiters):
            await pool.run("a query")
        await asyncio.sleep(1)
        leaving.cancel()
        await turn()
        task = asyncio.create_task(pool.acquire(timeout=2))
        with pytest.raises(PoolTimeout):
            await task
    assert of(seen, events.CallerRefused, events.CallerGone) == [
        events.CallerRefused("main", "query", 0.0, "too many waiters"),
        events.CallerGone("main", "lease", 1.0),
        events.CallerRefused("main", "lease", 2.0, "timed out"),
    ]


async def test_it_is_given_each_caller_that_a_full_feed_lane_refuses() -> None:
    seen: list[events.Event] = []
    async with open_pool(feeding(), pool_size=1, max_feed_connections=0, observer=seen.append) as pool:
        with pytest.raises(FeedLaneFull):
            await pool.connect(looped_mode=True).__aenter__()
        with pytest.raises(FeedLaneFull):
            await anext(pool.changes("a feed"))
    assert of(seen, events.CallerRefused) == [events.CallerRefused("main", "feed", 0.0, "lane full")] * 2


async def test_it_is_given_one_return_for_each_lease_that_was_served() -> None:
    seen: list[events.Event] = []
    async with open_pool(pool_size=2, observer=seen.append) as pool:
        leases = [await pool.acquire() for _ in range(2)]
        cancelled = await acquire_soon(pool)
        pool.release(leases[0])
        await finish([cancelled])
        async with pool.connect():
            pass
        await pool.close(timeout=1)  # it aborts the other lease
        pool.release(leases[1])
        served = of(seen, events.CallerServed)
        assert len(served) == len(of(seen, events.LeaseReturned)) == pool.stats().acquired_total


async def test_it_is_given_how_queries_and_streams_ended() -> None:
    seen: list[events.Event] = []
    connector = ScriptedConnector()
    wrong = ValueError("wrong")
    connector.queries.then(slow(1), error(wrong), never(), never(), never())
    connector.streams.always(ok([1, 2]))
    async with open_pool(connector, pool_size=1, observer=seen.append) as pool:
        await pool.run("answered")
        with pytest.raises(ValueError, match="wrong"):
            await pool.run("refused")
        with pytest.raises(QueryTimeout) as late:
            await pool.run("late", timeout=2)
        await asyncio.sleep(1)
        cancelled = await run_soon(pool)
        cancelled.cancel()
        await turn()
        lost = await run_soon(pool)
        connector.drop(connector.open_connections[0])
        with pytest.raises(ConnectionLost):
            await lost
        async with pool.stream("read to its end") as stream:
            assert [row async for row in stream] == [1, 2]
    done, refused, timed_out, stopped, was_lost, read = of(seen, events.QueryEvent)
    assert done == events.QueryDone("main", 1, 1.0, None)
    assert refused == events.QueryDone("main", 1, 0.0, wrong)
    assert timed_out == events.QueryStopped("main", 1, 2.0, late.value)
    assert stopped == events.QueryStopped("main", 1, 0.0, None)
    assert isinstance(was_lost, events.QueryLost)
    assert isinstance(was_lost.error, ConnectionLost)
    assert read == events.QueryDone("main", 2, 0.0, None)


async def test_it_is_given_the_beginning_and_the_end_of_an_outage_and_each_attempt() -> None:
    seen: list[events.Event] = []
    connector = ScriptedConnector()
    down = OSError("down")
    async with open_pool(connector, pool_size=1, min_size=0, observer=seen.append) as pool:
        connector.connects.always(error(down))
        with pytest.raises(ConnectFailed):
            await pool.acquire(timeout=10)
        connector.connects.always(ok())
        async with pool.connect():
            await asyncio.sleep(2)
    attempts = of(seen, events.ConnectionFailed)
    assert len(attempts) == pool.stats().connect_failures_total > 3
    assert attempts[0] == events.ConnectionFailed("main", 1, SERVER, 0.0, down)
    began, ended = of(seen, events.OutageBegan, events.OutageEnded)
    assert began == events.OutageBegan("main", SERVER, down)
    assert isinstance(ended, events.OutageEnded)
    assert ended.seconds >= 10
    (refused,) = of(seen, events.CallerRefused)
    assert refused == events.CallerRefused("main", "lease", 10.0, "unreachable")


async def test_one_that_raises_is_logged_once_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: events.Event) -> None:
        raise RuntimeError("broken observer")

    async with open_pool(pool_size=2, observer=broken) as pool:
        for _ in range(5):
            async with pool.connect():
                await pool.run("a query")
    (text,) = [text for text in warnings_of(caplog) if "observer" in text]
    assert text.startswith("main: the observer raised, which is logged once; given ConnectionOpened(")


async def test_one_that_uses_the_pool_itself_finds_it_whole() -> None:
    pools: list[AsyncConnectionPool] = []
    sizes: set[int] = set()

    def nosy(event: events.Event) -> None:
        for pool in pools:
            sizes.add(pool.stats().size)
            assert repr(pool)

    async with open_pool(pool_size=2, observer=nosy) as pool:
        pools.append(pool)
        await asyncio.gather(*(pool.run("a query") for _ in range(10)))
        await pool.drain()
    assert max(sizes) == 2


@pytest.mark.parametrize("value", [7, "print", []])
def test_an_observer_must_be_callable(value: Any) -> None:
    with pytest.raises(TypeError, match="observer must be a callable or None, not"):
        AsyncConnectionPool(ScriptedConnector(), observer=value)
