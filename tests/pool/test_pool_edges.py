"""Odd moments, odd users and odd connectors."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from async_repool import (
    AsyncConnectionPool,
    ConnectFailed,
    LeaseError,
    PoolClosed,
    PoolException,
    PoolTimeout,
    TooManyWaiters,
)
from async_repool.testing import virtual_clock
from async_repool.testing.scripted import ScriptedConnection, ScriptedConnector, error, never, ok, slow
from pool_kit import now, open_pool, turn

pytestmark = pytest.mark.virtual_time


# ---- between a hand-over and the turn of who was served


async def test_two_workers_that_take_turns_are_no_deadlock(caplog: pytest.LogCaptureFixture) -> None:
    async with open_pool(pool_size=1, debug=True) as pool:

        async def worker() -> None:
            for _ in range(20):
                async with pool.connect():
                    await asyncio.sleep(0)

        await asyncio.gather(worker(), worker(), worker())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("options", [{}, {"leak_threshold": 0}, {"debug": True}], ids=str)
async def test_callers_that_come_one_by_one_while_a_connection_is_opened_are_all_served(
    options: dict[str, Any],
) -> None:
    async with open_pool(pool_size=1, min_size=0, **options) as pool:

        async def user() -> None:
            async with pool.connect():
                await asyncio.sleep(0)

        users = []
        for _ in range(20):
            users.append(asyncio.create_task(user()))
            await asyncio.sleep(0)
        await asyncio.gather(*users)


async def test_a_timeout_while_a_lease_is_on_its_way_to_its_user_says_so() -> None:
    async with open_pool(pool_size=1) as pool:
        lease = await pool.acquire()
        taker = asyncio.create_task(pool.acquire())
        late = asyncio.create_task(pool.acquire(timeout=5))
        await turn()
        asyncio.get_running_loop().call_later(5, pool.release, lease)
        with pytest.raises(PoolTimeout, match="Leased to"):
            await late
        pool.release(await taker)


# ---- closing


async def test_close_notices_a_broken_lease_that_comes_home() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        lease = await pool.acquire()
        closing = asyncio.create_task(pool.close(timeout=None))
        await asyncio.sleep(1)
        connector.drop(connector.connections[0])
        pool.release(lease)
        await closing
        assert now() == pytest.approx(1)


async def test_a_feed_that_is_served_as_the_pool_closes_does_not_begin() -> None:
    async with open_pool(pool_size=1) as pool:
        lease = await pool.acquire()

        async def follow() -> None:
            async with pool.connect(looped_mode=True):
                await asyncio.sleep(10_000)

        following = asyncio.create_task(follow())
        await turn()
        pool.release(lease)
        await pool.close(timeout=10)
        with pytest.raises(PoolClosed):
            await following
        assert now() < 1


async def test_release_to_looped_while_the_pool_closes_is_a_release() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        lease = await pool.acquire()
        connector.connections[0].open_stream()
        closing = asyncio.create_task(pool.close(timeout=5))
        await asyncio.sleep(1)
        pool.release_to_looped(lease)
        await closing
        assert now() == pytest.approx(5), "its reader had the rest of the time"


@pytest.mark.parametrize("which", ["check", "reset"])
async def test_close_does_not_wait_longer_than_it_was_told_for_a_hook(which: str) -> None:
    async def hang(connection: object) -> None:
        await asyncio.sleep(1000)

    async with open_pool(pool_size=1, check_timeout=2000, **{which: hang}) as pool:
        if which == "reset":
            async with pool.connect():
                pass
        else:
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0.5)
        await pool.close(timeout=3)
        assert now() < 4


async def test_close_aborts_the_reader_of_a_connection_that_was_reset_meanwhile() -> None:
    connector = ScriptedConnector()

    async def reset(connection: ScriptedConnection) -> None:
        await asyncio.sleep(2)

    async with open_pool(connector, pool_size=1, reset=reset, cursor_grace=3600) as pool:
        async with pool.connect():
            connector.connections[0].open_stream()
        await pool.close(timeout=5)
        assert now() == pytest.approx(5)


async def test_a_reader_has_its_grace_in_a_pool_that_was_opened_again_after_a_close_that_aborted() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, cursor_grace=60) as pool:
        lease = await pool.acquire()
        await pool.close(timeout=1)
        assert not lease.is_open()
        await pool.init_pool()
        connector.connections[1].open_stream()
        await pool.drain()
        await asyncio.sleep(50)
        assert connector.connections[1].is_open()


async def test_on_reconnect_failed_may_close_the_pool() -> None:
    connector = ScriptedConnector()
    closed = []

    async def give_up(pool: AsyncConnectionPool) -> None:
        await pool.close()
        closed.append(now())

    async with open_pool(connector, reconnect_timeout=10, on_reconnect_failed=give_up):
        connector.connects.always(error(OSError("down")))
        for connection in connector.open_connections:
            connector.drop(connection)
        await asyncio.sleep(100)
        assert len(closed) == 1


async def test_close_cancels_on_reconnect_failed_that_still_runs() -> None:
    connector = ScriptedConnector()
    began, ended = [], []

    async def call_for_help(pool: AsyncConnectionPool) -> None:
        began.append(now())
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(now())

    async with open_pool(connector, reconnect_timeout=10, on_reconnect_failed=call_for_help):
        connector.connects.always(error(OSError("down")))
        for connection in connector.open_connections:
            connector.drop(connection)
        await asyncio.sleep(100)
        assert (len(began), ended) == (1, [])
    await turn()
    assert ended == [now()]


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


# ---- housekeeping


async def test_pings_go_on_for_ever() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2, ping_interval=10):
        await asyncio.sleep(1005)
        assert connector.checks.started_total == 200


async def test_surplus_is_closed_in_time_beside_a_later_alarm() -> None:
    async with open_pool(pool_size=4, min_size=0, max_idle=60, leak_threshold=3600) as pool:
        leases = [await pool.acquire() for _ in range(3)]
        await asyncio.sleep(1)
        for lease in leases:
            pool.release(lease)
        await asyncio.sleep(62)
        assert pool.stats().size == 0


# ---- outages


async def test_a_check_of_an_old_connection_does_not_end_the_back_off_of_new_ones() -> None:
    connector = ScriptedConnector()

    async def check(connection: ScriptedConnection) -> None:
        await asyncio.sleep(0)

    async with open_pool(connector, pool_size=5, min_size=1, check=check) as pool:
        connector.connects.always(error(OSError("too many connections")))
        loop = asyncio.get_running_loop()

        async def worker() -> None:
            while loop.time() < 60:
                try:
                    async with pool.connect():
                        await asyncio.sleep(0.01)
                except ConnectFailed:
                    await asyncio.sleep(0.001)

        await asyncio.gather(*(worker() for _ in range(10)))
        assert connector.connects.started_total < 60
        connector.connects.always(ok())


async def test_an_outage_is_over_for_a_pool_that_nobody_uses_too() -> None:
    connector = ScriptedConnector()
    called = []
    async with open_pool(connector, pool_size=2, reconnect_timeout=300, on_reconnect_failed=called.append) as pool:
        connector.connects.then(error(OSError("blip")))
        for connection in connector.open_connections:
            connector.drop(connection)
        await asyncio.sleep(3600)
        assert pool.stats().idle == 2
        connector.drop(connector.open_connections[0])
        await asyncio.sleep(10)
        assert called == []


async def test_a_connection_attempt_that_raises_cancelled_error_is_a_failure_like_others() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, min_size=0, acquire_timeout=None) as pool:
        connector.connects.then(error(asyncio.CancelledError()))
        with pytest.raises(ConnectFailed, match="the opening was cancelled"):
            await pool.acquire()
        async with pool.connect():
            pass
    connector.connects.then(error(asyncio.CancelledError()))
    with pytest.raises(ConnectFailed, match="the opening was cancelled"):
        await AsyncConnectionPool(connector, 1).init_pool()


async def test_drain_in_an_outage_says_that_there_is_one() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2) as pool:
        connector.connects.always(error(OSError("down")))
        connector.drop(connector.connections[0])
        await asyncio.sleep(20)
        with pytest.raises(ConnectFailed, match=r"drain\(\)"):
            await pool.drain()
        connector.connects.always(ok())


async def test_drain_in_an_outage_counts_a_connection_that_is_being_pinged_among_those_that_are_open() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2, min_size=1, ping_interval=30) as pool:
        async with pool.connect():
            connector.connects.then(error(OSError("down")))
            with pytest.raises(ConnectFailed):
                await pool.acquire()
        ping = connector.checks.hold()
        await ping.wait_entered()
        await pool.drain()  # raises nothing: min_size connections are open, and this one is replaced after its ping
        ping.release()
        await asyncio.sleep(1)
        assert [connection.number for connection in connector.open_connections] == [2]


async def test_a_timeout_while_every_check_fails_names_the_failure() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, check_timeout=1) as pool:
        await asyncio.sleep(100)
        connector.checks.always(never())
        connector.connects.always(slow(100))
        with pytest.raises(PoolTimeout, match="the last failure: TimeoutError"):
            await pool.acquire(timeout=3)
        connector.connects.always(ok())


# ---- the line


async def test_a_caller_does_not_wait_beside_an_idle_connection_because_another_is_being_opened() -> None:
    connector = ScriptedConnector()

    async def check(connection: ScriptedConnection) -> None:
        await asyncio.sleep(0.01)

    async with open_pool(connector, pool_size=3, min_size=2, check=check) as pool:
        leases = [await pool.acquire(), await pool.acquire()]
        connector.connects.then(slow(20))
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=1)
        for lease in leases:
            pool.release(lease)

        async def user() -> float:
            async with pool.connect(timeout=15):
                return now()

        began = now()
        assert max(await asyncio.gather(user(), user())) - began < 1


async def test_callers_whom_a_connection_is_on_its_way_to_do_not_count_against_max_waiting() -> None:
    async with open_pool(pool_size=5, min_size=0, max_waiting=1) as pool:
        leases = await asyncio.gather(*(pool.acquire() for _ in range(5)))
        waiting = asyncio.create_task(pool.acquire())
        await turn()
        with pytest.raises(TooManyWaiters):
            await pool.acquire()
        for lease in leases:
            pool.release(lease)
        pool.release(await waiting)


@pytest.mark.parametrize("timeout", ["1", -1, float("nan"), True])
async def test_a_bad_timeout_is_refused_also_where_there_is_nothing_to_wait_for(timeout: Any) -> None:
    async with open_pool() as pool:
        with pytest.raises((TypeError, ValueError), match="timeout must be"):
            await pool.acquire(timeout=timeout)
        with pytest.raises((TypeError, ValueError), match="timeout must be"):
            pool.connect(timeout=timeout)


async def test_each_caller_that_a_close_turns_away_gets_an_error_of_its_own() -> None:
    async with open_pool(pool_size=1) as pool:
        lease = await pool.acquire()
        waiting = [asyncio.create_task(pool.acquire()) for _ in range(3)]
        await turn()
        closing = asyncio.create_task(pool.close())
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert len({id(outcome) for outcome in outcomes}) == 3
        pool.release(lease)
        await closing


# ---- odd users


@pytest.mark.parametrize("how", ["release", "release_to_looped"])
async def test_a_lease_released_in_its_own_block_does_not_hide_the_error_of_the_block(how: str) -> None:
    async with open_pool() as pool:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1), pool.connect() as lease:
                getattr(pool, how)(lease)
                await asyncio.sleep(5)
        with pytest.raises(LeaseError, match="the end of `async with` on a lease that was released before"):
            async with pool.connect() as lease:
                getattr(pool, how)(lease)


@pytest.mark.parametrize("looped_mode", [False, True])
async def test_a_context_is_for_one_user_at_a_time_and_may_be_used_again(looped_mode: bool) -> None:
    async with open_pool() as pool:
        context = pool.connect(looped_mode)
        async with context as lease:
            with pytest.raises(LeaseError, match=r"call connect\(\) for each lease"):
                await context.__aenter__()
            assert lease.is_open()
        async with context:
            pass
        leases = [await pool.acquire() for _ in range(3)]
        impatient = pool.connect(looped_mode, timeout=1)
        for _ in range(2):
            with pytest.raises(PoolTimeout):
                await impatient.__aenter__()
        for lease in leases:
            pool.release(lease)


async def test_release_to_looped_of_a_lease_without_a_feed_keeps_its_connection() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2) as pool:
        pool.release_to_looped(await pool.acquire())
        await asyncio.sleep(1)
        assert len(connector.connections) == 2


async def test_release_to_looped_of_something_else_says_so_even_if_the_lane_is_full() -> None:
    async with open_pool(max_feed_connections=0) as pool:
        thing: Any = object()
        with pytest.raises(LeaseError, match=r"release_to_looped\(\) takes a lease"):
            pool.release_to_looped(thing)
        lease = await pool.acquire()
        with pytest.raises(PoolException, match="max_feed_connections=0"):
            pool.release_to_looped(lease)
        pool.release(lease)


async def test_a_lease_cannot_be_copied_by_accident() -> None:
    async with open_pool() as pool, pool.connect() as lease:
        twin = copy.copy(lease)
        del twin
        assert lease.is_open()


# ---- odd connectors


class Callbacks(ScriptedConnector):
    """Tells of the loss of one connection at once, and of others when it likes."""

    lost_at_once = 0

    def __init__(self) -> None:
        super().__init__()
        self.callbacks: list[Callable[[], None]] = []

    def on_lost(self, connection: ScriptedConnection, callback: Callable[[], None], /) -> None:
        self.callbacks.append(callback)
        if connection.number == self.lost_at_once:
            self.drop(connection, is_told=False)
            callback()


async def test_a_connector_that_calls_back_at_once_leases_nothing_twice() -> None:
    connector = Callbacks()
    connector.lost_at_once = 3
    async with open_pool(connector, pool_size=2) as pool:
        connector.drop(connector.connections[0], is_told=False)
        connector.callbacks[0]()
        await asyncio.sleep(1)
        leases = [await pool.acquire(), await pool.acquire()]
        assert {lease.number for lease in leases} == {2, 4}
        for lease in leases:
            pool.release(lease)


async def test_a_connector_that_calls_back_too_late_harms_no_other_connection() -> None:
    connector = Callbacks()
    async with open_pool(connector, pool_size=1) as pool:
        await pool.drain()
        connector.callbacks[0]()
        await asyncio.sleep(1)
        assert pool.stats().closed_by_reason == {"drained": 1}


@pytest.mark.parametrize("method", ["is_open", "has_streams", "on_lost"])
async def test_a_connector_that_raises_where_it_must_not_costs_no_slot(method: str) -> None:
    class Broken(ScriptedConnector):
        is_broken = False

    def broken(self: Broken, *arguments: Any) -> Any:
        if self.is_broken:
            raise ZeroDivisionError(method)
        return getattr(ScriptedConnector, method)(self, *arguments)

    setattr(Broken, method, broken)
    connector = Broken()
    # An error in a callback has nobody to go to but the loop's handler.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with open_pool(connector, pool_size=2, connection_ttl=10) as pool:
        lease = await pool.acquire()
        connector.is_broken = True
        pool.release(lease)
        await asyncio.sleep(20)
        with suppress(PoolException):
            async with pool.connect(timeout=20):
                pass
        connector.is_broken = False
        await asyncio.sleep(100)
        leases = [await pool.acquire(timeout=20) for _ in range(2)]
        assert all(lease.is_open() for lease in leases)
        for lease in leases:
            pool.release(lease)
