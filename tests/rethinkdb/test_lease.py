"""What the lease of a RethinkDB connection has of its own; the pool is on the scripted connector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, Lease, LeaseError
from async_repool.connectors.rethinkdb import R, RethinkDBConnector, RethinkDBLease
from async_repool.testing import ScriptedConnector
from pool_kit import open_pool

pytestmark = pytest.mark.virtual_time


class DriverLike(ScriptedConnector):
    """Its connections have what the lease needs of the driver's."""

    lease_type = RethinkDBLease


def test_the_connector_names_its_lease() -> None:
    assert RethinkDBConnector.lease_type is RethinkDBLease
    assert issubclass(RethinkDBLease, Lease)


async def test_acquire_and_connect_give_the_lease_that_the_connector_names() -> None:
    async with open_pool(DriverLike(), pool_size=2) as pool:
        lease = await pool.acquire()
        assert type(lease) is RethinkDBLease
        pool.release(lease)
        for looped_mode in (False, True):
            async with pool.connect(looped_mode=looped_mode) as lease:
                assert type(lease) is RethinkDBLease


async def test_a_connector_that_names_none_has_plain_leases() -> None:
    async with open_pool(pool_size=1) as pool, pool.connect() as lease:
        assert type(lease) is Lease
        assert not hasattr(lease, "repl")


async def test_use_lasts_for_the_lease_only() -> None:
    async with open_pool(DriverLike(), pool_size=1) as pool:
        async with pool.connect() as lease:
            lease.use("mine")
            assert lease.db == "mine"
            assert await R.expr(1).run(lease) == {"db": "mine"}
            assert await R.expr(1).run(lease, db="other") == {"db": "other"}
        async with pool.connect() as lease:
            assert lease.db is None
            assert await R.expr(1).run(lease) == {}


async def test_setting_db_is_the_same_as_use() -> None:
    async with open_pool(DriverLike(), pool_size=1) as pool:
        async with pool.connect() as lease:
            lease.db = "mine"  # type: ignore[misc]
            assert await R.expr(1).run(lease) == {"db": "mine"}
        async with pool.connect() as lease:
            assert lease.db is None


async def test_a_lease_as_context_manager_closes_its_connection_as_the_drivers_does() -> None:
    async with open_pool(DriverLike(), pool_size=1) as pool:
        lease: Any = await pool.acquire()
        async with lease:
            pass
        assert not lease.is_open()
        pool.release(lease)


async def enter(pool: AsyncConnectionPool, lease: Any) -> None:
    async with lease:
        pass


async def set_db(pool: AsyncConnectionPool, lease: Any) -> None:
    lease.db = "db"


async def run(pool: AsyncConnectionPool, lease: Any) -> None:
    await R.expr(1).run(lease)


async def read_db(pool: AsyncConnectionPool, lease: Any) -> None:
    assert lease.db


async def use(pool: AsyncConnectionPool, lease: Any) -> None:
    lease.use("db")


async def repl(pool: AsyncConnectionPool, lease: Any) -> None:
    lease.repl()


async def reconnect(pool: AsyncConnectionPool, lease: Any) -> None:
    await lease.reconnect()


@pytest.mark.parametrize("call", [enter, set_db, run, read_db, use, repl, reconnect])
async def test_a_lease_is_dead_after_release(call: Callable[[AsyncConnectionPool, Any], Any]) -> None:
    async with open_pool(DriverLike(), pool_size=1) as pool:
        lease = await pool.acquire()
        pool.release(lease)
        with pytest.raises(LeaseError, match="main: .* on a lease that was released before"):
            await call(pool, lease)
