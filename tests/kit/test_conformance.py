"""The conformance suite passes connectors that keep their promises, and reports all problems at once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import pytest

from async_repool.connectors import QueryConnector
from async_repool.testing.conformance import ConformanceError, check_connector
from async_repool.testing.scripted import ScriptedConnector, error, slow
from conformance_kit import QUERIES, AnsweringConnector


class SocketConnector:
    """A connector without streams over real sockets, which keeps every promise. The peer echoes lines."""

    connect_timeout = 5.0

    def __init__(self, host, port):
        self.host, self.port = host, port

    @property
    def endpoint(self):
        return f"{self.host}:{self.port}"

    async def connect(self):
        reader, writer = await asyncio.open_connection(self.host, self.port)
        connection = SocketConnection(reader, writer)
        try:
            await self.check(connection)
        except BaseException:
            self.abort(connection)
            raise
        return connection

    def is_open(self, connection, /):
        return not connection.writer.transport.is_closing()

    def on_lost(self, connection, callback, /):
        pass

    async def check(self, connection, /):
        connection.writer.write(b"ping\n")
        connection.unread += 1
        # The answers to cancelled checks arrive first.
        while connection.unread:
            if not await connection.reader.readline():
                raise ConnectionResetError
            connection.unread -= 1

    async def close(self, connection, /):
        connection.writer.close()
        await connection.writer.wait_closed()

    def abort(self, connection, /):
        connection.writer.transport.abort()


class SocketConnection:
    def __init__(self, reader, writer):
        self.reader, self.writer, self.unread = reader, writer, 0


async def echo(reader, writer):
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            writer.write(line)


@contextlib.asynccontextmanager
async def echo_server():
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()


# Connectors that keep their promises.


@pytest.mark.virtual_time
async def test_the_scripted_connector_keeps_every_promise():
    connector = ScriptedConnector()
    await check_connector(connector)
    connector.assert_nothing_left()


@pytest.mark.virtual_time
async def test_the_scripted_connector_keeps_every_promise_of_queries():
    connector = AnsweringConnector()
    await check_connector(connector, queries=QUERIES)
    connector.assert_nothing_left()
    assert connector.open_streams == []
    assert max(connection.max_in_flight for connection in connector.connections) == 100


@pytest.mark.virtual_time
async def test_without_sample_queries_none_is_run():
    connector = AnsweringConnector()
    await check_connector(connector)
    assert connector.queries.started_total == connector.streams.started_total == 0


@pytest.mark.virtual_time
async def test_a_sample_query_that_is_not_slow_is_the_fault_of_its_author():
    samples = dataclasses.replace(QUERIES, slow=("value", 1))
    with pytest.raises(ConformanceError, match="the slow query was answered at once: 1"):
        await check_connector(AnsweringConnector(), queries=samples)


@pytest.mark.virtual_time
async def test_a_slow_connector_keeps_every_promise():
    connector = ScriptedConnector()
    for verb in (connector.connects, connector.checks, connector.closes):
        verb.always(slow(1))
    await check_connector(connector, seconds=100)
    connector.assert_nothing_left()


async def test_a_connector_over_real_sockets_keeps_every_promise():
    async with echo_server() as address:
        assert not hasattr(SocketConnector, "has_streams")
        await check_connector(SocketConnector(*address))


@pytest.mark.virtual_time
async def test_as_many_connections_are_opened_at_once_as_is_asked_for():
    connector = ScriptedConnector()
    await check_connector(connector, connections=37)
    assert connector.max_open == 37


@pytest.mark.virtual_time
async def test_a_connector_without_streams_is_complete():
    connector = ScriptedConnector()
    connector.has_streams = connector.wait_streams = None
    await check_connector(connector)
    connector.assert_nothing_left()


@pytest.mark.virtual_time
async def test_queries_need_streams():
    connector = AnsweringConnector()
    connector.has_streams = connector.wait_streams = None
    with pytest.raises(ConformanceError, match="the QueryConnector protocol also needs has_streams, wait_streams$"):
        await check_connector(connector, queries=QUERIES)


MEMBERS = sorted(name for name in dir(QueryConnector) if not name.startswith("_"))


@pytest.mark.virtual_time
@pytest.mark.parametrize("member", MEMBERS)
async def test_a_missing_member_is_named(member):
    connector = AnsweringConnector()
    setattr(connector, member, None)
    with pytest.raises(ConformanceError) as caught:
        await check_connector(connector, queries=QUERIES)
    assert any(problem.endswith(f" also needs {member}") for problem in caught.value.problems)


# Connectors that break promises.


class LeaksSocket(SocketConnector):
    """It cleans up with ``except Exception``, as many drivers do. So a cancelled call leaves its socket open."""

    leaked: list

    async def connect(self):
        reader, writer = await asyncio.open_connection(self.host, self.port)
        self.leaked.append(writer)
        connection = SocketConnection(reader, writer)
        await self.check(connection)
        return connection


async def test_a_socket_that_a_cancelled_connect_leaves_open_is_found():
    async with echo_server() as address:
        connector = LeaksSocket(*address)
        connector.leaked = []
        with pytest.raises(ConformanceError, match=r"cancelled in its wait number \d+, .*left sockets open: 2"):
            await check_connector(connector)
        for writer in connector.leaked:
            writer.transport.abort()
        await asyncio.sleep(0.01)


@pytest.mark.virtual_time
async def test_all_broken_promises_are_reported_at_once():
    class BreaksThree(ScriptedConnector):
        def __init__(self):
            super().__init__(endpoint="", connect_timeout=-1.0)
            self.checks.always(error(OSError("broken")))

    with pytest.raises(ConformanceError) as caught:
        await check_connector(BreaksThree())
    promises = [problem.partition(":")[0] for problem in caught.value.problems]
    assert promises[:3] == ["endpoint is text", "connect_timeout is positive", "check() passes"]
    assert str(caught.value).startswith(f"BreaksThree breaks {len(promises)} promises:\n- endpoint is text: ")


@pytest.mark.virtual_time
async def test_a_connector_that_cannot_connect_gets_only_that_report():
    connector = ScriptedConnector()
    connector.connects.always(error(OSError("refused")))
    with pytest.raises(ConformanceError, match=r"^ScriptedConnector breaks 1 promise:\n- connect"):
        await check_connector(connector)


@pytest.mark.virtual_time
async def test_a_suite_that_is_cancelled_leaves_nothing():
    connector = ScriptedConnector()
    connector.checks.always(slow(1))
    task = asyncio.create_task(check_connector(connector))
    await asyncio.sleep(0.5)
    assert connector.checks.in_progress == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    connector.assert_nothing_left()
