"""Leases on a server, through the driver: what users do all day with a connection in their hands."""

from __future__ import annotations

import asyncio
import gc
import os
from typing import Any

import pytest
import rethinkdb
from rethinkdb.ast import Repl
from rethinkdb.errors import ReqlDriverError, ReqlNonExistenceError, ReqlOpFailedError

from async_repool import AsyncConnectionPool, LeaseError, R
from async_repool.testing import FaultProxy


async def load(pool: AsyncConnectionPool, table: Any, rows: int) -> None:
    async with pool.connect() as conn:
        for start in range(0, rows, 200):
            batch = [{"id": n, "text": "x" * 50} for n in range(start, min(start + 200, rows))]
            assert (await table.insert(batch).run(conn))["errors"] == 0


async def test_a_lease_is_the_drivers_connection_to_whoever_asks(pool: AsyncConnectionPool) -> None:
    async with pool.connect() as conn:
        assert isinstance(conn, rethinkdb.net.Connection)
        assert conn.is_open()
        assert await R.expr(1).run(conn) == 1
        assert set(await conn.server()) == {"id", "name", "proxy"}
        assert await conn.noreply_wait() is None
        conn.check_open()


async def test_use_chooses_the_database_for_the_lease_only(pool: AsyncConnectionPool, table: Any) -> None:
    db = table._args[0]._args[0].data
    await load(pool, table, 1)
    async with pool.connect() as conn:
        conn.use(db)
        assert await R.table("t").count().run(conn) == 1
        with pytest.raises(ReqlOpFailedError):
            await R.table("t").count().run(conn, db="no_such_db")
    for conn in [await pool.acquire() for _ in range(3)]:
        with pytest.raises(ReqlOpFailedError):
            await R.table("t").count().run(conn)
        pool.release(conn)


async def test_the_connection_arguments_may_name_the_database(arguments: dict[str, Any], table: Any) -> None:
    db = table._args[0]._args[0].data
    async with AsyncConnectionPool({**arguments, "db": db}, pool_size=1) as pool, pool.connect() as conn:
        assert conn.db == db
        assert await R.table("t").count().run(conn) == 0


async def test_the_code_of_1_0_1_runs_unchanged(arguments: dict[str, Any]) -> None:
    pool = AsyncConnectionPool(arguments, pool_size=2, connection_ttl=3600)
    await pool.init_pool()
    assert not pool.empty
    conn = await pool.acquire()
    assert await R.expr("hello").run(conn) == "hello"
    pool.release(conn)
    conn = await pool.acquire()
    await pool.release(conn)
    async with pool.connect() as conn:
        assert await R.expr(2).run(conn) == 2
    async with pool.connect(looped_mode=True) as conn:
        assert await R.expr(3).run(conn) == 3
    conn = await pool.acquire()
    await pool.release_to_looped(conn)
    await pool.release_pool()


async def test_a_connection_that_its_user_closed_is_replaced_by_a_fresh_one(pool: AsyncConnectionPool) -> None:
    for _ in range(6):
        async with pool.connect() as conn:
            assert await R.expr(1).run(conn) == 1
            await conn.close()


async def test_a_released_lease_runs_no_more_queries(pool: AsyncConnectionPool) -> None:
    async with pool.connect() as conn:
        pass
    with pytest.raises(LeaseError, match="main: query.run"):
        await R.expr(1).run(conn)


async def test_a_query_error_is_the_drivers_and_the_connection_goes_on(pool: AsyncConnectionPool) -> None:
    async with pool.connect() as conn:
        with pytest.raises(ReqlNonExistenceError):
            await R.expr({"a": 1})["b"].run(conn)
        assert await R.expr(1).run(conn) == 1
    assert pool.stats().closed_total == 0


async def test_two_hundred_users_share_three_connections(pool: AsyncConnectionPool, table: Any) -> None:
    await load(pool, table, 100)

    async def user(n: int) -> int:
        async with pool.connect() as conn:
            row: dict[str, int] = await table.get(n % 100).run(conn)
            return row["id"]

    assert await asyncio.gather(*(user(n) for n in range(200))) == [n % 100 for n in range(200)]
    assert pool.stats().opened_total == 3


async def test_users_cancelled_at_random_moments_disturb_nobody(pool: AsyncConnectionPool, table: Any) -> None:
    await load(pool, table, 100)

    async def user(n: int) -> None:
        async with pool.connect() as conn:
            assert (await table.get(n % 100).run(conn))["id"] == n % 100
            await R.range(50).map(lambda x: x * 2).sum().run(conn)

    users = [asyncio.create_task(user(n)) for n in range(300)]
    loop = asyncio.get_running_loop()
    for n in range(0, 300, 2):
        loop.call_later(n / 3000, users[n].cancel)
    outcomes = await asyncio.gather(*users, return_exceptions=True)
    assert [outcome for outcome in outcomes[1::2] if outcome is not None] == []
    assert {type(outcome) for outcome in outcomes[::2]} <= {asyncio.CancelledError, type(None)}
    stats = pool.stats()
    assert (stats.leased, stats.waiting, stats.idle) == (0, 0, 3)
    assert stats.closed_total == 0, "no connection had to be given up"


async def test_a_query_that_times_out_does_not_reach_the_next_user(arguments: dict[str, Any]) -> None:
    slow = R.range(50_000_000).map(lambda x: x * x).sum()
    async with AsyncConnectionPool(arguments, pool_size=1) as pool:
        for n in range(5):
            with pytest.raises(TimeoutError):
                async with pool.connect() as conn, asyncio.timeout(0.02):
                    await slow.run(conn)
            async with pool.connect() as conn:
                assert await R.expr(n).run(conn) == n
        assert pool.stats().opened_total == 1


async def test_a_cursor_is_read_after_its_lease_was_released(pool: AsyncConnectionPool, table: Any) -> None:
    await load(pool, table, 2000)
    async with pool.connect() as conn:
        cursor = await table.run(conn)
    assert pool.stats().leased == 0
    others = asyncio.gather(*(count(pool, table) for _ in range(20)))
    assert {row["id"] async for row in cursor} == set(range(2000))
    assert await others == [2000] * 20


async def count(pool: AsyncConnectionPool, table: Any) -> int:
    async with pool.connect() as conn:
        number: int = await table.count().run(conn)
        return number


async def test_drain_lets_a_cursor_read_to_its_end(arguments: dict[str, Any]) -> None:
    async with AsyncConnectionPool(arguments, pool_size=1) as pool:
        async with pool.connect() as conn:
            cursor = await R.range(100_000).run(conn)
        await pool.drain()
        assert pool.stats().retired == 1
        async with pool.connect() as conn:
            assert await R.expr(1).run(conn) == 1
        assert [row async for row in cursor] == list(range(100_000))
        async with asyncio.timeout(5):
            while pool.stats().retired:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_reader_whose_grace_is_over_sees_an_error(arguments: dict[str, Any]) -> None:
    async with AsyncConnectionPool(arguments, pool_size=1, cursor_grace=0.05) as pool:
        async with pool.connect() as conn:
            cursor = await R.range(100_000).run(conn)
        await pool.drain()
        await asyncio.sleep(0.3)
        with pytest.raises(R.ReqlError, match="(?i)connection is closed"):
            _ = [row async for row in cursor]


async def test_abandoned_cursors_are_collected(pool: AsyncConnectionPool) -> None:
    for _ in range(50):
        async with pool.connect() as conn:
            cursor = await R.range(1_000_000).run(conn)
            await anext(cursor)
            del cursor
    gc.collect()
    await pool.drain()
    async with asyncio.timeout(5):
        while pool.stats().retired:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_feed_follows_while_others_write(pool: AsyncConnectionPool, table: Any) -> None:
    is_following = asyncio.Event()

    async def follow() -> list[int]:
        seen = []
        async with pool.connect(looped_mode=True) as conn:
            feed = await table.changes().run(conn)
            is_following.set()
            async for change in feed:
                seen.append(change["new_val"]["id"])
                if len(seen) == 10:
                    break
        return seen

    following = asyncio.create_task(follow())
    await is_following.wait()
    assert pool.stats().feeds == 1
    await load(pool, table, 10)
    async with asyncio.timeout(10):
        assert sorted(await following) == list(range(10))


async def test_close_ends_a_feed_that_waits(arguments: dict[str, Any], table: Any) -> None:
    async with AsyncConnectionPool(arguments, pool_size=1) as pool:
        is_following = asyncio.Event()

        async def follow() -> None:
            async with pool.connect(looped_mode=True) as conn:
                feed = await table.changes().run(conn)
                is_following.set()
                async for _ in feed:
                    pass

        following = asyncio.create_task(follow())
        await is_following.wait()
        await pool.close(timeout=5)
        with pytest.raises(R.ReqlError, match="(?i)connection is closed"):
            await following


async def test_noreply_writes_are_done_before_the_pool_is_closed(
    arguments: dict[str, Any], pool: AsyncConnectionPool, table: Any
) -> None:
    async with AsyncConnectionPool(arguments, pool_size=2) as other:
        for n in range(200):
            async with other.connect() as conn:
                await table.insert({"id": n}).run(conn, noreply=True)
    assert await count(pool, table) == 200


async def test_a_lease_that_was_reconnected_goes_on(pool: AsyncConnectionPool) -> None:
    conn = await pool.acquire()
    port = conn.client_port()
    assert await conn.reconnect() is conn
    assert conn.client_port() != port
    assert await R.expr(1).run(conn) == 1
    pool.release(conn)
    assert pool.stats().idle == 3


async def test_a_connection_that_is_lost_after_it_was_reconnected_is_replaced(arguments: dict[str, Any]) -> None:
    async with (
        FaultProxy(arguments["host"], arguments["port"]) as proxy,
        AsyncConnectionPool(arguments | {"host": proxy.host, "port": proxy.port}, 1) as pool,
    ):
        async with pool.connect() as conn:
            await conn.reconnect()
        proxy.faults.cut()
        async with asyncio.timeout(5):
            while not pool.stats().closed_total:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        async with pool.connect() as conn:
            assert await R.expr(1).run(conn) == 1


@pytest.mark.parametrize("looped_mode", [False, True])
async def test_a_connection_that_is_being_reconnected_is_closed_with_its_pool(
    arguments: dict[str, Any], looped_mode: bool
) -> None:
    async with (
        FaultProxy(arguments["host"], arguments["port"]) as proxy,
        AsyncConnectionPool(arguments | {"host": proxy.host, "port": proxy.port}, 1) as pool,
    ):
        async with pool.connect(looped_mode) as conn:
            proxy.faults.delay = 0.05
            reconnecting = asyncio.create_task(conn.reconnect())
            await asyncio.sleep(0.06)
            await pool.close(timeout=0)
            with pytest.raises(ReqlDriverError):
                await reconnecting
        async with asyncio.timeout(5):
            while proxy.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_method_that_was_kept_beyond_its_lease_is_dead(pool: AsyncConnectionPool) -> None:
    async with pool.connect() as conn:
        close = conn.close
    with pytest.raises(LeaseError, match=r"close\(\) on a lease that was released before"):
        await close()
    assert pool.stats().idle == 3


async def test_a_lease_is_the_connection_of_a_repl_as_long_as_it_lasts(pool: AsyncConnectionPool) -> None:
    try:
        async with pool.connect() as conn:
            assert conn.repl() is conn
            assert await R.expr(1).run() == 1
        with pytest.raises(LeaseError):
            await R.expr(1).run()
    finally:
        Repl.clear()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_child_of_a_fork_cannot_send_on_a_connection_that_its_parent_uses(rethinkdb_server: Any) -> None:
    async with AsyncConnectionPool(rethinkdb_server.connect_arguments, 1) as pool, pool.connect() as lease:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with pytest.raises(ReqlDriverError, match=r"inherited over fork\(\)"):
                    asyncio.run(R.expr("a" * 100_000).run(lease))  # so long that it is sent at once
                asyncio.run(lease.close())
                lease.abort()
                status = 0
            finally:
                os._exit(status)
        assert (await asyncio.to_thread(os.waitpid, child, 0))[1] == 0
        assert await R.expr(7).run(lease) == 7
