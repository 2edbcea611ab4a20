"""Streams of rows: read to the end, left early, failed, and while the pool drains or closes."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, PoolException
from async_repool.errors import ConnectionLost, QueryTimeout
from async_repool.testing.scripted import ScriptedConnector, error, never, ok, slow
from pool_kit import now, open_pool, stream, turn

pytestmark = pytest.mark.virtual_time


async def stream_to_the_end(pool: AsyncConnectionPool, query: Any = "a stream", **arguments: Any) -> list[Any]:
    async with pool.stream(query, **arguments) as rows:
        return [row async for row in rows]


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
        await turn()
        assert connector.opened_streams[0].is_closed
        assert pool.stats().queries_stopped_total == 1


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
