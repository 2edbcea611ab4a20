"""Queries, streams and feeds cancelled at every step: nobody else is disturbed, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, FeedGap, PoolClosed, PoolTimeout
from async_repool.connectors import Stream
from async_repool.errors import ConnectionLost, FeedLaneFull, NotSent, QueryTimeout
from async_repool.feeds import Feed
from async_repool.testing.scripted import ScriptedConnector, error, feed, never, ok, slow
from async_repool.testing.virtual_clock import cancel_at_every_step
from cancellation_kit import Others, Refused, hook, later, lose, survives

pytestmark = pytest.mark.usefixtures("repeatable")

QueryUse = Callable[[Others, AsyncConnectionPool, ScriptedConnector], Awaitable[None]]


def send(connector: ScriptedConnector, *rows: object) -> None:
    for stream in connector.open_streams:
        stream.send(*rows)


def end(connector: ScriptedConnector) -> None:
    for stream in connector.open_streams:
        stream.end()


async def ask(pool: AsyncConnectionPool, n: int, **how: Any) -> None:
    assert await pool.run("other", n=n, **how) == {"n": n}


async def hold(pool: AsyncConnectionPool, seconds: float) -> None:
    async with pool.connect() as lease:
        await asyncio.sleep(seconds)
        assert await lease._start("other", n=1) == {"n": 1}


async def follow(pool: AsyncConnectionPool, *expected: object) -> None:
    async with pool.changes("other") as changes:
        assert await read(changes, len(expected)) == list(expected)


async def read(changes: Feed, items: int) -> list[object]:
    """So many of them; a gap counts as one, and is told as its type."""
    found = [await anext(changes) for _ in range(items)]
    return [FeedGap if isinstance(item, FeedGap) else item for item in found]


async def all_leased(others: Others, pool: AsyncConnectionPool, seconds: float) -> None:
    """From now on whoever comes has to wait in line."""
    others.come(*(hold(pool, seconds) for _ in range(pool.pool_size)))
    await asyncio.sleep(1)


async def run_on_an_idle_connection(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    assert await pool.run("mine", n=1) == {"n": 1}


async def run_beside_others(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    connector.queries.always(slow(3))
    others.come(*(ask(pool, n) for n in range(3)))
    await asyncio.sleep(1)
    assert await pool.run("mine", n=7) == {"n": 7}


async def run_behind_a_lease(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    await all_leased(others, pool, 3)
    later(1, lambda: others.come(hold(pool, 1), ask(pool, 0), hold(pool, 1), ask(pool, 1)))
    assert await pool.run("mine", n=1) == {"n": 1}


async def run_while_connections_open(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    connector.connects.always(slow(3))
    lose(connector)
    others.come(ask(pool, 0), hold(pool, 0))
    assert await pool.run("mine", n=1) == {"n": 1}


async def run_on_a_checked_connection(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    await asyncio.sleep(100)  # longer than check_idle
    connector.checks.then(slow(1), error(OSError("gone")))
    assert await pool.run("mine", n=1) == {"n": 1}


async def run_lost(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    later(2, lose, connector)
    connector.queries.always(never())
    others.come(ask(pool, 0, retry=True))
    with pytest.raises(ConnectionLost):
        await pool.run("mine", n=1)


async def run_lost_and_repeated(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    later(2, lose, connector)
    connector.queries.always(never())
    others.come(ask(pool, 0, retry=True))
    assert await pool.run("mine", n=1, retry=True) == {"n": 1}


async def run_that_could_not_be_sent(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    connector.queries.then(error(NotSent("it had ended")), error(NotSent("it had ended")))
    assert await pool.run("mine", n=1) == {"n": 1}


async def run_timed_out(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    connector.queries.always(slow(5))
    others.come(ask(pool, 0), ask(pool, 1))
    await asyncio.sleep(1)
    connector.queries.always(never())
    connector.checks.then(slow(1))
    with pytest.raises(QueryTimeout):
        await pool.run("mine", timeout=2)


async def run_timed_out_and_nobody_there(
    others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector
) -> None:
    connector.queries.always(slow(5))
    others.come(ask(pool, 0, retry=True), ask(pool, 1, retry=True))
    await asyncio.sleep(1)
    connector.queries.then(never())
    connector.checks.always(never())
    with pytest.raises(QueryTimeout):
        await pool.run("mine", timeout=2)
    connector.checks.always(ok())
    assert await pool.run("mine", n=1) == {"n": 1}


async def run_timed_out_in_line(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    await all_leased(others, pool, 5)
    later(1, lambda: others.come(ask(pool, 0)))
    with pytest.raises(PoolTimeout):
        await pool.run("mine", timeout=2)


async def stream_read_whole(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    connector.streams.then(slow(1, ok([1, 2, 3])))
    others.come(ask(pool, 0))
    async with pool.stream("mine") as rows:
        assert [row async for row in rows] == [1, 2, 3]


async def stream_read_as_rows_come(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    for seconds, row in ((1, 1), (2, 2)):
        later(seconds, send, connector, row)
    later(3, end, connector)
    connector.queries.always(slow(2))
    others.come(ask(pool, 0))
    async with pool.stream("mine") as rows:
        assert [row async for row in rows] == [1, 2]


async def stream_left_early(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    later(1, send, connector, 1, 2)
    async with pool.stream("mine") as rows:
        async for _ in rows:
            break
    assert connector.open_streams == []


async def stream_dropped(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    rows = await pool.stream("mine").__aenter__()
    del rows
    await asyncio.sleep(1)
    assert connector.open_streams == []


async def stream_lost(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    later(1, send, connector, 1)
    later(2, lose, connector)
    others.come(ask(pool, 0))
    async with pool.stream("mine") as rows:
        assert await anext(rows) == 1
        with pytest.raises(ConnectionLost):
            await anext(rows)


async def stream_read_while_drained(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    later(20, send, connector, 1)
    later(21, end, connector)
    async with pool.stream("mine") as rows:
        await pool.drain()
        others.come(*(hold(pool, 1) for _ in range(pool.pool_size)))
        assert [row async for row in rows] == [1]


async def stream_timed_out(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    connector.queries.always(slow(5))
    others.come(ask(pool, 0))
    await asyncio.sleep(1)
    connector.streams.then(never())
    with pytest.raises(QueryTimeout):
        async with pool.stream("mine", timeout=2):
            pass


async def feed_read(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    later(1, send, connector, 3)
    others.come(follow(pool, 1, 2, 3), ask(pool, 0))
    async with pool.changes("mine") as changes:
        assert await read(changes, 3) == [1, 2, 3]


async def feed_dropped(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    changes = pool.changes("mine")
    assert await read(changes, 2) == [1, 2]
    del changes
    await asyncio.sleep(1)
    assert (connector.open_streams, pool.stats().feeds) == ([], 0)


async def feed_beside_another(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    later(30, send, connector, 3)
    others.come(follow(pool, 1, 2, 3))
    await asyncio.sleep(1)
    async with pool.changes("mine") as changes:
        assert await read(changes, 2) == [1, 2]


async def feed_broken(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    later(2, lose, connector)
    others.come(follow(pool, 1, 2, FeedGap, 1, 2))
    async with pool.changes("mine") as changes:
        assert await read(changes, 5) == [1, 2, FeedGap, 1, 2]


async def feed_in_an_outage(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    later(2, connector.connects.always, error(OSError("down")))
    later(2, lose, connector)
    later(4, connector.connects.always, ok())
    others.come(follow(pool, 1, 2, FeedGap, 1))
    async with pool.changes("mine") as changes:
        assert await read(changes, 4) == [1, 2, FeedGap, 1]


async def feed_that_fails_to_open_again(
    others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector
) -> None:
    connector.passing_errors = (OSError,)
    later(2, lose, connector)
    others.come(ask(pool, 0))
    async with pool.changes("mine", timeout=3) as changes:
        assert await read(changes, 2) == [1, 2]
        again = (error(OSError("not ready")), slow(1, error(NotSent("it had ended"))), never())
        connector.streams.then(*again)
        assert await read(changes, 2) == [FeedGap, 1]


async def feed_behind_a_lease(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    await all_leased(others, pool, 3)
    later(1, lambda: others.come(ask(pool, 0), hold(pool, 1)))
    others.come(follow(pool, 1, 2))
    async with pool.changes("mine") as changes:
        assert await read(changes, 1) == [1]


async def feed_while_connections_open(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    connector.connects.always(slow(3))
    lose(connector)
    others.come(follow(pool, 1))
    async with pool.changes("mine") as changes:
        assert await read(changes, 1) == [1]


async def feed_on_a_checked_connection(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    await asyncio.sleep(100)  # longer than check_idle
    connector.checks.then(slow(1), error(OSError("gone")))
    async with pool.changes("mine") as changes:
        assert await read(changes, 1) == [1]


async def feed_timed_out(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    others.come(follow(pool, 1, 2))
    await asyncio.sleep(1)
    connector.streams.then(never())
    with pytest.raises(QueryTimeout):
        await anext(pool.changes("mine", timeout=2))


async def feed_refused(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    connector.streams.then(error(Refused("no such table")))
    with pytest.raises(Refused):
        await anext(pool.changes("mine"))


async def feed_closed_by_another_task(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    later(2, connector.connects.always, error(OSError("down")))
    later(2.1, lose, connector)
    later(4, connector.connects.always, ok())
    changes = pool.changes("mine")
    others.come(read_to_its_end(changes), follow(pool, 1, 2, FeedGap, 1))
    try:
        await asyncio.sleep(6)
    finally:  # so it is closed at each step
        await changes.aclose()


async def read_to_its_end(changes: Feed) -> None:
    async for _ in changes:
        pass


async def feed_in_a_full_lane(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    async with contextlib.AsyncExitStack() as lane:
        for _ in range(pool.pool_size):
            await lane.enter_async_context(pool.connect(looped_mode=True))
        with pytest.raises(FeedLaneFull):
            await anext(pool.changes("mine"))


async def all_of_them_together(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    others.come(hold(pool, 1), ask(pool, 0), follow(pool, 1), hold(pool, 1), ask(pool, 1))

    async def stream() -> None:
        async with pool.stream("mine") as rows:
            assert await anext(rows) == 1

    async def run() -> None:
        assert await pool.run("mine", n=5) == {"n": 5}

    await asyncio.gather(run(), stream(), follow(pool, 1), hold(pool, 1), run())


QUERY_OPTIONS: dict[str, dict[str, Any]] = {
    "one connection": {"pool_size": 1},
    "growing with hooks": {"pool_size": 2, "min_size": 0, "max_in_flight": 2, "check": hook, "reset": hook},
}


STREAM_USES: list[QueryUse] = [
    stream_read_as_rows_come,
    stream_left_early,
    stream_dropped,
    stream_lost,
    stream_read_while_drained,
]


QUERY_USES: list[QueryUse] = [
    run_on_an_idle_connection,
    run_beside_others,
    run_behind_a_lease,
    run_while_connections_open,
    run_on_a_checked_connection,
    run_lost,
    run_lost_and_repeated,
    run_that_could_not_be_sent,
    run_timed_out,
    run_timed_out_and_nobody_there,
    run_timed_out_in_line,
    stream_read_whole,
    *STREAM_USES,
    stream_timed_out,
    feed_read,
    feed_dropped,
    feed_beside_another,
    feed_broken,
    feed_in_an_outage,
    feed_that_fails_to_open_again,
    feed_behind_a_lease,
    feed_while_connections_open,
    feed_on_a_checked_connection,
    feed_timed_out,
    feed_refused,
    feed_closed_by_another_task,
    feed_in_a_full_lane,
    all_of_them_together,
]


def with_feeds() -> ScriptedConnector:
    connector = ScriptedConnector()
    connector.streams.always(feed(1, 2))
    return connector


@pytest.mark.parametrize("options", QUERY_OPTIONS.values(), ids=QUERY_OPTIONS)
@pytest.mark.parametrize("use", QUERY_USES, ids=lambda use: use.__name__)
def test_queries_cancelled_at_any_step_disturb_nobody_and_lose_nothing(use: QueryUse, options: dict[str, Any]) -> None:
    others = Others()
    connector = ScriptedConnector if use in STREAM_USES else with_feeds
    assert survives(partial(use, others), connector, others=others, **options) > 4


async def closing_with_queries(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    connector.queries.always(slow(2))
    connector.closes.always(slow(0.5))
    others.come(ask(pool, 0), until_closed(follow(pool, 1, 2, 3)))
    await asyncio.sleep(1)
    others.come(until_closed(hold(pool, 0)))
    await pool.close(timeout=3)


async def closing_on_queries(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    connector.queries.always(never())
    others.come(until_lost(ask(pool, 0)), until_lost(read_for_ever(pool)))
    await asyncio.sleep(1)
    await pool.close(timeout=1)


async def closing_under_a_feed(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    later(2, lambda: others.come(close(pool)))
    async with pool.changes("mine") as changes:
        assert await read(changes, 2) == [1, 2]
        with pytest.raises(PoolClosed):
            await anext(changes)


async def closing_while_a_feed_pauses(others: Others, pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    later(2, connector.connects.always, error(OSError("down")))
    later(2.1, lose, connector)
    later(4, lambda: others.come(close(pool)))
    later(5, connector.connects.always, ok())
    async with pool.changes("mine") as changes:
        assert await read(changes, 2) == [1, 2]
        with pytest.raises(PoolClosed):
            await anext(changes)


async def until_closed(visit: Coroutine[Any, Any, None]) -> None:
    with pytest.raises(PoolClosed):
        await visit


async def until_lost(visit: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(ConnectionLost, PoolClosed):
        await visit


async def read_for_ever(pool: AsyncConnectionPool) -> None:
    async with pool.stream("other") as rows:
        async for _ in rows:
            pass


async def close(pool: AsyncConnectionPool) -> None:
    await pool.close()


CLOSING_USES: list[QueryUse] = [
    closing_with_queries,
    closing_on_queries,
    closing_under_a_feed,
    closing_while_a_feed_pauses,
]


@pytest.mark.parametrize("options", QUERY_OPTIONS.values(), ids=QUERY_OPTIONS)
@pytest.mark.parametrize("use", CLOSING_USES, ids=lambda use: use.__name__)
def test_closing_under_queries_cancelled_at_any_step_goes_on(use: QueryUse, options: dict[str, Any]) -> None:
    others = Others()
    assert survives(partial(use, others), with_feeds, others=others, is_closed=True, **options) > 5


def test_a_feed_whose_reader_is_cancelled_at_any_step_is_read_on_and_no_change_is_lost() -> None:
    made: list[tuple[AsyncConnectionPool, ScriptedConnector, Feed, list[object]]] = []

    async def scenario() -> None:
        this = with_feeds()
        pool = AsyncConnectionPool(this, 1, name="main", min_size=0)
        await pool.init_pool()
        for seconds, row in ((1, 3), (1.5, 4), (5, 3), (6, 4)):
            later(seconds, send, this, row)
        later(2, lose, this)
        made.append((pool, this, pool.changes("mine"), []))
        await read_on()

    async def read_on() -> None:
        _, _, changes, seen = made[-1]
        while len(seen) < 9:
            seen += await read(changes, 1)

    async def after() -> None:
        if not made:
            return  # cancelled before there was a feed
        await read_on()
        pool, this, changes, seen = made.pop()
        assert seen == [1, 2, 3, 4, FeedGap, 1, 2, 3, 4]
        await changes.aclose()
        await pool.close()
        this.assert_nothing_left()

    assert cancel_at_every_step(scenario, after=after) > 29


def test_a_stream_whose_reader_is_cancelled_at_any_step_is_read_on_and_no_row_is_lost() -> None:
    made: list[tuple[AsyncConnectionPool, ScriptedConnector, list[object]]] = []
    streams: list[Stream] = []

    async def scenario() -> None:
        this = ScriptedConnector()
        pool = AsyncConnectionPool(this, 1, name="main")
        await pool.init_pool()
        for seconds in (1, 2, 3):
            later(seconds, send, this, seconds, -seconds)
        later(4, end, this)
        made.append((pool, this, []))
        await read_on()

    async def read_on() -> None:
        pool, _, seen = made[-1]
        if not streams:
            streams.append(await pool.stream("mine").__aenter__())
        async for row in streams[0]:
            seen.append(row)

    async def after() -> None:
        if not made:
            return  # cancelled before there was a pool
        await read_on()
        pool, this, seen = made.pop()
        streams.clear()
        assert seen == [1, -1, 2, -2, 3, -3]
        await pool.close()
        this.assert_nothing_left()

    assert cancel_at_every_step(scenario, after=after) > 10


@pytest.mark.virtual_time
async def test_a_feed_that_waits_behind_a_lease_is_not_overtaken_by_a_feed_that_comes_later() -> None:
    this = with_feeds()
    async with AsyncConnectionPool(this, 1, name="main", max_feed_connections=1) as pool:
        lease = await pool.acquire()
        first, second, third = pool.changes("1"), pool.changes("2"), pool.changes("3")
        reading = [asyncio.create_task(anext(first))]
        await asyncio.sleep(0)
        waiting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        reading.append(asyncio.create_task(anext(second)))
        await asyncio.sleep(0)
        this.connects.always(never())  # the lease that is waited for has to wait on
        pool.release(lease)
        await asyncio.sleep(1)
        assert reading[0].done(), "it carries feeds now, and has a place for more"
        reading.append(asyncio.create_task(anext(third)))
        await asyncio.sleep(1)
        assert [task.done() for task in reading] in ([True, True, True], [True, False, False])
        for task in (waiting, *reading):
            task.cancel()
        this.connects.always(ok())
