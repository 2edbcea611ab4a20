"""Queries whose connection is lost: told, repeated where that is allowed, never said to be unsent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from async_repool import ConnectFailed, OutcomeUnknown
from async_repool.errors import ConnectionLost, NotSent, QueryTimeout
from async_repool.testing.scripted import ScriptedConnection, ScriptedConnector, error, never, ok, slow
from pool_kit import Call, acquire_soon, either_call, now, open_pool, run_soon, terms

pytestmark = pytest.mark.virtual_time


def terms_of_all(connector: ScriptedConnector) -> list[Any]:
    """The same, whatever the connection; sorted."""
    return sorted(term for connection in connector.connections for term in terms(connection))


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
        with pytest.raises(ConnectionLost, match="reset by peer") as caught:
            await pool.run("a query", retry=True)
        assert "retry=True does so" not in str(caught.value), "it is no advice for this caller"
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


async def test_a_lost_query_that_may_be_retried_is_not_run_again_if_the_pool_was_closed_and_opened_again() -> None:
    connector = ScriptedConnector()
    connector.queries.then(never())
    async with open_pool(connector, pool_size=1) as pool:
        task = await run_soon(pool, retry=True)
        await pool.close(timeout=1)
        await pool.init_pool()
        with pytest.raises(OutcomeUnknown):
            await task
        assert [len(connection.queries) for connection in connector.connections] == [1, 0]


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
