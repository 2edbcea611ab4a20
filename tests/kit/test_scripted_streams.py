"""Streams of the scripted connector: sequences and changefeeds, for the test that sends and the code that reads."""

from __future__ import annotations

import asyncio
import gc

import pytest

from async_repool.errors import ConnectionLost
from async_repool.testing.scripted import feed, ok, slow
from async_repool.testing.virtual_clock import cancel_at_every_step
from loop_kit import now, turns
from scripted_kit import connected

pytestmark = pytest.mark.virtual_time


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
async def test_a_value_that_is_not_a_sequence_is_not_a_stream(value):
    connector, connection = await connected()
    connector.streams.then(ok(value))
    with pytest.raises(TypeError, match="which is not a sequence"):
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
async def test_a_read_in_progress_fails_when_the_connection_ends(end):
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


async def test_a_read_in_progress_ends_when_another_task_closes_the_stream():
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


def test_streams_end_with_a_connection_that_is_aborted_if_no_loop_runs():
    async def open_one():
        connector, connection = await connected()
        return connector, connection, await connector.open_stream(connection, "a term", {})

    with asyncio.Runner() as runner:
        connector, connection, reader = runner.run(open_one())
    connector.abort(connection)
    assert not connector.has_streams(connection)
    assert connector.opened_streams[0].is_ended
    assert reader.close() is False


def test_streams_that_end_between_two_runs_of_their_loop_wake_their_readers():
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


def test_an_abort_works_if_the_loop_of_a_reader_was_closed():
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
