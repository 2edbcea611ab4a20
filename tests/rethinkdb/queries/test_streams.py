"""The RethinkDB connector opens streams: their rows, their ends, and which of them are changefeeds."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from async_repool.connectors.rethinkdb import R, RethinkDBConnection, RethinkDBStream
from connection_kit import turns
from scripted_server import CONNECTOR, CONTINUE, ONE, PARTIAL, SEQUENCE, STOP, PoolLink

SEQUENCE_FEED, ATOM_FEED, ORDER_BY_LIMIT_FEED, UNIONED_FEED, INCLUDES_STATES = 1, 2, 3, 4, 5


async def opened(link: PoolLink, *rows: Any, **more: Any) -> tuple[RethinkDBStream, int]:
    """A stream with a first batch, and its token. The next batch has been asked for."""
    task = link.open()
    token, _ = await link.peer.request()
    link.peer.answer(token, PARTIAL, *rows, **more)
    await link.expect(token, CONTINUE)
    return await task, token


async def test_a_stream_gives_every_row_in_order(connection: RethinkDBConnection, table: Any) -> None:
    query = table.order_by(index="id")["id"]
    stream = await CONNECTOR.open_stream(connection, query, {"max_batch_rows": 90})
    assert not stream.is_feed
    assert [row async for row in stream] == list(range(1000))
    assert connection.is_idle
    assert stream.close() is False


async def test_a_list_is_a_stream_too(connection: RethinkDBConnection) -> None:
    stream = await CONNECTOR.open_stream(connection, R.expr([1, [2], 3]), {})
    assert not stream.is_feed
    assert aiter(stream) is stream
    assert [row async for row in stream] == [1, [2], 3]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert stream.close() is False


async def test_a_changefeed_is_a_stream_that_says_so(connection: RethinkDBConnection, table: Any) -> None:
    stream = await CONNECTOR.open_stream(connection, table.changes(), {})
    assert stream.is_feed
    await CONNECTOR.run(connection, table.insert({"id": "new"}), {})
    async with asyncio.timeout(5):
        assert await anext(stream) == {"old_val": None, "new_val": {"id": "new"}}
    assert stream.close() is True
    assert stream.close() is False
    assert connection.is_idle


@pytest.mark.parametrize("notes", [[SEQUENCE_FEED], [ATOM_FEED], [ORDER_BY_LIMIT_FEED], [UNIONED_FEED]], ids=str)
async def test_the_servers_notes_tell_a_changefeed(link: PoolLink, notes: list[int]) -> None:
    feed, _ = await opened(link, n=notes)
    assert feed.is_feed
    stream, _ = await opened(link, 1, n=[])
    assert not stream.is_feed


@pytest.mark.parametrize(
    ("value", "name"), [(1, "int"), ("abc", "str"), ({"a": [1]}, "dict"), (None, "NoneType"), (b"rows", "RqlBinary")]
)
async def test_what_is_no_sequence_is_no_stream(connection: RethinkDBConnection, value: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"the value of the query is no sequence of rows but {name}"):
        await CONNECTOR.open_stream(connection, R.expr(value), {})
    assert connection.is_idle


@pytest.mark.parametrize("option", ["noreply", "profile"])
async def test_options_that_have_no_place_in_a_stream_are_refused_before_anything_is_sent(
    link: PoolLink, option: str
) -> None:
    with pytest.raises(TypeError, match=f"a stream of rows has no place for {option}"):
        await link.open(**{option: True})
    assert await link.peer.has_nothing_more()
    task = link.open(**{option: False})
    token, _ = await link.peer.request()
    link.peer.answer(token, SEQUENCE, 1)
    assert await anext(await task) == 1


@pytest.mark.parametrize("end", ["close", "drop", "collect"])
async def test_a_stream_is_stopped_on_the_server(link: PoolLink, end: str) -> None:
    stream: RethinkDBStream | None
    stream, token = await opened(link, 1, 2)
    if end == "close":
        assert stream.close() is True
        assert stream.close() is False
        assert [row async for row in stream] == [1, 2], "rows that have come can still be read"
    elif end == "collect":
        knot: list[Any] = [stream]
        knot.append(knot)
        stream = knot = None  # type: ignore[assignment]
        assert link.connection.open_cursors == 1
        gc.collect()
    stream = None
    await link.expect(token, STOP)
    link.peer.answer(token, PARTIAL, 3)
    link.peer.answer(token, SEQUENCE)
    await link.works()
    assert link.connection.is_idle


async def test_close_wakes_who_waits_for_a_row(link: PoolLink) -> None:
    stream, token = await opened(link)
    reader = asyncio.create_task(anext(stream, "no more"))
    await turns(3)
    stream.close()
    assert await reader == "no more"
    await link.expect(token, STOP)


async def test_a_task_that_nobody_holds_reads_its_stream_all_the_same(link: PoolLink) -> None:
    got: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def watch() -> None:
        async for row in await CONNECTOR.open_stream(link.connection, ONE, {}):
            got.set_result(row)

    asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(watch()) and None)
    token, _ = await link.peer.request()
    link.peer.answer(token, PARTIAL)
    await link.expect(token, CONTINUE)
    await turns(3)
    gc.collect()
    link.peer.answer(token, PARTIAL, "change")
    assert await got == "change"


async def test_a_cancelled_read_loses_no_row(link: PoolLink) -> None:
    stream, token = await opened(link, 1)
    got: list[int] = []

    async def read() -> None:
        async for row in stream:
            got.append(row)

    for number in range(2, 6):
        reader = asyncio.create_task(read())
        await turns(3)
        link.peer.answer(token, PARTIAL, number)
        asyncio.get_running_loop().call_soon(reader.cancel)
        await asyncio.wait([reader])
        await link.expect(token, CONTINUE)
    link.peer.answer(token, SEQUENCE)
    await read()
    assert got == [1, 2, 3, 4, 5]
