"""Cancellation at every step, and the fault matrix: whatever fails and whoever is cancelled, nothing is lost.

After each run every invariant of the pool holds, whoever came beside the cancelled one was answered rightly, a fresh
user is served, the whole capacity is there, and nothing is left when the pool is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, ConnectFailed, FeedGap, PoolClosed, PoolException, PoolTimeout
from async_repool.connectors import Stream
from async_repool.errors import ConnectionLost, FeedLaneFull, NotSent, QueryTimeout
from async_repool.streams import Feed
from async_repool.testing.scripted import Behaviour, ScriptedConnector, error, feed, never, ok, slow
from async_repool.testing.virtual_clock import cancel_at_every_step

Use = Callable[[AsyncConnectionPool, ScriptedConnector], Awaitable[None]]


class Others:
    """Users beside the one that is cancelled. Whatever becomes of that one, each of them ends as it should."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def come(self, *visits: Coroutine[Any, Any, None]) -> None:
        self._tasks += [asyncio.create_task(visit) for visit in visits]

    async def have_been_served(self) -> None:
        tasks, self._tasks = self._tasks, []
        async with asyncio.timeout(1000):
            for task in tasks:
                await task


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    """Pauses are drawn from the common generator: the same in every run."""
    state = random.getstate()
    random.seed(1)
    yield
    random.setstate(state)


def survives(
    use: Use,
    connector: Callable[[], ScriptedConnector] = ScriptedConnector,
    *,
    is_closed: bool = False,
    others: Others | None = None,
    **options: Any,
) -> int:
    """Cancel the opening of a pool and its ``use`` at each step; returns at how many.

    The pool stays open afterwards, so that no close hides what was lost; except where the use itself closes it.
    """
    made: list[tuple[AsyncConnectionPool, ScriptedConnector]] = []
    opened: list[AsyncConnectionPool] = []

    async def scenario() -> None:
        this = connector()
        pool = AsyncConnectionPool(this, name="main", **options)
        made.append((pool, this))
        await pool.init_pool()
        opened.append(pool)
        await use(pool, this)

    async def after() -> None:
        if not made:
            return  # cancelled before its first step
        pool, this = made[-1]
        if pool not in opened:
            this.assert_nothing_left()
            return
        for verb in (this.connects, this.checks, this.closes, this.queries):
            verb.always(ok())
        await asyncio.sleep(100)  # every bounded wait is over
        if is_closed:
            await pool.close()
        if others is not None:
            await others.have_been_served()
        if is_closed:
            this.assert_nothing_left()
        if repr(pool).endswith("closed>"):
            await pool.init_pool()
        assert this.open_streams == [], "a stream was left open"
        assert (this.queries.in_progress, this.streams.in_progress) == (0, 0), "a query goes on that nobody waits for"
        await all_capacity_is_there(pool)
        await pool.close()
        this.assert_nothing_left()

    return cancel_at_every_step(scenario, after=after)


async def all_capacity_is_there(pool: AsyncConnectionPool) -> None:
    stats = pool.stats()
    assert (stats.leased, stats.waiting, stats.connecting, stats.closing) == (0, 0, 0, 0), stats
    assert (stats.shared, stats.queries_in_flight, stats.queries_waiting) == (0, 0, 0), stats
    assert (stats.feeds, stats.changefeeds, stats.retired) == (0, 0, 0), stats
    leases = [await pool.acquire(timeout=60) for _ in range(stats.max_size)]
    assert all(lease.is_open() for lease in leases)
    assert len({lease.number for lease in leases}) == stats.max_size
    assert pool.stats().size == stats.max_size
    for lease in leases:
        pool.release(lease)


# ---- every path of acquire


async def idle(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    async with pool.connect() as lease:
        await lease._start("term")


async def grown(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    async with pool.connect():
        connector.connects.then(slow(3))
        async with pool.connect() as lease:
            await lease._start("term")


async def waited(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    async def user() -> None:
        async with pool.connect():
            await asyncio.sleep(1)

    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(user())


async def replaced(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    for connection in connector.open_connections:
        connector.drop(connection, is_told=False)
    async with pool.connect() as lease:
        connector.drop(connector.open_connections[0])
        await asyncio.sleep(0)
        assert lease
    async with pool.connect() as lease:
        await lease._start("term")


async def expired(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    await asyncio.sleep(5000)
    connector.closes.then(slow(1))
    async with pool.connect() as lease:
        await lease._start("term")


async def closed_by_its_user(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    async with pool.connect() as lease:
        await lease.close()
    async with pool.connect() as lease:
        await lease._start("term")


async def timed_out(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    async with pool.connect(), pool.connect():
        with contextlib.suppress(TimeoutError):
            await pool.acquire(timeout=2)


async def drained(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    connector.closes.always(slow(1))
    async with pool.connect():
        await pool.drain()
    async with pool.connect() as lease:
        await lease._start("term")


async def leased_feed(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    async with pool.connect(looped_mode=True) as lease:
        cursor = connector.connections[lease.number - 1].open_stream()
        asyncio.get_running_loop().call_later(50, cursor.end)
        async with pool.connect():
            await asyncio.sleep(1)


async def cursor_outlives_its_lease(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    async with pool.connect() as lease:
        cursor = connector.connections[lease.number - 1].open_stream()
        asyncio.get_running_loop().call_later(30, cursor.end)
    await pool.drain()
    async with pool.connect() as lease:
        await lease._start("term")


async def outage(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    connector.connects.always(error(OSError("down")))
    for connection in connector.open_connections:
        connector.drop(connection)
    await asyncio.sleep(0.5)
    asyncio.get_running_loop().call_later(5, connector.connects.always, ok())
    with contextlib.suppress(ConnectFailed):  # where nobody knew of the outage before
        async with pool.connect(timeout=30) as lease:
            await lease._start("term")


async def checked(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    await asyncio.sleep(100)  # longer than check_idle
    connector.checks.then(slow(1), error(OSError("gone")))
    async with pool.connect() as lease:
        await lease._start("term")


async def housekept(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    leases = [await pool.acquire() for _ in range(2)]
    for lease in leases:
        pool.release(lease)
    connector.checks.always(slow(1, error(OSError("gone"))))
    await asyncio.sleep(2000)  # pings, shrinking, refilling


async def closing(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    connector.closes.then(slow(1), never())
    lease = await pool.acquire()
    asyncio.get_running_loop().call_later(2, pool.release, lease)
    await pool.close(timeout=1)


async def released_pool(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    connector.closes.always(slow(1))
    await pool.release_pool()


async def hook(connection: object) -> None:
    await asyncio.sleep(0.1)


OPTIONS: dict[str, dict[str, Any]] = {
    "fixed size": {"pool_size": 2},
    "growing": {"pool_size": 2, "min_size": 0},
    "with housekeeping": {"pool_size": 2, "min_size": 1, "ping_interval": 500, "max_idle": 700},
    "with hooks": {"pool_size": 2, "min_size": 1, "configure": hook, "check": hook, "reset": hook},
}
USES: list[Use] = [
    checked,
    housekept,
    idle,
    grown,
    waited,
    replaced,
    expired,
    closed_by_its_user,
    timed_out,
    drained,
    leased_feed,
    cursor_outlives_its_lease,
    outage,
]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_cancelled_at_any_step_nothing_is_lost(use: Use, options: dict[str, Any]) -> None:
    assert survives(use, **options) > 5


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("use", [closing, released_pool], ids=lambda use: use.__name__)
def test_closing_cancelled_at_any_step_goes_on_and_the_pool_can_be_opened_again(
    use: Use, options: dict[str, Any]
) -> None:
    assert survives(use, is_closed=True, **options) > 3


@pytest.mark.parametrize("behaviour", [slow(3), error(OSError("refused")), never()], ids=["slow", "error", "never"])
def test_init_pool_cancelled_at_any_step_leaks_nothing(behaviour: Behaviour) -> None:
    def connector() -> ScriptedConnector:
        this = ScriptedConnector()
        this.connects.then(ok(), slow(1), behaviour)
        this.closes.then(slow(1), error(OSError("broken")), never())
        return this

    async def use(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
        await idle(pool, connector)

    pools: list[tuple[AsyncConnectionPool, ScriptedConnector]] = []

    async def scenario() -> None:
        this = connector()
        pool = AsyncConnectionPool(this, 3, name="main")
        pools.append((pool, this))
        with contextlib.suppress(ConnectFailed):
            async with pool:
                await use(pool, this)

    async def after() -> None:
        if not pools:
            return  # cancelled before its first step
        pool, this = pools[-1]
        await asyncio.sleep(100)
        this.assert_nothing_left()
        assert "closed" in repr(pool)

    assert cancel_at_every_step(scenario, after=after) > 5


# ---- every path of run, stream and changes

QueryUse = Callable[[Others, AsyncConnectionPool, ScriptedConnector], Awaitable[None]]


class Refused(Exception):
    """What the server says against a query."""


def later(seconds: float, callback: Callable[..., object], *arguments: object) -> None:
    asyncio.get_running_loop().call_later(seconds, callback, *arguments)


def lose(connector: ScriptedConnector) -> None:
    """Every connection ends; what is asked from now on is answered."""
    connector.queries.always(ok())
    for connection in connector.open_connections:
        connector.drop(connection)


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
CLOSING_USES: list[QueryUse] = [
    closing_with_queries,
    closing_on_queries,
    closing_under_a_feed,
    closing_while_a_feed_pauses,
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
    assert survives(partial(use, others), connector, others=others, **options) > 5


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

    assert cancel_at_every_step(scenario, after=after) > 30


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


# ---- the fault matrix: open, check, close x ok, error, slow, never x a cancel at each await

FAULTS: dict[str, Callable[[], Behaviour]] = {
    "ok": ok,
    "error": lambda: error(OSError("fault")),
    "slow": lambda: slow(1),
    "never": never,
}


def survives_faults(opens: str, checks: str, closes: str) -> int:
    """A pool whose connections have had their time, while these faults are on: cancelled at each step."""
    made: list[ScriptedConnector] = []

    def connector() -> ScriptedConnector:
        made.append(ScriptedConnector(connect_timeout=4))
        return made[-1]

    async def check(connection: Any) -> None:
        await made[-1].check(connection)

    async def use(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
        await asyncio.sleep(2000)
        for verb, fault in ((connector.connects, opens), (connector.checks, checks), (connector.closes, closes)):
            verb.always(FAULTS[fault]())
        with contextlib.suppress(PoolException):
            async with pool.connect(timeout=7) as lease:
                await lease._start("term")

    options: dict[str, Any] = {"pool_size": 2, "min_size": 1, "connection_ttl": 1000}
    return survives(use, connector, close_timeout=3, check_timeout=3, check=check, **options)


def test_the_fault_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    combinations = 0
    for faults in itertools.product(FAULTS, FAULTS, ("ok", "never")):
        try:
            combinations += survives_faults(*faults)
        except BaseException as problem:
            problem.add_note("open: {}, check: {}, close: {}".format(*faults))
            raise
    with capsys.disabled():
        print(f" [{combinations} combinations of faults and cancellations]", end="")
    assert combinations > 500


# ---- the same for queries: open, check, and what becomes of the query

ANSWERS: dict[str, Callable[[], Behaviour]] = {
    "slow": lambda: slow(1, feed(1)),
    "refused": lambda: error(Refused("no such table")),
    "never": never,
    "not sent": lambda: error(NotSent("it had ended")),
    "lost": never,  # until its connection ends
}


async def a_run(pool: AsyncConnectionPool) -> None:
    await pool.run("mine", timeout=5, retry=True)


async def a_stream(pool: AsyncConnectionPool) -> None:
    async with pool.stream("mine", timeout=5) as rows:
        assert await anext(rows) == 1


async def a_feed(pool: AsyncConnectionPool) -> None:
    async with pool.changes("mine", timeout=5) as changes:
        assert await anext(changes) == 1


def a_query_survives_faults(
    call: Callable[[AsyncConnectionPool], Awaitable[None]], opens: str, checks: str, answer: str
) -> int:
    """A query on a pool that has no connection yet, while these faults are on: cancelled at each step."""
    made: list[ScriptedConnector] = []

    def connector() -> ScriptedConnector:
        made.append(ScriptedConnector(connect_timeout=4))
        return made[-1]

    async def check(connection: Any) -> None:
        await made[-1].check(connection)

    async def use(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
        connector.connects.always(FAULTS[opens]())
        connector.checks.always(FAULTS[checks]())
        (connector.queries if call is a_run else connector.streams).always(ANSWERS[answer]())
        if answer == "lost":
            later(2.5, lose, connector)
        with contextlib.suppress(PoolException, Refused):
            await call(pool)

    return survives(use, connector, pool_size=1, min_size=0, check_timeout=3, check=check, acquire_timeout=7)


@pytest.mark.parametrize("call", [a_run, a_stream, a_feed], ids=lambda call: call.__name__)
def test_the_fault_matrix_of_queries(
    call: Callable[[AsyncConnectionPool], Awaitable[None]], capsys: pytest.CaptureFixture[str]
) -> None:
    combinations = 0
    before = [("ok", "ok"), ("error", "ok"), ("ok", "never"), ("never", "ok"), ("ok", "error"), ("slow", "ok")]
    if call is a_stream:
        before = before[:3]  # how it comes to its connection is the same as for a query
    for (opens, checks), answer in itertools.product(before, ANSWERS):
        try:
            combinations += a_query_survives_faults(call, opens, checks, answer)
        except BaseException as problem:
            problem.add_note(f"open: {opens}, check: {checks}, answer: {answer}")
            raise
    with capsys.disabled():
        print(f" [{combinations} combinations of faults and cancellations]", end="")
    assert combinations > 200
