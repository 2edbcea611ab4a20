"""Cursors: their rows in order, one batch ahead, and stopped when their user drops them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import tracemalloc
from typing import Any

import pytest
from rethinkdb.asyncio_net.net_asyncio import AsyncioCursor
from rethinkdb.errors import ReqlCursorEmpty, ReqlDriverError, ReqlOpFailedError, ReqlRuntimeError, ReqlTimeoutError

from async_repool.connectors.rethinkdb import R, RethinkDBConnection, RethinkDBCursor
from async_repool.testing import StandInServer
from connection_kit import turns, until
from scripted_server import ATOM, CONTINUE, PARTIAL, RUNTIME_ERROR, SEQUENCE, STOP, Link


async def test_a_cursor_gives_every_row_in_order(table: Any, any_connection: RethinkDBConnection) -> None:
    cursor = await table.order_by(index="id").run(any_connection)
    assert isinstance(cursor, AsyncioCursor)
    assert [row["id"] async for row in cursor] == list(range(2500))
    assert any_connection.open_cursors == 0
    with pytest.raises(ReqlCursorEmpty):
        await cursor.next()
    assert not await cursor.fetch_next()


async def test_an_answer_in_one_piece_is_a_cursor_without_a_stream(link: Link) -> None:
    task, token = await link.started()
    link.peer.answer(token, SEQUENCE, 1, 2)
    cursor = await task
    assert link.connection.open_cursors == 0
    assert [await cursor.next(), await cursor.next()] == [1, 2]
    assert [row async for row in cursor] == []
    await cursor.close()
    assert await link.peer.has_nothing_more()


async def test_a_cursor_reads_ahead_one_batch_and_no_more(link: Link) -> None:
    cursor, token = await link.streaming("a", "b")
    link.peer.answer(token, PARTIAL, "c", "d")
    await link.works()
    assert list(cursor.items) == ["a", "b", "c", "d"]
    assert cursor.outstanding_requests == 0
    assert [await cursor.next() for _ in range(2)] == ["a", "b"]
    assert await link.peer.has_nothing_more(), "a whole batch is still to be read"
    assert await cursor.next() == "c"
    await link.expect(token, CONTINUE)
    assert await link.peer.has_nothing_more(), "one at a time"
    link.peer.answer(token, SEQUENCE, "e")
    assert [row async for row in cursor] == ["d", "e"]


async def test_a_changefeed_is_asked_again_after_an_empty_batch(link: Link) -> None:
    feed, token = await link.streaming()
    row = asyncio.create_task(feed.next())
    for number in range(3):
        link.peer.answer(token, PARTIAL, number)
        await link.expect(token, CONTINUE)
        assert await row == number
        row = asyncio.create_task(feed.next())
    link.peer.answer(token, RUNTIME_ERROR, "Changefeed aborted (unavailable).", e=4100000, b=[])
    with pytest.raises(ReqlOpFailedError, match="Changefeed aborted"):
        await row
    assert link.connection.open_cursors == 0


async def test_rows_come_before_the_error_behind_them(link: Link) -> None:
    cursor, token = await link.streaming(1)
    link.peer.answer(token, RUNTIME_ERROR, "boom", b=[])
    assert await cursor.next() == 1
    with pytest.raises(ReqlRuntimeError, match="boom"):
        await anext(cursor)
    assert await cursor.fetch_next(), "as in the driver: there is something to be had, if only an error"
    with pytest.raises(ReqlRuntimeError, match="boom"):
        await cursor.next()


async def test_waiting_for_a_row_can_be_bounded(link: Link) -> None:
    cursor, token = await link.streaming(1)
    assert await cursor.next(wait=False) == 1
    for wait in (False, 0, 0.01):
        with pytest.raises(ReqlTimeoutError):
            await cursor.next(wait=wait)
        with pytest.raises(TimeoutError):
            await cursor.fetch_next(wait=wait)
    with pytest.raises(ReqlDriverError, match="Invalid wait timeout"):
        await cursor.next(wait="long")
    link.peer.answer(token, PARTIAL, 2)
    assert await cursor.fetch_next(wait=5)
    assert await cursor.next(wait=False) == 2


async def test_polling_lets_rows_come_in(link: Link) -> None:
    cursor, token = await link.streaming()
    link.peer.answer(token, PARTIAL, 1)
    for _ in range(100):
        with contextlib.suppress(ReqlTimeoutError):
            assert await cursor.next(wait=False) == 1
            break
    else:
        pytest.fail("polled 100 times")


async def test_a_cursor_looks_like_the_drivers(link: Link) -> None:
    cursor, _ = await link.streaming(*range(12))
    assert str(cursor) == (
        "async_repool.connectors.rethinkdb.cursor.AsyncioCursor (streaming): [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...]"
    )
    await cursor.close()
    assert "(done streaming)" in str(cursor)
    assert repr(cursor).startswith("<async_repool.connectors.rethinkdb.cursor.AsyncioCursor object at 0x")
    assert cursor.conn.is_open()


async def test_cancelled_while_it_waits_a_cursor_loses_nothing(link: Link) -> None:
    cursor, token = await link.streaming(1)
    got: list[int] = []

    async def read() -> None:
        async for row in cursor:
            got.append(row)

    for number in range(2, 6):
        reader = asyncio.create_task(read())
        await turns(3)
        # The row and the cancellation in one turn of the loop.
        link.peer.answer(token, PARTIAL, number)
        asyncio.get_running_loop().call_soon(reader.cancel)
        await asyncio.wait([reader])
        await link.expect(token, CONTINUE)
    link.peer.answer(token, SEQUENCE)
    await read()
    assert got == [1, 2, 3, 4, 5]


async def test_two_tasks_may_read_one_cursor(link: Link) -> None:
    cursor, token = await link.streaming()
    got: list[int] = []

    async def read() -> None:
        async for row in cursor:
            got.append(row)
            await asyncio.sleep(0)

    readers = [asyncio.create_task(read()) for _ in range(3)]
    await turns(3)
    for batch in ([1], [2, 3, 4, 5], [6]):
        link.peer.answer(token, PARTIAL, *batch)
        await link.expect(token, CONTINUE)
    link.peer.answer(token, SEQUENCE, 7)
    await asyncio.gather(*readers)
    assert sorted(got) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("end", ["close", "aclose", "aclosing", "with", "drop", "break"])
async def test_a_cursor_that_waits_for_rows_is_stopped(link: Link, end: str) -> None:
    cursor: RethinkDBCursor | None
    cursor, token = await link.streaming(1, 2)
    assert link.connection.open_cursors == 1
    if end == "aclosing":
        async with contextlib.aclosing(cursor):
            pass
    elif end == "with":
        with cursor:
            pass
    elif end == "drop":
        cursor = None
    elif end == "break":
        async for _ in cursor:
            break
        cursor = None
    else:
        await getattr(cursor, end)()
    await link.expect(token, STOP)
    assert link.connection.open_cursors == 0
    # Its CONTINUE and its STOP are answered, and that is all.
    link.peer.answer(token, PARTIAL, 3, 4)
    link.peer.answer(token, SEQUENCE)
    await link.works()
    if cursor is not None:
        assert [row async for row in cursor] == [1, 2], "what had come can be read, as in the driver"
    link.peer.answer(token, SEQUENCE)
    await link.fails("not asked")


@pytest.mark.parametrize("end", ["close", "drop"])
async def test_a_cursor_that_waits_for_nothing_owes_one_answer(link: Link, end: str) -> None:
    cursor: RethinkDBCursor | None
    cursor, token = await link.idle(1, 2)
    if end == "close":
        await cursor.close()
        await cursor.close()
    cursor = None
    await link.expect(token, STOP)
    link.peer.answer(token, SEQUENCE)
    await link.works()
    link.peer.answer(token, SEQUENCE)
    await link.fails("not asked")


async def test_a_cursor_that_has_ended_is_not_stopped(link: Link) -> None:
    cursor, token = await link.streaming(1)
    link.peer.answer(token, SEQUENCE, 2)
    assert [row async for row in cursor] == [1, 2]
    await cursor.close()
    del cursor
    gc.collect()
    assert await link.peer.has_nothing_more()


async def test_rows_for_a_dropped_cursor_may_come_before_its_stop_is_sent(link: Link) -> None:
    cursor, token = await link.streaming(1)
    link.peer.answer(token, PARTIAL, 2)
    del cursor  # the rows can be read in the turn in which the STOP is prepared
    await link.expect(token, STOP)
    link.peer.answer(token, SEQUENCE)
    await link.works()
    assert link.connection.is_idle
    link.peer.answer(token, SEQUENCE)
    await link.fails("not asked")


async def test_a_cursor_may_be_collected_in_another_thread(link: Link) -> None:
    holder = [await link.streaming(1)]
    token = holder[0][1]
    thread = threading.Thread(target=holder.clear)
    thread.start()
    thread.join()
    await link.expect(token, STOP)
    link.peer.answer(token, SEQUENCE)
    link.peer.answer(token, SEQUENCE)
    await link.works()


async def test_a_cursor_in_a_cycle_is_stopped_when_it_is_collected(link: Link) -> None:
    cursor, token = await link.streaming(1)
    knot: list[Any] = [cursor]
    knot.append(knot)
    del cursor, knot
    assert link.connection.open_cursors == 1
    gc.collect()
    await link.expect(token, STOP)


def test_a_cursor_may_be_collected_after_its_loop_has_ended() -> None:
    kept = []

    async def main() -> None:
        async with StandInServer() as server:
            connection = await R.connect(server.host, server.port)
            kept.append((connection, await R.range(1_000_000).run(connection)))
            connection.abort()
            await asyncio.sleep(0)

    asyncio.run(main())
    kept.clear()
    gc.collect()  # whatever it raises is an error, as all that cannot be raised


async def test_a_task_that_nobody_holds_reads_its_feed_all_the_same(link: Link) -> None:
    # Only the cursor's own future refers to it, and the connection holds cursors weakly.
    got: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def watch() -> None:
        async for row in await R.expr(1).run(link.connection):
            got.set_result(row)

    asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(watch()) and None)
    token, _ = await link.peer.request()
    link.peer.answer(token, PARTIAL)
    await link.expect(token, CONTINUE)
    await turns(3)
    gc.collect()
    link.peer.answer(token, PARTIAL, "change")
    assert await got == "change"
    await link.expect(token, CONTINUE)
    link.peer.answer(token, SEQUENCE)
    await link.works()


async def test_a_stream_whose_first_rows_a_cancelled_task_never_took_is_stopped_though_its_error_is_kept(
    link: Link,
) -> None:
    task, token = await link.started()
    link.peer.answer(token, PARTIAL, 1)
    while not link.connection.open_cursors:  # noqa: ASYNC110 (it must be seen in the very turn before the task's own)
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as kept:
        await task
    await turns(3)
    assert link.connection.open_cursors == 0
    assert kept.value.__traceback__ is not None


async def test_a_stream_whose_first_rows_a_cancelled_task_never_took_is_stopped_though_its_cursor_is_kept(
    link: Link,
) -> None:
    task, token = await link.started()
    link.peer.answer(token, PARTIAL, "kept")
    while not link.connection.open_cursors:  # noqa: ASYNC110 (it must be seen in the very turn before the task's own)
        await asyncio.sleep(0)
    cursors = [thing for thing in gc.get_objects() if type(thing) is RethinkDBCursor]
    (kept,) = [cursor for cursor in cursors if "kept" in cursor.items]  # or its collection would stop it
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert link.connection.open_cursors == 0
    await link.expect(token, CONTINUE)
    await link.expect(token, STOP)
    assert list(kept.items) == ["kept"]


async def test_abandoned_cursors_leave_nothing_on_the_server(
    server: StandInServer, connection: RethinkDBConnection
) -> None:
    cursors = [await R.range(1_000_000).run(connection) for _ in range(500)]
    assert server.open_streams == 500
    cursors.clear()
    await until(lambda: server.open_streams == 0)
    assert connection.is_idle
    assert await R.expr(1).run(connection) == 1


async def test_abandoned_cursors_leave_nothing_in_memory(link: Link) -> None:
    streams: set[int] = set()

    async def serve_endless_rows() -> None:
        while True:
            token, (kind, *_) = await link.peer.request()
            if kind == STOP:
                streams.remove(token)
                link.peer.answer(token, SEQUENCE)
            else:
                streams.add(token)
                link.peer.answer(token, PARTIAL, *range(100))

    async def abandon(count: int) -> None:
        for _ in range(count):
            cursor = await R.expr(1).run(link.connection)
            assert await cursor.next() == 0
            del cursor
        await until(lambda: not streams and link.connection.is_idle)

    server = asyncio.create_task(serve_endless_rows())
    tracemalloc.start()
    try:
        await abandon(20)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        await abandon(500)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        server.cancel()
    assert after - before < 50_000, "500 cursors leave less than 100 bytes each"


async def test_the_end_of_the_last_cursor_can_be_waited_for(link: Link) -> None:
    await link.connection.wait_idle()
    first, first_token = await link.streaming(1)
    second, second_token = await link.streaming(1)
    wait = asyncio.create_task(link.connection.wait_idle())
    link.peer.answer(first_token, SEQUENCE)
    await link.works()
    assert not wait.done()
    await second.close()
    await wait
    await link.expect(second_token, STOP)
    assert await first.next() == 1


async def test_a_reconnect_ends_all_cursors(connection: RethinkDBConnection) -> None:
    first = await R.range(1_000_000).run(connection)
    waits = asyncio.gather(connection.wait_idle(), connection.wait_idle())
    await turns(3)
    await connection.reconnect()
    second = await R.range(1_000_000).run(connection)
    async with asyncio.timeout(5):
        await waits
    assert first.error is not None
    assert second.error is None
    assert connection.open_cursors == 1


async def test_a_query_is_waited_for_where_idleness_is(link: Link) -> None:
    task, token = await link.started()
    wait = asyncio.create_task(link.connection.wait_idle())
    await turns(3)
    assert not wait.done()
    link.peer.answer(token, ATOM, 1)
    await task
    await wait
