"""Running queries: answers, time limits, cancellation, and which connection carries them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, OutcomeUnknown, PoolClosed, PoolTimeout
from async_repool.errors import QueryTimeout
from async_repool.testing.scripted import ScriptedConnector, error, never, ok, slow
from pool_kit import (
    LONG,
    Call,
    each_call,
    either_call,
    finish,
    loads,
    now,
    open_pool,
    run,
    run_soon,
    stream,
    terms,
    turn,
)

pytestmark = pytest.mark.virtual_time


# ---- run


async def test_run_returns_the_value_of_the_query() -> None:
    connector = ScriptedConnector()
    connector.queries.then(ok(5), ok(None), ok([1, 2, 3]))
    async with open_pool(connector) as pool:
        assert await pool.run("a query") == 5
        assert await pool.run("a query") is None
        assert await pool.run("a query") == [1, 2, 3]


@pytest.mark.parametrize("own", [{}, {"timeout": 5}, {"retry": True}, {"timeout": 5, "retry": True}], ids=str)
async def test_options_are_passed_on_and_those_of_the_pool_are_not(own: dict[str, Any]) -> None:
    connector = ScriptedConnector()
    options: dict[str, Any] = {"db": "heroes", "noreply": True, "time_format": "raw"}
    async with open_pool(connector, pool_size=1) as pool:
        assert await pool.run("a query", **own, **options) == options
        async with pool.stream("a stream", **own, **options):
            assert connector.connections[0].queries == [("a query", options), ("a stream", options)]


@either_call
async def test_an_error_of_the_driver_is_raised_as_it_is_and_its_place_is_free(call: Call) -> None:
    connector = ScriptedConnector()
    refused = LookupError("no such table")
    connector.queries.always(error(refused))
    connector.streams.always(error(refused))
    async with open_pool(connector, pool_size=1) as pool:
        for arguments in ({}, {"timeout": 5}, {"retry": True}):
            with pytest.raises(LookupError) as caught:
                await call(pool, **arguments)
            assert caught.value is refused
        stats = pool.stats()
        assert (stats.idle, stats.queries_in_flight, stats.queries_done_total) == (1, 0, 3), "the server has answered"
        assert len(connector.connections[0].queries) == 3, "none was repeated"


@pytest.mark.parametrize("timeout", [None, 5])
async def test_a_timeout_error_of_the_driver_is_not_taken_for_the_callers_own(timeout: float | None) -> None:
    connector = ScriptedConnector()
    expired = TimeoutError("of the driver")
    connector.queries.then(error(expired))
    async with open_pool(connector) as pool:
        with pytest.raises(TimeoutError) as caught:
            await pool.run("a query", timeout=timeout)
        assert caught.value is expired
        assert (pool.stats().queries_done_total, pool.stats().queries_stopped_total) == (1, 0)
        assert connector.checks.started_total == 0


async def test_a_query_is_waited_for_as_long_as_it_takes() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(LONG, ok(1)))
    async with open_pool(connector, acquire_timeout=1) as pool:
        assert await pool.run("a query") == 1
        assert now() == pytest.approx(LONG)


# ---- time is up


@either_call
async def test_a_query_without_an_answer_in_time_is_stopped_and_its_outcome_is_unknown(call: Call) -> None:
    connector = ScriptedConnector(endpoint="db1:28015")
    connector.queries.then(never())
    connector.streams.then(never())
    async with open_pool(connector, pool_size=1) as pool:
        with pytest.raises(QueryTimeout) as caught:
            await call(pool, timeout=7)
        assert now() == pytest.approx(7)
        assert isinstance(caught.value, TimeoutError)
        assert isinstance(caught.value, OutcomeUnknown)
        assert not isinstance(caught.value, PoolTimeout), "which says that it was never sent"
        assert str(caught.value) == (
            "main: a query had no answer from db1:28015 within 7 s, and was stopped; it may have been done or not"
        )
        assert connector.queries.cancelled_total + connector.streams.cancelled_total == 1
        assert (pool.stats().queries_in_flight, pool.stats().queries_stopped_total) == (0, 1)


@either_call
async def test_the_timeout_bounds_the_wait_in_line_too_and_then_the_query_was_never_sent(call: Call) -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, acquire_timeout=None) as pool:
        lease = await pool.acquire()
        with pytest.raises(
            PoolTimeout, match=r"main: a query was never sent, .*scripted:28015 after waiting 3.0 s"
        ) as c:
            await call(pool, timeout=3)
        assert now() == pytest.approx(3)
        assert not isinstance(c.value, OutcomeUnknown)
        pool.release(lease)
        await asyncio.sleep(1)
        assert connector.connections[0].queries == []
        stats = pool.stats()
        assert (stats.timeouts_total, stats.queries_stopped_total, stats.queries_waiting) == (1, 0, 0)


@either_call
@pytest.mark.parametrize("timeout", [None, 50])
async def test_acquire_timeout_bounds_the_wait_in_line(call: Call, timeout: float | None) -> None:
    async with open_pool(pool_size=1, acquire_timeout=4) as pool:
        lease = await pool.acquire()
        with pytest.raises(PoolTimeout):
            await call(pool, timeout=timeout)
        assert now() == pytest.approx(4)
        pool.release(lease)


async def test_the_time_in_line_counts_as_time_of_the_query() -> None:
    connector = ScriptedConnector()
    connector.queries.then(never())
    async with open_pool(connector, pool_size=1) as pool:
        lease = await pool.acquire()
        asyncio.get_running_loop().call_later(3, pool.release, lease)
        with pytest.raises(QueryTimeout):
            await pool.run("a query", timeout=5)
        assert now() == pytest.approx(5)


async def test_an_answer_in_time_leaves_nothing_to_go_off_later() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(4, ok("an answer")), slow(4, ok("another")))
    async with open_pool(connector, pool_size=1) as pool:
        assert await pool.run("a query", timeout=5) == "an answer"
        assert await pool.run("a query", timeout=None) == "another"
        await asyncio.sleep(100)
        assert connector.checks.started_total == 0


async def test_others_on_the_connection_do_not_notice_a_query_that_times_out() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(20, ok("slow")), never())
    async with open_pool(connector, pool_size=1) as pool:
        other = await run_soon(pool)
        with pytest.raises(QueryTimeout):
            await pool.run("a query", timeout=5)
        assert await other == "slow"
        assert now() == pytest.approx(20)
        assert len(connector.connections) == 1


@pytest.mark.parametrize("timeout", ["1", -1, float("nan"), float("inf"), True])
@pytest.mark.parametrize("is_leased", [False, True])
async def test_a_bad_timeout_is_refused_and_nothing_is_sent(timeout: Any, is_leased: bool) -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        lease = await pool.acquire() if is_leased else None
        for call in (run, stream):
            with pytest.raises((TypeError, ValueError), match="timeout must be"):
                await call(pool, timeout=timeout)
        assert connector.connections[0].queries == []
        if lease is not None:
            pool.release(lease)


# ---- cancelled


async def test_a_query_that_is_cancelled_is_stopped_and_nobody_else_notices() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(9, ok("first")), never(), slow(9, ok("last")))
    async with open_pool(connector, pool_size=1) as pool:
        first, cancelled, last = [await run_soon(pool) for _ in range(3)]
        await asyncio.sleep(1)
        cancelled.cancel()
        await turn()
        assert cancelled.cancelled()
        assert (connector.queries.cancelled_total, pool.stats().queries_in_flight) == (1, 2)
        assert (await first, await last) == ("first", "last")
        stats = pool.stats()
        assert (stats.queries_done_total, stats.queries_stopped_total, stats.queries_lost_total) == (2, 1, 0)
        assert (connector.checks.started_total, len(connector.connections)) == (0, 1)


async def test_the_place_of_a_cancelled_query_goes_to_the_next_in_line() -> None:
    connector = ScriptedConnector()
    connector.queries.then(never(), ok("served"))
    async with open_pool(connector, pool_size=1, max_in_flight=1) as pool:
        first, next_in_line = await run_soon(pool), await run_soon(pool)
        first.cancel()
        assert await next_in_line == "served"
        assert now() == 0


async def test_each_place_that_becomes_free_goes_to_the_next_in_line() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(100), slow(1), slow(1))
    async with open_pool(connector, pool_size=1, max_in_flight=2) as pool:
        long = await run_soon(pool)
        await asyncio.gather(*(pool.run("a query") for _ in range(3)))
        assert now() == pytest.approx(2)
        assert not long.done()
        await finish([long])


async def test_a_caller_that_is_cancelled_in_line_leaves_the_order_of_the_others_alone() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=1, max_in_flight=1) as pool:
        waiting = [await run_soon(pool, number) for number in range(6)]
        for number in (2, 4):
            waiting[number].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert terms(connector.connections[0]) == [0, 1, 3, 5]
        assert (pool.stats().cancelled_total, pool.stats().queries_stopped_total) == (2, 0), "they were never sent"


async def test_a_caller_that_is_cancelled_as_its_turn_comes_passes_its_place_on() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=1) as pool:
        lease = await pool.acquire()
        first, second = await run_soon(pool, 1), await run_soon(pool, 2)
        pool.release(lease)  # a place is handed to each, though neither has run yet …
        first.cancel()  # … and the first never will
        await second
        assert first.cancelled()
        assert terms(connector.connections[0]) == [2]
        assert pool.stats().idle == 1


async def test_the_only_caller_that_is_cancelled_as_its_turn_comes_leaves_an_idle_connection() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        lease = await pool.acquire()
        caller = await run_soon(pool)
        pool.release(lease)
        caller.cancel()
        await turn()
        assert (pool.stats().idle, pool.stats().shared, pool.stats().queries_in_flight) == (1, 0, 0)
        assert connector.connections[0].queries == []


# ---- where the pool cannot be used


@each_call
async def test_a_pool_that_is_not_open_yet_refuses_as_acquire_does(call: Call) -> None:
    pool = AsyncConnectionPool(ScriptedConnector(), name="main")
    with pytest.raises(PoolClosed, match=r"main: .* on a pool that is not open yet; await init_pool\(\)"):
        await call(pool)


@each_call
async def test_a_closed_pool_refuses_and_may_be_opened_again(call: Call) -> None:
    connector = ScriptedConnector()
    connector.streams.always(ok([]))
    async with open_pool(connector) as pool:
        await pool.close()
        with pytest.raises(PoolClosed, match=r"main: .* on a closed pool; init_pool\(\) opens it again"):
            await call(pool)
        await pool.init_pool()
        assert await pool.run("a query") == {}


@each_call
async def test_a_pool_that_is_closing_refuses(call: Call) -> None:
    async with open_pool() as pool:
        lease = await pool.acquire()
        closing = asyncio.create_task(pool.close())
        await turn()
        with pytest.raises(PoolClosed, match="main: .* while the pool is closing"):
            await call(pool)
        pool.release(lease)
        await closing


@each_call
async def test_a_pool_that_is_being_opened_refuses(call: Call) -> None:
    connector = ScriptedConnector()
    connector.connects.always(slow(1))
    pool = AsyncConnectionPool(connector, name="main")
    opening = asyncio.create_task(pool.init_pool())
    await turn()
    with pytest.raises(PoolClosed, match=r"main: .* while init_pool\(\) is still opening"):
        await call(pool)
    await opening
    await pool.close()


# ---- which connection


async def test_a_connection_carries_max_in_flight_queries_and_not_one_more() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=1, max_in_flight=3) as pool:
        tasks = [await run_soon(pool) for _ in range(7)]
        assert (loads(connector), pool.stats().queries_waiting) == ([3], 4)
        await asyncio.gather(*tasks)
        assert now() == pytest.approx(3)
        assert connector.connections[0].max_in_flight == 3


async def test_by_default_a_connection_carries_128_queries() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=1) as pool:
        await asyncio.gather(*(pool.run("a query") for _ in range(200)))
        assert connector.connections[0].max_in_flight == 128
        assert now() == pytest.approx(2)


async def test_idle_connections_are_used_before_busy_ones() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=3) as pool:
        tasks = [await run_soon(pool) for _ in range(3)]
        assert loads(connector) == [1, 1, 1]
        await asyncio.gather(*tasks)


async def test_queries_are_spread_evenly() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=3) as pool:
        await asyncio.gather(*(pool.run("a query") for _ in range(30)))
        assert [connection.max_in_flight for connection in connector.connections] == [10, 10, 10]


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_the_least_loaded_connection_takes_the_query(which: int) -> None:
    connector = ScriptedConnector()
    connector.queries.always(never())
    async with open_pool(connector, pool_size=3) as pool:
        tasks = [await run_soon(pool, number) for number in range(9)]
        assert loads(connector) == [3, 3, 3]
        for number in terms(connector.connections[which])[:2]:
            tasks[number].cancel()
        await turn()
        expected = [3, 3, 3]
        for load in (2, 3):
            tasks.append(await run_soon(pool, "the next"))
            expected[which] = load
            assert loads(connector) == expected
        await finish(tasks)


async def test_a_leased_connection_is_not_shared() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=2) as pool:
        async with pool.connect() as lease:
            query = lease._start("of the lease")
            await asyncio.gather(query, *(pool.run("a query") for _ in range(10)))
        assert not any(connection.has_mixed for connection in connector.connections)
        assert sorted(connection.max_in_flight for connection in connector.connections) == [1, 10]


async def test_a_shared_connection_is_not_leased_before_its_queries_have_ended() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(2), slow(5))
    async with open_pool(connector, pool_size=1) as pool:
        tasks = [await run_soon(pool) for _ in range(2)]
        async with pool.connect():
            assert now() == pytest.approx(5)
        await asyncio.gather(*tasks)


async def test_a_connection_whose_queries_have_ended_is_idle_and_may_be_leased() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        await asyncio.gather(*(pool.run("a query") for _ in range(5)))
        assert (pool.stats().idle, pool.stats().shared) == (1, 0)
        lease = await pool.acquire(timeout=0)
        pool.release(lease)
        assert len(connector.connections) == 1
