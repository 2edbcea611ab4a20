"""The scripted connector, as the author of a pool's test sees it."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from async_repool.connectors import Connector, QueryConnector
from async_repool.errors import ConnectionLost, NotSent
from async_repool.testing.scripted import ScriptedConnector, error, feed, never, ok, slow
from async_repool.testing.virtual_clock import cancel_at_every_step

pytestmark = pytest.mark.virtual_time


def now():
    return asyncio.get_running_loop().time()


async def turns(number=5):
    for _ in range(number):
        await asyncio.sleep(0)


# What it is.


def test_it_is_a_connector():
    connector = ScriptedConnector()
    assert isinstance(connector, Connector)
    assert isinstance(connector, QueryConnector)
    assert connector.endpoint == "scripted:28015"
    assert connector.connect_timeout == 20.0


def test_its_endpoint_and_its_timeout_are_what_they_are_told_to_be():
    connector = ScriptedConnector(endpoint="elsewhere:1", connect_timeout=3.0)
    assert connector.endpoint == "elsewhere:1"
    assert connector.connect_timeout == 3.0


async def test_without_a_script_everything_succeeds():
    connector = ScriptedConnector()
    connection = await connector.connect()
    assert connector.is_open(connection)
    await connector.check(connection)
    await connector.close(connection)
    assert not connector.is_open(connection)
    connector.assert_nothing_left()


async def test_its_repr_is_a_status_line():
    connector = ScriptedConnector()
    connection = await connector.connect()
    assert repr(connector) == "<ScriptedConnector scripted:28015 1 open, 0 connecting, 1 opened in all>"
    assert repr(connection) == "<ScriptedConnection 1, open>"
    connector.drop(connection)
    assert repr(connection) == "<ScriptedConnection 1, lost, but neither closed nor aborted>"
    connector.abort(connection)
    assert repr(connection) == "<ScriptedConnection 1, aborted>"
    assert repr(connector.connects) == "<connect: 0 in progress, 1 succeeded, 0 failed, 0 cancelled>"


# The script.


async def test_one_time_behaviours_are_played_in_order_and_then_the_default():
    connector, refused = ScriptedConnector(), OSError("refused")
    connector.connects.then(ok(), error(refused), slow(2), never())
    connector.connects.always(error(LookupError("no more")))
    assert (await connector.connect()).number == 1
    with pytest.raises(OSError, match="refused") as caught:
        await connector.connect()
    assert caught.value is refused
    assert (await connector.connect()).opened_at == 2
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3600):
            await connector.connect()
    with pytest.raises(LookupError):
        await connector.connect()
    assert connector.connects.unused == 0


@pytest.mark.parametrize("verb", ["checks", "closes"])
async def test_checks_and_closes_follow_their_scripts_too(verb):
    connector = ScriptedConnector()
    connection = await connector.connect()
    script = getattr(connector, verb)
    call = {"checks": connector.check, "closes": connector.close}[verb]
    script.then(error(OSError("broken")), slow(3, error(OSError("broken late"))), never(), slow(1))
    with pytest.raises(OSError, match=r"^broken$"):
        await call(connection)
    with pytest.raises(OSError, match="broken late"):
        await call(connection)
    assert now() == 3
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await call(connection)
    assert connector.is_open(connection)
    await call(connection)
    assert now() == 14
    assert (script.succeeded_total, script.failed_total, script.cancelled_total) == (1, 2, 1)


async def test_an_unscripted_call_takes_a_turn_of_the_loop_unless_told_not_to():
    connector, order = ScriptedConnector(), []

    async def connect():
        await connector.connect()
        order.append("connected")

    connector.connects.then(ok(), ok(turns=0))
    asyncio.get_running_loop().call_soon(order.append, "turn")
    await connect()
    assert order == ["turn", "connected"]
    asyncio.get_running_loop().call_soon(order.append, "turn")
    await connect()
    assert order == ["turn", "connected", "connected"]
    await turns()


async def test_a_call_can_be_held_and_released_by_hand():
    connector = ScriptedConnector()
    held = connector.connects.hold()
    task = asyncio.create_task(connector.connect())
    await held.wait_entered()
    assert held.is_entered
    await asyncio.sleep(100)
    assert not task.done()
    held.release()
    assert (await task).opened_at == 100


async def test_a_held_call_can_be_released_into_a_failure():
    connector = ScriptedConnector()
    held = connector.connects.hold()
    task = asyncio.create_task(connector.connect())
    await held.wait_entered()
    held.release(error(OSError("refused")))
    with pytest.raises(OSError, match="refused"):
        await task


async def test_a_call_that_was_released_beforehand_does_not_wait():
    connector = ScriptedConnector()
    held = connector.connects.hold()
    assert not held.is_entered
    held.release(slow(4))
    assert (await connector.connect()).opened_at == 4


async def test_a_scripted_error_does_not_keep_alive_who_called_the_time_before():
    class Caller:
        async def call(self):
            with pytest.raises(OSError, match="refused"):
                await connector.connect()

    connector, caller = ScriptedConnector(), Caller()
    connector.connects.always(error(OSError("refused")))
    await caller.call()
    gone = weakref.ref(caller)
    del caller
    await Caller().call()
    gc.collect()
    assert gone() is None


# The record.


async def test_connections_are_numbered_and_remembered_with_their_times():
    connector = ScriptedConnector()
    connector.connects.then(slow(1), slow(1), slow(1))
    first, second, third = [await connector.connect() for _ in range(3)]
    assert connector.connections == [first, second, third]
    assert [c.number for c in connector.connections] == [1, 2, 3]
    assert [c.opened_at for c in connector.connections] == [1, 2, 3]
    await asyncio.sleep(1)
    connector.abort(first)
    await asyncio.sleep(1)
    await connector.close(third)
    assert (first.ended_by, first.ended_at) == ("abort", 4)
    assert (third.ended_by, third.ended_at) == ("close", 5)
    assert connector.open_connections == [second]
    assert connector.aborted_connections == [first]
    assert connector.closed_connections == [third]


async def test_it_counts_what_is_in_progress_and_the_most_that_was():
    connector = ScriptedConnector()
    connector.connects.always(slow(1))
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(connector.connect())
        await asyncio.sleep(0.5)
        assert connector.connects.in_progress == 3
        assert connector.max_open == 0
        assert connector.max_open_or_connecting == 3
    assert connector.connects.in_progress == 0
    assert connector.connects.max_in_progress == 3
    assert connector.max_open == 3
    connector.abort(connector.connections[0])
    await connector.connect()
    assert connector.max_open == 3
    assert connector.max_open_or_connecting == 3


async def test_a_second_close_or_abort_is_recorded():
    connector = ScriptedConnector()
    first, second, third = [await connector.connect() for _ in range(3)]
    await connector.close(first)
    await connector.close(first)
    await connector.close(second)
    connector.abort(second)
    connector.abort(second)
    connector.abort(third)
    assert connector.double_closes == [first]
    assert connector.double_aborts == [second]
    assert (first.extra_closes, second.extra_aborts) == (1, 2)
    assert second.ended_by == "close"


async def test_an_abort_after_a_close_that_failed_is_not_a_second_one():
    connector = ScriptedConnector()
    connector.closes.then(error(OSError("broken")))
    connection = await connector.connect()
    with pytest.raises(OSError, match="broken"):
        await connector.close(connection)
    connector.abort(connection)
    assert connector.double_aborts == []
    assert connector.aborted_connections == [connection]


async def test_what_is_left_is_listed():
    connector = ScriptedConnector()
    await connector.connect()
    lost = await connector.connect()
    connector.drop(lost)
    connector.connects.then(never())
    task = asyncio.create_task(connector.connect())
    await turns()
    with pytest.raises(AssertionError) as caught:
        connector.assert_nothing_left()
    assert str(caught.value).splitlines() == [
        "left at scripted:28015:",
        "  connection 1, opened at 0.0 s, is open",
        "  connection 2, opened at 0.0 s, is lost, but neither closed nor aborted",
        "  1 times connect in progress",
    ]
    task.cancel()
    await turns()
    for connection in connector.open_connections:
        connector.abort(connection)
    connector.assert_nothing_left()


async def test_a_wait_for_streams_that_is_under_way_is_left_too():
    connector = ScriptedConnector()
    connection = await connector.connect()
    stream = connection.open_stream()
    task = asyncio.create_task(connector.wait_streams(connection))
    await turns()
    with pytest.raises(AssertionError, match="1 times wait_streams in progress"):
        connector.assert_nothing_left()
    stream.end()
    await task


def test_a_cancelled_connect_leaves_nothing():
    connectors = []

    async def scenario():
        connectors.append(ScriptedConnector())
        connectors[-1].connects.then(slow(1, ok(turns=3)))
        connectors[-1].abort(await connectors[-1].connect())

    async def after():
        if connectors:
            connectors.pop().assert_nothing_left()

    assert cancel_at_every_step(scenario, after=after) > 5


def test_an_abort_works_where_no_loop_runs():
    connector = ScriptedConnector()

    async def connect():
        return await connector.connect()

    with asyncio.Runner() as runner:
        connection = runner.run(connect())
    connector.abort(connection)
    assert connection.ended_by == "abort"
    assert connection.ended_at is None


# The peer.


async def test_a_dropped_connection_is_not_open_and_whoever_asked_is_told_in_the_next_turn():
    connector, told = ScriptedConnector(), []
    connection = await connector.connect()
    connector.on_lost(connection, lambda: told.append(now()))
    await asyncio.sleep(5)
    connector.drop(connection)
    connector.drop(connection)
    assert not connector.is_open(connection)
    assert told == []
    await turns()
    assert told == [5]
    assert connection.lost_at == 5


async def test_who_asks_when_the_connection_is_lost_already_is_told_too():
    connector, told = ScriptedConnector(), []
    connection = await connector.connect()
    connector.drop(connection)
    connector.on_lost(connection, lambda: told.append("lost"))
    await turns()
    assert told == ["lost"]


@pytest.mark.parametrize("end", ["close", "abort", "abort between"])
async def test_nobody_is_told_of_a_connection_that_was_ended_on_purpose(end):
    connector, told = ScriptedConnector(), []
    connection = await connector.connect()
    connector.on_lost(connection, lambda: told.append("lost"))
    if end == "close":
        await connector.close(connection)
    elif end == "abort":
        connector.abort(connection)
    connector.drop(connection)
    if end == "abort between":
        connector.abort(connection)
    await turns()
    assert told == []


async def test_a_connector_that_cannot_tell_tells_nobody():
    connector, told = ScriptedConnector(), []
    connection = await connector.connect()
    connector.on_lost(connection, lambda: told.append("lost"))
    connector.drop(connection, is_told=False)
    await turns()
    assert told == []
    assert not connector.is_open(connection)


async def test_a_check_of_a_lost_connection_fails():
    connector = ScriptedConnector()
    connection = await connector.connect()
    connector.checks.then(never())
    asyncio.get_running_loop().call_later(2, connector.drop, connection)
    with pytest.raises(ConnectionResetError):
        await connector.check(connection)
    assert now() == 2
    with pytest.raises(ConnectionResetError):
        await connector.check(connection)


async def test_streams_are_waited_for_until_the_last_has_ended():
    connector = ScriptedConnector()
    connection = await connector.connect()
    await connector.wait_streams(connection)
    first, second = connection.open_stream(), connection.open_stream()
    asyncio.get_running_loop().call_later(1, first.end)
    asyncio.get_running_loop().call_later(2, second.end)
    assert connector.has_streams(connection)
    await connector.wait_streams(connection)
    assert now() == 2
    assert not connector.has_streams(connection)


@pytest.mark.parametrize("end", ["drop", "abort"])
async def test_streams_end_with_their_connection(end):
    connector = ScriptedConnector()
    connection = await connector.connect()
    stream = connection.open_stream()
    asyncio.get_running_loop().call_later(1, getattr(connector, end), connection)
    await connector.wait_streams(connection)
    assert now() == 1
    assert not connector.has_streams(connection)
    stream.end()


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


async def connected():
    connector = ScriptedConnector()
    return connector, await connector.connect()


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


async def test_a_connection_tells_whether_a_lease_and_the_connector_ever_used_it_at_once():
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


def test_errors_pass_that_it_is_told_of():
    connector = ScriptedConnector()
    assert connector.may_pass(OSError()) is False
    connector.passing_errors = (ConnectionError, KeyError)
    assert connector.may_pass(ConnectionResetError()) is True
    assert connector.may_pass(KeyError()) is True
    assert connector.may_pass(OSError()) is False


# Streams.


async def test_a_stream_without_a_script_stays_open_and_has_the_rows_that_the_test_sends():
    connector, connection = await connected()
    reader = await connector.open_stream(connection, "a term", {"db": "test"})
    (stream,) = connector.opened_streams
    assert connection.queries == [("a term", {"db": "test"})]
    assert stream.query == connection.queries[0]
    assert stream.connection is connection
    assert connection.open_streams == connector.open_streams == [stream]
    assert connector.has_streams(connection)
    asyncio.get_running_loop().call_later(1, stream.send, "first", "second")
    asyncio.get_running_loop().call_later(2, stream.send, "third")
    asyncio.get_running_loop().call_later(3, stream.end)
    assert [(row, now()) async for row in reader] == [("first", 1), ("second", 1), ("third", 2)]
    assert now() == 3
    assert (stream.is_open, stream.is_ended, stream.is_closed) == (False, True, False)
    assert not connector.has_streams(connection)


async def test_a_stream_that_is_opened_with_rows_has_them_all_at_once():
    connector, connection = await connected()
    connector.streams.then(ok([1, 2]), slow(5, ok(range(3))), ok(()))
    assert [row async for row in await connector.open_stream(connection, "a term", {})] == [1, 2]
    assert [row async for row in await connector.open_stream(connection, "a term", {})] == [0, 1, 2]
    assert [row async for row in await connector.open_stream(connection, "a term", {})] == []
    assert now() == 5
    assert [stream.is_ended for stream in connector.opened_streams] == [True] * 3


async def test_a_feed_says_what_it_is_and_stays_open():
    connector, connection = await connected()
    connector.streams.then(ok(), ok([]), feed("first"))
    kinds = [(await connector.open_stream(connection, "a term", {})).is_feed for _ in range(2)]
    assert kinds == [False, False]
    reader = await connector.open_stream(connection, "a term", {})
    assert reader.is_feed
    assert await anext(reader) == "first"
    assert connector.opened_streams[-1].is_open
    connector.opened_streams[-1].is_feed = False
    assert not reader.is_feed


@pytest.mark.parametrize("value", [5, None, "text", b"bytes", {"a": "row"}])
async def test_what_is_no_sequence_is_no_stream(value):
    connector, connection = await connected()
    connector.streams.then(ok(value))
    with pytest.raises(TypeError, match="which is no sequence"):
        await connector.open_stream(connection, "a term", {})
    assert connector.opened_streams == []


async def test_a_stream_that_fails_gives_its_rows_first_and_the_same_error_again_and_again():
    connector, connection = await connected()
    reader = await connector.open_stream(connection, "a term", {})
    (stream,) = connector.opened_streams
    stream.send(1)
    failure = LookupError("table dropped")
    stream.fail(failure)
    assert stream.is_ended
    assert not connector.has_streams(connection)
    assert await anext(reader) == 1
    for _ in range(2):
        with pytest.raises(LookupError) as caught:
            await anext(reader)
        assert caught.value is failure


@pytest.mark.parametrize("end", ["drop", "abort", "close"])
async def test_a_stream_whose_connection_ends_gives_its_rows_and_then_is_lost(end):
    connector, connection = await connected()
    reader = await connector.open_stream(connection, "a term", {})
    (stream,) = connector.opened_streams
    stream.send(1, 2)
    ended = getattr(connector, end)(connection)
    if end == "close":
        await ended
    assert stream.is_ended
    stream.send("too late")
    assert [await anext(reader), await anext(reader)] == [1, 2]
    for _ in range(2):
        with pytest.raises(ConnectionLost, match="it ended before the last row had come") as caught:
            await anext(reader)
        assert isinstance(caught.value.__cause__, ConnectionResetError)


@pytest.mark.parametrize("end", ["drop", "abort"])
async def test_who_waits_for_a_row_when_the_connection_ends_is_told(end):
    connector, connection = await connected()
    reader = await connector.open_stream(connection, "a term", {})
    asyncio.get_running_loop().call_later(2, getattr(connector, end), connection)
    with pytest.raises(ConnectionLost):
        await anext(reader)
    assert now() == 2


async def test_a_stream_that_its_reader_closes_counts_no_more_but_the_rows_that_came_can_be_read():
    connector, connection = await connected()
    reader = await connector.open_stream(connection, "a term", {})
    (stream,) = connector.opened_streams
    stream.send(1, 2)
    assert reader.close() is True
    assert reader.close() is False
    assert (stream.is_open, stream.is_ended, stream.is_closed) == (False, False, True)
    assert not connector.has_streams(connection)
    assert connector.open_streams == connection.open_streams == []
    stream.send("too late")
    stream.end()
    stream.fail(LookupError("too late"))
    assert stream.unread == 2
    assert [row async for row in reader] == [1, 2]
    assert not stream.is_ended


async def test_a_stream_that_has_ended_is_not_closed_by_its_reader():
    connector, connection = await connected()
    connector.streams.then(ok([1]))
    reader = await connector.open_stream(connection, "a term", {})
    assert reader.close() is False
    assert not connector.opened_streams[0].is_closed
    assert [row async for row in reader] == [1]


async def test_who_waits_for_a_row_while_another_closes_the_stream_is_woken():
    connector, connection = await connected()
    reader = await connector.open_stream(connection, "a term", {})
    asyncio.get_running_loop().call_later(2, reader.close)
    assert [row async for row in reader] == []
    assert now() == 2


async def test_a_stream_that_its_reader_drops_is_closed():
    connector, connection = await connected()
    reader = await connector.open_stream(connection, "a term", {})
    waiting = asyncio.create_task(connector.wait_streams(connection))
    await turns()
    del reader
    gc.collect()
    assert connector.opened_streams[0].is_closed
    assert not connector.has_streams(connection)
    await waiting


async def test_a_stream_is_not_dropped_while_somebody_reads_it():
    connector, connection = await connected()
    task = asyncio.create_task(anext(await connector.open_stream(connection, "a term", {})))
    await turns()
    gc.collect()
    connector.opened_streams[0].send("a row")
    assert await task == "a row"
    del task
    gc.collect()
    assert connector.opened_streams[0].is_closed


async def test_nothing_can_be_sent_after_the_end():
    _, connection = await connected()
    for finish in (lambda stream: stream.end(), lambda stream: stream.fail(LookupError())):
        stream = connection.open_stream()
        finish(stream)
        stream.end()
        with pytest.raises(RuntimeError, match="has ended"):
            stream.send(1)


async def test_a_stream_of_the_test_can_be_read_and_is_never_dropped():
    connector, connection = await connected()
    connection.open_stream()
    gc.collect()
    (stream,) = connector.opened_streams
    assert stream.is_open
    assert stream.query is None
    stream.send(1)
    stream.end()
    assert [row async for row in stream] == [1]


def test_a_cancelled_read_loses_no_row():
    rows = []

    async def scenario():
        connector, connection = await connected()
        reader = await connector.open_stream(connection, "a term", {})
        (stream,) = connector.opened_streams
        loop = asyncio.get_running_loop()
        rows.clear()
        for second in range(3):
            loop.call_later(1 + second, stream.send, second)
        loop.call_later(4, stream.end)
        try:
            async for row in reader:
                rows.append(row)
        finally:
            await asyncio.sleep(10)
            rows.extend([row async for row in reader])
            assert rows == [0, 1, 2]

    assert cancel_at_every_step(scenario) > 5


async def test_rows_that_several_tasks_read_come_once_each_and_all_see_the_end():
    connector, connection = await connected()
    reader, rows = await connector.open_stream(connection, "a term", {}), []

    async def read():
        async for row in reader:
            rows.append(row)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(read())
        for number in range(5):
            await asyncio.sleep(1)
            connector.opened_streams[0].send(number, number + 100)
        connector.opened_streams[0].end()
    assert sorted(rows) == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]


async def test_the_repr_of_a_stream_is_a_status_line():
    connector, connection = await connected()
    connector.streams.then(ok([1, 2]), feed())
    reader = await connector.open_stream(connection, "a term", {})
    changes = await connector.open_stream(connection, "a term", {})
    first, second = connector.opened_streams
    assert repr(first) == "<ScriptedStream on connection 1: stream ended, 2 rows unread>"
    assert repr(second) == "<ScriptedStream on connection 1: changefeed open, 0 rows unread>"
    assert repr(reader) == f"<the reader's end of {first!r}>"
    changes.close()
    assert repr(second) == "<ScriptedStream on connection 1: changefeed closed, 0 rows unread>"


def test_streams_end_with_a_connection_that_is_aborted_where_no_loop_runs():
    async def open_one():
        connector, connection = await connected()
        return connector, connection, await connector.open_stream(connection, "a term", {})

    with asyncio.Runner() as runner:
        connector, connection, reader = runner.run(open_one())
    connector.abort(connection)
    assert not connector.has_streams(connection)
    assert connector.opened_streams[0].is_ended
    assert reader.close() is False


def test_streams_that_end_between_two_runs_of_their_loop_wake_who_reads_them():
    async def begin():
        connector, connection = await connected()
        reader = await connector.open_stream(connection, "a term", {})
        tasks = [asyncio.create_task(anext(reader, "no row")), asyncio.create_task(connector.wait_streams(connection))]
        await turns()
        return connector, tasks

    async def end():
        return await asyncio.gather(*tasks)

    with asyncio.Runner() as runner:
        connector, tasks = runner.run(begin())
        connector.opened_streams[0].end()
        assert runner.run(end()) == ["no row", None]


def test_an_abort_works_where_the_loop_was_closed_in_which_somebody_read():
    async def begin():
        connector, connection = await connected()
        task = asyncio.create_task(anext(await connector.open_stream(connection, "a term", {})))
        await turns()
        return connector, connection, task

    loop = asyncio.new_event_loop()
    connector, connection, task = loop.run_until_complete(begin())
    loop.close()
    connector.abort(connection)
    assert not task.done()
    assert connector.opened_streams[0].is_ended
