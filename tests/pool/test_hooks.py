"""The hooks configure, check and reset: when they are called, and what becomes of those that fail or hang."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, ConnectFailed, PoolException
from async_repool.testing import virtual_clock
from async_repool.testing.scripted import ScriptedConnection, ScriptedConnector
from pool_kit import acquire_soon, now, number, open_pool

pytestmark = pytest.mark.virtual_time


async def test_hooks_are_called_after_opening_before_a_lease_and_after_release() -> None:
    calls: list[tuple[str, int]] = []

    def hook(name: str) -> Callable[[Any], Any]:
        async def call(connection: ScriptedConnection) -> None:
            await asyncio.sleep(0)
            calls.append((name, connection.number))

        return call

    options = {name: hook(name) for name in ("configure", "check", "reset")}
    async with open_pool(pool_size=1, **options) as pool:
        async with pool.connect():
            calls.append(("use", 1))
        async with pool.connect():
            calls.append(("use", 1))
    assert calls == [(name, 1) for name in ("configure", "check", "use", "reset", "check", "use", "reset")]


async def hang(connection: object) -> None:
    await asyncio.get_running_loop().create_future()


async def fail(connection: object) -> None:
    raise ValueError("unfit")


@pytest.mark.parametrize("hook", [hang, fail])
async def test_configure_that_fails_is_a_connection_that_could_not_be_opened(hook: Any) -> None:
    connector = ScriptedConnector()
    with pytest.raises(ConnectFailed) as caught:
        await AsyncConnectionPool(connector, configure=hook, connect_timeout=2).init_pool()
    assert isinstance(caught.value.__cause__, TimeoutError if hook is hang else ValueError)
    connector.assert_nothing_left()


@pytest.mark.parametrize("which", ["check", "reset"])
@pytest.mark.parametrize("bad", [hang, fail])
async def test_a_connection_whose_check_or_reset_fails_is_discarded_and_the_caller_gets_another(
    which: str, bad: Any
) -> None:
    async def hook(connection: ScriptedConnection) -> None:
        if connection.number == 1:
            await bad(connection)

    async with open_pool(pool_size=1, check_timeout=2, **{which: hook}) as pool:
        for _ in range(3):
            async with pool.connect() as lease:
                last = number(lease)
        assert last == 2
        assert pool.stats().closed_by_reason == {"unfit": 1}


async def test_a_hand_over_to_who_waits_is_checked_too() -> None:
    checked: list[int] = []

    async def check(connection: ScriptedConnection) -> None:
        checked.append(connection.number)

    async with open_pool(pool_size=1, check=check) as pool:
        lease = await pool.acquire()
        waiting = await acquire_soon(pool)
        pool.release(lease)
        pool.release(await waiting)
        assert checked == [1, 1]


async def test_callers_that_come_at_once_are_checked_for_at_once() -> None:
    async def check(connection: ScriptedConnection) -> None:
        await asyncio.sleep(1)

    async with open_pool(pool_size=3, check=check) as pool:

        async def user() -> None:
            async with pool.connect():
                await asyncio.sleep(10)

        await asyncio.gather(user(), user(), user())
        assert asyncio.get_running_loop().time() == pytest.approx(11)


@pytest.mark.parametrize("name", ["configure", "check", "reset"])
@pytest.mark.parametrize("how", ["for ever", "in its clean-up", "and ends well"])
async def test_a_hook_that_refuses_to_be_cancelled_costs_its_connection_and_nothing_else(name: str, how: str) -> None:
    is_over, is_stubborn = asyncio.Event(), False

    async def hook(connection: Any) -> None:
        while is_stubborn and not is_over.is_set():
            try:
                await is_over.wait()
            except asyncio.CancelledError:
                if how == "in its clean-up":
                    await is_over.wait()
                elif how == "and ends well":
                    return

    hooks: dict[str, Any] = {name: hook}
    connector = ScriptedConnector()
    pool = AsyncConnectionPool(connector, 1, min_size=0, check_timeout=5, connect_timeout=5, **hooks)
    await pool.init_pool()
    is_stubborn = True
    with contextlib.suppress(PoolException):
        pool.release(await pool.acquire(timeout=20))
    await asyncio.sleep(20)
    is_stubborn = False
    assert pool.stats().size == 0
    async with pool.connect(timeout=10) as lease:
        assert lease.number > 1
    is_stubborn = True
    with contextlib.suppress(PoolException):
        pool.release(await pool.acquire(timeout=0.01))
    began = now()
    await pool.close(timeout=5)
    assert now() - began <= 10
    connector.assert_nothing_left()
    is_over.set()
    await asyncio.sleep(1)


@pytest.mark.parametrize("name", ["configure", "check"])
def test_a_hook_that_fails_as_it_is_cancelled_is_heard_of_by_nobody(name: str) -> None:
    async def hook(connection: Any) -> None:
        await asyncio.sleep(0)
        raise KeyError("unfit")

    async def scenario() -> None:
        hooks: dict[str, Any] = {name: hook}
        pool = AsyncConnectionPool(ScriptedConnector(), 1, **hooks)
        try:
            with contextlib.suppress(PoolException):
                await pool.init_pool()
                await pool.acquire(timeout=1)
        finally:
            await pool.close()

    virtual_clock.cancel_at_every_step(scenario)


async def test_what_a_hook_raises_beside_exceptions_costs_its_connection_only() -> None:
    class Alarm(BaseException):
        """As of a library that stops its tasks so."""

    async def check(connection: Any) -> None:
        if connection.number == 1:
            raise Alarm

    async with open_pool(pool_size=1, check=check) as pool, pool.connect(timeout=5) as lease:
        assert lease.number == 2


@pytest.mark.parametrize("name", ["configure", "check", "reset"])
@pytest.mark.parametrize("call", ["close", "drain", "acquire", "resize"])
async def test_a_hook_that_calls_the_pool_does_not_block_it(name: str, call: str) -> None:
    is_armed = False

    async def hook(connection: Any) -> None:
        nonlocal is_armed
        if is_armed:
            is_armed = False
            if call == "resize":
                pool.resize(pool_size=1)
            elif call == "acquire":
                pool.release(await pool.acquire(timeout=1))
            else:
                await getattr(pool, call)()

    hooks: dict[str, Any] = {name: hook}
    connector = ScriptedConnector()
    pool = AsyncConnectionPool(connector, 2, min_size=0, **hooks)
    await pool.init_pool()
    is_armed = True
    with contextlib.suppress(PoolException):
        async with pool.connect(timeout=30):
            pass
    await asyncio.sleep(60)
    assert not is_armed
    for _ in range(2):
        await pool.close()
        connector.assert_nothing_left()
        await pool.init_pool()
        async with pool.connect(timeout=30):
            pass
    await pool.close()
    connector.assert_nothing_left()
