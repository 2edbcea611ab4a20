"""Health of connections, and what the pool tells users who err, on the scripted connector and the virtual clock."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import re
import sys
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, ConnectFailed, PoolDeadlock, PoolException, PoolTimeout
from async_repool.stats import CloseReport
from async_repool.testing import virtual_clock
from async_repool.testing.scripted import ScriptedConnector, error, never, ok, slow
from pool_kit import now, open_pool, turn

pytestmark = pytest.mark.virtual_time

HERE = re.escape(__file__)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---- checks


async def test_a_connection_unused_for_check_idle_is_checked_before_its_lease() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, check_idle=60) as pool:
        for pause, checks in ((59, 0), (59, 0), (61, 1), (1, 1)):
            await asyncio.sleep(pause)
            async with pool.connect() as lease:
                assert lease.number == 1
            assert connector.checks.started_total == checks


async def test_a_silently_vanished_peer_costs_one_bounded_check_and_the_caller_gets_another_connection() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, check_idle=60, check_timeout=5) as pool:
        await asyncio.sleep(100)
        connector.checks.then(never())
        began = now()
        async with pool.connect() as lease:
            assert lease.number == 2
        assert now() - began == pytest.approx(5)
        assert pool.stats().closed_by_reason == {"unfit": 1}


async def test_connections_that_all_were_unused_for_long_are_checked_together() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=5, check_idle=60, check_timeout=5) as pool:
        await asyncio.sleep(100)
        connector.checks.then(never(), never(), never(), never(), slow(1))
        began = now()
        async with pool.connect():
            assert now() - began == pytest.approx(1)


async def test_a_connection_that_was_used_lately_is_leased_while_another_is_checked() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2, check_idle=60) as pool:
        await asyncio.sleep(50)
        async with pool.connect() as lease:
            used = lease.number
        await asyncio.sleep(20)
        connector.checks.then(never())
        began = now()
        async with pool.connect() as lease:
            assert (lease.number, now() - began) == (used, 0)


@pytest.mark.parametrize("check_idle", [0, None])
async def test_check_idle_can_be_turned_off(check_idle: float | None) -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, check_idle=check_idle, connection_ttl=0) as pool:
        await asyncio.sleep(10_000)
        async with pool.connect():
            assert connector.checks.started_total == 0


async def test_a_check_whose_caller_is_cancelled_goes_on_and_the_connection_is_kept() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        await asyncio.sleep(100)
        connector.checks.then(slow(3))
        caller = asyncio.create_task(pool.acquire())
        await asyncio.sleep(1)
        caller.cancel()
        async with pool.connect() as lease:
            assert lease.number == 1
        assert connector.checks.started_total == 1, "the next caller is served by the same check"


async def test_housekeeping_pings_idle_connections_and_replaces_the_dead() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=3, ping_interval=30) as pool:
        connector.checks.then(ok(), error(OSError("gone")))
        await asyncio.sleep(29)
        assert connector.checks.started_total == 0
        await asyncio.sleep(2)
        assert connector.checks.started_total == 4, "when one has failed, the other idle ones are asked again"
        assert (pool.stats().idle, len(connector.connections)) == (3, 4)


async def test_when_one_connection_dies_its_idle_siblings_are_checked_together_before_they_are_leased() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=5, check_timeout=5) as pool:
        connector.checks.then(*[never()] * 4)  # they are dead too, but nobody was told
        began = now()
        connector.drop(connector.connections[0])
        await turn()
        assert connector.checks.in_progress == 4
        async with pool.connect() as lease:
            assert lease.number > 5
        await asyncio.sleep(5.5)
        assert connector.checks.max_in_progress == 4, "together, not in turn"
        assert now() - began < 6
        assert pool.stats().idle == 5


@pytest.mark.parametrize("use", ["a feed", "a feed that is read on", "a connection that is to be closed", "a reset"])
async def test_when_one_connection_dies_in_whatever_use_its_idle_siblings_are_checked(use: str) -> None:
    connector = ScriptedConnector()

    async def reset(connection: Any) -> None:
        await asyncio.sleep(1 if use == "a reset" else 0)

    async with AsyncConnectionPool(connector, 3, reset=reset) as pool:
        lease = await pool.acquire()
        connection = connector.connections[lease.number - 1]
        if use == "a feed":
            pool.release(lease)
            await asyncio.sleep(1)
            feed = pool.connect(looped_mode=True)
            connection = connector.connections[(await feed.__aenter__()).number - 1]
        elif use == "a feed that is read on":
            connection.open_stream()
            pool.release_to_looped(lease)
        elif use == "a connection that is to be closed":
            connection.open_stream()
            await pool.drain()
            pool.release(lease)
        else:
            pool.release(lease)
        await asyncio.sleep(0.5)
        assert connector.checks.started_total == 0
        connector.drop(connection)
        await asyncio.sleep(0.01)
        assert connector.checks.started_total >= 2
        if use == "a feed":
            await feed.__aexit__(None, None, None)


async def test_siblings_that_pass_their_check_are_kept() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=3) as pool:
        lease = await pool.acquire()
        connector.drop(connector.connections[lease.number - 1])
        await asyncio.sleep(1)
        pool.release(lease)
        await asyncio.sleep(1)
        assert len(connector.connections) == 4
        assert pool.stats().idle == 3


async def test_check_connection_asks_the_connection() -> None:
    asked = []

    class Connection:
        async def check(self) -> None:
            asked.append(self)

    connection = Connection()
    await AsyncConnectionPool.check_connection(connection)
    assert asked == [connection]


# ---- outages


@pytest.mark.parametrize("is_async", [True, False])
async def test_on_reconnect_failed_is_called_once_after_reconnect_timeout(
    is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    connector = ScriptedConnector()
    calls: list[tuple[float, str]] = []

    def told(pool: AsyncConnectionPool) -> None:
        calls.append((now(), pool.name))

    async def told_async(pool: AsyncConnectionPool) -> None:
        await asyncio.sleep(0)
        told(pool)

    callback: Any = told_async if is_async else told
    async with open_pool(connector, pool_size=2, reconnect_timeout=300, on_reconnect_failed=callback) as pool:
        for _ in range(2):
            calls.clear()
            began = now()
            connector.connects.always(error(OSError("down")))
            for connection in connector.open_connections:
                connector.drop(connection)
            await asyncio.sleep(1000)
            ((when, name),) = calls
            assert name == "main"
            assert 299 < when - began < 311, "within one pause of the back-off"
            connector.connects.always(ok())
            await asyncio.sleep(20)
            assert pool.stats().idle == 2, "it goes on trying"
            async with pool.connect():
                pass
    assert sum("no connection to scripted:28015 for 300 s: OSError: down" in text for text in warnings_of(caplog)) == 2


@pytest.mark.parametrize("min_size", [0, 1])
async def test_one_failure_is_no_outage_while_nothing_else_has_to_be_opened(
    min_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    connector = ScriptedConnector()
    calls: list[Any] = []
    options: dict[str, Any] = {"reconnect_timeout": 300, "on_reconnect_failed": calls.append}
    async with open_pool(connector, pool_size=2, min_size=min_size, **options) as pool:
        connector.connects.then(error(OSError("busy")))
        leases = [await pool.acquire() for _ in range(min_size)]
        with pytest.raises(ConnectFailed):
            await pool.acquire()
        for lease in leases:
            pool.release(lease)
        for _ in range(min_size * 3600):  # what is open is in use, and enough
            async with pool.connect():
                await asyncio.sleep(1)
        await asyncio.sleep(3600)
        async with pool.connect(), pool.connect():
            pass
    assert calls == []
    assert not any("for 300 s" in text for text in warnings_of(caplog))


async def test_a_failure_of_some_time_ago_does_not_tell_of_an_outage_before_another_attempt_has_failed() -> None:
    connector = ScriptedConnector()
    calls: list[Any] = []
    async with open_pool(connector, min_size=0, reconnect_timeout=30, on_reconnect_failed=calls.append) as pool:
        connector.connects.then(error(OSError("busy")))
        with pytest.raises(ConnectFailed):
            await pool.acquire()
        await asyncio.sleep(40)
        async with pool.connect():
            pass
    assert calls == []


async def test_each_outage_is_logged_when_it_begins(caplog: pytest.LogCaptureFixture) -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2, min_size=1) as pool, pool.connect():
        for what in ("one", "another"):
            connector.connects.then(error(OSError(what)))
            with pytest.raises(ConnectFailed):
                await pool.acquire()
            await asyncio.sleep(36_000)
    one, another = warnings_of(caplog)
    assert one == "main: cannot connect to scripted:28015: OSError: one"
    assert another == "main: cannot connect to scripted:28015: OSError: another"


@pytest.mark.parametrize("pause", [20, 61])
async def test_an_outage_that_callers_find_now_and_then_lasts_as_long_as_they_find_it(pause: float) -> None:
    connector = ScriptedConnector()
    calls: list[float] = []
    options: dict[str, Any] = {"reconnect_timeout": 300, "on_reconnect_failed": lambda pool: calls.append(now())}
    async with open_pool(connector, pool_size=2, min_size=0, **options) as pool:
        connector.connects.always(error(OSError("down")))
        while now() < 1000:
            with pytest.raises(ConnectFailed):
                await pool.acquire(timeout=1)
            await asyncio.sleep(pause)
    (when,) = calls
    assert 300 <= when <= 300 + 2 * pause


async def test_on_reconnect_failed_that_raises_is_logged_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(pool: AsyncConnectionPool) -> None:
        raise ValueError("broken callback")

    connector = ScriptedConnector()
    async with open_pool(connector, reconnect_timeout=10, on_reconnect_failed=broken) as pool:
        connector.connects.always(error(OSError("down")))
        for connection in connector.open_connections:
            connector.drop(connection)
        await asyncio.sleep(100)
        connector.connects.always(ok())
        await asyncio.sleep(20)
        assert pool.stats().idle == 3
    assert any("on_reconnect_failed raised" in text for text in warnings_of(caplog))


async def test_after_an_outage_a_pool_of_n_opens_n_connections_not_one_per_waiter() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=4, acquire_timeout=100) as pool:
        connector.connects.always(error(OSError("down")))
        for connection in connector.open_connections:
            connector.drop(connection)
        await asyncio.sleep(1)

        async def user() -> None:
            async with pool.connect():
                await asyncio.sleep(0.1)

        users = [asyncio.create_task(user()) for _ in range(100)]
        await asyncio.sleep(10)
        connector.connects.always(slow(0.5))
        await asyncio.gather(*users)
        assert len(connector.connections) == 8


# ---- hooks


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


@pytest.mark.parametrize("how", ["wait_for", "gather", "exit stack"])
async def test_a_holder_is_whoever_asked_whoever_did_the_work(how: str) -> None:
    async with open_pool(pool_size=1) as pool:

        async def asker() -> None:
            async with contextlib.AsyncExitStack() as stack:
                if how == "exit stack":
                    await stack.enter_async_context(pool.connect())
                else:
                    work = pool.acquire()
                    lease = await asyncio.wait_for(work, 1) if how == "wait_for" else (await asyncio.gather(work))[0]
                    stack.callback(pool.release, lease)
                await asyncio.sleep(20)

        task = asyncio.create_task(asker(), name="asker")
        await asyncio.sleep(1)
        with pytest.raises(PoolTimeout, match=rf"asker, for 6.0 s, acquired at {HERE}:\d+ in asker"):
            await pool.acquire(timeout=5)
        await task


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


async def test_a_deadlock_is_found_where_wait_for_has_a_task_of_its_own_acquire() -> None:
    async with open_pool(pool_size=1, debug=True) as pool:
        lease = await asyncio.wait_for(pool.acquire(), 5)
        with pytest.raises(PoolDeadlock):
            await asyncio.wait_for(pool.acquire(), 5)
        pool.release(lease)


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


# ---- leases that were dropped


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


# ---- the report of close


async def test_close_reports_what_became_of_the_leases() -> None:
    async with open_pool(pool_size=4) as pool:
        leases = [await pool.acquire() for _ in range(3)]
        async with pool.connect(looped_mode=True):
            asyncio.get_running_loop().call_later(2, pool.release, leases[0])
            report = await pool.close(timeout=7)
        assert report == CloseReport(leases_waited_for=3, leases_aborted=2, feeds_ended=1, seconds=pytest.approx(7))
        assert await pool.close() == report, "whoever closes it too is told the same"


async def test_a_closing_that_went_on_after_its_caller_was_cancelled_is_reported_to_the_next() -> None:
    async with open_pool(pool_size=1) as pool:
        lease = await pool.acquire()
        closing = asyncio.create_task(pool.close())
        await asyncio.sleep(1)
        closing.cancel()
        await asyncio.wait([closing])
        pool.release(lease)
        await asyncio.sleep(10)
        report = await pool.close()
        assert (report.leases_waited_for, report.leases_aborted, report.seconds) == (1, 0, pytest.approx(1))


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


# ---- fork


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
