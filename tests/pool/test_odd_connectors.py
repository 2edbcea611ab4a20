"""Connectors that call back at odd moments, raise or return what they must not, or run no queries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, ConnectFailed, Lease, PoolException
from async_repool.testing.scripted import ScriptedConnection, ScriptedConnector, error
from pool_kit import Call, drop_all, each_call, open_pool, turn

pytestmark = pytest.mark.virtual_time


class Callbacks(ScriptedConnector):
    """Tells of the loss of one connection at once, and of others when it likes."""

    lost_at_once = 0

    def __init__(self) -> None:
        super().__init__()
        self.callbacks: list[Callable[[], None]] = []

    def on_lost(self, connection: ScriptedConnection, callback: Callable[[], None], /) -> None:
        self.callbacks.append(callback)
        if connection.number == self.lost_at_once:
            self.drop(connection, is_told=False)
            callback()


async def test_a_connector_that_calls_back_at_once_leases_nothing_twice() -> None:
    connector = Callbacks()
    connector.lost_at_once = 3
    async with open_pool(connector, pool_size=2) as pool:
        connector.drop(connector.connections[0], is_told=False)
        connector.callbacks[0]()
        await asyncio.sleep(1)
        leases = [await pool.acquire(), await pool.acquire()]
        assert {lease.number for lease in leases} == {2, 4}
        for lease in leases:
            pool.release(lease)


async def test_a_connector_that_calls_back_too_late_harms_no_other_connection() -> None:
    connector = Callbacks()
    async with open_pool(connector, pool_size=1) as pool:
        await pool.drain()
        connector.callbacks[0]()
        await asyncio.sleep(1)
        assert pool.stats().closed_by_reason == {"drained": 1}


@pytest.mark.parametrize("method", ["is_open", "has_streams", "on_lost"])
async def test_a_connector_that_raises_where_it_must_not_costs_no_slot(method: str) -> None:
    class Broken(ScriptedConnector):
        is_broken = False

    def broken(self: Broken, *arguments: Any) -> Any:
        if self.is_broken:
            raise ZeroDivisionError(method)
        return getattr(ScriptedConnector, method)(self, *arguments)

    setattr(Broken, method, broken)
    connector = Broken()
    # An error in a callback has nobody to go to but the loop's handler.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with open_pool(connector, pool_size=2, connection_ttl=10) as pool:
        lease = await pool.acquire()
        connector.is_broken = True
        pool.release(lease)
        await asyncio.sleep(20)
        with suppress(PoolException):
            async with pool.connect(timeout=20):
                pass
        connector.is_broken = False
        await asyncio.sleep(100)
        leases = [await pool.acquire(timeout=20) for _ in range(2)]
        assert all(lease.is_open() for lease in leases)
        for lease in leases:
            pool.release(lease)


@pytest.mark.parametrize("has_observer", [False, True])
@pytest.mark.parametrize("broken", ["endpoint", "connect_timeout"])
async def test_a_connector_whose_properties_raise_loses_no_connection(broken: str, has_observer: bool) -> None:
    class Broken(ScriptedConnector):
        is_broken = False

        def __getattribute__(self, name: str) -> Any:
            if name == broken and self.is_broken:
                raise ZeroDivisionError(name)
            return super().__getattribute__(name)

    connector = Broken()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with open_pool(connector, pool_size=2, observer=(lambda event: None) if has_observer else None) as pool:
        connector.is_broken = True
        connector.connects.then(error(OSError("refused")))
        drop_all(connector)
        with suppress(PoolException, ZeroDivisionError):
            async with pool.connect(timeout=20):
                pass
        await asyncio.sleep(20)
        connector.is_broken = False
        await asyncio.sleep(60)
        leases = [await pool.acquire(timeout=60) for _ in range(2)]
        for lease in leases:
            pool.release(lease)


@pytest.mark.parametrize("what", ["None", "a connection that is open already"])
async def test_a_connect_that_returns_no_new_connection_is_a_failed_attempt(what: str) -> None:
    class Odd(ScriptedConnector):
        is_odd = False

        async def connect(self) -> Any:
            if not self.is_odd:
                return await super().connect()
            return None if what == "None" else self.connections[0]

    connector = Odd()
    async with open_pool(connector, pool_size=2, min_size=1) as pool, pool.connect():
        connector.is_odd = True
        with pytest.raises(ConnectFailed, match=r"connect\(\) .* returned .*, which is no new connection"):
            await pool.acquire(timeout=5)
        connector.is_odd = False
        async with pool.connect(timeout=20) as lease:
            assert lease.number == 2


@pytest.mark.parametrize("looped_mode", [False, True])
async def test_a_lease_type_that_raises_costs_no_connection(looped_mode: bool) -> None:
    class Raising(Lease):
        __slots__ = ()

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            raise ZeroDivisionError

    class Broken(ScriptedConnector):
        lease_type = Raising

    async with open_pool(Broken(), pool_size=1) as pool:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await pool.connect(looped_mode).__aenter__()
            await turn()
            assert (pool.stats().leased, pool.stats().feeds) == (0, 0)


class LeasesOnly:
    """A connector that has no more than what leases need."""

    def __init__(self) -> None:
        self.scripted = ScriptedConnector()
        for verb in ("connect", "is_open", "on_lost", "has_streams", "wait_streams", "check", "close", "abort"):
            setattr(self, verb, getattr(self.scripted, verb))
        self.endpoint, self.connect_timeout = "leases:1", 20.0


@each_call
async def test_a_connector_that_runs_no_queries_says_so_and_still_leases(call: Call) -> None:
    connector: Any = LeasesOnly()
    async with AsyncConnectionPool(connector, 1, name="main") as pool:
        with pytest.raises(
            PoolException, match=r"main: .*needs a connector that runs queries, a QueryConnector.*acquire"
        ):
            await call(pool)
        async with pool.connect() as lease:
            assert lease.is_open()
    connector.scripted.assert_nothing_left()
