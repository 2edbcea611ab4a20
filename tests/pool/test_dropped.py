"""Pools and leases that were dropped without their end and are collected."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import threading
import warnings
import weakref

import pytest

from async_repool import AsyncConnectionPool
from async_repool.testing import virtual_clock
from async_repool.testing.scripted import ScriptedConnector
from pool_kit import open_pool, stop_tasks, turn, warnings_of

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
