"""Queries and streams without leases on a server, through the driver."""

from __future__ import annotations

import asyncio
import gc
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from rethinkdb.errors import ReqlNonExistenceError, ReqlOpFailedError, ReqlPermissionError

from async_repool import AsyncConnectionPool, ConnectFailed, OutcomeUnknown, PoolClosed, R
from async_repool.errors import ConnectionLost, QueryTimeout
from async_repool.testing import FaultProxy, StandInServer
from live_kit import PATIENCE, Watched, ids, rows, until


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
