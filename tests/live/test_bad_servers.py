"""Servers that refuse, change their secrets, restart, or freeze: the stand-in, through the driver."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rethinkdb.errors import ReqlAuthError, ReqlDriverError

from async_repool import AsyncConnectionPool, ConnectFailed, PoolTimeout, R
from async_repool.testing import FaultProxy, StandInServer
from paths import DATA

CERTIFICATE = DATA / "localhost.pem"


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
