"""Queries on the scripted connector: those of leases, and those of the connector itself."""

from __future__ import annotations

import asyncio

import pytest

from async_repool.errors import ConnectionLost, NotSent
from async_repool.testing.scripted import ScriptedConnector, error, never, ok, slow
from loop_kit import now, turns
from scripted_kit import connected

pytestmark = pytest.mark.virtual_time


# The connection, as a lease uses it.


async def test_a_query_is_recorded_and_returns_its_options_unless_scripted():
    connector = ScriptedConnector()
    connection = await connector.connect()
    assert await connection._start("a term", db="test") == {"db": "test"}
    connector.queries.then(ok([1, 2]), ok(None), slow(3, ok("late")), error(LookupError("no table")))
    assert await connection._start("a term") == [1, 2]
    assert await connection._start("a term") is None
    assert await connection._start("a term") == "late"
    with pytest.raises(LookupError):
        await connection._start("the last", profile=True)
    assert connection.queries[0] == ("a term", {"db": "test"})
    assert connection.queries[-1].term == "the last"
    assert connection.queries[-1].options == {"profile": True}
    assert len(connection.queries) == 5


@pytest.mark.parametrize("end", ["drop", "abort"])
async def test_a_query_under_way_fails_when_its_connection_ends(end):
    connector = ScriptedConnector()
    connection = await connector.connect()
    connector.queries.then(never())
    asyncio.get_running_loop().call_later(2, getattr(connector, end), connection)
    with pytest.raises(ConnectionResetError):
        await connection._start("a term")
    assert now() == 2
    with pytest.raises(ConnectionResetError):
        await connection._start("a term")


async def test_a_scripted_timeout_of_a_query_is_raised_as_it_is():
    connector = ScriptedConnector()
    connection = await connector.connect()
    connector.queries.then(error(TimeoutError("of the script")))
    with pytest.raises(TimeoutError, match="of the script"):
        await connection._start("a term")


async def test_it_has_what_a_lease_forwards_to():
    connector = ScriptedConnector()
    connection = await connector.connect()
    assert connection.db is None
    connection.use("shop")
    assert connection.db == "shop"
    assert connection.is_open()
    assert (await connection.server())["name"] == "scripted"
    await connection.noreply_wait()
    await connection.close(noreply_wait=False)
    assert not connection.is_open()
    for call in (connection.server, connection.noreply_wait):
        with pytest.raises(ConnectionResetError):
            await call()


async def test_a_connection_that_its_user_closed_is_not_closed_twice_by_its_pool():
    connector = ScriptedConnector()
    connection = await connector.connect()
    await connection.close()
    connector.abort(connection)
    await connector.close(connection)
    assert connection.ended_by == "user"
    assert connector.double_aborts == []
    assert connector.double_closes == []
    connector.assert_nothing_left()


# Queries of the connector.


async def test_it_runs_queries_as_the_connection_does():
    connector, connection = await connected()
    assert await connector.run(connection, "a term", {"db": "test"}) == {"db": "test"}
    connector.queries.then(ok([1, 2]), slow(3, ok("late")))
    assert await connector.run(connection, "a term", {}) == [1, 2]
    assert await connector.run(connection, "the last", {}) == "late"
    assert now() == 3
    assert [query.term for query in connection.queries] == ["a term", "a term", "the last"]
    assert connection.queries[0].options == {"db": "test"}


@pytest.mark.parametrize("verb", ["queries", "streams"])
async def test_what_is_scripted_to_fail_fails_as_it_is(verb):
    connector, connection = await connected()
    call = {"queries": connector.run, "streams": connector.open_stream}[verb]
    failures = [LookupError("no table"), ConnectionResetError("scripted"), NotSent("never sent"), TimeoutError("late")]
    getattr(connector, verb).then(*map(error, failures))
    for failure in failures:
        with pytest.raises(type(failure)) as caught:
            await call(connection, "a term", {})
        assert caught.value is failure
    assert connector.is_open(connection)
    assert connector.opened_streams == []


@pytest.mark.parametrize("verb", ["queries", "streams"])
@pytest.mark.parametrize("end", ["drop", "abort"])
async def test_what_is_under_way_when_the_connection_ends_is_lost_and_what_comes_later_is_not_sent(verb, end):
    connector, connection = await connected()
    script, call = {
        "queries": (connector.queries, connector.run),
        "streams": (connector.streams, connector.open_stream),
    }[verb]
    script.then(never())
    asyncio.get_running_loop().call_later(2, getattr(connector, end), connection)
    with pytest.raises(ConnectionLost, match=r"connection 1 is .*: it ended before the answer had come") as caught:
        await call(connection, "a term", {})
    assert now() == 2
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    with pytest.raises(NotSent, match="connection 1 is "):
        await call(connection, "a term", {})
    assert len(connection.queries) == 1
    assert (script.started_total, script.failed_total, script.cancelled_total) == (1, 1, 0)


@pytest.mark.parametrize("verb", ["queries", "streams"])
async def test_what_is_cancelled_is_counted_for_it_was_stopped(verb):
    connector, connection = await connected()
    script, call = {
        "queries": (connector.queries, connector.run),
        "streams": (connector.streams, connector.open_stream),
    }[verb]
    script.then(never())
    task = asyncio.create_task(call(connection, "a term", {}))
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (script.started_total, script.failed_total, script.cancelled_total) == (1, 0, 1)
    assert connection.in_flight == 0
    assert connector.opened_streams == []
    assert connector.is_open(connection)


async def test_a_connection_counts_its_queries_and_the_most_at_once():
    connector, connection = await connected()
    idle = await connector.connect()
    connector.queries.always(slow(1))
    connector.streams.always(slow(1))
    async with asyncio.TaskGroup() as group:
        group.create_task(connector.run(connection, "a term", {}))
        group.create_task(connector.run(connection, "a term", {}))
        group.create_task(connector.open_stream(connection, "a term", {}))
        await turns()
        assert connection.in_flight == 3
    assert connection.in_flight == 0
    await connector.run(connection, "a term", {})
    assert connection.max_in_flight == 3
    assert idle.max_in_flight == 0


async def test_a_connection_records_whether_a_lease_and_the_connector_ever_used_it_at_once():
    connector, connection = await connected()
    connector.queries.always(slow(1))
    await connection._start("of a lease")
    await connector.run(connection, "of the connector", {})
    await asyncio.gather(*(connection._start("of a lease") for _ in range(2)))
    assert not connection.has_mixed
    await asyncio.gather(connection._start("of a lease"), connector.run(connection, "of the connector", {}))
    assert connection.has_mixed
    await connector.run(connection, "of the connector", {})
    assert connection.has_mixed


async def test_queries_and_streams_in_progress_are_left():
    connector, connection = await connected()
    connector.queries.always(never())
    connector.streams.always(never())
    calls = (connector.run, connector.run, connector.open_stream)
    tasks = [asyncio.create_task(call(connection, "a term", {})) for call in calls]
    await turns()
    with pytest.raises(AssertionError, match=r"2 times query in progress\n  1 times open_stream in progress"):
        connector.assert_nothing_left()
    connector.abort(connection)
    await asyncio.wait(tasks)
    assert [type(task.exception()) for task in tasks] == [ConnectionLost] * 3
    connector.assert_nothing_left()


def test_the_test_sets_which_errors_is_transient():
    connector = ScriptedConnector()
    assert connector.is_transient(OSError()) is False
    connector.passing_errors = (ConnectionError, KeyError)
    assert connector.is_transient(ConnectionResetError()) is True
    assert connector.is_transient(KeyError()) is True
    assert connector.is_transient(OSError()) is False
