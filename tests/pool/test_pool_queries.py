"""Queries of many on few connections: ``run()`` and ``stream()`` on the scripted connector and the virtual clock."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from async_repool import (
    AsyncConnectionPool,
    ConnectFailed,
    OutcomeUnknown,
    PoolClosed,
    PoolDeadlock,
    PoolException,
    PoolTimeout,
    TooManyWaiters,
)
from async_repool.errors import ConnectionLost, NotSent, QueryTimeout
from async_repool.testing import virtual_clock
from async_repool.testing.scripted import Behaviour, ScriptedConnection, ScriptedConnector, error, never, ok, slow
from pool_kit import acquire_soon, now, open_pool, run_soon, turn

pytestmark = pytest.mark.virtual_time

LONG = 100_000.0


def loads(connector: ScriptedConnector) -> list[int]:
    """How many queries are in progress on each open connection, in the order in which they were opened."""
    return [connection.in_flight for connection in connector.open_connections]


def terms(connection: ScriptedConnection) -> list[Any]:
    """What was run on a connection, in order."""
    return [query.term for query in connection.queries]


def terms_of_all(connector: ScriptedConnector) -> list[Any]:
    """The same, whatever the connection; sorted."""
    return sorted(term for connection in connector.connections for term in terms(connection))


async def finish(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel these and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def stream_to_the_end(pool: AsyncConnectionPool, query: Any = "a stream", **arguments: Any) -> list[Any]:
    async with pool.stream(query, **arguments) as rows:
        return [row async for row in rows]


async def run(pool: AsyncConnectionPool, **arguments: Any) -> object:
    return await pool.run("a query", **arguments)


async def stream(pool: AsyncConnectionPool, **arguments: Any) -> object:
    async with pool.stream("a query", **arguments):
        return None


async def follow(pool: AsyncConnectionPool, **arguments: Any) -> object:
    return await anext(pool.changes("a query", **arguments))


Call = Callable[..., Awaitable[object]]
either_call = pytest.mark.parametrize("call", [run, stream])
each_call = pytest.mark.parametrize("call", [run, stream, follow])


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


@each_call
def test_a_pool_of_another_event_loop_refuses(call: Call) -> None:
    pool = AsyncConnectionPool(ScriptedConnector(), name="main")
    loop = virtual_clock.VirtualClockLoop()
    loop.run_until_complete(pool.init_pool())

    async def elsewhere() -> None:
        with pytest.raises(PoolException, match="main: .* outside the event loop in which the pool was opened"):
            await call(pool)

    virtual_clock.run(elsewhere())
    loop.run_until_complete(pool.close())
    loop.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_pool_that_was_inherited_over_a_fork_refuses_queries_in_the_child() -> None:
    async def in_the_child(pool: AsyncConnectionPool) -> None:
        for call in (run, stream, follow):
            with pytest.raises(PoolException, match=r"main: .*inherited over fork\(\)"):
                await call(pool)

    async def parent() -> None:
        async with open_pool() as pool:
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    asyncio.events._set_running_loop(None)
                    virtual_clock.run(in_the_child(pool))
                    status = 0
                finally:
                    sys.stderr.flush()
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222
            assert await pool.run("a query") == {}

    virtual_clock.run(parent())


class LeasesOnly:
    """A connector that has no more than what leases need."""

    def __init__(self) -> None:
        self.scripted = ScriptedConnector()
        for verb in ("connect", "is_open", "on_lost", "has_streams", "wait_streams", "check", "close", "abort"):
            setattr(self, verb, getattr(self.scripted, verb))
        self.endpoint, self.connect_timeout = "leases:1", 20.0


@each_call
async def test_a_connector_that_runs_no_queries_says_so_and_still_leases(call: Call) -> None:
    connector: Any = LeasesOnly()
    async with AsyncConnectionPool(connector, 1, name="main") as pool:
        with pytest.raises(
            PoolException, match=r"main: .*needs a connector that runs queries, a QueryConnector.*acquire"
        ):
            await call(pool)
        async with pool.connect() as lease:
            assert lease.is_open()
    connector.scripted.assert_nothing_left()


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


# ---- growing


async def test_a_crowded_pool_grows() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(10))
    async with open_pool(connector, pool_size=3, min_size=1) as pool:
        tasks = [await run_soon(pool) for _ in range(2)]
        await asyncio.sleep(1)
        assert loads(connector) == [2], "not crowded yet"
        tasks.append(await run_soon(pool))
        await asyncio.sleep(1)
        assert len(loads(connector)) == 2
        tasks.append(await run_soon(pool))
        assert loads(connector) == [3, 1], "what is new is used"
        await asyncio.gather(*tasks)


async def test_a_crowded_pool_grows_to_pool_size_and_no_further() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=3, min_size=0) as pool:

        async def user() -> None:
            for _ in range(20):
                await pool.run("a query")

        await asyncio.gather(*(user() for _ in range(50)))
        assert (connector.max_open_or_connecting, len(connector.connections)) == (3, 3)


async def test_a_pool_that_is_not_crowded_does_not_grow_however_long_it_is_used() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=5, min_size=0) as pool:

        async def user() -> None:
            for _ in range(100):
                await pool.run("a query")

        await asyncio.gather(user(), user())
        assert len(connector.connections) == 1


async def test_a_pool_with_no_connection_opens_one_for_a_query() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=3, min_size=0) as pool:
        assert await pool.run("a query", timeout=5, db="heroes") == {"db": "heroes"}
        assert len(connector.connections) == 1


@pytest.mark.parametrize(("queries", "connections"), [(1, 1), (2, 1), (3, 2), (5, 3), (20, 4)])
async def test_a_pool_with_no_connection_opens_as_many_at_once_as_the_queries_in_line_need(
    queries: int, connections: int
) -> None:
    connector = ScriptedConnector()
    connector.connects.always(slow(1))
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=4, min_size=0) as pool:
        await asyncio.gather(*(pool.run("a query") for _ in range(queries)))
        assert connector.connects.max_in_progress == connections
        assert now() == pytest.approx(2)


async def test_thousands_of_queries_at_once_are_all_answered() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=3, min_size=0) as pool:
        answers = await asyncio.gather(*(pool.run("a query", number=number) for number in range(2_000)))
        assert answers == [{"number": number} for number in range(2_000)]
        assert max(connection.max_in_flight for connection in connector.connections) == 128


async def test_a_pool_that_has_grown_shrinks_when_the_crowd_is_gone() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=4, min_size=1, max_idle=60) as pool:
        await asyncio.gather(*(pool.run("a query") for _ in range(500)))
        assert pool.stats().size == 4
        for _ in range(100):
            await pool.run("a query")
        assert pool.stats().size == 1


@pytest.mark.parametrize("options", [{"min_size": 0}, {"min_size": 1}], ids=str)
async def test_the_pool_grows_for_a_query_that_finds_all_connections_full(options: dict[str, Any]) -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(LONG))
    async with open_pool(connector, pool_size=2, max_in_flight=1, **options) as pool:
        first = await run_soon(pool)
        assert await pool.run("a query", timeout=10) == {}
        assert now() < 1
        await finish([first])


@pytest.mark.parametrize("options", [{"min_size": 0}, {"min_size": 1}], ids=str)
@pytest.mark.parametrize("event", ["it was drained", "its time is up"])
async def test_the_pool_grows_for_a_query_where_a_connection_takes_no_new_ones(
    event: str, options: dict[str, Any]
) -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(LONG))
    async with open_pool(connector, pool_size=2, connection_ttl=100, **options) as pool:
        first = await run_soon(pool)
        if event == "it was drained":
            await pool.drain()
        else:
            await asyncio.sleep(101)
        began = now()
        assert await pool.run("a query", timeout=10) == {}
        assert now() - began < 1
        await finish([first])


async def test_the_pool_grows_for_a_query_while_a_connection_is_questioned() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(LONG), never())
    connector.checks.then(slow(4))
    async with open_pool(connector, pool_size=2, min_size=1) as pool:
        first = await run_soon(pool)
        with pytest.raises(QueryTimeout):
            await pool.run("a query", timeout=1)
        began = now()
        await pool.run("a query")
        assert now() - began < 1
        await finish([first])


@pytest.mark.parametrize("max_idle", [0, 1])
async def test_long_queries_do_not_make_the_pool_open_and_close_connections_again_and_again(max_idle: float) -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(300))
    async with open_pool(connector, pool_size=3, min_size=1, max_idle=max_idle) as pool:
        await asyncio.gather(*(pool.run("a query") for _ in range(10)))
        assert len(connector.connections) <= 3


async def test_queries_go_on_while_the_pool_cannot_grow() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=3, min_size=1) as pool:
        connector.connects.always(error(OSError("too many connections")))

        async def user() -> None:
            for _ in range(60):
                await pool.run("a query")

        await asyncio.gather(*(user() for _ in range(10)))
        assert now() == pytest.approx(60)
        assert connector.connects.failed_total < 60, "with pauses in between"
        connector.connects.always(ok())


# ---- first come, first served


async def test_leases_and_queries_are_served_in_the_order_in_which_they_came() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    served: list[Any] = []
    async with open_pool(connector, pool_size=1) as pool:

        async def lease(number: int) -> None:
            async with pool.connect():
                served.append(number)
                await asyncio.sleep(1)

        async def query(number: int) -> None:
            await pool.run(number)
            served.append(number)

        async with asyncio.TaskGroup() as group:
            for number, use in enumerate([lease, query, query, lease, query, lease, lease, query]):
                group.create_task(use(number))
                await turn()
        assert served == list(range(8))
        assert not connector.connections[0].has_mixed


async def test_a_lease_in_line_is_not_overtaken_by_later_queries() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=1) as pool:
        first = await run_soon(pool)
        leasing = await acquire_soon(pool)
        later = await run_soon(pool, "later")
        assert (pool.stats().queries_in_flight, pool.stats().queries_waiting) == (1, 1), "though there is room"
        lease = await leasing
        assert first.done()
        assert not later.done()
        pool.release(lease)
        await later


@pytest.mark.parametrize("how", ["cancelled", "out of time", "served"])
async def test_queries_behind_a_lease_go_on_at_once_when_it_is_out_of_the_way(how: str) -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(100))
    async with open_pool(connector, pool_size=2) as pool:
        lease = await pool.acquire()
        long = await run_soon(pool)
        leasing = await acquire_soon(pool, timeout=2 if how == "out of time" else None)
        behind = [await run_soon(pool) for _ in range(5)]
        await asyncio.sleep(1)
        assert pool.stats().queries_waiting == 5
        began = now()
        if how == "cancelled":
            leasing.cancel()
        elif how == "served":
            pool.release(lease)
        await asyncio.gather(*behind)
        assert now() - began == pytest.approx(1 if how == "out of time" else 0)
        if how == "served":
            lease = await leasing
        pool.release(lease)
        await finish([long])
        await asyncio.gather(leasing, return_exceptions=True)


async def test_queries_behind_a_feed_go_on_at_once_when_it_gives_up() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(100))
    async with open_pool(connector, pool_size=1) as pool:
        long = await run_soon(pool)
        feed = pool.changes("a feed")
        opening = asyncio.create_task(feed.__anext__())
        await turn()
        behind = await run_soon(pool)
        await asyncio.sleep(1)
        assert not behind.done()
        opening.cancel()
        await behind
        assert now() == pytest.approx(1)
        await finish([long])


async def test_a_feed_behind_a_query_goes_on_as_soon_as_another_feed_has_a_connection() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        lease = await pool.acquire()
        connector.connects.always(slow(15))
        feeds = [pool.changes(number) for number in range(2)]
        first = asyncio.create_task(feeds[0].__anext__())
        await turn()
        query = await run_soon(pool)
        second = asyncio.create_task(feeds[1].__anext__())
        await turn()
        connector.streams.always(never())
        pool.release(lease)  # the first feed takes the only connection to the lane; the query waits for another one
        await asyncio.sleep(1)
        assert (pool.stats().changefeeds, pool.stats().waiting) == (2, 1)
        query.cancel()
        await finish([first, second])


async def test_endless_queries_do_not_starve_a_lease() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    for pool_size in (1, 2):
        async with open_pool(connector, pool_size=pool_size) as pool:

            async def user() -> None:
                while True:
                    await pool.run("a query")

            users = []
            for _ in range(10):
                users.append(asyncio.create_task(user()))
                await asyncio.sleep(0.1)
            for _ in range(10):
                began = now()
                async with pool.connect():
                    assert now() - began < 1.2
            await finish(users)


async def test_endless_leases_do_not_starve_a_query() -> None:
    connector = ScriptedConnector()
    for pool_size in (1, 2):
        async with open_pool(connector, pool_size=pool_size) as pool:

            async def user() -> None:
                while True:
                    async with pool.connect():
                        await asyncio.sleep(1)

            users = [asyncio.create_task(user()) for _ in range(pool_size + 3)]
            await asyncio.sleep(0.5)
            for _ in range(10):
                began = now()
                await pool.run("a query")
                assert now() - began < 5, "as many leases as stood before it"
            await finish(users)


async def test_a_worker_that_leases_again_at_once_does_not_overtake_a_query_nor_the_other_way_round() -> None:
    connector = ScriptedConnector()
    turns: list[str] = []
    async with open_pool(connector, pool_size=1) as pool:

        async def leases() -> None:
            for _ in range(50):
                async with pool.connect():
                    turns.append("lease")
                    await asyncio.sleep(0)

        async def queries() -> None:
            for _ in range(50):
                await pool.run("a query")
                turns.append("query")

        await asyncio.gather(leases(), queries())
        assert turns == ["lease", "query"] * 50


# ---- limits of the line


async def test_queries_in_line_count_against_max_waiting() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, max_waiting=2) as pool:
        lease = await pool.acquire()
        waiting = [await run_soon(pool), await acquire_soon(pool)]
        for call in (run, stream, AsyncConnectionPool.acquire):
            with pytest.raises(TooManyWaiters, match="main: .* was refused, max_waiting=2 callers wait already"):
                await call(pool)
        assert pool.stats().refused_total == 3
        pool.release(lease)
        await waiting[0]
        pool.release(await waiting[1])


async def test_queries_that_find_a_place_at_once_do_not_count_against_max_waiting() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=1, max_waiting=1, max_in_flight=10) as pool:
        tasks = [await run_soon(pool) for _ in range(11)]
        with pytest.raises(TooManyWaiters):
            await pool.run("a query")
        await asyncio.gather(*tasks)


async def test_queries_that_a_connection_is_on_its_way_to_do_not_count_against_max_waiting() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2, min_size=0, max_waiting=1) as pool:
        connector.connects.always(slow(1))
        await asyncio.gather(*(pool.run("a query") for _ in range(20)))
        assert pool.stats().refused_total == 0


async def test_a_query_of_a_task_that_holds_the_only_lease_is_a_deadlock() -> None:
    async with open_pool(pool_size=1, debug=True) as pool, pool.connect():
        with pytest.raises(PoolDeadlock, match="main: deadlock"):
            await pool.run("a query")


# ---- checks


async def test_a_connection_is_checked_before_it_is_shared_and_not_for_each_query_on_it() -> None:
    connector = ScriptedConnector()
    checked: list[int] = []

    async def check(connection: ScriptedConnection) -> None:
        checked.append(connection.number)
        await asyncio.sleep(0.1)

    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=1, check=check) as pool:
        await asyncio.gather(*(pool.run("a query") for _ in range(20)))
        assert checked == [1]
        await pool.run("a query")
        assert checked == [1, 1]


async def test_a_connection_that_fails_its_check_carries_no_query() -> None:
    connector = ScriptedConnector()

    async def check(connection: ScriptedConnection) -> None:
        if connection.number == 1:
            raise OSError("unfit")

    async with open_pool(connector, pool_size=1, check=check) as pool:
        assert await pool.run("a query") == {}
        assert [len(connection.queries) for connection in connector.connections] == [0, 1]
        assert pool.stats().closed_by_reason == {"unfit": 1}


async def test_with_a_check_hook_queries_use_the_shared_connection_while_idle_ones_are_checked() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))

    async def check(connection: ScriptedConnection) -> None:
        await asyncio.sleep(0.1 if connection.number == 1 else 3)

    async with open_pool(connector, pool_size=2, check=check) as pool:
        first = await run_soon(pool)
        await asyncio.sleep(0.5)
        began = now()
        await pool.run("a query")
        assert now() - began == pytest.approx(1)
        await first


async def test_a_connection_unused_for_check_idle_is_checked_before_it_is_shared() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, check_idle=60) as pool:
        await asyncio.sleep(59)
        await pool.run("a query")
        assert connector.checks.started_total == 0
        await asyncio.sleep(61)
        connector.checks.then(error(OSError("gone")))
        await pool.run("a query")
        assert [len(connection.queries) for connection in connector.connections] == [1, 1]


async def test_vanished_peers_cost_a_query_one_bounded_check() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=3, check_idle=60, check_timeout=5) as pool:
        await asyncio.sleep(100)
        connector.checks.always(never())
        began = now()
        await pool.run("a query")
        assert now() - began == pytest.approx(5)
        assert len(connector.connections) > 3


async def test_a_connection_that_shared_queries_have_used_is_not_reset() -> None:
    reset: list[object] = []

    async def note(connection: object) -> None:
        reset.append(connection)

    async with open_pool(pool_size=1, reset=note) as pool:
        await pool.run("a query")
        async with pool.connect():
            assert reset == []
        await asyncio.sleep(1)
        assert len(reset) == 1


# ---- time-to-live, drain, closing


async def test_an_expired_connection_takes_no_new_query_and_is_closed_when_the_last_has_ended() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(200))
    async with open_pool(connector, pool_size=2, connection_ttl=100) as pool:
        long = await run_soon(pool)
        await asyncio.sleep(101)
        await asyncio.gather(*(pool.run("a query") for _ in range(10)))
        assert [len(connection.queries) for connection in connector.connections] == [1, 0, 10]
        assert connector.connections[0].is_open()
        await long
        await asyncio.sleep(1)
        assert connector.connections[0].ended_by == "close"
        assert pool.stats().closed_by_reason == {"expired": 2}


async def test_a_connection_without_a_time_to_live_is_shared_for_ever() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1000))
    async with open_pool(connector, pool_size=1, connection_ttl=0) as pool:

        async def user() -> None:
            for _ in range(100):
                await pool.run("a query")

        await asyncio.gather(user(), user())
        assert len(connector.connections) == 1


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


async def test_close_waits_for_queries_and_they_get_their_answers() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(3, ok("one")), slow(5, ok("two")))
    async with open_pool(connector, pool_size=1) as pool:
        tasks = [await run_soon(pool) for _ in range(2)]
        report = await pool.close(timeout=10)
        assert [task.result() for task in tasks] == ["one", "two"]
        assert (report.queries_waited_for, report.queries_aborted) == (2, 0)
        assert report.seconds == pytest.approx(5)
        assert connector.connections[0].ended_by == "close"


@pytest.mark.parametrize("retry", [False, True])
async def test_close_aborts_queries_that_take_too_long_and_their_outcome_is_unknown(retry: bool) -> None:
    connector = ScriptedConnector()
    connector.queries.then(never(), never(), slow(1, ok("in time")))
    async with open_pool(connector, pool_size=2) as pool:
        tasks = [await run_soon(pool, retry=retry) for _ in range(3)]
        report = await pool.close(timeout=4)
        assert now() == pytest.approx(4)
        assert (report.queries_waited_for, report.queries_aborted) == (3, 2)
        await turn()
        for task in tasks[:2]:
            assert isinstance(task.exception(), OutcomeUnknown)
        assert tasks[2].result() == "in time"


async def test_close_refuses_the_queries_that_wait_and_each_gets_an_error_of_its_own() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(2))
    async with open_pool(connector, pool_size=1, max_in_flight=1) as pool:
        tasks = [await run_soon(pool, number) for number in range(4)]
        await pool.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [dict, PoolClosed, PoolClosed, PoolClosed]
        assert len({id(outcome) for outcome in outcomes}) == 4
        assert terms(connector.connections[0]) == [0]


async def test_a_query_whose_turn_comes_as_the_pool_closes_is_answered_or_refused() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1, ok("answered")))
    async with open_pool(connector, pool_size=1) as pool:
        lease = await pool.acquire()
        query = await run_soon(pool)
        pool.release(lease)
        await pool.close()
        assert await query == "answered"


async def test_release_pool_refuses_while_queries_are_under_way_and_changes_nothing() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(2, ok("answered")))
    async with open_pool(connector, pool_size=2) as pool:
        tasks = [await run_soon(pool) for _ in range(3)]
        with pytest.raises(PoolException, match=r"main: release_pool\(\) .*3 queries are under way"):
            await pool.release_pool()
        assert [*await asyncio.gather(*tasks), await pool.run("a query")] == ["answered"] * 4
        await pool.release_pool()
        assert repr(pool) == "<AsyncConnectionPool 'main' closed>"


async def test_queries_that_wait_as_release_pool_closes_the_pool_are_refused() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, min_size=0) as pool:
        connector.connects.always(never())
        query = await run_soon(pool)
        await pool.release_pool()
        with pytest.raises(PoolClosed):
            await query


# ---- lost


async def test_each_query_on_a_connection_that_is_lost_is_told_and_none_is_repeated() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(10))
    async with open_pool(connector, pool_size=2) as pool:
        tasks = [await run_soon(pool, number) for number in range(6)]
        await asyncio.sleep(1)
        connector.drop(connector.connections[0])
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        lost = [outcome for outcome in outcomes if isinstance(outcome, ConnectionLost)]
        assert (len(lost), outcomes.count({})) == (3, 3)
        assert len({id(outcome) for outcome in lost}) == 3, "each its own"
        assert terms_of_all(connector) == list(range(6))
        stats = pool.stats()
        assert (stats.queries_done_total, stats.queries_lost_total, stats.queries_stopped_total) == (3, 3, 0)


async def test_the_error_of_a_lost_query_says_what_to_do() -> None:
    connector = ScriptedConnector()
    connector.queries.always(never())
    async with open_pool(connector, pool_size=1) as pool:
        task = await run_soon(pool)
        connector.drop(connector.connections[0])
        with pytest.raises(
            ConnectionLost,
            match="main: .*may have been done or not.* Repeat it if that does no harm; retry=True does so",
        ) as caught:
            await task
        assert isinstance(caught.value, OutcomeUnknown)
        assert isinstance(caught.value, ConnectionError)
        assert isinstance(caught.value.__cause__, ConnectionResetError)


@either_call
async def test_a_lost_query_that_may_be_retried_is_run_elsewhere(call: Call) -> None:
    connector = ScriptedConnector()
    connector.queries.then(never(), ok(5))
    connector.streams.then(never(), ok([]))
    async with open_pool(connector, pool_size=1) as pool:
        task = asyncio.ensure_future(call(pool, retry=True))
        await asyncio.sleep(1)
        connector.drop(connector.connections[0])
        await task
        assert [len(connection.queries) for connection in connector.connections] == [1, 1]
        stats = pool.stats()
        assert (stats.queries_done_total, stats.queries_lost_total) == (1, 0)


async def test_a_query_is_retried_a_few_times_and_then_lost() -> None:
    connector = ScriptedConnector()
    connector.queries.always(error(ConnectionLost("reset by peer")))
    async with open_pool(connector, pool_size=1) as pool:
        with pytest.raises(ConnectionLost, match="reset by peer"):
            await pool.run("a query", retry=True)
        assert connector.queries.started_total == 5
        assert pool.stats().queries_lost_total == 1


async def test_a_lost_query_whose_retry_times_out_has_an_unknown_outcome() -> None:
    connector = ScriptedConnector()
    connector.queries.always(never())
    async with open_pool(connector, pool_size=2) as pool:
        task = await run_soon(pool, retry=True, timeout=5)
        connector.drop(connector.connections[0])
        with pytest.raises(QueryTimeout):
            await task
        assert now() == pytest.approx(5)


@pytest.mark.parametrize("why", ["outage", "no place in time", "closed", "connections that end"])
async def test_a_query_that_was_sent_once_is_never_said_to_be_never_sent(why: str) -> None:
    connector = ScriptedConnector()
    connector.queries.then(never())
    async with open_pool(connector, pool_size=1, acquire_timeout=5) as pool:
        task = await run_soon(pool, retry=True)
        leasing = await acquire_soon(pool) if why == "no place in time" else None
        if why == "outage":
            connector.connects.always(error(OSError("refused")))
        elif why == "connections that end":
            connector.queries.always(error(NotSent("ended before that")))
        connector.drop(connector.connections[0])
        if why == "closed":
            await pool.close(timeout=0)
        with pytest.raises(OutcomeUnknown):
            await task
        connector.connects.always(ok())
        if leasing is not None:
            pool.release(await leasing)


async def test_a_query_that_could_not_be_sent_is_run_elsewhere_and_nobody_knows() -> None:
    connector = ScriptedConnector()
    connector.queries.then(error(NotSent("ended")), error(NotSent("ended")), ok("an answer"))
    async with open_pool(connector, pool_size=3) as pool:
        assert await pool.run("a query") == "an answer"
        stats = pool.stats()
        assert (stats.queries_done_total, stats.queries_lost_total, stats.idle) == (1, 0, 3)


async def test_a_query_on_a_connection_that_had_died_unnoticed_is_run_on_another() -> None:
    class Late(ScriptedConnector):
        """Learns of a loss only when it sends something."""

        def is_open(self, connection: ScriptedConnection, /) -> bool:
            return connection.ended_by is None

    connector = Late()
    async with open_pool(connector, pool_size=2) as pool:
        connector.drop(connector.connections[0], is_told=False)
        assert [await pool.run("a query", number=number) for number in range(4)] == [{"number": n} for n in range(4)]
        assert connector.connections[0].queries == []


@either_call
async def test_a_query_that_nobody_takes_is_given_up_after_a_few_connections(call: Call) -> None:
    connector = ScriptedConnector()
    connector.queries.always(error(NotSent("broken pipe")))
    connector.streams.always(error(NotSent("broken pipe")))
    async with open_pool(connector, pool_size=3) as pool:
        with pytest.raises(
            ConnectFailed, match="main: a query was never sent: 5 connections to scripted:28015 .*broken pipe"
        ) as caught:
            await call(pool)
        assert not isinstance(caught.value, OutcomeUnknown)
        assert isinstance(caught.value.__cause__, NotSent)
        assert connector.queries.started_total + connector.streams.started_total == 5
        stats = pool.stats()
        assert (stats.queries_done_total, stats.queries_lost_total, stats.queries_in_flight) == (0, 0, 0)


async def test_a_lost_connection_takes_no_new_query_while_its_queries_are_not_told_yet() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=2) as pool:
        tasks = [await run_soon(pool) for _ in range(4)]
        connector.drop(connector.connections[0])
        await asyncio.gather(*(pool.run("new") for _ in range(5)))
        await asyncio.gather(*tasks, return_exceptions=True)
        assert "new" not in terms(connector.connections[0])


async def test_a_shared_connection_that_is_lost_is_replaced() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=2) as pool:
        tasks = [await run_soon(pool) for _ in range(4)]
        connector.drop(connector.connections[0])
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(1)
        assert (pool.stats().idle, pool.stats().closed_by_reason) == (2, {"broken": 1})


@pytest.mark.parametrize("use", ["query", "lease"])
async def test_a_connection_that_is_found_broken_is_replaced_though_nobody_was_told(use: str) -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2) as pool:
        await asyncio.sleep(5)
        connector.drop(connector.connections[0], is_told=False)
        if use == "query":
            await pool.run("a query")
        else:
            async with pool.connect():
                pass
        await asyncio.sleep(10)
        assert pool.stats().idle == 2, "min_size connections are kept open"


# ---- a query that times out puts its connection in question


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


# ---- outages


async def test_queries_wait_for_the_end_of_an_outage() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2, acquire_timeout=60) as pool:
        connector.connects.always(error(OSError("refused")))
        for connection in connector.open_connections:
            connector.drop(connection)
        await asyncio.sleep(1)
        tasks = [await run_soon(pool, number=number) for number in range(50)]
        await asyncio.sleep(20)
        assert pool.stats().queries_waiting == 50
        connector.connects.always(ok())
        assert await asyncio.gather(*tasks) == [{"number": number} for number in range(50)]
        assert now() < 27, "one pause of the back-off later"


async def test_a_query_whose_time_is_up_in_an_outage_is_told_why() -> None:
    connector = ScriptedConnector(endpoint="db1:28015")
    async with open_pool(connector, pool_size=1, acquire_timeout=10) as pool:
        connector.connects.always(error(OSError("connection refused")))
        connector.drop(connector.connections[0])
        await asyncio.sleep(1)
        for timeout, at in ((None, 11), (5, 16)):
            with pytest.raises(
                ConnectFailed, match="main: a query was never sent, .*db1:28015.*connection refused"
            ) as c:
                await pool.run("a query", timeout=timeout)
            assert now() == pytest.approx(at)
            assert isinstance(c.value.__cause__, OSError)
            assert not isinstance(c.value, OutcomeUnknown)
        connector.connects.always(ok())


@each_call
async def test_a_refusal_for_good_is_told_at_once(call: Call) -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        connector.connects.always(error(ConnectFailed("wrong password", is_permanent=True)))
        connector.drop(connector.connections[0])
        began = now()
        with pytest.raises(ConnectFailed) as caught:
            await call(pool)
        assert caught.value.is_permanent
        assert now() - began < 1
        connector.connects.always(ok())


async def test_queries_do_not_call_a_server_more_often_that_is_away() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=3, acquire_timeout=1) as pool:
        connector.connects.always(error(OSError("refused")))
        for connection in connector.open_connections:
            connector.drop(connection)

        async def user() -> None:
            while now() < 60:
                with contextlib.suppress(ConnectFailed):
                    await pool.run("a query")

        await asyncio.gather(*(user() for _ in range(20)))
        assert connector.connects.failed_total < 60
        connector.connects.always(ok())


# ---- what the pool tells


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


# ---- stream


async def test_a_stream_gives_rows_as_they_come_until_the_last() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector) as pool:
        read: list[tuple[int, float]] = []
        async with pool.stream("a stream", db="heroes") as rows:
            sent = connector.opened_streams[0]
            assert sent.query == ("a stream", {"db": "heroes"})
            asyncio.get_running_loop().call_later(1, sent.send, 1, 2)
            asyncio.get_running_loop().call_later(2, sent.send, 3)
            asyncio.get_running_loop().call_later(3, sent.end)
            async for row in rows:
                read.append((row, now()))
        assert read == [(1, 1), (2, 1), (3, 2)]
        assert not sent.is_closed, "there was nothing to stop"
        assert (pool.stats().queries_done_total, pool.stats().queries_stopped_total) == (1, 0)


@pytest.mark.parametrize("how", ["break", "error", "cancelled", "not read"])
async def test_a_stream_that_is_left_early_is_stopped(how: str) -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:

        async def read() -> None:
            async with pool.stream("a stream") as rows:
                connector.opened_streams[0].send(1, 2, 3)
                if how == "not read":
                    return
                async for row in rows:
                    if how == "break":
                        break
                    if how == "error":
                        raise LookupError(row)

        reading = asyncio.create_task(read())
        await asyncio.sleep(1)
        reading.cancel()
        await asyncio.wait([reading])
        assert connector.opened_streams[0].is_closed
        assert reading.cancelled() == (how == "cancelled")
        assert (reading.cancelled() or type(reading.exception())) == {
            "cancelled": True,
            "error": LookupError,
        }.get(how, type(None))
        assert (pool.stats().queries_done_total, pool.stats().queries_stopped_total) == (0, 1)
        assert pool.stats().idle == 1


async def test_the_totals_only_grow_when_a_stream_is_left_early() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        await pool.run("a query")
        async with pool.stream("a stream"):
            before = pool.stats()
        after = pool.stats()
        assert after.queries_done_total >= before.queries_done_total
        assert after.queries_stopped_total >= before.queries_stopped_total


async def test_a_stream_that_fails_raises_what_the_server_said_after_its_rows() -> None:
    connector = ScriptedConnector()
    refused = LookupError("table dropped")
    async with open_pool(connector) as pool:
        read = []
        with pytest.raises(LookupError) as caught:
            async with pool.stream("a stream") as rows:
                connector.opened_streams[0].send(1, 2)
                connector.opened_streams[0].fail(refused)
                async for row in rows:
                    read.append(row)
        assert caught.value is refused
        assert read == [1, 2]


async def test_a_stream_whose_connection_is_lost_says_so_after_its_rows() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        read = []
        with pytest.raises(ConnectionLost):
            async with pool.stream("a stream", retry=True) as rows:
                connector.opened_streams[0].send(1, 2)
                connector.drop(connector.connections[0])
                async for row in rows:
                    read.append(row)
        assert read == [1, 2]
        assert len(connector.opened_streams) == 1, "rows that were read cannot be read again unnoticed"
        stats = pool.stats()
        assert (stats.queries_done_total, stats.queries_stopped_total, stats.queries_lost_total) == (0, 0, 1)
        assert await pool.run("a query") == {}


async def test_a_query_that_is_no_sequence_is_no_stream_and_leaks_nothing() -> None:
    connector = ScriptedConnector()
    connector.streams.then(ok(5))
    async with open_pool(connector, pool_size=1) as pool:
        with pytest.raises(TypeError):
            await stream_to_the_end(pool)
        assert (pool.stats().idle, connector.opened_streams) == (1, [])


async def test_a_stream_context_is_for_one_reader_at_a_time_and_may_be_used_again() -> None:
    connector = ScriptedConnector()
    connector.streams.always(ok([1, 2]))
    async with open_pool(connector) as pool:
        context = pool.stream("a stream")
        async with context as rows:
            with pytest.raises(PoolException, match=r"main: .*entered again while it is in use; call stream\(\)"):
                await context.__aenter__()
            assert [row async for row in rows] == [1, 2]
        async with context as rows:
            assert [row async for row in rows] == [1, 2]
        assert len(connector.opened_streams) == 2


async def test_a_stream_context_that_is_being_entered_is_in_use_too() -> None:
    connector = ScriptedConnector()
    connector.streams.always(slow(1))
    async with open_pool(connector) as pool:
        context = pool.stream("a stream")
        entering = asyncio.create_task(context.__aenter__())
        await turn()
        with pytest.raises(PoolException, match="entered again while it is in use"):
            await context.__aenter__()
        await entering
        await context.__aexit__(None, None, None)
        assert connector.open_streams == []


async def test_a_stream_context_whose_entry_failed_may_be_entered_again() -> None:
    connector = ScriptedConnector()
    connector.streams.then(error(LookupError("not yet")), never(), ok([1]))
    async with open_pool(connector) as pool:
        context = pool.stream("a stream", timeout=5)
        with pytest.raises(LookupError):
            await context.__aenter__()
        with pytest.raises(QueryTimeout):
            await context.__aenter__()
        async with context as rows:
            assert [row async for row in rows] == [1]


async def test_a_stream_that_is_dropped_without_leaving_its_context_is_stopped() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector) as pool:
        context = pool.stream("a stream")
        await context.__aenter__()
        del context
        gc.collect()
        assert connector.opened_streams[0].is_closed


async def test_while_a_stream_is_read_its_connection_serves_others() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool, pool.stream("a stream") as rows:
        connector.opened_streams[0].send(1)
        assert (pool.stats().idle, pool.stats().queries_in_flight) == (1, 0)
        assert await pool.run("a query") == {}
        async with pool.connect() as lease:
            assert await lease._start("of a lease") == {}
            async with asyncio.timeout(1):
                assert await anext(aiter(rows)) == 1
        async with pool.stream("another") as others:
            connector.opened_streams[1].send(2)
            assert await anext(aiter(others)) == 2
        assert len(connector.connections) == 1


async def test_a_stream_on_a_connection_that_is_drained_is_read_on_and_costs_no_capacity() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, cursor_grace=60) as pool, pool.stream("a stream") as rows:
        await pool.drain()
        assert (pool.stats().retired, pool.stats().idle) == (1, 1)
        assert await pool.run("a query") == {}
        await asyncio.sleep(50)
        connector.opened_streams[0].send(1)
        connector.opened_streams[0].end()
        assert [row async for row in rows] == [1]
        await asyncio.sleep(1)
        assert connector.connections[0].ended_by == "close"
        assert pool.stats().retired == 0


async def test_a_stream_on_a_connection_whose_time_is_up_is_read_on_for_its_grace() -> None:
    connector = ScriptedConnector()
    options = {"pool_size": 1, "connection_ttl": 100, "cursor_grace": 60}
    async with open_pool(connector, **options) as pool, pool.stream("a stream") as rows:
        await asyncio.sleep(101)
        assert await pool.run("a query") == {}
        assert [len(connection.queries) for connection in connector.connections] == [1, 1]
        began = now()
        with pytest.raises(ConnectionLost):
            await anext(aiter(rows))
        assert now() - began == pytest.approx(60)


@pytest.mark.parametrize("ends_after", [3, None])
async def test_close_waits_for_the_reader_of_a_stream(ends_after: float | None) -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool, pool.stream("a stream") as rows:
        connector.opened_streams[0].send(1)
        if ends_after is not None:
            asyncio.get_running_loop().call_later(ends_after, connector.opened_streams[0].end)
        await pool.close(timeout=10)
        assert now() == pytest.approx(ends_after or 10)
        assert await anext(aiter(rows)) == 1
        with pytest.raises(StopAsyncIteration if ends_after else ConnectionLost):
            await anext(aiter(rows))


async def test_a_stream_is_left_after_its_pool_was_closed() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        async with pool.stream("a stream"):
            await pool.close(timeout=1)
            await pool.init_pool()
        assert pool.stats().idle == 1


async def test_what_is_opening_a_stream_counts_as_a_query() -> None:
    connector = ScriptedConnector()
    connector.streams.always(slow(1))
    async with open_pool(connector, pool_size=1, max_in_flight=2) as pool:
        tasks = [asyncio.create_task(stream(pool)) for _ in range(3)]
        await turn()
        assert (pool.stats().queries_in_flight, pool.stats().queries_waiting) == (2, 1)
        await asyncio.gather(*tasks)
        assert connector.connections[0].max_in_flight == 2


# ---- everything at once


class Answering(ScriptedConnector):
    """Answers each query with itself, after a while, or with a fault."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.dice = dice
        self.is_faulty = True
        self.sent: Counter[Any] = Counter()

    def play(self, connection: ScriptedConnection, query: Any, answer: Any) -> Behaviour:
        chance = self.dice.random() if self.is_faulty else 1.0
        if chance < 0.03 or not connection.is_open():
            return error(NotSent("ended"))
        self.sent[query] += 1
        if chance < 0.05:
            return never()
        if chance < 0.07:
            return error(LookupError(answer))
        return slow(self.dice.random(), ok(answer))

    async def run(self, connection: ScriptedConnection, query: Any, options: dict[str, Any], /) -> Any:
        self.queries.then(self.play(connection, query, query))
        return await super().run(connection, query, options)

    async def open_stream(self, connection: ScriptedConnection, query: Any, options: dict[str, Any], /) -> Any:
        self.streams.then(self.play(connection, query, [query] * 3))
        return await super().open_stream(connection, query, options)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [
        {"pool_size": 1, "max_in_flight": 3},
        {"pool_size": 3, "min_size": 0, "connection_ttl": 7, "max_idle": 3},
        {"pool_size": 4, "max_in_flight": 2, "ping_interval": 2, "check_idle": 1},
    ],
    ids=str,
)
async def test_whatever_is_mixed_every_answer_is_the_right_one_and_nobody_starves(
    seed: int, options: dict[str, Any]
) -> None:
    dice = random.Random(seed)
    connector = Answering(dice)
    outcomes: Counter[str] = Counter()
    retried: set[str] = set()
    async with open_pool(connector, acquire_timeout=None, **options) as pool:

        async def use(name: str) -> None:
            for number in range(12):
                query = f"{name}.{number}"
                kind = dice.choice(["run", "run", "retried", "impatient", "stream", "lease", "pause"])
                retried.update([query] if kind == "retried" else [])
                try:
                    if kind == "stream":
                        async with pool.stream(query, timeout=5) as rows:
                            assert [row async for row in rows] == [query] * 3
                    elif kind == "lease":
                        async with pool.connect():
                            await asyncio.sleep(dice.random())
                    elif kind == "pause":
                        await asyncio.sleep(dice.random() * 3)
                    else:
                        timeout = 0.5 if kind == "impatient" else 20
                        assert await pool.run(query, timeout=timeout, retry=kind == "retried") == query
                    outcomes["done"] += 1
                except (LookupError, OutcomeUnknown, PoolTimeout, ConnectFailed) as failure:
                    outcomes[type(failure).__name__] += 1

        async def spoil() -> None:
            while True:
                await asyncio.sleep(dice.random() * 4)
                fault = dice.choice(["drop", "drop untold", "drain", "cancel", "refuse"])
                if fault == "drain":
                    with contextlib.suppress(ConnectFailed):
                        await pool.drain()
                elif fault == "cancel":
                    users[dice.randrange(len(users))].cancel()
                elif fault == "refuse":
                    connector.connects.then(error(OSError("refused")), slow(1))
                elif connector.open_connections:
                    connector.drop(dice.choice(connector.open_connections), is_told=fault == "drop")

        users = [asyncio.create_task(use(str(number))) for number in range(12)]
        spoiling = asyncio.create_task(spoil())
        async with asyncio.timeout(1000):
            results = await asyncio.gather(*users, return_exceptions=True)
        await finish([spoiling])
        assert not [result for result in results if isinstance(result, Exception)]
        assert outcomes["done"] > 20
        assert not any(connection.has_mixed for connection in connector.connections)
        assert max(c.max_in_flight for c in connector.connections) <= options.get("max_in_flight", 128)
        assert {query for query, times in connector.sent.items() if times > 1} <= retried
        connector.is_faulty = False
        await asyncio.sleep(100)
        stats = pool.stats()
        assert (stats.leased, stats.shared, stats.waiting, stats.queries_in_flight) == (0, 0, 0, 0)
        while connector.connects.unused:
            with contextlib.suppress(ConnectFailed):
                await pool.drain()
            with contextlib.suppress(ConnectFailed):
                await pool.run("at the end", timeout=10)
            await asyncio.sleep(1)
        assert await pool.run("at the end", timeout=10) == "at the end"
