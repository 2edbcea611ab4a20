"""Never run: what a type checker must make of the public interface."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, assert_type

from async_repool import AsyncConnectionPool, Connector, FeedGap, Lease, PoolStats, R, RethinkDBConnector
from async_repool.connectors import QueryConnector, StreamingConnector
from async_repool.connectors.rethinkdb import RethinkDBLease
from async_repool.errors import ConnectionLost, OutcomeUnknown, QueryTimeout
from async_repool.testing import FaultProxy, StandInServer
from async_repool.testing.scripted import ScriptedConnector


async def hook(connection: Any) -> None: ...


async def use_the_lease_of_rethinkdb(lease: RethinkDBLease) -> None:
    assert_type(lease.db, str | None)
    lease.db = None
    lease.use("heroes")
    assert_type(await lease.reconnect(), RethinkDBLease)


async def main() -> None:
    connectors: list[Connector] = [ScriptedConnector(), RethinkDBConnector(host="db1")]
    sharing: list[QueryConnector] = [ScriptedConnector(), RethinkDBConnector(host="db1")]
    reading: list[StreamingConnector] = [*sharing]
    connectors += reading
    pool = AsyncConnectionPool(connectors[0], pool_size=3, acquire_timeout=None, check=hook, name="typed")
    async with AsyncConnectionPool({"host": "db1"}, 7, 42) as other:
        assert_type(other, AsyncConnectionPool)
    lease = await pool.acquire(timeout=2)
    assert_type(lease, Lease)
    released: Awaitable[None] = pool.release(lease)
    assert_type(await released, None)
    assert_type(await asyncio.create_task(pool.release(lease)), None)
    assert_type(await asyncio.wait_for(pool.release(lease), 1), None)
    assert_type(await asyncio.gather(pool.release(lease), pool.release_to_looped(lease)), tuple[None, None])
    async with pool.connect(looped_mode=True, timeout=1.5) as conn:
        assert_type(conn, Lease)
        conn.use("heroes")
    value: dict[str, int] = await pool.run(R.expr(1), timeout=1.5, retry=True, db="heroes")
    print(value)
    try:
        async with pool.stream(R.expr([1])) as rows:
            print([row async for row in rows])
        async with pool.changes(R.expr([1]), on_gap="raise") as feed:
            async for change in feed:
                if isinstance(change, FeedGap):
                    assert_type(change.seconds, float)
    except (ConnectionLost, QueryTimeout) as error:
        unknown: OutcomeUnknown = error
        print(unknown)
    assert_type(pool.stats(), PoolStats)
    assert_type(pool.stats().waited_seconds_total, float)
    assert_type(pool.empty, bool)
    async with StandInServer() as server, FaultProxy(server.host, server.port) as proxy:
        assert_type(server.port, int)
        assert_type(proxy.host, str)
