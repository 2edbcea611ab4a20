"""Holders of leases are named, leaks and deadlocks are told."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, PoolDeadlock, PoolTimeout
from async_repool.testing.scripted import ScriptedConnector, slow
from pool_kit import now, open_pool, warnings_of

pytestmark = pytest.mark.virtual_time

HERE = re.escape(__file__)


# ---- holders


async def test_a_timeout_names_the_holders_their_age_and_where_they_acquired() -> None:
    async with open_pool(pool_size=2) as pool:

        async def hog(seconds: float) -> None:
            async with pool.connect():
                await asyncio.sleep(seconds)

        async def other_hog() -> None:
            lease = await pool.acquire()
            await asyncio.sleep(20)
            pool.release(lease)

        hogs = [asyncio.create_task(hog(20), name="hog one"), asyncio.create_task(other_hog(), name="hog two")]
        await asyncio.sleep(10)
        with pytest.raises(PoolTimeout) as caught:
            await pool.acquire(timeout=1)
        text = str(caught.value)
        assert re.search(rf"\n  hog one, for 11.0 s, acquired at {HERE}:\d+ in hog(\n|$)", text), text
        assert re.search(rf"\n  hog two, for 11.0 s, acquired at {HERE}:\d+ in other_hog(\n|$)", text), text
        await asyncio.gather(*hogs)


async def test_a_holder_that_waited_for_its_lease_is_named_by_where_it_waited() -> None:
    async with open_pool(pool_size=1) as pool:
        lease = await pool.acquire()

        async def waiter() -> None:
            async with pool.connect():
                await asyncio.sleep(20)

        task = asyncio.create_task(waiter(), name="waiter")
        await asyncio.sleep(1)
        pool.release(lease)
        with pytest.raises(PoolTimeout, match=rf"waiter, for 5.0 s, acquired at {HERE}:\d+ in waiter"):
            await pool.acquire(timeout=5)
        await task


async def test_a_holder_is_named_if_an_exit_stack_acquires_for_it() -> None:
    async with open_pool(pool_size=1) as pool:

        async def asker() -> None:
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(pool.connect())
                await asyncio.sleep(20)

        task = asyncio.create_task(asker(), name="asker")
        await asyncio.sleep(1)
        with pytest.raises(PoolTimeout, match=rf"asker, for 6.0 s, acquired at {HERE}:\d+ in asker"):
            await pool.acquire(timeout=5)
        await task


async def test_a_lease_that_a_task_of_its_own_acquired_says_so() -> None:
    async with open_pool(pool_size=1) as pool:
        (lease,) = await asyncio.gather(pool.acquire())
        await asyncio.sleep(1)
        held = r"a task that is gone, for 6.0 s, acquired by a task of its own, as of wait_for\(\) or gather\(\)"
        with pytest.raises(PoolTimeout, match=held):
            await pool.acquire(timeout=5)
        pool.release(lease)


async def test_debug_keeps_the_stack_of_the_acquire() -> None:
    async with open_pool(pool_size=1, debug=True) as pool:

        async def innermost() -> Any:
            return await pool.acquire()

        async def hog() -> None:
            lease = await innermost()
            await asyncio.sleep(20)
            pool.release(lease)

        task = asyncio.create_task(hog())
        await asyncio.sleep(0)
        with pytest.raises(PoolTimeout) as caught:
            await pool.acquire(timeout=1)
        assert re.search(r"in hog\n.*\n.*in innermost\n", str(caught.value)), str(caught.value)
        await task


async def test_a_lease_held_longer_than_leak_threshold_is_logged_once_with_its_holders_stack(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_pool(pool_size=2, leak_threshold=30) as pool:

        async def stuck_here() -> None:
            await asyncio.sleep(100)

        async def hog() -> None:
            async with pool.connect():
                await stuck_here()

        async def modest() -> None:
            for _ in range(10):
                async with pool.connect():
                    await asyncio.sleep(10)

        await asyncio.gather(asyncio.create_task(hog(), name="the hog"), modest())
    (text,) = warnings_of(caplog)
    assert text.startswith("main: a lease is held by the hog, for 30.0 s, acquired at ")
    assert re.search(rf"{HERE}:\d+ in hog\n  {HERE}:\d+ in stuck_here\n", text), text


async def test_a_feed_may_keep_its_lease_for_as_long_as_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    async with open_pool(pool_size=1, leak_threshold=30) as pool, pool.connect(looped_mode=True):
        await asyncio.sleep(100)
    assert warnings_of(caplog) == []


# ---- deadlock


async def two_leases_each(pool: AsyncConnectionPool, both_have_one: asyncio.Barrier, seconds: float) -> None:
    async with pool.connect():
        await both_have_one.wait()
        async with pool.connect(timeout=seconds):
            pass


async def test_a_deadlock_is_logged_once_at_that_moment_and_named_in_the_timeout(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_pool(pool_size=2) as pool:
        barrier = asyncio.Barrier(2)
        tasks = [asyncio.create_task(two_leases_each(pool, barrier, 5), name=f"greedy {n}") for n in range(2)]
        await asyncio.sleep(1)
        (text,) = warnings_of(caplog)
        assert "main: deadlock: each of the 2 leases is held by a task that itself waits for one" in text
        assert "greedy 0" in text
        assert "greedy 1" in text
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert ["It is a deadlock" in str(outcome) for outcome in outcomes] == [True, True]
        assert [type(outcome) for outcome in outcomes] == [PoolTimeout, PoolTimeout]
    assert len(warnings_of(caplog)) == 1


async def test_each_deadlock_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with open_pool(pool_size=1) as pool:
        for count in (1, 2, 3):
            async with pool.connect():
                for _ in range(2):
                    with pytest.raises(PoolTimeout):
                        await pool.acquire(timeout=1)
            assert len(warnings_of(caplog)) == count
            await asyncio.sleep(1)


async def use_soon(acquiring: Any, pool: AsyncConnectionPool) -> None:
    lease = await acquiring
    await asyncio.sleep(1)
    pool.release(lease)


async def test_workers_that_are_handed_the_work_of_acquire_are_in_no_deadlock_with_who_hands_it_to_them() -> None:
    async with open_pool(pool_size=2, debug=True) as pool:
        workers = [asyncio.create_task(use_soon(pool.acquire(), pool)) for _ in range(3)]
        await asyncio.wait_for(asyncio.gather(*workers[:1]), 5)
        async with pool.connect():
            await asyncio.wait_for(asyncio.gather(*workers), 5)


async def test_a_task_that_waits_for_something_else_while_another_acquires_for_it_is_in_no_deadlock() -> None:
    async with open_pool(pool_size=1, debug=True) as pool:
        async with pool.connect():
            next_one = asyncio.create_task(pool.acquire())
            await asyncio.wait_for(asyncio.create_task(asyncio.sleep(1)), 5)
        pool.release(await next_one)


async def test_a_task_that_goes_on_while_another_acquires_for_it_is_in_no_deadlock(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_pool(pool_size=1) as pool:
        lease = await pool.acquire()
        next_one = asyncio.create_task(pool.acquire())
        await asyncio.sleep(1)
        pool.release(lease)
        pool.release(await next_one)
    assert warnings_of(caplog) == []


async def test_a_deadlock_is_raised_at_once_with_debug() -> None:
    async with open_pool(pool_size=2, debug=True) as pool:
        barrier = asyncio.Barrier(2)
        outcomes = await asyncio.gather(*(two_leases_each(pool, barrier, 5) for _ in range(2)), return_exceptions=True)
        assert now() == pytest.approx(0)
        assert [type(outcome) for outcome in outcomes] in ([PoolDeadlock, type(None)], [type(None), PoolDeadlock])
        assert isinstance(next(outcome for outcome in outcomes if outcome), PoolTimeout)
        assert (pool.stats().leased, pool.stats().waiting) == (0, 0)


async def test_a_deadlock_is_found_in_a_pool_with_more_leases_than_its_new_size() -> None:
    async with open_pool(pool_size=2, debug=True) as pool:
        both = asyncio.Barrier(2)

        async def user() -> None:
            async with pool.connect():
                await both.wait()
                pool.resize(pool_size=1)
                async with pool.connect(timeout=20):
                    pass

        outcomes = await asyncio.gather(user(), user(), return_exceptions=True)
        assert any(isinstance(outcome, PoolDeadlock) for outcome in outcomes)


async def test_leases_handed_from_task_to_task_are_legal_and_only_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    async with open_pool(pool_size=1) as pool:
        lease = await pool.acquire()

        async def finish(handed: Any) -> None:
            await asyncio.sleep(1)
            pool.release(handed)

        finishing = asyncio.create_task(finish(lease))
        pool.release(await pool.acquire(timeout=5))
        await finishing
    assert len(warnings_of(caplog)) == 1


async def test_a_feed_does_not_hide_a_deadlock() -> None:
    async with AsyncConnectionPool(ScriptedConnector(), 1, debug=True) as pool:
        following = asyncio.Event()

        async def follow() -> None:
            async with pool.connect(looped_mode=True):
                await following.wait()

        feed = asyncio.create_task(follow())
        await asyncio.sleep(1)
        async with pool.connect():
            with pytest.raises(PoolDeadlock):
                await pool.acquire()
        following.set()
        await feed


async def test_it_is_no_deadlock_while_a_connection_may_still_be_opened(caplog: pytest.LogCaptureFixture) -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2, min_size=1, debug=True) as pool:
        connector.connects.then(slow(1))
        async with pool.connect(), pool.connect():
            pass
    assert warnings_of(caplog) == []


async def test_a_query_of_a_task_that_holds_the_only_lease_is_a_deadlock() -> None:
    async with open_pool(pool_size=1, debug=True) as pool, pool.connect():
        with pytest.raises(PoolDeadlock, match="main: deadlock"):
            await pool.run("a query")


async def test_a_lease_that_was_dropped_and_is_not_taken_back_yet_makes_no_deadlock(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_pool(pool_size=1, debug=True) as pool:
        lease = await pool.acquire()
        del lease  # it is taken back in the next turn of the loop
        async with pool.connect(timeout=1):
            pass
    (text,) = warnings_of(caplog)
    assert "a lease was dropped without release, and is taken back" in text
