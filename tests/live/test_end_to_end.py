"""The pool on a server, through the driver: what users of the library do all day, and what goes wrong for them."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import ssl
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import rethinkdb
from rethinkdb.ast import Repl
from rethinkdb.errors import ReqlAuthError, ReqlDriverError, ReqlNonExistenceError, ReqlOpFailedError

from async_repool import AsyncConnectionPool, ConnectFailed, LeaseError, PoolTimeout, R
from async_repool.testing import FaultProxy, StandInServer
from paths import DATA

CERTIFICATE = DATA / "localhost.pem"


@pytest.fixture
def arguments(rethinkdb_server: Any) -> dict[str, Any]:
    """What connects to the server of this session."""
    return rethinkdb_server.connect_arguments  # type: ignore[no-any-return]


@pytest.fixture
async def pool(arguments: dict[str, Any]) -> AsyncIterator[AsyncConnectionPool]:
    async with AsyncConnectionPool(arguments, pool_size=3, name="main") as pool:
        yield pool


@pytest.fixture
async def table(pool: AsyncConnectionPool) -> AsyncIterator[Any]:
    """An empty table of this test's own."""
    db = "repool_" + uuid.uuid4().hex
    async with pool.connect() as conn:
        await R.db_create(db).run(conn)
        await R.db(db).table_create("t").run(conn)
        await R.db(db).table("t").wait().run(conn)
    yield R.db(db).table("t")
    async with pool.connect() as conn:
        await R.db_drop(db).run(conn)


async def load(pool: AsyncConnectionPool, table: Any, rows: int) -> None:
    async with pool.connect() as conn:
        for start in range(0, rows, 200):
            batch = [{"id": n, "text": "x" * 50} for n in range(start, min(start + 200, rows))]
            assert (await table.insert(batch).run(conn))["errors"] == 0


# ---- a lease passes for the driver's connection


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


# ---- many users


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


# ---- cursors


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


# ---- changefeeds


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


# ---- writes


async def test_noreply_writes_are_done_before_the_pool_is_closed(
    arguments: dict[str, Any], pool: AsyncConnectionPool, table: Any
) -> None:
    async with AsyncConnectionPool(arguments, pool_size=2) as other:
        for n in range(200):
            async with other.connect() as conn:
                await table.insert({"id": n}).run(conn, noreply=True)
    assert await count(pool, table) == 200


# ---- a server with passwords, TLS, faults: the stand-in


async def test_a_wrong_password_is_told_at_once_with_its_cause_and_is_not_tried_again() -> None:
    async with StandInServer(users={"admin": "s3cret"}) as server:
        pool = AsyncConnectionPool({"host": server.host, "port": server.port, "password": "wr0ng"}, pool_size=2)
        with pytest.raises(ConnectFailed) as caught:
            await pool.init_pool()
        assert isinstance(caught.value.__cause__, ReqlAuthError)
        assert server.connections_total <= 2
        lazy = AsyncConnectionPool({"host": server.host, "port": server.port, "password": "wr0ng"}, min_size=0)
        async with lazy:
            with pytest.raises(ConnectFailed) as caught:
                await lazy.acquire()
            assert isinstance(caught.value.__cause__, ReqlAuthError)
            assert caught.value.is_permanent
        assert server.connections_total <= 3


@pytest.mark.parametrize("is_async", [True, False])
async def test_secrets_are_asked_for_at_every_opening(is_async: bool) -> None:
    password = "old"

    def ask() -> dict[str, Any]:
        return {"host": server.host, "port": server.port, "password": password}

    async def ask_async() -> dict[str, Any]:
        await asyncio.sleep(0)
        return ask()

    async with (
        StandInServer(users={"admin": "old"}) as server,
        AsyncConnectionPool(ask_async if is_async else ask, 2, connect_timeout=20) as pool,
    ):
        assert await pool.run(R.expr(1)) == 1
        server.accounts = StandInServer(users={"admin": "new"}).accounts
        password = "new"
        await pool.drain()
        assert await pool.run(R.expr(2)) == 2
        assert pool.stats().connect_failures_total == 0


NO_TIME = 1e-6
"""Seconds in which no connection can be opened."""


@pytest.fixture(params=["a mapping", "a callable"])
async def hurried(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """Connect arguments that leave no time."""
    async with StandInServer() as server:
        arguments = {"host": server.host, "port": server.port, "timeout": NO_TIME}
        yield arguments if request.param == "a mapping" else lambda: arguments


async def test_the_timeout_of_the_arguments_is_that_of_the_opening(hurried: Any) -> None:
    with pytest.raises(ConnectFailed) as caught:
        await AsyncConnectionPool(hurried, 1).init_pool()
    assert isinstance(caught.value.__cause__, TimeoutError)


async def test_connect_timeout_wins_over_the_timeout_of_the_arguments(hurried: Any) -> None:
    async with AsyncConnectionPool(hurried, 1, connect_timeout=20) as pool:
        assert await pool.run(R.expr(1)) == 1


async def test_no_log_record_error_or_repr_ever_tells_a_password(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with StandInServer(users={"admin": "s3cret"}) as server:
        told = []
        for password, url in (
            ("s3cret", None),
            ("wr0ngs3cret", None),
            (None, f"rethinkdb://admin:s3cret@{server.host}:{server.port}"),
            (None, f"rethinkdb://admin:wr0ngs3cret@{server.host}:{server.port}"),
        ):
            arguments = {"url": url} if url else {"host": server.host, "port": server.port, "password": password}
            pool = AsyncConnectionPool(arguments, pool_size=1, connection_ttl=0.001)
            told.append(repr(pool))
            try:
                async with pool, pool.connect() as conn:
                    told += [repr(conn), str(conn), repr(pool.stats())]
                    await R.expr(1).run(conn)
            except ConnectFailed as failure:
                told += [str(failure), repr(failure), str(failure.__cause__), repr(failure.__cause__)]
        told += [record.getMessage() for record in caplog.records]
        assert not [line for line in told if "s3cret" in line]


async def test_tls_with_a_given_authority() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    async with StandInServer(ssl=context) as server:
        arguments = {"host": "localhost", "port": server.port, "ssl": {"ca_certs": str(CERTIFICATE)}}
        async with AsyncConnectionPool(arguments) as pool, pool.connect() as conn:
            assert await R.expr(1).run(conn) == 1


async def test_a_restart_of_the_server_is_only_an_outage() -> None:
    async with StandInServer() as server:
        arguments = {"host": server.host, "port": server.port}
        async with AsyncConnectionPool(arguments, pool_size=3, acquire_timeout=20) as pool:
            async with pool.connect() as conn:
                assert await R.expr(1).run(conn) == 1
            await server.restart()

            async def user(n: int) -> int:
                async with pool.connect() as conn:
                    answer: int = await R.expr(n).run(conn)
                    return answer

            assert await asyncio.gather(*(user(n) for n in range(50))) == list(range(50))


async def test_callers_during_an_outage_are_served_when_the_server_is_back() -> None:
    async with StandInServer() as server:
        arguments = {"host": server.host, "port": server.port}
        async with AsyncConnectionPool(arguments, pool_size=3, acquire_timeout=20) as pool:
            await server.stop()
            async with asyncio.timeout(5):
                while not pool.stats().connect_failures_total:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            waiting = [asyncio.create_task(pool.acquire()) for _ in range(3)]
            with pytest.raises(ConnectFailed) as caught:
                await pool.acquire(timeout=0.3)
            assert isinstance(caught.value.__cause__, OSError)
            await server.start()
            for task in waiting:
                pool.release(await task)


@pytest.mark.parametrize("how", ["reset", "orderly"])
async def test_connections_cut_while_leased_fail_their_queries_and_are_replaced(how: str) -> None:
    async with StandInServer() as server, FaultProxy(server.host, server.port) as proxy:
        arguments = {"host": proxy.host, "port": proxy.port}
        async with AsyncConnectionPool(arguments, pool_size=2) as pool:
            async with pool.connect() as conn:
                waiting = asyncio.create_task(R.range(50_000_000).sum().run(conn))
                await asyncio.sleep(0.05)
                proxy.faults.cut(orderly=how == "orderly")
                with pytest.raises(ReqlDriverError):
                    await waiting
            for n in range(4):
                async with pool.connect() as conn:
                    assert await R.expr(n).run(conn) == n


async def test_a_frozen_server_slows_the_pool_and_does_not_hang_it() -> None:
    async with StandInServer() as server:
        arguments = {"host": server.host, "port": server.port}
        pool = AsyncConnectionPool(
            arguments, pool_size=2, min_size=1, acquire_timeout=0.3, connect_timeout=0.2, close_timeout=0.2
        )
        async with pool:
            async with pool.connect() as conn:
                await R.expr([1]).run(conn, noreply=True)  # a polite close would have to wait for this
                server.faults.freeze()
                with pytest.raises((ConnectFailed, PoolTimeout)):
                    await pool.acquire()
            async with asyncio.timeout(5):
                await pool.close(timeout=0.2)
        server.faults.thaw()


async def test_an_opening_that_runs_out_of_time_tells_how_far_it_came_and_what_to_check() -> None:
    async with StandInServer() as server:
        server.faults.mute()
        pool = AsyncConnectionPool({"host": server.host, "port": server.port}, name="main", connect_timeout=0.05)
        with pytest.raises(ConnectFailed) as caught:
            await pool.init_pool()
    text = str(caught.value)
    assert re.search(r"no answer while logging in, after 0\.\d\d of 0\.05 s\. Is this RethinkDB's driver port", text), (
        text
    )
    assert "(`ssl`)? All are closed; init_pool() may be called again" in text
    assert isinstance(caught.value.__cause__, TimeoutError)


# ---- what else the driver's connection has


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


# ---- fork


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
