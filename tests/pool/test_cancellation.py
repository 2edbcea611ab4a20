"""Leases cancelled at every step: nothing is lost, and a fresh user is served."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, ConnectFailed
from async_repool.testing.scripted import Behaviour, ScriptedConnector, error, never, ok, slow
from async_repool.testing.virtual_clock import cancel_at_every_step
from cancellation_kit import Use, hook, survives

pytestmark = pytest.mark.usefixtures("repeatable")


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


async def closing(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    connector.closes.then(slow(1), never())
    lease = await pool.acquire()
    asyncio.get_running_loop().call_later(2, pool.release, lease)
    await pool.close(timeout=1)


async def released_pool(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    async with pool.connect():
        pass
    connector.closes.always(slow(1))
    await pool.release_pool()


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
