"""Queries without leases on a server, through the driver: what users do all day, and what goes wrong for them.

On the server of the session; what only a server in this process can show is tried on a stand-in of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from rethinkdb.errors import ReqlNonExistenceError, ReqlOpFailedError, ReqlPermissionError
from test_fault_controls import CONTROLS, LAST_ROW, SILENT, USES, Scene, combine, proxy, stand_in

from async_repool import AsyncConnectionPool, ConnectFailed, FeedGap, OutcomeUnknown, PoolClosed, PoolTimeout, R
from async_repool.errors import ConnectionLost, QueryTimeout
from async_repool.testing import FaultProxy, StandInServer

PATIENCE = 20.0  # seconds, for what comes at once where nothing is wrong
# How far off ``broke_at`` may be: it is reckoned from two readings of the loop's time(), which on uvloop counts whole
# milliseconds.
RESOLUTION = timedelta(milliseconds=2)


@pytest.fixture
def arguments(rethinkdb_server: Any) -> dict[str, Any]:
    """What connects to the server of this session."""
    return rethinkdb_server.connect_arguments  # type: ignore[no-any-return]


@pytest.fixture
async def pool(arguments: dict[str, Any]) -> AsyncIterator[AsyncConnectionPool]:
    async with AsyncConnectionPool(arguments, pool_size=3, name="main") as pool:
        yield pool


@pytest.fixture
async def db(pool: AsyncConnectionPool) -> AsyncIterator[str]:
    """A database of this test's own, with an empty table ``t``."""
    name = "repool_" + uuid.uuid4().hex
    async with a_database(pool, name):
        yield name


@pytest.fixture
def table(db: str) -> Any:
    return R.db(db).table("t")


@contextlib.asynccontextmanager
async def a_database(pool: AsyncConnectionPool, name: str) -> AsyncIterator[Any]:
    await pool.run(R.db_create(name))
    yield await a_table(pool, R.db(name), "t")
    await pool.run(R.db_drop(name))


async def a_table(pool: AsyncConnectionPool, db: Any, name: str) -> Any:
    """A new table, of which each connection knows: one thread of the server may learn of it later than another."""
    table = db.table(name)

    async def is_there() -> bool:
        with contextlib.suppress(ReqlOpFailedError):
            await pool.run(db.table_create(name))
        try:
            await asyncio.gather(*(pool.run(table.wait()) for _ in range(3 * pool.pool_size)))
            await asyncio.gather(*(pool.run(table.count()) for _ in range(3 * pool.pool_size)))
        except ReqlOpFailedError:
            return False
        return True

    await until(is_there)
    return table


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": n, "text": "x" * 50} for n in range(count)]


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# ---- what the server still works on


@dataclass
class Watched:
    """A server, and what it holds for the queries of one test."""

    arguments: dict[str, Any]
    mark: str
    """To be in every query that is watched: only they count."""
    count: Callable[[], Awaitable[int]]

    async def holds(self, number: int) -> None:
        """Wait until it works on so many queries, or holds so many streams and feeds."""

        async def is_so() -> bool:
            return await self.count() == number

        await until(is_so)


@pytest.fixture
async def watched(rethinkdb_server: Any) -> AsyncIterator[Watched]:
    mark = uuid.uuid4().hex
    if rethinkdb_server.kind == "stand-in":  # which is in another process, and has no table of jobs
        async with StandInServer() as server:

            async def count() -> int:
                return server.running_queries + server.open_streams

            yield Watched({"host": server.host, "port": server.port}, mark, count)
        return
    jobs = R.db("rethinkdb").table("jobs")["info"]["query"]
    jobs = jobs.filter(lambda query: query.match(mark) & ~query.match("jobs"))
    async with AsyncConnectionPool(rethinkdb_server.connect_arguments, 1, name="watch") as watch:

        async def count_jobs() -> int:
            return len(await watch.run(jobs))

        yield Watched(rethinkdb_server.connect_arguments, mark, count_jobs)


# ---- run


async def test_run_returns_a_value_and_a_sequence_whole(pool: AsyncConnectionPool, table: Any) -> None:
    assert (await pool.run(table.insert(rows(2000))))["inserted"] == 2000
    assert await pool.run(table.get(7)) == {"id": 7, "text": "x" * 50}
    assert await pool.run(table.get(-1)) is None
    assert await pool.run(table.count()) == 2000
    assert sorted(row["id"] for row in await pool.run(table, max_batch_rows=100)) == list(range(2000))
    assert await pool.run(table.get_all(1, 2)["id"].coerce_to("array").count()) == 2
    assert await pool.run(table.filter({"id": -1})) == []
    assert await pool.run(R.expr([1, [2], {"a": None}])) == [1, [2], {"a": None}]
    stats = pool.stats()
    assert (stats.shared, stats.queries_in_flight, stats.leased, stats.opened_total) == (0, 0, 0, 3)


async def test_the_options_of_a_query_are_the_drivers(pool: AsyncConnectionPool, db: str, table: Any) -> None:
    assert await pool.run(R.table("t").count(), db=db) == 0
    assert await pool.run(R.table("t").insert({"id": 1}), db=db, noreply=True) is None

    async def is_written() -> bool:
        return await pool.run(table.get(1)) is not None  # which may be asked on another connection

    await until(is_written)
    moment = datetime(2020, 1, 2, tzinfo=UTC)
    assert await pool.run(R.epoch_time(moment.timestamp())) == moment
    raw = await pool.run(R.epoch_time(moment.timestamp()), time_format="raw")
    assert (raw["$reql_type$"], raw["epoch_time"]) == ("TIME", moment.timestamp())
    assert await pool.run(R.binary(b"\x00"), binary_format="raw") == {"$reql_type$": "BINARY", "data": "AA=="}


async def test_a_profile_comes_with_the_value(pool: AsyncConnectionPool, table: Any, rethinkdb_server: Any) -> None:
    if rethinkdb_server.kind == "stand-in":
        pytest.skip("the stand-in makes no profiles")
    await pool.run(table.insert(rows(300)))
    told = await pool.run(table.count(), profile=True)
    assert (told["value"], bool(told["profile"])) == (300, True)
    told = await pool.run(table, profile=True, max_batch_rows=50)
    assert (len(told["value"]), bool(told["profile"])) == (300, True)


async def test_what_the_server_says_against_a_query_is_the_drivers_error_and_disturbs_nobody(
    pool: AsyncConnectionPool, table: Any
) -> None:
    others = asyncio.gather(*(pool.run(R.expr(n) + 1) for n in range(20)))
    with pytest.raises(ReqlNonExistenceError):
        await pool.run(R.expr({"a": 1})["b"])
    with pytest.raises(ReqlOpFailedError, match="does not exist"):
        await pool.run(R.db("no_such_db").table("t"))
    with pytest.raises(ReqlOpFailedError, match="not found"):
        async with pool.stream(table.get_all(1, index="no_such_index")):
            pass
    with pytest.raises(TypeError, match="changefeed"):
        await pool.run(table.changes())
    with pytest.raises(TypeError, match="no sequence"):
        async with pool.stream(R.expr(1)):
            pass
    with pytest.raises(TypeError, match=r"\.changes\(\)"):
        await anext(pool.changes(table))
    assert await others == list(range(1, 21))
    assert pool.stats().closed_by_reason.keys() <= {"feed ended"}, "no connection was given up"


async def test_a_user_who_may_not_is_told_so_and_a_feed_is_not_tried_again(
    pool: AsyncConnectionPool, table: Any, rethinkdb_server: Any
) -> None:
    if rethinkdb_server.kind == "stand-in":
        pytest.skip("the stand-in permits everything")
    user = "repool_" + uuid.uuid4().hex
    users = R.db("rethinkdb").table("users")
    await pool.run(users.insert({"id": user, "password": "s3cret"}))
    try:
        arguments = {**rethinkdb_server.connect_arguments, "user": user, "password": "s3cret"}
        theirs = AsyncConnectionPool(arguments, 1)

        async def may_log_in() -> bool:  # as soon as each thread of the server knows of the user
            try:
                await theirs.init_pool()
            except ConnectFailed:
                return False
            return True

        await until(may_log_in)
        async with theirs, asyncio.timeout(PATIENCE):
            with pytest.raises(ReqlPermissionError):
                await theirs.run(table)
            with pytest.raises(ReqlPermissionError):
                async with theirs.stream(table):
                    pass
            with pytest.raises(R.ReqlError, match="does not have the required `read` permission"):
                await anext(theirs.changes(table.changes()))  # 2.4.4 says so as an internal error
            assert await theirs.run(R.expr(1)) == 1
    finally:
        await pool.run(users.get(user).delete())


async def test_a_thousand_queries_at_once_are_answered_each_with_its_own_answer(
    pool: AsyncConnectionPool, table: Any
) -> None:
    await pool.run(table.insert(rows(100)))
    asked = [table.get(n % 100)["id"] if n % 3 else R.expr([n, {"n": n}]) for n in range(1000)]
    right = [n % 100 if n % 3 else [n, {"n": n}] for n in range(1000)]
    assert await asyncio.gather(*map(pool.run, asked)) == right
    stats = pool.stats()
    assert (stats.opened_total, stats.queries_in_flight, stats.queries_waiting, stats.idle) == (3, 0, 0, 3)
    assert stats.waited_total > 0, "three connections carry 384 at once"


async def test_leases_and_queries_together_are_all_served(pool: AsyncConnectionPool, table: Any) -> None:
    async def lease(n: int) -> Any:
        async with pool.connect() as conn:
            assert await R.expr(n).run(conn) == n
            return await R.expr([n]).run(conn)

    async def read(n: int) -> Any:
        async with pool.stream(R.range(n), max_batch_rows=5) as stream:
            return [len([row async for row in stream])]

    async def run(n: int) -> Any:
        return await pool.run(R.expr([n]))

    users = [(lease, read, run)[n % 3](n) for n in range(200)]
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.gather(*users) == [[n] for n in range(200)]
    assert pool.stats().opened_total == 3


async def test_a_query_that_times_out_is_stopped_on_the_server_and_nobody_else_notices(watched: Watched) -> None:
    slow = R.expr([watched.mark, R.range(50_000_000).map(lambda x: x * x).sum()])
    async with AsyncConnectionPool(watched.arguments, 1, check_timeout=PATIENCE) as pool:
        others = asyncio.gather(*(pool.run(R.range(2000).map(lambda x: x * 2).sum() + n) for n in range(10)))
        timed_out = [asyncio.create_task(pool.run(slow, timeout=0.3)) for _ in range(3)]
        for task in timed_out:
            with pytest.raises(QueryTimeout, match=r"no answer from .* within 0\.3 s"):
                await task
        assert await others == [3998000 + n for n in range(10)]
        await watched.holds(0)
        assert await pool.run(R.expr(5)) == 5
        stats = pool.stats()
        assert (stats.opened_total, stats.queries_stopped_total, stats.queries_in_flight) == (1, 3, 0)


async def test_a_cancelled_query_is_stopped_on_the_server_and_nobody_else_notices(watched: Watched) -> None:
    slow = R.expr([watched.mark, R.range(50_000_000).map(lambda x: x * x).sum()])
    async with AsyncConnectionPool(watched.arguments, 1) as pool:
        cancelled = [asyncio.create_task(pool.run(slow)) for _ in range(5)]
        await watched.holds(5)
        others = asyncio.gather(*(pool.run(R.range(2000).map(lambda x: x * 2).sum() + n) for n in range(10)))
        for task in cancelled:
            task.cancel()
        assert await others == [3998000 + n for n in range(10)]
        await asyncio.wait(cancelled)
        assert all(task.cancelled() for task in cancelled)
        await watched.holds(0)
        assert (pool.stats().opened_total, pool.stats().queries_stopped_total) == (1, 5)


# ---- stream


async def test_a_stream_of_10_000_rows_is_read_in_batches_beside_other_queries(watched: Watched) -> None:
    query = R.range(10_000).map(lambda x: {"n": x, "mark": watched.mark})
    async with AsyncConnectionPool(watched.arguments, 1) as pool:
        seen = []
        async with pool.stream(query, max_batch_rows=500) as stream:
            async for row in stream:
                if row["n"] % 1000 == 0:
                    assert await pool.run(R.expr(row["n"]) + 1) == row["n"] + 1
                seen.append(row["n"])
        assert seen == list(range(10_000))
        await watched.holds(0)
        assert pool.stats().opened_total == 1


@pytest.mark.parametrize("how", ["left", "dropped", "cancelled"])
async def test_a_stream_that_is_not_read_to_its_end_leaves_nothing_on_the_server(how: str, watched: Watched) -> None:
    query = R.range(10_000).map(lambda x: {"n": x, "mark": watched.mark})

    async def read() -> None:
        async with pool.stream(query, max_batch_rows=100) as stream:
            async for row in stream:
                if row["n"] == 250:
                    await watched.holds(1)
                    if how == "left":
                        return
                    is_there.set()
                    await asyncio.sleep(PATIENCE)

    async def drop() -> None:
        stream = await pool.stream(query, max_batch_rows=100).__aenter__()
        await anext(stream)
        await watched.holds(1)

    is_there = asyncio.Event()
    async with AsyncConnectionPool(watched.arguments, 1) as pool:
        for _ in range(3):
            if how == "cancelled":
                task = asyncio.create_task(read())
                await is_there.wait()
                is_there.clear()
                task.cancel()
                await asyncio.wait([task])
                del task
            else:
                await (drop() if how == "dropped" else read())
            gc.collect()
            await watched.holds(0)
        assert await pool.run(R.expr(1)) == 1
        assert (pool.stats().opened_total, pool.stats().retired) == (1, 0)


# ---- changes


async def ids(feed: Any, count: int) -> list[Any]:
    """Of so many changes; a gap counts as one."""
    async with asyncio.timeout(PATIENCE):
        items = [await anext(feed) for _ in range(count)]
    return [FeedGap if isinstance(item, FeedGap) else item["new_val"] and item["new_val"]["id"] for item in items]


async def test_a_feed_brings_each_change_once_and_in_order(pool: AsyncConnectionPool, table: Any) -> None:
    async with pool.changes(table.changes()) as feed:
        reading = asyncio.create_task(ids(feed, 300))
        for n in range(300):
            await pool.run(table.insert({"id": n}))
        assert await reading == list(range(300))
        writing = asyncio.gather(*(count_up(pool, table, n) for n in range(10)))
        async with asyncio.timeout(PATIENCE):
            changes = [await anext(feed) for _ in range(100)]
        await writing
    for n in range(10):  # of each document in order, whatever the others do
        seen = [change["new_val"]["count"] for change in changes if change["new_val"]["id"] == n]
        assert seen == list(range(1, 11))


async def count_up(pool: AsyncConnectionPool, table: Any, n: int) -> None:
    for count in range(1, 11):
        await pool.run(table.get(n).update({"count": count}))


async def test_a_feed_may_begin_with_all_there_is_or_follow_one_document(pool: AsyncConnectionPool, table: Any) -> None:
    await pool.run(table.insert(rows(10)))
    async with (
        pool.changes(table.changes(include_initial=True)) as whole,
        pool.changes(table.get(3).changes(include_initial=True)) as one,
        pool.changes(table.filter({"kind": "a"}).changes()) as some,
    ):
        assert sorted(await ids(whole, 10)) == list(range(10))
        assert await ids(one, 1) == [3]
        await pool.run(table.get(3).update({"kind": "a"}))
        assert (await ids(whole, 1), await ids(one, 1), await ids(some, 1)) == ([3], [3], [3])
        await pool.run(table.get(3).delete())
        assert (await ids(whole, 1), await ids(one, 1), await ids(some, 1)) == ([None], [None], [None])


async def test_two_hundred_feeds_on_one_pool_and_a_query_beside_them(watched: Watched) -> None:
    async with AsyncConnectionPool(watched.arguments, 2) as pool, a_database(pool, f"repool_{watched.mark}") as table:
        async with contextlib.AsyncExitStack() as stack:
            feeds = [
                await stack.enter_async_context(pool.changes(table.get(n).changes(), timeout=PATIENCE))
                for n in range(200)
            ]
            await watched.holds(200)
            assert pool.stats().changefeeds == 200
            assert pool.stats().feeds <= 2, "they share connections"
            await asyncio.gather(*(pool.run(table.insert({"id": n})) for n in range(200)))
            assert await asyncio.gather(*(ids(feed, 1) for feed in feeds)) == [[n] for n in range(200)]
            assert await pool.run(table.count()) == 200
        await watched.holds(0)
        assert (pool.stats().changefeeds, pool.stats().feeds) == (0, 0)
        del feeds


async def test_a_feed_of_a_dropped_table_ends_with_the_drivers_error(pool: AsyncConnectionPool, db: str) -> None:
    other = await a_table(pool, R.db(db), "other")
    async with pool.changes(other.changes()) as feed:
        await pool.run(other.insert({"id": 1}))
        assert await ids(feed, 1) == [1]
        await pool.run(R.db(db).table_drop("other"))
        with pytest.raises(ReqlOpFailedError, match="does not exist|unavailable"):
            await ids(feed, 10)  # after a gap, where a thread of the server learns of it late
        with pytest.raises(StopAsyncIteration):
            await anext(feed)
    assert pool.stats().closed_by_reason.keys() <= {"feed ended"}, "the connection was as good as before"


@contextlib.asynccontextmanager
async def a_feed_through_a_proxy(
    arguments: dict[str, Any], pool: AsyncConnectionPool, table: Any, **how: Any
) -> AsyncIterator[tuple[FaultProxy, Any]]:
    """It can be broken, while ``pool`` goes past the proxy."""
    async with FaultProxy(arguments["host"], arguments["port"]) as proxy:
        to_proxy = {**arguments, "host": proxy.host, "port": proxy.port}
        async with AsyncConnectionPool(to_proxy, 1, name="fragile") as fragile:
            async with fragile.changes(table.changes(include_initial=True), **how) as feed:
                yield proxy, feed
            assert fragile.stats().feeds == 0


async def test_a_feed_survives_its_connection_and_tells_of_the_gap(
    arguments: dict[str, Any], pool: AsyncConnectionPool, table: Any
) -> None:
    await pool.run(table.insert({"id": 1}))
    async with a_feed_through_a_proxy(arguments, pool, table) as (proxy, feed):
        assert await ids(feed, 1) == [1]
        for n in range(2, 5):
            before = datetime.now(UTC)
            proxy.faults.cut()
            await pool.run(table.insert({"id": n}))
            async with asyncio.timeout(PATIENCE):
                gap = await anext(feed)
            assert isinstance(gap, FeedGap)
            assert before - RESOLUTION <= gap.broke_at <= gap.resumed_at <= datetime.now(UTC)
            assert gap.reason.startswith("ConnectionLost: ")
            assert sorted(await ids(feed, n)) == list(range(1, n + 1)), "all initial values again"
        await pool.run(table.insert({"id": 5}))
        assert await ids(feed, 1) == [5]


async def test_a_feed_may_end_at_its_first_gap(
    arguments: dict[str, Any], pool: AsyncConnectionPool, table: Any
) -> None:
    await pool.run(table.insert({"id": 1}))
    async with a_feed_through_a_proxy(arguments, pool, table, on_gap="raise") as (proxy, feed):
        assert await ids(feed, 1) == [1]
        proxy.faults.cut()
        with pytest.raises(ConnectionLost):
            await ids(feed, 1)
        with pytest.raises(StopAsyncIteration):
            await anext(feed)


async def test_feeds_survive_a_restart_of_the_server_and_begin_anew() -> None:
    async with StandInServer() as server:
        arguments = {"host": server.host, "port": server.port}
        async with AsyncConnectionPool(arguments, 2) as pool, a_database(pool, "heroes") as table:
            await pool.run(table.insert([{"id": n} for n in range(20)]))
            async with (
                pool.changes(table.changes(include_initial=True)) as whole,
                pool.changes(table.changes()) as plain,
            ):
                assert sorted(await ids(whole, 20)) == list(range(20))
                for n in range(20, 23):
                    await server.restart()
                    await pool.run(table.insert({"id": n}), retry=True)  # which nobody saw
                    assert await ids(whole, 1) == [FeedGap]
                    assert sorted(await ids(whole, n + 1)) == list(range(n + 1))
                    assert await ids(plain, 1) == [FeedGap]
                    await pool.run(table.get(n).update({"is": "seen"}))
                    assert (await ids(whole, 1), await ids(plain, 1)) == ([n], [n])

            async def has_none() -> bool:
                return server.open_streams == 0

            await until(has_none)


# ---- a server that goes away


async def test_a_query_whose_connection_is_cut_is_repeated_only_where_that_was_asked_for(
    arguments: dict[str, Any],
) -> None:
    async with FaultProxy(arguments["host"], arguments["port"]) as proxy:
        to_proxy = {**arguments, "host": proxy.host, "port": proxy.port}
        async with AsyncConnectionPool(to_proxy, 2) as pool:
            proxy.faults.freeze()
            once = [asyncio.create_task(pool.run(R.expr(n))) for n in range(10)]
            again = [asyncio.create_task(pool.run(R.expr(n), retry=True)) for n in range(10)]
            await asyncio.sleep(0.05)  # all are under way
            proxy.faults.cut()
            proxy.faults.thaw()
            for task in once:
                with pytest.raises(ConnectionLost, match="may have been done or not"):
                    await task
            assert await asyncio.gather(*again) == list(range(10))
            assert pool.stats().queries_lost_total == 10


async def test_queries_during_an_outage_are_run_when_the_server_is_back() -> None:
    async with StandInServer() as server:
        arguments = {"host": server.host, "port": server.port}
        async with AsyncConnectionPool(arguments, 2) as pool:
            await server.stop()

            async def knows_it() -> bool:
                return pool.stats().connect_failures_total > 0

            await until(knows_it)
            waiting = [asyncio.create_task(pool.run(R.expr(n))) for n in range(10)]
            with pytest.raises(ConnectFailed, match="never sent"):
                await pool.run(R.expr(1), timeout=0.2)
            await server.start()
            assert await asyncio.gather(*waiting) == list(range(10))


async def test_connections_that_expire_under_queries_fail_none_of_them(arguments: dict[str, Any]) -> None:
    async with AsyncConnectionPool(arguments, 2, connection_ttl=0.05) as pool:

        async def user(n: int) -> None:
            for m in range(100):
                assert await pool.run(R.expr([n, m])) == [n, m]

        await asyncio.gather(*(user(n) for n in range(5)), *(pool.run(R.range(3000).sum()) for _ in range(5)))

        async def has_replaced_one() -> bool:
            assert await pool.run(R.expr(1)) == 1
            return pool.stats().closed_by_reason.get("expired", 0) > 0

        await until(has_replaced_one)
        assert (pool.stats().queries_lost_total, pool.stats().queries_stopped_total) == (0, 0)


# ---- the end


async def test_close_waits_for_queries_and_streams_and_ends_feeds(
    arguments: dict[str, Any], pool: AsyncConnectionPool, table: Any
) -> None:
    closing = AsyncConnectionPool(arguments, 2)
    await closing.init_pool()
    running = [asyncio.create_task(closing.run(R.range(5000).map(lambda x: x * 2).sum())) for _ in range(5)]
    streaming = asyncio.create_task(read_all(closing, R.range(2000)))
    async with closing.changes(table.changes()) as feed, closing.changes(table.changes()) as unread:
        for n in range(1, 6):
            await pool.run(table.insert({"id": n}))
            assert await ids(feed, 1) == [n]
        following = asyncio.create_task(ids(feed, 1))
        async with asyncio.timeout(PATIENCE):
            report = await closing.close(timeout=None)
        assert (report.queries_aborted, report.feeds_ended) == (0, 2)
        with pytest.raises(PoolClosed):
            await following
        assert await ids(unread, 1) == [1], "what had come before is not lost"
        with pytest.raises(PoolClosed):
            await ids(unread, 5)
    assert await asyncio.gather(*running) == [24995000] * 5
    assert await streaming == list(range(2000))
    with pytest.raises(PoolClosed):
        await closing.run(R.expr(1))


async def read_all(pool: AsyncConnectionPool, query: Any) -> list[Any]:
    async with pool.stream(query, max_batch_rows=100) as stream:
        return [row async for row in stream]


async def test_close_ends_what_takes_longer_than_its_time_and_leaves_nothing_on_the_server(watched: Watched) -> None:
    endless = R.expr([watched.mark, R.range(50_000_000).map(lambda x: x * x).sum()])
    pool = AsyncConnectionPool(watched.arguments, 2)
    await pool.init_pool()
    running = [asyncio.create_task(pool.run(endless)) for _ in range(3)]
    await watched.holds(3)
    async with pool.stream(R.range(100_000).map(lambda x: [x, watched.mark]), max_batch_rows=50) as stream:
        assert (await anext(stream))[0] == 0
        await watched.holds(4)
        async with asyncio.timeout(PATIENCE):
            report = await pool.close(timeout=0.2)
        assert (report.queries_waited_for, report.queries_aborted) == (3, 3)
        for task in running:
            with pytest.raises(OutcomeUnknown):
                await task
        with pytest.raises(ConnectionLost):
            async for _ in stream:
                pass
    await watched.holds(0)


# ---- every fault control on every call


@contextlib.contextmanager
def may_fail(scene: Scene) -> Iterator[None]:
    with scene.may_fail(ConnectFailed, PoolTimeout, OutcomeUnknown):
        yield


def patience(scene: Scene) -> float:
    return 0.3 if scene.control in SILENT else 5


@contextlib.contextmanager
def unanswered(scene: Scene) -> Iterator[None]:
    """What is asked inside is on its way when things go wrong."""
    faults = scene.place.endpoint.faults
    faults.freeze()
    yield
    scene.begin()
    if scene.control != "freeze":
        faults.thaw()


async def run(scene: Scene, n: int, *, retry: bool = False) -> None:
    with may_fail(scene):
        assert await scene.pool.run(R.expr(n) * 2, timeout=patience(scene), retry=retry) == 2 * n, "a wrong answer"


async def run_queries(scene: Scene) -> None:
    await scene.pool.init_pool()
    with unanswered(scene):
        sent = [asyncio.create_task(run(scene, n)) for n in range(5)]
        await asyncio.sleep(0.01)
    await asyncio.gather(*sent, *(run(scene, n) for n in range(5, 10)))
    await run(scene, 10)


async def repeat_queries(scene: Scene) -> None:
    await scene.pool.init_pool()
    with unanswered(scene):
        sent = [asyncio.create_task(run(scene, n, retry=True)) for n in range(5)]
        await asyncio.sleep(0.01)
    await asyncio.gather(*sent)
    assert not scene.errors or scene.control in SILENT, "it was lost once, and not repeated"


async def be_cancelled_in_queries(scene: Scene) -> None:
    await scene.pool.init_pool()
    with unanswered(scene):
        queries = [asyncio.create_task(scene.pool.run(R.expr(n))) for n in range(4)]
        others = [asyncio.create_task(run(scene, n)) for n in range(3)]
        await asyncio.sleep(0.01)
    for query in queries:
        query.cancel()
    await asyncio.wait(queries)
    assert all(query.cancelled() for query in queries)
    await asyncio.gather(*others)


async def read_a_stream(scene: Scene) -> None:
    await scene.pool.init_pool()
    rows: list[int] = []
    with may_fail(scene), contextlib.suppress(TimeoutError):
        async with scene.pool.stream(R.range(LAST_ROW), max_batch_rows=200) as stream:
            rows += [await anext(stream) for _ in range(100)]
            scene.begin()
            async with asyncio.timeout(patience(scene)):
                async for row in stream:
                    rows.append(row)
    assert rows == list(range(len(rows))), "wrong rows"
    assert len(rows) == LAST_ROW or scene.errors or scene.control in SILENT, "rows are missing, and nobody was told"


async def begin_a_stream(scene: Scene) -> None:
    await scene.pool.init_pool()
    scene.begin()
    with may_fail(scene):
        async with scene.pool.stream(R.range(5), timeout=patience(scene)) as stream:
            assert [row async for row in stream] == list(range(5))


async def follow_changes(scene: Scene) -> None:
    await scene.pool.init_pool()
    name = uuid.uuid4().hex
    table = scene.place.table
    async with scene.pool.changes(table.filter({"scene": name}).changes(), timeout=0.5) as changes:
        scene.begin()
        seen: list[int] = []
        gaps = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience(scene)):
                for n in range(5):
                    with may_fail(scene):
                        write = table.insert({"id": f"{name} {n}", "scene": name, "n": n})
                        await scene.pool.run(write, timeout=patience(scene), retry=True)
                    while n not in seen and not gaps:
                        change = await anext(changes)
                        if isinstance(change, FeedGap):
                            gaps += 1
                        else:
                            seen.append(change["new_val"]["n"])
    assert seen == list(range(len(seen))), "a change is missing, and nobody was told"
    assert len(seen) == 5 or gaps or scene.control in SILENT


async def begin_to_follow(scene: Scene) -> None:
    await scene.pool.init_pool()
    scene.begin()
    with may_fail(scene):
        async with scene.pool.changes(scene.place.table.changes(), timeout=patience(scene)):
            pass


async def close_under_queries(scene: Scene) -> None:
    await scene.pool.init_pool()
    async with scene.pool.changes(scene.place.table.filter({"scene": 0}).changes()) as changes:
        following = asyncio.create_task(anext(changes))
        with unanswered(scene):
            queries = [asyncio.create_task(scene.pool.run(R.expr(n))) for n in range(3)]
            await asyncio.sleep(0.01)
        await scene.pool.close(timeout=0.1)
        with pytest.raises(PoolClosed):
            await following
        for query in queries:
            with contextlib.suppress(OutcomeUnknown):
                await query


QUERY_USES: list[Callable[[Scene], Awaitable[None]]] = [
    run_queries,
    repeat_queries,
    be_cancelled_in_queries,
    read_a_stream,
    begin_a_stream,
    follow_changes,
    begin_to_follow,
    close_under_queries,
]
PROXY_USES = [run_queries, repeat_queries, read_a_stream, follow_changes]


@pytest.mark.parametrize("where", ["on the stand-in", "through the proxy"])
async def test_no_fault_hangs_a_query_gives_a_wrong_answer_or_costs_capacity(
    where: str,
    arguments: dict[str, Any],
    table: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for use in QUERY_USES:
        monkeypatch.setitem(USES, use, {"connect_timeout": 1.0, "acquire_timeout": 5.0})
    at, uses = (stand_in, QUERY_USES) if where == "on the stand-in" else (partial(proxy, arguments, table), PROXY_USES)
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    failures: list[Exception] = []
    scenes = 0
    for two in zip(uses[::2], uses[1::2], strict=True):  # all at once would be slow
        combined = [combine(control, use, at) for use in two for control in CONTROLS]
        outcomes = await asyncio.gather(*combined, return_exceptions=True)
        failures += [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        scenes += len(outcomes)
    if failures:
        raise ExceptionGroup(where, failures)
    with capsys.disabled():
        print(f" [{scenes} combinations of controls and calls]", end="")
    gc.collect()
    assert unhandled == []
