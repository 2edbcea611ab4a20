"""Changefeeds that survive: ``changes()`` on the scripted connector and the virtual clock."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from async_repool import (
    AsyncConnectionPool,
    ConnectFailed,
    FeedGap,
    OutcomeUnknown,
    PoolClosed,
    PoolException,
    PoolTimeout,
    TooManyWaiters,
    streams,
)
from async_repool.errors import ConnectionLost, FeedLaneFull, NotSent, QueryTimeout
from async_repool.streams import Feed
from async_repool.testing.scripted import (
    ScriptedConnection,
    ScriptedConnector,
    ScriptedStream,
    error,
    feed,
    never,
    ok,
    slow,
)
from async_repool.testing.virtual_clock import cancel_at_every_step
from pool_kit import acquire_soon, now, open_pool, run_soon, turn

pytestmark = pytest.mark.virtual_time

EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    """Pauses are drawn from the common generator: the same in every run."""
    state = random.getstate()
    random.seed(1)
    yield
    random.setstate(state)


@pytest.fixture
def wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The date goes with the loop's time."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            assert tz is UTC
            return EPOCH + timedelta(seconds=now())

    monkeypatch.setattr(streams, "datetime", Clock)


def feeding(**options: Any) -> ScriptedConnector:
    """A connector whose streams are changefeeds, of which the test sends the changes."""
    connector = ScriptedConnector(**options)
    connector.streams.always(feed())
    return connector


async def read_soon(changes: Feed) -> asyncio.Task[Any]:
    """A task that has begun to wait for the next change."""
    task = asyncio.create_task(changes.__anext__())
    await turn()
    return task


async def opened(pool: AsyncConnectionPool, query: Any = "a feed", **arguments: Any) -> Feed:
    """A feed that is open on the server."""
    return await pool.changes(query, **arguments).__aenter__()


async def stop(*feeds: Feed) -> None:
    for changes in feeds:
        await changes.aclose()


@asynccontextmanager
async def reading(changes: Feed) -> AsyncIterator[deque[Any]]:
    """What comes of a feed while somebody reads it; its error last."""
    items: deque[Any] = deque()

    async def read() -> None:
        try:
            async for change in changes:
                items.append(change)
        except Exception as failure:
            items.append(failure)

    task = asyncio.create_task(read())
    await turn()
    yield items
    task.cancel()
    await asyncio.wait([task])


def newest(connector: ScriptedConnector) -> ScriptedStream:
    return connector.opened_streams[-1]


def drop_all(connector: ScriptedConnector) -> None:
    for connection in connector.open_connections:
        connector.drop(connection)


async def is_whole(pool: AsyncConnectionPool) -> bool:
    """Whether nothing is in use and each connection can be had."""
    await asyncio.sleep(10)  # until what is being opened and closed is so
    stats = pool.stats()
    left = (stats.leased, stats.shared, stats.feeds, stats.retired, stats.changefeeds, stats.waiting, stats.connecting)
    leases = [await pool.acquire(timeout=60) for _ in range(stats.max_size)]
    for lease in leases:
        pool.release(lease)
    return not any(left)


# ---- changes as they come


async def test_changes_come_as_the_server_sends_them() -> None:
    connector = feeding()
    async with open_pool(connector) as pool:
        changes = pool.changes("a feed", include_initial=True)
        async with reading(changes) as items:
            assert newest(connector).query == ("a feed", {"include_initial": True})
            newest(connector).send(1, 2)
            await asyncio.sleep(1000)
            newest(connector).send(3)
            await turn()
            assert list(items) == [1, 2, 3]
        await changes.aclose()


async def test_own_options_are_not_passed_on() -> None:
    connector = feeding()
    async with open_pool(connector) as pool:
        await opened(pool, timeout=5, on_gap="raise", db="heroes")
        assert newest(connector).query == ("a feed", {"db": "heroes"})


async def test_nothing_is_opened_before_the_first_read() -> None:
    connector = feeding()
    async with open_pool(connector) as pool:
        pool.changes("a feed")
        await turn()
        assert connector.opened_streams == []


async def test_entering_its_block_opens_a_feed_so_that_no_change_after_that_is_missed() -> None:
    connector = feeding()
    async with open_pool(connector) as pool:
        async with pool.changes("a feed") as changes:
            newest(connector).send(1)
            assert await anext(changes) == 1
        assert (newest(connector).is_closed, len(connector.opened_streams)) == (True, 1)


async def test_a_feed_that_ends_by_itself_is_over() -> None:
    connector = feeding()
    async with open_pool(connector) as pool:
        changes = await opened(pool)
        newest(connector).send(1)
        newest(connector).end()
        assert [change async for change in changes] == [1]
        assert [change async for change in changes] == []
        assert len(connector.opened_streams) == 1
        assert await is_whole(pool)


# ---- the lane


async def test_many_feeds_share_one_connection_beside_those_of_the_pool() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=2) as pool:
        feeds = [await opened(pool, number) for number in range(100)]
        assert (pool.stats().feeds, pool.stats().changefeeds) == (1, 100)
        leases = [await pool.acquire() for _ in range(2)]
        assert len(connector.open_connections) == 3
        for number in (0, 77, 99):
            connector.opened_streams[number].send(number)
            assert await anext(feeds[number]) == number
        for lease in leases:
            pool.release(lease)
        await stop(*feeds)
        assert await is_whole(pool)


async def test_the_connection_that_goes_to_the_lane_is_replaced() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=2) as pool:
        await asyncio.sleep(1)
        changes = await opened(pool)
        await asyncio.sleep(1)
        assert (pool.stats().idle, pool.stats().feeds) == (2, 1)
        await stop(changes)


async def test_feeds_that_are_refused_cost_no_connection() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=2) as pool:
        connector.streams.then(*[error(LookupError("no such table"))] * 20)
        for _ in range(4):
            refused = await asyncio.gather(*(opened(pool) for _ in range(5)), return_exceptions=True)
            assert refused == [anything(LookupError)] * 5
            await asyncio.sleep(1)
        assert (pool.stats().opened_total, pool.stats().idle) == (2, 2)


async def test_feeds_that_wait_for_their_tables_after_a_restart_cost_no_connections() -> None:
    connector = feeding()
    connector.passing_errors = (LookupError,)
    async with open_pool(connector, pool_size=3) as pool:
        feeds = [await opened(pool) for _ in range(5)]
        await asyncio.sleep(1)
        assert pool.stats().opened_total == 4
        reads = [await read_soon(changes) for changes in feeds]
        refusals = [error(LookupError("the table is not ready"))] * 50
        connector.streams.then(*refusals)
        drop_all(connector)
        await asyncio.sleep(120)
        assert [await read for read in reads] == [anything(FeedGap)] * 5
        assert pool.stats().opened_total == 8, "as many as there were"
        await stop(*feeds)


async def test_a_connection_of_the_lane_that_is_lost_takes_no_new_feed_though_nobody_was_told() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        feeds = [await opened(pool) for _ in range(2)]
        await asyncio.sleep(1)
        connector.drop(connector.connections[0], is_told=False)
        feeds.append(await opened(pool))
        assert newest(connector).connection.number == 2
        assert (pool.stats().feeds, pool.stats().changefeeds) == (1, 1)
        assert [await anext(changes) for changes in feeds[:2]] == [anything(FeedGap)] * 2
        assert (pool.stats().feeds, pool.stats().changefeeds) == (1, 3)
        await stop(*feeds)
        assert await is_whole(pool)


async def test_feeds_that_are_opened_at_once_share_one_connection() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=3, min_size=0) as pool:
        feeds = [pool.changes(number) for number in range(20)]
        tasks = [asyncio.create_task(changes.__anext__()) for changes in feeds]
        await asyncio.sleep(1)
        assert (pool.stats().feeds, pool.stats().changefeeds) == (1, 20)
        await stop(*feeds)
        assert await asyncio.gather(*tasks, return_exceptions=True) == [anything(StopAsyncIteration)] * 20
        assert len(connector.connections) == 1


def anything(kind: type) -> Any:
    """Equal to whatever is of this type."""

    class Anything:
        def __eq__(self, other: object) -> bool:
            return isinstance(other, kind)

        __hash__ = None  # type: ignore[assignment]

    return Anything()


@pytest.mark.parametrize("call", ["changes", "connect"])
async def test_a_pool_without_a_lane_has_no_feeds(call: str) -> None:
    async with open_pool(feeding(), max_feed_connections=0) as pool:
        with pytest.raises(FeedLaneFull, match="main: max_feed_connections=0"):
            if call == "changes":
                await anext(pool.changes("a feed"))
            else:
                await pool.connect(looped_mode=True).__aenter__()
        assert await is_whole(pool)


async def test_leases_of_feeds_fill_the_lane_too() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=3, max_feed_connections=2) as pool:
        async with pool.connect(looped_mode=True), pool.connect(looped_mode=True):
            with pytest.raises(FeedLaneFull, match="main: max_feed_connections=2 connections serve feeds; end one"):
                await anext(pool.changes("a feed"))
        changes = await opened(pool)
        async with pool.connect(looped_mode=True):
            with pytest.raises(FeedLaneFull):
                await pool.connect(looped_mode=True).__aenter__()
            other = await opened(pool)
            assert pool.stats().feeds == 2, "feeds go on sharing"
        await stop(changes, other)
        assert await is_whole(pool)


async def test_a_feed_is_refused_at_once_where_the_lane_is_full_whoever_waits() -> None:
    async with open_pool(feeding(), pool_size=1, max_feed_connections=0) as pool, pool.connect():
        leasing = await acquire_soon(pool)
        with pytest.raises(FeedLaneFull):
            await anext(pool.changes("a feed"))
        assert now() == 0
        leasing.cancel()


async def test_a_feed_in_line_takes_the_place_in_the_lane_that_becomes_free() -> None:
    async with open_pool(feeding(), pool_size=1, max_feed_connections=1) as pool:
        lease = await pool.acquire()
        task = await read_soon(pool.changes("a feed"))
        pool.release_to_looped(lease)  # nothing is read from it, so its place in the lane is free again …
        await turn()
        assert pool.stats().changefeeds == 1, "… and was given to who waited"
        task.cancel()


async def test_a_feed_in_line_is_refused_when_a_lease_fills_the_lane_for_good() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, max_feed_connections=1) as pool:
        lease = await pool.acquire()
        cursor = connector.connections[0].open_stream()
        query = await run_soon(pool)
        task = await read_soon(pool.changes("a feed"))
        connector.connects.always(slow(5))
        pool.release_to_looped(lease)
        await asyncio.sleep(1)
        assert not query.done()
        with pytest.raises(FeedLaneFull):
            await task
        await query
        cursor.end()


async def test_another_connection_carries_feeds_where_the_first_is_full_and_one_is_idle() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=2, max_in_flight=3) as pool:
        feeds = [await opened(pool, number) for number in range(3)]
        assert pool.stats().feeds == 1
        feeds.append(await opened(pool, 3))
        assert (pool.stats().feeds, pool.stats().changefeeds) == (2, 4)
        feeds += [await opened(pool, number) for number in range(2)]
        loads = sorted(len(connection.open_streams) for connection in connector.connections)
        assert loads[-2:] == [3, 3], "the least loaded takes the next"
        await stop(*feeds)


@pytest.mark.parametrize("why", ["the lane is full", "no connection is idle"])
async def test_where_there_is_no_other_connection_for_feeds_one_carries_more(why: str) -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, max_in_flight=2, max_feed_connections=2) as pool:
        lane = pool.connect(looped_mode=True)
        if why == "the lane is full":
            await lane.__aenter__()
            feeds = [await opened(pool, number) for number in range(5)]
            await lane.__aexit__(None, None, None)
        else:
            feeds = [await opened(pool, 0)]
            async with pool.connect():
                feeds += [await opened(pool, number) for number in range(1, 5)]
        assert max(len(connection.open_streams) for connection in connector.connections) == 5
        await stop(*feeds)
        assert await is_whole(pool)


async def test_the_connection_of_the_last_feed_goes_back_where_the_pool_has_room() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, min_size=0) as pool:
        await stop(await opened(pool), await opened(pool))
        assert (pool.stats().idle, pool.stats().feeds) == (1, 0)
        async with pool.connect() as lease:
            assert lease.number == 1


async def test_the_connection_of_the_last_feed_is_closed_where_the_pool_has_no_room() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        feeds = [await opened(pool) for _ in range(3)]
        await asyncio.sleep(1)
        await stop(*feeds[:2])
        assert connector.connections[0].is_open()
        await stop(feeds[2])
        await asyncio.sleep(1)
        assert connector.connections[0].ended_by == "close"
        assert pool.stats().closed_by_reason == {"feed ended": 1}


async def test_a_connection_is_reset_after_its_last_feed() -> None:
    reset: list[int] = []

    async def note(connection: ScriptedConnection) -> None:
        reset.append(connection.number)

    async with open_pool(feeding(), pool_size=1, min_size=0, reset=note) as pool:
        feeds = [await opened(pool), await opened(pool)]
        await stop(*feeds)
        await turn()
        assert reset == [1]
        assert await is_whole(pool)


async def test_a_connection_is_checked_before_it_carries_feeds() -> None:
    connector = feeding()

    async def check(connection: ScriptedConnection) -> None:
        if connection.number == 1:
            raise OSError("unfit")
        await asyncio.sleep(1)

    async with open_pool(connector, pool_size=1, check=check) as pool:
        changes = pool.changes("a feed")
        task = await read_soon(changes)
        await asyncio.sleep(2)
        assert newest(connector).connection.number == 2
        task.cancel()


async def test_the_age_of_its_connection_does_not_end_a_feed() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, connection_ttl=100) as pool:
        changes = await opened(pool)
        await asyncio.sleep(10_000)
        newest(connector).send(1)
        assert await anext(changes) == 1
        other = await opened(pool)
        assert newest(connector).connection.number == 1
        await stop(changes, other)
        await asyncio.sleep(1)
        assert connector.connections[0].ended_by == "close", "it is too old for anything else"


async def test_a_connection_that_a_stream_is_read_from_serves_another_feed_after_the_last() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, max_feed_connections=1) as pool:
        async with pool.stream("a slow reader"):
            connector.streams.always(feed())
            await stop(await opened(pool))
            changes = await opened(pool)
            assert pool.stats().changefeeds == 1
            await stop(changes)
        assert await is_whole(pool)


# ---- the line


async def test_feeds_wait_in_line_as_others_do_until_one_of_them_has_a_connection() -> None:
    connector = feeding()
    served: list[str] = []
    async with open_pool(connector, pool_size=1) as pool:
        first = await pool.acquire()

        async def lease() -> None:
            async with pool.connect():
                served.append("lease")
                await asyncio.sleep(1)

        async def query() -> None:
            await pool.run("a query")
            served.append("query")

        async def follow() -> None:
            async with pool.changes("a feed"):
                served.append("feed")

        async with asyncio.TaskGroup() as group:
            for use in (lease, follow, query, lease, follow):
                group.create_task(use())
                await turn()
            pool.release(first)
        assert served == ["lease", "feed", "feed", "query", "lease"]


async def test_a_feed_that_can_share_does_not_wait_behind_those_who_cannot() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool)
        async with pool.connect():
            leasing = await acquire_soon(pool)
            other = await opened(pool)
            leasing.cancel()
        await stop(changes, other)


async def test_endless_queries_do_not_starve_a_feed() -> None:
    connector = feeding()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=1) as pool:

        async def user() -> None:
            while True:
                await pool.run("a query")

        users = []
        for _ in range(10):
            users.append(asyncio.create_task(user()))
            await asyncio.sleep(0.1)
        began = now()
        async with pool.changes("a feed"):
            assert now() - began < 1.2
            await asyncio.sleep(1)
            assert pool.stats().queries_in_flight > 0
        for task in users:
            task.cancel()
        await asyncio.gather(*users, return_exceptions=True)


async def test_a_feed_that_waits_is_bounded_by_acquire_timeout() -> None:
    async with open_pool(feeding(), pool_size=1, acquire_timeout=7) as pool, pool.connect():
        with pytest.raises(PoolTimeout, match="main: no connection to scripted:28015 after waiting 7.0 s"):
            await anext(pool.changes("a feed"))
        assert now() == pytest.approx(7)


async def test_feeds_in_line_count_against_max_waiting() -> None:
    async with open_pool(feeding(), pool_size=1, max_waiting=1) as pool:
        lease = await pool.acquire()
        task = await read_soon(pool.changes("a feed"))
        with pytest.raises(TooManyWaiters, match=r"main: changes\(\) was refused, max_waiting=1"):
            await anext(pool.changes("a feed"))
        pool.release(lease)
        await turn()
        task.cancel()


# ---- refused


async def test_a_feed_that_the_server_refuses_raises_its_error_and_leaves_nothing() -> None:
    connector = ScriptedConnector()
    refused = PermissionError("no read permission")
    connector.streams.always(error(refused))
    async with open_pool(connector, pool_size=1) as pool:
        changes = pool.changes("a feed")
        with pytest.raises(PermissionError) as caught:
            await anext(changes)
        assert caught.value is refused
        assert [change async for change in changes] == [], "it is over"
        assert connector.streams.started_total == 1
        assert await is_whole(pool)


@pytest.mark.parametrize("value", [[1, 2], 5], ids=str)
async def test_what_is_no_changefeed_is_refused_and_leaves_nothing(value: Any) -> None:
    connector = ScriptedConnector()
    connector.streams.always(ok(value))
    async with open_pool(connector, pool_size=1) as pool:
        with pytest.raises(TypeError):
            await anext(pool.changes("a query"))
        connector.streams.always(ok())  # a sequence with rows to come
        with pytest.raises(TypeError, match=r"this query is none, end it with .changes\(\)"):
            await anext(pool.changes("a query"))
        assert connector.open_streams == []
        assert await is_whole(pool)


async def test_an_error_that_may_pass_is_raised_by_the_first_opening() -> None:
    connector = ScriptedConnector()
    connector.passing_errors = (LookupError,)
    connector.streams.always(error(LookupError("not ready")))
    async with open_pool(connector) as pool:
        with pytest.raises(LookupError):
            await anext(pool.changes("a feed"))


@pytest.mark.parametrize(("timeout", "seconds"), [(3, 3), (None, 8)])
async def test_a_first_opening_without_an_answer_is_bounded(timeout: float | None, seconds: float) -> None:
    connector = ScriptedConnector()
    connector.streams.always(never())
    async with open_pool(connector, connect_timeout=8) as pool:
        with pytest.raises(QueryTimeout, match=f"main: a feed had no answer from scripted:28015 within {seconds} s"):
            await anext(pool.changes("a feed", timeout=timeout))
        assert now() == pytest.approx(seconds)
        assert connector.streams.cancelled_total == 1
        assert await is_whole(pool)


async def test_a_first_opening_whose_connection_is_lost_raises() -> None:
    connector = ScriptedConnector()
    connector.streams.always(never())
    async with open_pool(connector, pool_size=1) as pool:
        task = await read_soon(pool.changes("a feed"))
        connector.drop(connector.connections[0])
        with pytest.raises(ConnectionLost):
            await task
        assert await is_whole(pool)


async def test_a_feed_that_could_not_be_sent_is_opened_elsewhere() -> None:
    connector = feeding()
    connector.streams.then(error(NotSent("ended")), error(NotSent("ended")))
    async with open_pool(connector, pool_size=2) as pool:
        changes = await opened(pool)
        assert pool.stats().changefeeds == 1
        await stop(changes)


async def test_a_feed_that_nobody_takes_is_given_up_as_a_query_is() -> None:
    connector = ScriptedConnector()
    connector.streams.always(error(NotSent("broken pipe")))
    async with open_pool(connector, pool_size=2) as pool:
        with pytest.raises(ConnectFailed, match="main: .*never sent.*scripted:28015.*broken pipe"):
            await anext(pool.changes("a feed"))
        assert connector.streams.started_total == 5
        assert await is_whole(pool)


@pytest.mark.parametrize("timeout", ["1", -1, 0, float("nan"), True])
def test_a_bad_timeout_is_refused(timeout: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="timeout must be"):
        AsyncConnectionPool(ScriptedConnector()).changes("a feed", timeout=timeout)


@pytest.mark.parametrize("on_gap", ["ignore", None, True])
def test_on_gap_is_tell_or_raise(on_gap: Any) -> None:
    with pytest.raises(ValueError, match=f"on_gap must be 'tell' or 'raise', not {on_gap!r}"):
        AsyncConnectionPool(ScriptedConnector()).changes("a feed", on_gap=on_gap)


# ---- broken, and opened again


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


async def test_an_error_that_may_pass_is_a_gap() -> None:
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


async def test_an_error_that_may_pass_is_raised_where_gaps_are() -> None:
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


async def test_a_dead_connection_of_the_lane_is_not_used_for_feed_after_feed() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, connect_timeout=5, check_timeout=5) as pool:
        changes = await opened(pool)
        reading = await read_soon(changes)
        await asyncio.sleep(1)

        class Vanished(ScriptedConnection):
            """What it is sent goes nowhere."""

        play, dead = connector.open_stream, connector.connections[0]

        async def open_stream(connection: ScriptedConnection, query: Any, options: dict[str, Any], /) -> Any:
            if connection is dead:
                await asyncio.get_running_loop().create_future()
            return await play(connection, query, options)

        connector.open_stream = open_stream  # type: ignore[method-assign]
        connector.checks.always(never())
        with pytest.raises(QueryTimeout):
            await anext(pool.changes("another"))
        await asyncio.sleep(10)
        third = await opened(pool, "a third")
        assert pool.stats().changefeeds >= 1
        assert not dead.is_open(), "as with a query that had no answer, its connection is in question"
        assert isinstance(await reading, FeedGap)
        await stop(changes, third)


async def test_feeds_that_come_while_the_only_connection_of_the_lane_is_in_question_wait_for_it() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, max_feed_connections=1) as pool:
        changes = await opened(pool)
        await asyncio.sleep(1)
        connector.streams.then(never())
        connector.checks.then(slow(3))
        with pytest.raises(QueryTimeout):
            await anext(pool.changes("a slow one", timeout=2))
        other = await opened(pool)
        assert now() == pytest.approx(6)
        assert (pool.stats().feeds, pool.stats().changefeeds) == (1, 2)
        newest(connector).send(1)
        assert await anext(other) == 1
        await stop(changes, other)
        assert await is_whole(pool)


@pytest.mark.parametrize("event", ["drop", "close", "drain"])
async def test_whatever_happens_to_a_connection_of_the_lane_in_question_it_ends_once(event: str) -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool)
        await asyncio.sleep(1)
        connector.streams.then(never())
        connector.checks.then(slow(4))
        with pytest.raises(QueryTimeout):
            await anext(pool.changes("a slow one", timeout=2))
        await asyncio.sleep(1)
        if event == "drop":
            connector.drop(connector.connections[0])
            assert isinstance(await anext(changes), FeedGap)
        elif event == "close":
            await pool.close()
            await pool.init_pool()
        else:
            await pool.drain()
        await asyncio.sleep(10)
        await stop(changes)
        gc.collect()  # an error that nobody has taken is told now
        assert await is_whole(pool)
        assert connector.connections[0].ended_by is not None


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


# ---- drain


async def test_feeds_stay_on_a_drained_connection_and_new_ones_go_to_a_new_one() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1, max_feed_connections=1) as pool:
        old = [await opened(pool) for _ in range(2)]
        await pool.drain()
        new = await opened(pool)
        assert newest(connector).connection is not connector.opened_streams[0].connection, "though the lane is full"
        connector.opened_streams[0].send(1)
        assert await anext(old[0]) == 1
        await stop(*old)
        await asyncio.sleep(1)
        assert connector.connections[0].ended_by == "close"
        assert pool.stats().closed_by_reason["drained"] == 2
        assert pool.stats().changefeeds == 1
        await stop(new)


async def test_a_drained_connection_of_the_lane_that_is_lost_moves_its_feeds() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool)
        await pool.drain()
        connector.drop(connector.connections[0])
        assert isinstance(await anext(changes), FeedGap)
        assert pool.stats().feeds == 1
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


# ---- cancelled


async def test_a_reader_that_is_cancelled_may_read_on_and_misses_nothing() -> None:
    connector = feeding()
    async with open_pool(connector) as pool:
        changes = await opened(pool)
        for number in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await anext(changes)
            newest(connector).send(number)
            assert await anext(changes) == number
        assert len(connector.opened_streams) == 1
        await stop(changes)


class Breaking(ScriptedConnector):
    """Its first feed breaks after a while, the first attempt at another fails, and the next one is well."""

    is_refused = False

    async def open_stream(self, connection: ScriptedConnection, query: Any, options: dict[str, Any], /) -> Any:
        is_first = not self.opened_streams
        if not is_first and not self.is_refused:
            self.is_refused = True
            raise ConnectionLost("once more")
        self.streams.then(slow(1, feed(0, 1) if is_first else feed(2)))
        stream = await super().open_stream(connection, query, options)
        if is_first:
            asyncio.get_running_loop().call_later(1, drop_all, self)
        return stream


@pytest.mark.parametrize("options", [{"pool_size": 1}, {"pool_size": 2, "min_size": 0}], ids=str)
def test_a_reader_that_is_cancelled_at_any_moment_loses_no_change_and_no_gap(options: dict[str, Any]) -> None:
    made: list[tuple[AsyncConnectionPool, Breaking, Feed, list[Any]]] = []

    async def scenario() -> None:
        connector = Breaking()
        pool = AsyncConnectionPool(connector, name="main", **options)
        items: list[Any] = []
        made.append((pool, connector, pool.changes("a feed"), items))
        await pool.init_pool()
        while len(items) < 4:
            items.append(await anext(made[-1][2]))

    async def after() -> None:
        if not made:
            return  # cancelled before its first step
        pool, connector, changes, items = made[-1]
        await asyncio.sleep(3)
        await pool.init_pool()
        while len(items) < 4:
            items.append(await anext(changes))
        assert items == [0, 1, anything(FeedGap), 2]
        await stop(changes)
        assert connector.open_streams == []
        assert await is_whole(pool)
        await pool.close()
        connector.assert_nothing_left()

    assert cancel_at_every_step(scenario, after=after) > 20


# ---- what is told


async def test_the_statistics_tell_of_feeds() -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=2) as pool:
        feeds = [await opened(pool) for _ in range(3)]
        async with pool.connect(looped_mode=True):
            stats = pool.stats()
            assert (stats.feeds, stats.changefeeds) == (2, 3)
            assert (stats.queries_in_flight, stats.shared, stats.leased) == (0, 0, 0), "feeds are no queries"
            assert stats.acquired_total == 1
        await stop(*feeds)
        stats = pool.stats()
        assert (stats.changefeeds, stats.queries_done_total, stats.queries_stopped_total) == (0, 0, 0)


async def test_the_repr_of_a_feed_is_its_status() -> None:
    connector = feeding()
    async with open_pool(connector) as pool:
        changes = pool.changes("a feed")
        assert repr(changes) == "<Feed of pool 'main', not open>"
        task = await read_soon(changes)
        assert repr(changes) == "<Feed of pool 'main', open>"
        await changes.aclose()
        assert repr(changes) == "<Feed of pool 'main', ended>"
        await asyncio.wait([task])
        task.exception()


@pytest.mark.parametrize("on_gap", ["raise"])
async def test_the_error_of_a_lost_feed_names_the_pool(on_gap: Any) -> None:
    connector = feeding()
    async with open_pool(connector, pool_size=1) as pool:
        changes = await opened(pool, on_gap=on_gap)
        drop_all(connector)
        with pytest.raises(ConnectionLost, match="main: ") as caught:
            await anext(changes)
        assert isinstance(caught.value, OutcomeUnknown)


# ---- everything at once


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [
        {"pool_size": 1, "max_in_flight": 3},
        {"pool_size": 3, "min_size": 0, "connection_ttl": 20, "max_idle": 5, "max_feed_connections": 2},
    ],
    ids=str,
)
async def test_whatever_happens_each_feed_gets_its_own_changes_in_order_with_gaps_where_some_are_missing(
    seed: int, options: dict[str, Any]
) -> None:
    dice = random.Random(seed)
    connector = feeding()
    seen: dict[str, list[Any]] = {str(number): [] for number in range(10)}
    async with open_pool(connector, acquire_timeout=None, **options) as pool:

        async def follow(name: str) -> None:
            async with pool.changes(name) as changes:
                while True:
                    try:
                        async with asyncio.timeout(dice.random()):
                            seen[name].append(await anext(changes))
                    except TimeoutError:
                        pass

        async def send() -> None:
            for number in range(300):
                for stream in connector.open_streams:
                    if stream.query is not None:
                        stream.send((stream.query.term, number))
                await asyncio.sleep(0.1)

        async def spoil() -> None:
            while True:
                await asyncio.sleep(dice.random() * 6)
                fault = dice.choice(["drop", "drop untold", "drain", "lease", "query", "not sent", "lost"])
                if fault == "drain":
                    await pool.drain()
                elif fault == "lease":
                    async with pool.connect():
                        await asyncio.sleep(dice.random())
                elif fault == "query":
                    await pool.run("a query", retry=True)
                elif fault == "not sent":
                    connector.streams.then(error(NotSent("ended")))
                elif fault == "lost" and connector.opened_streams:
                    connector.streams.then(slow(0.3, error(ConnectionLost("again"))))
                    drop_all(connector)
                elif connector.open_connections:
                    connector.drop(dice.choice(connector.open_connections), is_told=fault == "drop")

        async def first(name: str) -> None:
            while True:  # a first opening may fail
                with suppress(ConnectionLost):
                    await follow(name)

        followers = [asyncio.create_task(first(name)) for name in seen]
        spoiling = asyncio.create_task(spoil())
        await send()
        for task in (spoiling, *followers):
            task.cancel()
        results = await asyncio.gather(spoiling, *followers, return_exceptions=True)
        assert not [result for result in results if not isinstance(result, asyncio.CancelledError)]
        gaps = 0
        for name, items in seen.items():
            numbers = [item[1] for item in items if not isinstance(item, FeedGap)]
            gaps += len(items) - len(numbers)
            assert {item[0] for item in items if not isinstance(item, FeedGap)} == {name}
            assert numbers == sorted(set(numbers))
            missing = sum(
                after[1] - before[1] != 1
                for before, after in itertools.pairwise(items)
                if not isinstance(before, FeedGap) and not isinstance(after, FeedGap)
            )
            assert missing == 0, "wherever some are missing, a gap tells so"
            assert len(numbers) > 150
        assert gaps > 5
        await asyncio.sleep(100)
        assert connector.open_streams == []
        assert await is_whole(pool)
