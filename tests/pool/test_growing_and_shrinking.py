"""How many connections there are: growing, shrinking, and the time to live of each."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from async_repool.errors import QueryTimeout
from async_repool.testing.scripted import ScriptedConnector, error, never, ok, slow
from pool_kit import LONG, acquire_soon, finish, loads, now, number, open_pool, run_soon, turn

pytestmark = pytest.mark.virtual_time


# ---- growing and shrinking


async def test_growing_opens_no_more_than_there_are_callers() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=10, min_size=0) as pool:
        leases = await asyncio.gather(*(pool.acquire() for _ in range(4)))
        assert connector.max_open_or_connecting == 4
        for lease in leases:
            pool.release(lease)
        for lease in await asyncio.gather(*(pool.acquire() for _ in range(4))):
            pool.release(lease)
        assert len(connector.connections) == 4


async def test_growing_stops_at_pool_size() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=3, min_size=1) as pool:

        async def user() -> None:
            async with pool.connect():
                await asyncio.sleep(1)

        await asyncio.gather(*(user() for _ in range(50)))
        assert connector.max_open_or_connecting == 3


@pytest.mark.parametrize("first", ["a new connection", "a released one"])
async def test_growth_serves_whoever_has_waited_longest(first: str) -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2, min_size=1) as pool:
        lease = await pool.acquire()
        opening = connector.connects.hold()
        oldest, next_one = await acquire_soon(pool), await acquire_soon(pool)
        if first == "a new connection":
            opening.release()
        else:
            pool.release(lease)
        await turn()
        assert (oldest.done(), next_one.done()) == (True, False)
        assert number(await oldest) == (2 if first == "a new connection" else 1)
        opening.release()
        if first == "a new connection":
            pool.release(lease)
        pool.release(await next_one)
        pool.release(await oldest)


async def test_a_cancelled_callers_half_opened_connection_serves_the_next_one() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, min_size=0) as pool:
        connector.connects.then(slow(10))
        first = await acquire_soon(pool)
        await asyncio.sleep(9)
        first.cancel()
        began = asyncio.get_running_loop().time()
        async with pool.connect():
            assert asyncio.get_running_loop().time() - began == pytest.approx(1)
        assert connector.connects.started_total == 1


async def test_shrinking_works_under_light_steady_traffic() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=8, min_size=2, max_idle=600, connection_ttl=0) as pool:
        for lease in await asyncio.gather(*(pool.acquire() for _ in range(8))):
            pool.release(lease)
        for _ in range(700):
            async with pool.connect():
                await asyncio.sleep(0.5)
            await asyncio.sleep(0.5)
        stats = pool.stats()
        assert (stats.size, stats.closed_by_reason) == (2, {"surplus": 6})


async def test_a_pool_that_is_not_used_shrinks_by_itself_max_idle_after_the_peak() -> None:
    async with open_pool(pool_size=5, min_size=1, max_idle=60) as pool:
        await asyncio.sleep(1000)
        for lease in await asyncio.gather(*(pool.acquire() for _ in range(5))):
            pool.release(lease)
        await asyncio.sleep(59)
        assert pool.stats().size == 5
        await asyncio.sleep(1.1)
        assert pool.stats().size == 1


async def test_a_pool_of_fixed_size_never_shrinks() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=3, max_idle=1, connection_ttl=0) as pool:
        await asyncio.sleep(86_400)
        assert (pool.stats().size, len(connector.connections)) == (3, 3)


async def test_surplus_is_closed_in_time_beside_a_later_alarm() -> None:
    async with open_pool(pool_size=4, min_size=0, max_idle=60, leak_threshold=3600) as pool:
        leases = [await pool.acquire() for _ in range(3)]
        await asyncio.sleep(1)
        for lease in leases:
            pool.release(lease)
        await asyncio.sleep(62)
        assert pool.stats().size == 0


# ---- growing for queries


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


# ---- time to live


async def test_time_to_live_counts_from_opening_also_for_a_busy_connection() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, connection_ttl=100) as pool:
        numbers = []
        for _ in range(30):
            async with pool.connect() as lease:
                numbers.append(number(lease))
                await asyncio.sleep(10)
        assert numbers[:9] == [1] * 9
        assert numbers[11] == 2
        assert numbers[-1] == 3


async def test_an_expired_connection_is_replaced_when_it_is_asked_for_and_not_before() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, connection_ttl=100) as pool:
        await asyncio.sleep(1000)
        assert len(connector.connections) == 3
        async with pool.connect() as lease:
            assert number(lease) > 3
        assert pool.stats().closed_by_reason == {"expired": 3}


async def test_connections_that_were_opened_at_once_do_not_expire_at_once() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=20, connection_ttl=1000) as pool:
        replaced_at = set()
        for _ in range(1100):
            leases = [await pool.acquire() for _ in range(20)]
            replaced_at |= {connection.opened_at for connection in connector.connections[20:]}
            for lease in leases:
                pool.release(lease)
            await asyncio.sleep(1)
        assert len(replaced_at) > 10
        assert min(replaced_at) >= 950
        assert max(replaced_at) <= 1002


@pytest.mark.parametrize("ttl", [0, None])
async def test_no_time_to_live_means_for_ever(ttl: float | None) -> None:
    async with open_pool(pool_size=1, connection_ttl=ttl) as pool:
        await asyncio.sleep(86_400 * 30)
        async with pool.connect() as lease:
            assert number(lease) == 1


async def test_an_expired_connection_takes_no_new_query_and_is_closed_when_the_last_has_ended() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(200))
    async with open_pool(connector, pool_size=2, connection_ttl=100) as pool:
        long = await run_soon(pool)
        await asyncio.sleep(101)
        await asyncio.gather(*(pool.run("a query") for _ in range(10)))
        assert [len(connection.queries) for connection in connector.connections] == [0, 1, 10]
        assert connector.connections[1].is_open()
        await long
        await asyncio.sleep(1)
        assert connector.connections[1].ended_by == "close"
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
