"""Opening the pool, what it connects with, and opening it again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, ConnectFailed, PoolClosed
from async_repool.testing.scripted import ScriptedConnector, error, never, ok, slow
from pool_kit import now, number, open_pool, turn

pytestmark = pytest.mark.virtual_time


# ---- opening


async def test_a_pool_that_is_not_open_says_so_at_once() -> None:
    pool = AsyncConnectionPool(ScriptedConnector(), name="main")
    for use in (pool.acquire, pool.drain):
        with pytest.raises(PoolClosed, match="main: .*not open yet; await init_pool"):
            await use()
    with pytest.raises(PoolClosed, match="main: .*not open yet"):
        async with pool.connect():
            pass
    async with pool:
        pass
    for use in (pool.acquire, pool.drain):
        with pytest.raises(PoolClosed, match=r"main: .*on a closed pool; init_pool\(\) opens it again"):
            await use()


async def test_init_pool_opens_in_parallel() -> None:
    connector = ScriptedConnector()
    connector.connects.always(slow(1))
    async with open_pool(connector, pool_size=50):
        assert asyncio.get_running_loop().time() == pytest.approx(1)
        assert len(connector.open_connections) == 50


async def test_init_pool_opens_min_size() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=5, min_size=2):
        assert len(connector.open_connections) == 2


async def test_init_pool_half_failed_closes_the_other_half_and_may_be_called_again() -> None:
    connector = ScriptedConnector()
    refused = OSError("refused")
    connector.connects.then(ok(), slow(5), error(refused), never())
    pool = AsyncConnectionPool(connector, 4, name="main")
    with pytest.raises(ConnectFailed, match=r"main: init_pool\(\) could not open 4 connections.*refused") as caught:
        await pool.init_pool()
    assert caught.value.__cause__ is refused
    connector.assert_nothing_left()
    await pool.init_pool()
    assert len(connector.open_connections) == 4
    await pool.close()


async def test_init_pool_on_an_open_pool_does_nothing() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector) as pool:
        await pool.init_pool()
        assert len(connector.connections) == 3


async def test_two_init_pools_at_once_the_second_is_told_so() -> None:
    connector = ScriptedConnector()
    connector.connects.always(slow(1))
    pool = AsyncConnectionPool(connector, name="main")
    first = asyncio.create_task(pool.init_pool())
    await turn()
    with pytest.raises(PoolClosed, match=r"main: init_pool\(\) while init_pool\(\) is still opening the pool"):
        await pool.init_pool()
    await first
    await pool.close()


async def test_init_pool_cancelled_leaks_nothing_and_may_be_called_again() -> None:
    connector = ScriptedConnector()
    connector.connects.then(ok(), slow(5), never())
    pool = AsyncConnectionPool(connector, 3, name="main")
    opening = asyncio.create_task(pool.init_pool())
    await asyncio.sleep(1)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    connector.assert_nothing_left()
    async with pool, pool.connect():
        pass


@pytest.mark.parametrize("turns", range(8))
async def test_init_pool_cancelled_again_while_it_closes_its_connections_leaks_nothing(turns: int) -> None:
    connector = ScriptedConnector()
    connector.connects.then(ok(), slow(5))
    connector.closes.always(slow(2))
    pool = AsyncConnectionPool(connector, 2)
    opening = asyncio.create_task(pool.init_pool())
    await asyncio.sleep(1)
    opening.cancel()
    await turn(turns)
    opening.cancel()
    await asyncio.wait([opening])
    await asyncio.sleep(10)
    connector.assert_nothing_left()
    async with pool, pool.connect():
        pass


async def test_close_during_init_pool_ends_it_with_pool_closed() -> None:
    connector = ScriptedConnector()
    connector.connects.always(slow(5))
    pool = AsyncConnectionPool(connector, name="main")
    opening = asyncio.create_task(pool.init_pool())
    await asyncio.sleep(1)
    await pool.close()
    with pytest.raises(PoolClosed, match="closed while init_pool"):
        await opening
    connector.assert_nothing_left()


async def test_opening_is_bounded_by_connect_timeout() -> None:
    connector = ScriptedConnector(connect_timeout=20)
    connector.connects.always(never())
    loop = asyncio.get_running_loop()
    for options, expected in (({}, 20), ({"connect_timeout": 3}, 3)):
        began = loop.time()
        with pytest.raises(ConnectFailed, match="TimeoutError"):
            await AsyncConnectionPool(connector, **options).init_pool()
        assert expected <= loop.time() - began < expected + 0.2
    connector.assert_nothing_left()


@pytest.mark.parametrize("how", ["close", "release_pool"])
async def test_a_closed_pool_can_be_opened_again(how: str) -> None:
    connector = ScriptedConnector()
    async with open_pool(connector) as pool:
        await getattr(pool, how)()
        connector.assert_nothing_left()
        await pool.init_pool()
        assert [connection.number for connection in connector.open_connections] == [4, 5, 6]
        async with pool.connect() as lease:
            assert number(lease) == 6


async def test_init_pool_beside_a_close_and_another_init_pool_tells_the_truth() -> None:
    connector = ScriptedConnector()
    connector.connects.always(slow(1))
    pool = AsyncConnectionPool(connector, name="main")
    first = asyncio.create_task(pool.init_pool())
    await asyncio.sleep(0.5)
    await pool.close()
    await pool.init_pool()
    with pytest.raises(PoolClosed, match="closed while init_pool"):
        await first
    async with pool.connect():
        pass
    await pool.close()


# ---- rotating secrets


@pytest.mark.parametrize("is_async", [True, False])
async def test_connect_arguments_may_be_asked_for_at_every_opening(is_async: bool) -> None:
    asked = []

    def ask() -> dict[str, Any]:
        asked.append(now())
        raise PermissionError(f"the vault is shut, attempt {len(asked)}")

    async def ask_async() -> dict[str, Any]:
        await asyncio.sleep(1)
        return ask()

    pool = AsyncConnectionPool(ask_async if is_async else ask, pool_size=1)
    for attempt in (1, 2):
        with pytest.raises(ConnectFailed, match=f"the vault is shut, attempt {attempt}") as caught:
            await pool.init_pool()
        assert isinstance(caught.value.__cause__, PermissionError)


async def test_what_the_callable_returns_must_be_a_mapping() -> None:
    with pytest.raises(ConnectFailed, match="must return a mapping of them, not list"):
        await AsyncConnectionPool(lambda: ["localhost"], pool_size=1).init_pool()
