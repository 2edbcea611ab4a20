"""The pool belongs to one event loop at a time: other loops, closed loops and other threads."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, PoolException
from async_repool.testing import virtual_clock
from async_repool.testing.scripted import ScriptedConnector
from pool_kit import Call, each_call, stop_tasks, turn

pytestmark = pytest.mark.virtual_time


def test_another_event_loop_is_refused_at_once() -> None:
    loop = virtual_clock.VirtualClockLoop()
    connector = ScriptedConnector()
    pool = AsyncConnectionPool(connector, name="main")
    loop.run_until_complete(pool.init_pool())
    lease = loop.run_until_complete(pool.acquire())

    async def misuse() -> None:
        for use in (pool.acquire, pool.init_pool, pool.close, pool.drain):
            with pytest.raises(PoolException, match="main: .*outside the event loop in which the pool was opened"):
                await use()
        with pytest.raises(PoolException, match=r"main: release\(\) outside the event loop"):
            pool.release(lease)

    virtual_clock.run(misuse())
    assert pool.stats().leased == 1
    loop.run_until_complete(pool.close(timeout=0))
    connector.assert_nothing_left()
    loop.close()


@pytest.mark.parametrize("release", ["release", "release_to_looped"])
def test_leases_may_be_released_between_two_runs_of_the_event_loop(release: str) -> None:
    loop = virtual_clock.VirtualClockLoop()
    pool = AsyncConnectionPool(ScriptedConnector(), 2)
    loop.run_until_complete(pool.init_pool())
    leases = [loop.run_until_complete(pool.acquire()) for _ in range(2)]
    waiting = loop.create_task(pool.acquire(timeout=5))
    loop.run_until_complete(turn())
    getattr(pool, release)(leases[0])
    assert pool.stats().waiting == 0
    loop.run_until_complete(getattr(pool, release)(leases[1]))
    pool.release(loop.run_until_complete(waiting))
    assert pool.stats().leased == 0
    loop.run_until_complete(pool.close())
    loop.close()


async def is_well(connection: Any) -> None:
    await asyncio.sleep(0)


async def close(pool: AsyncConnectionPool) -> None:
    await pool.close()


@pytest.mark.parametrize("options", [{}, {"reset": is_well}, {"max_idle": 1, "min_size": 0}], ids=str)
def test_a_lease_cannot_be_released_when_the_loop_is_closed(options: dict[str, Any]) -> None:
    connector = ScriptedConnector()
    pool = AsyncConnectionPool(connector, 1, name="main", **options)
    loop = virtual_clock.VirtualClockLoop()
    loop.run_until_complete(pool.init_pool())
    lease = loop.run_until_complete(pool.acquire())
    stop_tasks(loop)
    loop.close()
    with pytest.raises(PoolException, match=r"main: release\(\) outside the event loop"):
        pool.release(lease)
    virtual_clock.run(pool.release_pool() if options else close(pool))
    connector.assert_nothing_left()


@pytest.mark.parametrize("release", ["release", "release_to_looped"])
def test_another_thread_has_the_loop_of_the_pool_release_a_lease(release: str) -> None:
    async def main() -> None:
        async with AsyncConnectionPool(ScriptedConnector(), 1) as pool:
            lease = await pool.acquire()
            loop = asyncio.get_running_loop()

            def in_another_thread() -> None:
                releasing = getattr(pool, release)(lease)
                assert pool.stats().leased == 1, "it is no work for this thread"
                asyncio.run_coroutine_threadsafe(releasing, loop).result(5)

            await asyncio.to_thread(in_another_thread)
            assert pool.stats().leased == 0
            async with pool.connect(timeout=5):
                pass

    asyncio.run(main())


def test_another_thread_may_read_the_statistics_while_the_pool_opens_and_closes_connections() -> None:
    failures: list[BaseException] = []
    is_over = threading.Event()

    async def main() -> None:
        async with AsyncConnectionPool(ScriptedConnector(), 40, min_size=0, max_idle=0) as pool:

            def in_another_thread() -> None:
                try:
                    while not is_over.is_set():
                        assert pool.stats().size <= 40
                        assert repr(pool)
                except BaseException as failure:
                    failures.append(failure)

            async def user() -> None:
                for _ in range(40):
                    async with pool.connect():
                        await asyncio.sleep(0)

            reading = asyncio.create_task(asyncio.to_thread(in_another_thread))
            await asyncio.gather(*(user() for _ in range(40)))
            is_over.set()
            await reading

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        asyncio.run(main())
    finally:
        is_over.set()
        sys.setswitchinterval(interval)
    assert failures == []


def test_a_closed_pool_can_be_opened_in_another_loop() -> None:
    pool = AsyncConnectionPool(ScriptedConnector())

    async def use() -> None:
        async with pool, pool.connect():
            pass

    virtual_clock.run(use())
    virtual_clock.run(use())


def test_a_pool_whose_loop_was_closed_before_it_can_be_opened_in_another(caplog: pytest.LogCaptureFixture) -> None:
    connector = ScriptedConnector()
    pool = AsyncConnectionPool(connector, 2, name="main")
    loop = virtual_clock.VirtualClockLoop()
    loop.run_until_complete(pool.init_pool())
    lease = loop.run_until_complete(pool.acquire())
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()

    async def again() -> None:
        async with pool, pool.connect():
            pool.release(lease)  # of the former life: nothing is wrong about it
            assert pool.stats().leased == 1

    virtual_clock.run(again())
    connector.assert_nothing_left()
    assert "its event loop was closed before the pool was" in caplog.text


def test_the_totals_count_the_connections_of_a_loop_that_was_closed_before_the_pool() -> None:
    connector = ScriptedConnector()
    pool = AsyncConnectionPool(connector, 2)
    loop = virtual_clock.VirtualClockLoop()
    loop.run_until_complete(pool.init_pool())
    loop.close()
    assert (pool.stats().opened_total, pool.stats().closed_total) == (2, 0), "they can be read without a loop"
    virtual_clock.run(close(pool))
    connector.assert_nothing_left()
    assert (pool.stats().opened_total, pool.stats().closed_total) == (2, 2)


def test_resize_outside_of_any_event_loop_is_refused() -> None:
    pool = AsyncConnectionPool(ScriptedConnector(), 2, name="main")
    loop = virtual_clock.VirtualClockLoop()
    loop.run_until_complete(pool.init_pool())
    with pytest.raises(PoolException, match="main: "):
        pool.resize(pool_size=3)
    loop.run_until_complete(pool.close())
    loop.close()


@each_call
def test_a_pool_of_another_event_loop_refuses(call: Call) -> None:
    pool = AsyncConnectionPool(ScriptedConnector(), name="main")
    loop = virtual_clock.VirtualClockLoop()
    loop.run_until_complete(pool.init_pool())

    async def elsewhere() -> None:
        with pytest.raises(PoolException, match="main: .* outside the event loop in which the pool was opened"):
            await call(pool)

    virtual_clock.run(elsewhere())
    loop.run_until_complete(pool.close())
    loop.close()
