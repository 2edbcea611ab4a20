"""Changefeeds that break are opened again and tell of the gap."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from async_repool import ConnectFailed, FeedGap, feeds
from async_repool.errors import ConnectionLost, NotSent
from async_repool.testing.scripted import error, feed, never, ok, slow
from pool_kit import (
    acquire_soon,
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

EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The date goes with the loop's time."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            assert tz is UTC
            return EPOCH + timedelta(seconds=now())

    monkeypatch.setattr(feeds, "datetime", Clock)


@pytest.mark.usefixtures("wall_clock")
async def test_a_feed_whose_connection_is_lost_is_opened_again_and_tells_of_the_gap() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool)
        async with reading(changes) as items:
            newest(connector).send("before")
            await asyncio.sleep(10)
            connector.connects.then(slow(3))
            drop_all(connector)
            await asyncio.sleep(10)
            newest(connector).send("after")
            await turn()
            before, gap, after = items
        assert (before, after) == ("before", "after")
        assert isinstance(gap, FeedGap)
        assert gap.broke_at == EPOCH + timedelta(seconds=10)
        assert timedelta(seconds=13) <= gap.resumed_at - EPOCH < timedelta(seconds=13.2)
        assert gap.seconds == (gap.resumed_at - gap.broke_at).total_seconds()
        assert (
            gap.reason
            == "ConnectionLost: connection 1 is lost, but neither closed nor aborted: it ended before "
            + ("the last row had come")
        )
        assert [stream.query for stream in connector.opened_streams] == [("a feed", {})] * 2
        await stop(changes)


async def test_a_gap_cannot_be_changed() -> None:
    gap = FeedGap(broke_at=EPOCH, resumed_at=EPOCH + timedelta(seconds=2), reason="why")
    assert gap.seconds == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        gap.reason = "another"  # type: ignore[misc]


@pytest.mark.usefixtures("wall_clock")
async def test_a_gap_begins_when_the_connection_was_lost_and_not_when_somebody_reads_on() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool)
        newest(connector).send(1)
        drop_all(connector)
        await asyncio.sleep(100)  # the reader is busy with something else
        assert await anext(changes) == 1
        gap = await anext(changes)
        assert gap.broke_at == EPOCH
        assert gap.seconds >= 100
        await stop(changes)


async def test_changes_that_came_before_the_break_are_delivered_before_the_gap() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool)
        newest(connector).send(1, 2, 3)
        drop_all(connector)
        connector.streams.always(feed("initial"))
        items = [await anext(changes) for _ in range(5)]
        assert items == [1, 2, 3, anything(FeedGap), "initial"]
        await stop(changes)


async def test_each_feed_of_a_connection_that_is_lost_is_opened_again_on_one() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=2) as pool:
        feeds = [await opened(pool, number) for number in range(30)]
        tasks = [await read_soon(changes) for changes in feeds]
        connector.drop(connector.opened_streams[0].connection)
        assert await asyncio.gather(*tasks) == [anything(FeedGap)] * 30
        assert (pool.stats().feeds, pool.stats().changefeeds) == (1, 30)
        assert sorted(stream.query.term for stream in connector.open_streams if stream.query) == list(range(30))
        assert now() < 1
        await stop(*feeds)
        assert await is_whole(pool)


async def test_on_gap_raise_raises_at_once_and_the_feed_is_over() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool, on_gap="raise")
        newest(connector).send(1)
        drop_all(connector)
        assert await anext(changes) == 1
        with pytest.raises(ConnectionLost):
            await anext(changes)
        assert now() == 0
        assert [change async for change in changes] == []
        assert await is_whole(pool)
        assert len(connector.opened_streams) == 1


@pytest.mark.parametrize("on_gap", ["tell", "raise"])
async def test_an_error_of_the_server_ends_a_feed_and_is_not_retried(on_gap: Any) -> None:
    connector = feeding()
    dropped = LookupError("table dropped")
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool, on_gap=on_gap)
        newest(connector).send(1)
        newest(connector).fail(dropped)
        assert await anext(changes) == 1
        with pytest.raises(LookupError) as caught:
            await anext(changes)
        assert caught.value is dropped
        assert [change async for change in changes] == []
        await asyncio.sleep(10)
        assert len(connector.opened_streams) == 1
        assert await is_whole(pool)


async def test_an_error_of_the_server_at_a_later_opening_ends_a_feed_too() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool)
        connector.streams.always(error(LookupError("table dropped")))
        drop_all(connector)
        with pytest.raises(LookupError):
            await anext(changes)
        assert connector.streams.started_total == 2
        assert await is_whole(pool)


async def test_an_error_that_is_transient_is_a_gap() -> None:
    connector = feeding()
    connector.passing_errors = (LookupError,)
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool)
        connector.streams.then(*[error(LookupError("table is not available yet"))] * 4)
        newest(connector).fail(LookupError("table is moved"))
        gap = await anext(changes)
        assert gap.reason == "LookupError: table is moved"
        assert connector.streams.started_total == 6
        assert pool.stats().changefeeds == 1
        await stop(changes)


async def test_an_error_that_is_transient_is_raised_where_gaps_are() -> None:
    connector = feeding()
    connector.passing_errors = (LookupError,)
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool, on_gap="raise")
        newest(connector).fail(LookupError("table is moved"))
        with pytest.raises(LookupError):
            await anext(changes)


async def test_a_wrong_password_at_a_later_opening_ends_a_feed() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool)
        await asyncio.sleep(1)
        connector.connects.always(error(ConnectFailed("wrong password", is_permanent=True)))
        drop_all(connector)
        with pytest.raises(ConnectFailed) as caught:
            await anext(changes)
        assert caught.value.is_permanent
        assert now() < 2
        assert [change async for change in changes] == []
        connector.connects.always(ok())


@pytest.mark.parametrize("kind", ["no answer", "not sent", "lane full", "no place in time", "too many waiters"])
async def test_a_later_opening_is_tried_as_often_as_it_takes(kind: str) -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, max_feed_connections=1, acquire_timeout=2, max_waiting=1) as pool:
        changes = await opened(pool, timeout=1)
        await asyncio.sleep(1)
        lane = pool.connect(looped_mode=True)
        leases: list[Any] = []
        connector.drop(connector.connections[0])
        await turn()
        if kind == "no answer":
            connector.streams.then(never(), never(), never())
        elif kind == "not sent":
            connector.streams.then(*[error(NotSent("broken pipe"))] * 12)
        elif kind == "lane full":
            await lane.__aenter__()
        else:
            leases.append(await pool.acquire())
            if kind == "too many waiters":
                leases.append(await acquire_soon(pool, timeout=None))
        task = await read_soon(changes)
        await asyncio.sleep(20)
        if kind == "lane full":
            assert not task.done()
            await lane.__aexit__(None, None, None)
        for lease in leases:
            assert not task.done()
            pool.release(await lease if isinstance(lease, asyncio.Task) else lease)
        assert isinstance(await task, FeedGap)
        await stop(changes)


@pytest.mark.usefixtures("wall_clock")
async def test_an_outage_is_one_gap_however_long_it_lasts() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=2, acquire_timeout=5) as pool:
        changes = await opened(pool)
        async with reading(changes) as items:
            connector.connects.always(error(OSError("refused")))
            drop_all(connector)
            await asyncio.sleep(600)
            assert list(items) == []
            connector.connects.always(ok())
            await asyncio.sleep(11)
            (gap,) = items
            assert 600 <= gap.seconds < 611
        await stop(changes)


async def test_a_feed_that_breaks_again_and_again_is_opened_with_growing_pauses() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = pool.changes("a feed")

        async def crash() -> None:
            while True:
                drop_all(connector)
                await asyncio.sleep(0.05)

        crashing = asyncio.create_task(crash())
        async with reading(changes) as items:
            await asyncio.sleep(60)
            minute = connector.streams.started_total
            await asyncio.sleep(120)
            crashing.cancel()
            assert all(isinstance(item, (FeedGap, ConnectionLost)) for item in items)
        assert minute < 60
        assert connector.streams.started_total < 180
        await stop(changes)


@pytest.mark.parametrize("lives", [0.0, 1.0, 4.0])
async def test_a_feed_that_dies_soon_after_each_opening_is_paced(lives: float) -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = pool.changes("a feed")
        openings: list[float] = []
        async with asyncio.timeout(600), changes:
            openings.append(now())
            while len(openings) < 20:
                asyncio.get_running_loop().call_later(lives, connector.drop, newest(connector).connection)
                assert isinstance(await anext(changes), FeedGap)
                openings.append(now())
        pauses = [later - earlier - lives for earlier, later in itertools.pairwise(openings)]
        assert max(pauses[:3]) < 0.4, "soon at first"
        assert sum(pauses[9:]) > 10, "and then in no hurry"
        assert max(pauses) < 5.1


async def test_a_feed_that_was_well_for_a_while_is_opened_again_soon() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool, pool.changes("a feed") as changes:
        for _ in range(30):
            asyncio.get_running_loop().call_later(60, connector.drop, newest(connector).connection)
            assert isinstance(await anext(changes), FeedGap)
        assert now() < 30 * 60.2


async def test_feeds_that_are_broken_do_not_call_a_server_more_often_that_is_away() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=3) as pool:
        feeds = [await opened(pool) for _ in range(50)]
        tasks = [await read_soon(changes) for changes in feeds]
        connector.connects.always(error(OSError("refused")))
        drop_all(connector)
        await asyncio.sleep(300)
        assert connector.connects.failed_total < 300
        connector.connects.always(ok())
        assert await asyncio.gather(*tasks) == [anything(FeedGap)] * 50
        await stop(*feeds)


async def test_a_feed_that_is_opened_in_an_outage_waits_for_its_end() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, acquire_timeout=60) as pool:
        connector.connects.always(error(OSError("refused")))
        drop_all(connector)
        await asyncio.sleep(1)
        changes = pool.changes("a feed")
        task = await read_soon(changes)
        await asyncio.sleep(30)
        connector.connects.always(ok())
        await asyncio.sleep(6)
        newest(connector).send(1)
        assert await task == 1, "no gap: it had not begun"
        await stop(changes)


async def test_a_feed_that_is_opened_in_an_outage_is_told_why_when_its_time_is_up() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, acquire_timeout=10) as pool:
        connector.connects.always(error(OSError("refused")))
        drop_all(connector)
        await asyncio.sleep(1)
        with pytest.raises(ConnectFailed, match="main: .*scripted:28015.*refused"):
            await anext(pool.changes("a feed"))
        assert now() == pytest.approx(11)
        connector.connects.always(ok())
