"""Pools, leases and tasks that were dropped without their end and are collected."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import sys
import threading
import warnings
import weakref
from typing import Any

import pytest

from async_repool import AsyncConnectionPool
from async_repool.testing import virtual_clock
from async_repool.testing.scripted import ScriptedConnector, slow
from pool_kit import feeding, open_pool, stop_tasks, turn, warnings_of

pytestmark = pytest.mark.virtual_time

HERE = re.escape(__file__)


# ---- pools


def forget(pools: list[AsyncConnectionPool]) -> None:
    pools.clear()
    gc.collect()


def test_a_forgotten_pool_keeps_no_loop_that_was_closed() -> None:
    former = []
    for _ in range(3):
        pools = [AsyncConnectionPool(ScriptedConnector(), 1)]
        loop = asyncio.new_event_loop()
        loop.run_until_complete(pools[0].init_pool())
        stop_tasks(loop)
        loop.close()
        former.append(weakref.ref(loop))
        with pytest.warns(ResourceWarning, match="unclosed"):
            forget(pools)
    assert [ref() for ref in former[:2]] == [None, None]  # asyncio itself keeps the last one that ran


def test_a_pool_that_was_not_closed_warns_and_aborts_its_connections_when_it_is_collected() -> None:
    connector = ScriptedConnector()

    async def forget() -> None:
        pool = AsyncConnectionPool(connector, name="forgotten")
        await pool.init_pool()
        forgotten = weakref.ref(pool)
        with pytest.warns(ResourceWarning, match="unclosed <AsyncConnectionPool 'forgotten' open"):  # noqa: PT031
            del pool
            gc.collect()
        assert forgotten() is None, "nothing of its own keeps a forgotten pool alive"
        await turn()
        connector.assert_nothing_left()

    virtual_clock.run(forget())


def test_a_forgotten_pool_leaves_no_task_behind() -> None:
    async def forget() -> None:
        pool = AsyncConnectionPool(ScriptedConnector(), ping_interval=30)  # so that housekeeping waits for an alarm
        await pool.init_pool()
        await turn()
        with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031
            del pool
            gc.collect()
        await turn()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    virtual_clock.run(forget())


async def test_a_forgotten_pool_in_a_cycle_is_collected_without_a_complaint_of_asyncio(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pools = [AsyncConnectionPool(ScriptedConnector())]
    await pools[0].init_pool()
    await asyncio.sleep(1)
    setattr(pools[0], "itself", pools[0])  # noqa: B010
    pools.clear()
    with pytest.warns(ResourceWarning, match="unclosed"):
        gc.collect()
    await asyncio.sleep(1)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_forgotten_pool_may_be_collected_in_another_thread() -> None:
    connector = ScriptedConnector()

    async def forget() -> None:
        holder = [AsyncConnectionPool(connector, name="forgotten")]
        await holder[0].init_pool()

        def collect() -> None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                holder.clear()
                gc.collect()
            assert any(warning.category is ResourceWarning for warning in caught)

        thread = threading.Thread(target=collect)
        thread.start()
        thread.join()
        await turn()
        connector.assert_nothing_left()

    virtual_clock.run(forget())


async def test_a_forgotten_pool_is_collected_without_the_collector_of_cycles() -> None:
    connector = ScriptedConnector()
    pool = AsyncConnectionPool(connector, 2, ping_interval=5, leak_threshold=5)
    await pool.init_pool()
    async with pool.connect():
        pass
    await pool.run("a query")
    forgotten = weakref.ref(pool)
    gc.disable()
    try:
        with pytest.warns(ResourceWarning, match="unclosed"):
            del pool
        assert forgotten() is None
    finally:
        gc.enable()
    await asyncio.sleep(1)
    connector.assert_nothing_left()


async def test_a_close_that_was_cancelled_goes_on_if_the_pool_is_dropped() -> None:
    connector = ScriptedConnector()
    connector.closes.always(slow(2))
    pool = AsyncConnectionPool(connector, 2)
    await pool.init_pool()
    closing = asyncio.create_task(pool.close())
    await turn()
    closing.cancel()
    await asyncio.wait([closing])
    del pool, closing
    gc.collect()
    await asyncio.sleep(10)
    connector.assert_nothing_left()
    assert [connection.ended_by for connection in connector.connections] == ["close", "close"]


def test_a_pool_that_was_never_opened_or_not_even_built_is_collected_in_silence() -> None:
    AsyncConnectionPool(ScriptedConnector())
    with pytest.raises(ValueError, match="pool_size"):
        AsyncConnectionPool(ScriptedConnector(), pool_size=0)
    gc.collect()


# ---- leases


async def test_a_lease_that_was_collected_without_release_is_taken_back_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_pool(pool_size=1) as pool:

        async def forgetful() -> None:
            await pool.acquire()

        await asyncio.create_task(forgetful(), name="forgetful")
        gc.collect()
        async with pool.connect(timeout=1):
            pass
        assert pool.stats().leased == 0
    (text,) = warnings_of(caplog)
    assert text.startswith("main: a lease was dropped without release, and is taken back: ")
    assert re.search(rf"acquired at {HERE}:\d+ in forgetful", text)


async def test_a_lease_whose_task_was_cancelled_before_it_saw_it_is_taken_back() -> None:
    async with open_pool(pool_size=1) as pool:
        holder = await pool.acquire()
        task = asyncio.create_task(pool.acquire())
        await turn()
        pool.release(holder)
        await turn()
        assert task.done(), "it has a lease that nobody will ever take"
        del task
        gc.collect()
        async with pool.connect(timeout=1):
            pass


@pytest.mark.parametrize("looped_mode", [False, True])
async def test_a_lease_whose_context_was_collected_without_its_end_is_taken_back(
    looped_mode: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncConnectionPool(ScriptedConnector(), 1, name="main") as pool:
        stack = contextlib.AsyncExitStack()
        await stack.enter_async_context(pool.connect(looped_mode))
        del stack
        gc.collect()
        await asyncio.sleep(0.01)
        assert (pool.stats().leased, pool.stats().feeds) == (0, 0)
        (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert "dropped without release" in record.getMessage()


# ---- tasks


async def hook(connection: Any) -> None:
    await asyncio.sleep(0)


async def hold(pool: AsyncConnectionPool) -> None:
    async with pool.connect():
        await asyncio.sleep(1000)


async def read_feed(pool: AsyncConnectionPool) -> None:
    async for _ in pool.changes("a feed"):
        pass


COLLECTED = {
    "a holder": ([hold], 0),
    "a holder, then who waits": ([hold, hold], 0),
    "who waits, then the holder": ([hold, hold], -1),
    "the reader of a feed": ([read_feed], 0),
}


@pytest.mark.parametrize("options", [{}, {"reset": hook}, {"check": hook}, {"max_idle": 0, "min_size": 0}], ids=str)
@pytest.mark.parametrize(("uses", "first"), COLLECTED.values(), ids=COLLECTED)
def test_tasks_that_are_collected_after_their_loop_was_closed_raise_nothing(
    uses: list[Any], first: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)
    connector = feeding()
    pool = AsyncConnectionPool(connector, 1, **options)
    loop = virtual_clock.VirtualClockLoop()
    loop.run_until_complete(pool.init_pool())
    tasks = []
    for use in uses:
        tasks.append(loop.create_task(use(pool)))
        tasks[-1]._log_destroy_pending = False  # asyncio would complain of each
        loop.run_until_complete(turn())
    loop.close()
    while tasks:
        tasks.pop(first)
        gc.collect()

    async def again() -> None:
        async with pool, pool.connect(timeout=10):
            pass

    virtual_clock.run(again())
    gc.collect()
    assert [one.exc_value for one in raised] == []
    connector.assert_nothing_left()
