"""How changefeeds end: closed with their pool, or left by their readers."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from async_repool import FeedGap, PoolClosed, PoolException
from async_repool.errors import ConnectionLost
from async_repool.testing.scripted import ScriptedConnection, ScriptedConnector, error, feed, never, ok, slow
from pool_kit import (
    anything,
    drop_all,
    feeding,
    is_whole,
    newest,
    now,
    open_pool,
    opened,
    read_soon,
    reading,
    stop,
    turn,
)

pytestmark = [pytest.mark.virtual_time, pytest.mark.usefixtures("repeatable")]


# ---- closing


@pytest.mark.parametrize("on_gap", ["tell", "raise"])
async def test_close_ends_a_feed_that_is_read_with_pool_closed_at_once(on_gap: Any) -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool, on_gap=on_gap)
        task = await read_soon(changes)
        report = await pool.close()
        with pytest.raises(PoolClosed):
            await task
        assert now() == 0
        assert [change async for change in changes] == []
        assert report.feeds_ended == 1


async def test_close_ends_a_feed_at_once_even_if_its_connection_does_not_close_politely() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, close_timeout=5) as pool:
        changes = await opened(pool)
        async with reading(changes) as items:
            connector.closes.always(never())
            closing = asyncio.create_task(pool.close())
            await asyncio.sleep(1)
            assert list(items) == [anything(PoolClosed)]
            await closing


async def test_close_ends_a_feed_at_once_that_was_broken_often_before() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool)
        for _ in range(12):
            drop_all(connector)
            assert isinstance(await anext(changes), FeedGap)
        task = await read_soon(changes)
        began = now()
        await pool.close()
        with pytest.raises(PoolClosed):
            await task
        assert now() == began, "nothing is to be waited for any more"


async def test_close_ends_a_feed_that_pauses_before_its_next_opening() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool)
        connector.streams.always(error(ConnectionLost("reset by peer")))
        drop_all(connector)
        task = await read_soon(changes)
        await asyncio.sleep(100)
        began = now()
        await pool.close()
        with pytest.raises(PoolClosed):
            await task
        assert now() == began


@pytest.mark.parametrize("where", ["in line", "opening", "connecting"])
async def test_close_ends_a_feed_that_is_being_opened(where: str) -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, min_size=0) as pool:
        lease = await pool.acquire() if where == "in line" else None
        if where == "opening":
            connector.streams.always(never())
        elif where == "connecting":
            connector.connects.always(never())
        task = await read_soon(pool.changes("a feed"))
        await asyncio.sleep(1)
        if lease is not None:
            asyncio.get_running_loop().call_later(3, pool.release, lease)
        began = now()
        await pool.close()
        assert now() - began == pytest.approx(3 if lease else 0)
        with pytest.raises(PoolClosed):
            await task


async def test_a_feed_whose_turn_comes_as_the_pool_closes_is_told_so() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        lease = await pool.acquire()
        task = await read_soon(pool.changes("a feed"))
        pool.release(lease)  # a place is handed to the feed, which has not run yet
        await pool.close()
        with pytest.raises(PoolClosed):
            await task


async def test_a_feed_whose_connection_is_lost_as_its_turn_comes_is_opened_elsewhere() -> None:
    class Immediate(ScriptedConnector):
        """Tells of a loss in the same turn."""

        def __init__(self) -> None:
            super().__init__()
            self.callbacks: list[Callable[[], None]] = []

        def on_lost(self, connection: ScriptedConnection, callback: Callable[[], None], /) -> None:
            self.callbacks.append(callback)

    connector = Immediate()
    connector.streams.always(feed())
    async with open_pool(connector, pool_size=1) as pool:
        lease = await pool.acquire()
        changes = pool.changes("a feed")
        task = await read_soon(changes)
        pool.release(lease)
        connector.drop(connector.connections[0], is_told=False)
        connector.callbacks[0]()
        await asyncio.sleep(1)
        if task.done():
            task.result()
        assert newest(connector).connection.number == 2
        newest(connector).send(1)
        assert await task == 1
        await stop(changes)


async def test_close_ends_feeds_without_waiting_for_their_readers() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=2) as pool:
        feeds = [await opened(pool) for _ in range(7)]
        newest(connector).send(1)
        report = await pool.close(timeout=1000)
        assert (report.feeds_ended, report.seconds) == (7, 0)
        assert await anext(feeds[-1]) == 1, "what had come can be read"
        ends = await asyncio.gather(*(anext(changes) for changes in feeds), return_exceptions=True)
        assert ends == [anything(PoolClosed)] * 7, "each is told when it reads on"
        assert len({id(end) for end in ends}) == 7, "each its own"
        assert [change async for change in feeds[0]] == [], "once"


async def test_a_feed_of_a_closed_pool_can_be_closed_and_dropped() -> None:
    async with open_pool(feeding()) as pool:
        feeds = [await opened(pool) for _ in range(3)]
        await pool.close()
        await feeds.pop().aclose()
        await feeds.pop().__aexit__(None, None, None)
        feeds.clear()
        gc.collect()


async def test_the_block_of_a_feed_whose_pool_was_closed_is_not_entered() -> None:
    async with open_pool(feeding()) as pool:
        changes = pool.changes("a feed")
        await pool.close()
        with pytest.raises(PoolClosed):
            await changes.__aenter__()


async def test_the_block_of_a_feed_that_was_closed_is_not_entered() -> None:
    async with open_pool(feeding()) as pool:
        changes = await opened(pool)
        await changes.aclose()
        with pytest.raises(PoolException, match="main: a feed of changes.. was closed; open another"):
            await changes.__aenter__()


async def test_a_feed_of_a_closed_pool_stays_ended_if_the_pool_is_opened_again() -> None:
    async with open_pool(feeding(), pool_size=1) as pool:
        changes = await opened(pool)
        await pool.close()
        await pool.init_pool()
        with pytest.raises(PoolClosed):
            await anext(changes)
        with pytest.raises(StopAsyncIteration):
            await anext(changes)


async def test_a_place_left_in_a_former_life_of_the_pool_counts_for_nothing() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        old = [await opened(pool) for _ in range(3)]
        await pool.close()
        await pool.init_pool()
        changes = await opened(pool)
        await stop(*old)
        old.clear()
        await turn()
        assert pool.stats().changefeeds == 1
        newest(connector).send(1)
        assert await anext(changes) == 1
        await stop(changes)


# ---- left


@pytest.mark.parametrize("how", ["break", "aclose", "async with", "dropped", "cancelled", "error"])
async def test_a_feed_that_is_left_is_stopped_and_its_place_is_free(how: str) -> None:
    connector = feeding()
    connector.streams.always(feed(1, 2))
    async with open_pool(connector, pool_size=1) as pool:

        async def read() -> None:
            if how == "async with":
                async with pool.changes("a feed") as inside:
                    assert await anext(inside) == 1
            elif how == "aclose":
                changes = pool.changes("a feed")
                assert await anext(changes) == 1
                await changes.aclose()
                await changes.aclose()
                assert [change async for change in changes] == []
            elif how == "dropped":
                assert await anext(pool.changes("a feed")) == 1
            else:
                async for _ in pool.changes("a feed"):
                    if how == "break":
                        break
                    if how == "error":
                        raise LookupError

        task = asyncio.create_task(read())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        del task
        gc.collect()
        await asyncio.sleep(1)
        assert newest(connector).is_closed
        assert await is_whole(pool)


async def test_a_feed_that_was_never_read_leaves_nothing() -> None:
    connector = feeding()
    async with open_pool(connector) as pool:
        changes = pool.changes("a feed")
        await changes.aclose()
        assert [change async for change in changes] == []
        pool.changes("another")
        assert connector.opened_streams == []


async def test_aclose_wakes_a_task_that_waits_for_a_change() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool)
        task = await read_soon(changes)
        await changes.aclose()
        with pytest.raises(StopAsyncIteration):
            await task
        assert now() == 0
        assert await is_whole(pool)


@pytest.mark.parametrize("event", ["aclose", "close"])
async def test_aclose_may_be_called_at_any_moment_and_again(event: str) -> None:
    connector = feeding()
    connector.streams.always(never())
    async with open_pool(connector, pool_size=1) as pool:
        changes = pool.changes("a feed")
        task = await read_soon(changes)
        closing = asyncio.create_task(pool.close()) if event == "close" else None
        await asyncio.sleep(0)
        for _ in range(10):
            await changes.aclose()
            await asyncio.sleep(0)
        assert task.done()
        assert isinstance(task.exception(), PoolClosed if event == "close" else StopAsyncIteration)
        if closing is not None:
            await closing


@pytest.mark.parametrize("where", ["in line", "opening", "pause", "outage"])
async def test_aclose_wakes_a_task_that_waits_for_the_feed_to_be_open(where: str) -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, acquire_timeout=1000, max_feed_connections=3) as pool:
        lease = None
        changes = pool.changes("a feed", timeout=1000)
        if where == "in line":
            lease = await pool.acquire()
        elif where == "opening":
            connector.streams.always(never())
        else:
            changes = await opened(pool)
            await asyncio.sleep(1)
            connector.streams.always(error(ConnectionLost("reset by peer")))
            if where == "outage":
                connector.connects.always(error(OSError("refused")))
            drop_all(connector)
        task = await read_soon(changes)
        await asyncio.sleep(50)
        await changes.aclose()
        await asyncio.sleep(6)  # a pause of the back-off at most
        is_done = task.done()
        if lease is not None:
            pool.release(lease)
        connector.connects.always(ok())
        connector.streams.always(feed())
        assert is_done, "what it waits for is of no use any more"
        with pytest.raises(StopAsyncIteration):
            await task
        await asyncio.sleep(50)
        assert connector.open_streams == []
        assert await is_whole(pool)


async def test_a_feed_that_is_closed_while_its_block_is_entered_says_so() -> None:
    connector = feeding()
    held = connector.streams.hold()
    async with open_pool(connector, pool_size=1) as pool:
        changes = pool.changes("a feed")
        entering = asyncio.create_task(changes.__aenter__())
        await turn()
        await changes.aclose()
        held.release(feed())
        await asyncio.wait([entering], timeout=100)
        assert isinstance(entering.exception(), PoolException), "StopAsyncIteration would end a loop around the block"
        assert await is_whole(pool)


async def test_a_feed_that_was_closed_while_it_was_opened_leaves_nothing() -> None:
    connector = feeding()
    held = connector.streams.hold()
    async with open_pool(connector, pool_size=1) as pool:
        changes = pool.changes("a feed")
        task = await read_soon(changes)
        await changes.aclose()
        held.release(feed())
        await asyncio.wait([task], timeout=100)
        assert isinstance(task.exception(), StopAsyncIteration)
        assert connector.open_streams == []
        assert await is_whole(pool)


async def test_two_readers_at_once_are_told_and_the_first_reads_on() -> None:
    connector = feeding()
    async with open_pool(connector) as pool:
        changes = await opened(pool)
        task = await read_soon(changes)
        with pytest.raises(PoolException, match="main: a feed of changes.. is (read|used) by two tasks at once"):
            await anext(changes)
        newest(connector).send(1, 2)
        assert [await task, await anext(changes)] == [1, 2]
        await stop(changes)


async def test_a_feed_that_is_entered_while_it_is_read_for_the_first_time_takes_one_place() -> None:
    connector = feeding()
    connector.streams.always(slow(1, feed()))
    async with open_pool(connector, pool_size=1) as pool:
        changes = pool.changes("a feed")
        task = await read_soon(changes)
        try:
            async with changes:
                pass
        except PoolException:
            await asyncio.sleep(2)
            await stop(changes)
        await asyncio.wait([task], timeout=100)
        is_done = task.done()
        task.cancel()
        await asyncio.wait([task])
        assert is_done, "whoever waits for a change is told of the end"
        assert connector.open_streams == []
        assert await is_whole(pool)
