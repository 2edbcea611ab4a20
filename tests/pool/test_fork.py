"""A pool that was inherited over a fork refuses in the child."""

from __future__ import annotations

import asyncio
import gc
import os
import sys

import pytest

from async_repool import AsyncConnectionPool, PoolException
from async_repool.testing import virtual_clock
from async_repool.testing.scripted import ScriptedConnector
from pool_kit import feeding, follow, open_pool, opened, run, stream

pytestmark = pytest.mark.virtual_time


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_pool_that_was_inherited_over_a_fork_refuses_in_the_child_and_goes_on_in_the_parent() -> None:
    connector = ScriptedConnector()

    async def in_the_child(pool: AsyncConnectionPool) -> None:
        for use in (pool.acquire, pool.init_pool, pool.close, pool.drain):
            with pytest.raises(PoolException, match=r"main: .*inherited over fork\(\)"):
                await use()

    async def parent() -> None:
        async with open_pool(connector) as pool, pool.connect() as lease:
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    asyncio.events._set_running_loop(None)
                    virtual_clock.run(in_the_child(pool))
                    for give_back in (pool.release, pool.release_to_looped):
                        with pytest.raises(PoolException, match=r"main: .*inherited over fork\(\)"):
                            give_back(lease)
                    status = 0
                finally:
                    sys.stderr.flush()
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222
            async with pool.connect():
                pass

    virtual_clock.run(parent())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_pool_that_was_inherited_over_a_fork_refuses_queries_in_the_child() -> None:
    async def in_the_child(pool: AsyncConnectionPool) -> None:
        for call in (run, stream, follow):
            with pytest.raises(PoolException, match=r"main: .*inherited over fork\(\)"):
                await call(pool)

    async def parent() -> None:
        async with open_pool() as pool:
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    asyncio.events._set_running_loop(None)
                    virtual_clock.run(in_the_child(pool))
                    status = 0
                finally:
                    sys.stderr.flush()
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222
            assert await pool.run("a query") == {}

    virtual_clock.run(parent())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_feed_that_is_dropped_in_the_child_calls_nothing_on_the_loop_of_the_parent() -> None:
    async def parent() -> None:
        async with open_pool(feeding(), pool_size=1) as pool:
            changes = await opened(pool)
            loop = asyncio.get_running_loop()
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    asyncio.events._set_running_loop(None)
                    calls: list[object] = []
                    loop.call_soon_threadsafe = lambda *call, **_: calls.append(call)  # type: ignore[assignment, method-assign]
                    del changes
                    gc.collect()
                    status = 1 if calls else 0
                finally:
                    sys.stderr.flush()
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222
            await changes.aclose()

    virtual_clock.run(parent())
