"""The scripted connector as the author of a pool's test sees it: its script, its record, and its connections."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from async_repool.connectors import Connector, QueryConnector
from async_repool.testing.scripted import ScriptedConnector, error, never, ok, slow
from async_repool.testing.virtual_clock import cancel_at_every_step
from loop_kit import now, turns

pytestmark = pytest.mark.virtual_time


# What it is.


def test_it_is_a_connector():
    connector = ScriptedConnector()
    assert isinstance(connector, Connector)
    assert isinstance(connector, QueryConnector)
    assert connector.endpoint == "scripted:28015"
    assert connector.connect_timeout == 20.0


def test_its_endpoint_and_its_timeout_can_be_set():
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


async def test_an_unscripted_call_takes_a_turn_of_the_loop_unless_scripted_otherwise():
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


async def test_a_scripted_error_does_not_keep_the_last_caller_alive():
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


def test_an_abort_works_if_no_loop_runs():
    connector = ScriptedConnector()

    async def connect():
        return await connector.connect()

    with asyncio.Runner() as runner:
        connection = runner.run(connect())
    connector.abort(connection)
    assert connection.ended_by == "abort"
    assert connection.ended_at is None


# The peer.


async def test_a_dropped_connection_is_not_open_and_its_callback_runs_in_the_next_turn():
    connector, called = ScriptedConnector(), []
    connection = await connector.connect()
    connector.on_lost(connection, lambda: called.append(now()))
    await asyncio.sleep(5)
    connector.drop(connection)
    connector.drop(connection)
    assert not connector.is_open(connection)
    assert called == []
    await turns()
    assert called == [5]
    assert connection.lost_at == 5


async def test_a_callback_for_a_lost_connection_runs_too():
    connector, called = ScriptedConnector(), []
    connection = await connector.connect()
    connector.drop(connection)
    connector.on_lost(connection, lambda: called.append("lost"))
    await turns()
    assert called == ["lost"]


@pytest.mark.parametrize("end", ["close", "abort", "abort between"])
async def test_no_callback_runs_for_a_connection_that_was_ended_on_purpose(end):
    connector, called = ScriptedConnector(), []
    connection = await connector.connect()
    connector.on_lost(connection, lambda: called.append("lost"))
    if end == "close":
        await connector.close(connection)
    elif end == "abort":
        connector.abort(connection)
    connector.drop(connection)
    if end == "abort between":
        connector.abort(connection)
    await turns()
    assert called == []


async def test_no_callback_runs_for_a_loss_that_the_connector_does_not_notice():
    connector, called = ScriptedConnector(), []
    connection = await connector.connect()
    connector.on_lost(connection, lambda: called.append("lost"))
    connector.drop(connection, is_told=False)
    await turns()
    assert called == []
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
