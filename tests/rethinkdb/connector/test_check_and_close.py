"""How the RethinkDB connector checks, closes and aborts a connection, and what it tells the pool."""

from __future__ import annotations

import asyncio

import pytest
from rethinkdb.errors import ReqlDriverError

from async_repool.connectors.rethinkdb import R, RethinkDBConnector
from async_repool.testing import StandInServer
from connection_kit import connected, connector_to, open_client_sockets, turns
from scripted_server import NOREPLY_WAIT, SERVER_INFO, SERVER_INFO_ANSWER, WAIT_COMPLETE, ScriptedServer


async def test_check_asks_the_server_who_it_is(url: str) -> None:
    connector = RethinkDBConnector(url=url)
    async with connected(connector) as connection:
        assert await connector.check(connection) is None


async def test_a_cancelled_check_leaves_the_connection_usable(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    async with connected(connector) as connection:
        peer = await scripted.peer()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await connector.check(connection)
        token, query = await peer.request()
        assert query == [SERVER_INFO]
        peer.answer(token, SERVER_INFO_ANSWER, {"id": "late"})
        second = asyncio.create_task(connector.check(connection))
        token, query = await peer.request()
        assert query == [SERVER_INFO], "a SERVER_INFO cannot be stopped, only waited out"
        peer.answer(token, SERVER_INFO_ANSWER, {"id": "in time"})
        await second
        assert connector.is_open(connection)


async def test_check_raises_where_the_server_is_another_one(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    async with connected(connector) as connection:
        peer = await scripted.peer()

        async def be(server_id: str) -> None:
            token, _ = await peer.request()
            peer.answer(token, SERVER_INFO_ANSWER, {"id": server_id})

        for _ in range(2):
            await asyncio.gather(connector.check(connection), be("first"))
        with pytest.raises(ReqlDriverError, match="is another one now: second, not first"):
            await asyncio.gather(connector.check(connection), be("second"))


async def test_check_raises_when_the_peer_has_gone(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    async with connected(connector) as connection:
        peer = await scripted.peer()
        check = asyncio.create_task(connector.check(connection))
        await peer.request()
        peer.end()
        with pytest.raises(ReqlDriverError, match="ended the connection"):
            await check
        assert not connector.is_open(connection)


async def test_close_waits_for_noreply_queries(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    async with connected(connector) as connection:
        peer = await scripted.peer()
        await R.expr(1).run(connection, noreply=True)
        await peer.request()
        close = asyncio.create_task(connector.close(connection))
        token, query = await peer.request()
        assert query == [NOREPLY_WAIT]
        assert not connector.is_open(connection), "nobody may use it any more"
        await turns(5)
        assert not close.done()
        peer.answer(token, WAIT_COMPLETE)
        await close
        await peer.is_left()


async def test_close_asks_nothing_where_there_was_no_noreply_query_since(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    async with connected(connector) as connection:
        peer = await scripted.peer()
        await R.expr(1).run(connection, noreply=True)
        await peer.request()
        assert connection.wire.pending_noreply == 1
        wait = asyncio.create_task(connection.noreply_wait())
        token, _ = await peer.request()
        peer.answer(token, WAIT_COMPLETE)
        await wait
        assert connection.wire.pending_noreply == 0
        await connector.close(connection)
        await peer.is_left()
        assert peer.reader.at_eof()


async def test_close_twice_and_after_abort_does_nothing(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    connection = await connector.connect()
    await connector.close(connection)
    await connector.close(connection)
    connector.abort(connection)
    connector.abort(connection)
    await connector.close(connection)


async def test_a_close_that_is_cancelled_releases_the_socket(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    connection = await connector.connect()
    peer = await scripted.peer()
    await R.expr(1).run(connection, noreply=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await connector.close(connection)
    connector.abort(connection)
    await turns(2)
    assert open_client_sockets(scripted.port) == []
    await peer.is_left()


async def test_two_closes_at_once_both_return(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    connection = await connector.connect()
    peer = await scripted.peer()
    await R.expr(1).run(connection, noreply=True)
    await peer.request()
    both = asyncio.gather(connector.close(connection), connection.close())
    token, _ = await peer.request()
    peer.answer(token, WAIT_COMPLETE)
    await both


async def test_close_says_if_the_noreply_queries_may_be_lost(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    connection = await connector.connect()
    peer = await scripted.peer()
    await R.expr(1).run(connection, noreply=True)
    await peer.request()
    close = asyncio.create_task(connector.close(connection))
    await peer.request()
    peer.end()
    with pytest.raises(ReqlDriverError, match="ended the connection before its noreply writes were done"):
        await close


async def test_abort_fails_what_still_runs_and_releases_the_socket(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    connection = await connector.connect()
    peer = await scripted.peer()
    query = asyncio.create_task(R.expr(1).run(connection))
    await peer.request()
    connector.abort(connection)
    assert not connector.is_open(connection)
    with pytest.raises(ReqlDriverError, match="Connection is closed"):
        await query
    await turns(2)
    assert open_client_sockets(scripted.port) == []


def test_abort_after_the_loop_has_ended_raises_nothing() -> None:
    kept = []

    async def connect() -> None:
        async with StandInServer() as server:
            connector = connector_to(server)
            kept.append((connector, await connector.connect()))

    asyncio.run(connect())
    for connector, connection in kept:
        connector.abort(connection)
        connector.abort(connection)
        assert not connector.is_open(connection)


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_peer_that_goes_away_is_noticed_at_once(scripted: ScriptedServer, how: str) -> None:
    connector = connector_to(scripted)
    async with connected(connector) as connection:
        peer = await scripted.peer()
        calls = []
        connector.on_lost(connection, lambda: calls.append(asyncio.current_task()))
        assert connector.is_open(connection)
        getattr(peer, how)()
        async with asyncio.timeout(5):
            while not calls:  # noqa: ASYNC110 - the callback is what is tested
                await asyncio.sleep(0)
        await turns(4)
        assert not connector.is_open(connection)
        assert len(calls) == 1
        assert connection.lost_reason is not None
        assert connection.lost_reason.startswith(f"127.0.0.1:{scripted.port} ")
        connector.on_lost(connection, lambda: calls.append(None))
        await turns(1)
        assert len(calls) == 2, "who asks late is told too"


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_nobody_is_told_of_an_end_that_was_asked_for(scripted: ScriptedServer, how: str) -> None:
    connector = connector_to(scripted)
    connection = await connector.connect()
    connector.on_lost(connection, lambda: pytest.fail("told"))
    if how == "close":
        await connector.close(connection)
    else:
        connector.abort(connection)
    await turns(4)
    assert connection.lost_reason is None


async def test_it_is_known_whether_somebody_still_reads(server: StandInServer) -> None:
    connector = connector_to(server)
    async with connected(connector) as connection:
        assert not connector.has_streams(connection)
        await connector.wait_streams(connection)
        cursor = await R.range(1_000_000).run(connection)
        assert connector.has_streams(connection)
        wait = asyncio.create_task(connector.wait_streams(connection))
        await turns(5)
        assert not wait.done()
        await cursor.close()
        assert not connector.has_streams(connection)
        await wait


async def test_waiting_for_readers_ends_with_the_connection(server: StandInServer) -> None:
    connector = connector_to(server)
    async with connected(connector) as connection:
        cursor = await R.range(1_000_000).run(connection)
        wait = asyncio.create_task(connector.wait_streams(connection))
        await turns(5)
        server.faults.cut()
        async with asyncio.timeout(5):
            await wait
        assert not connector.is_open(connection)
        assert cursor.error is not None
