"""The pool on the scripted connector and the virtual clock: what its users see."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any
from unittest.mock import create_autospec

import pytest

from async_repool import (
    AsyncConnectionPool,
    ConnectFailed,
    Lease,
    LeaseError,
    PoolClosed,
    PoolException,
    PoolTimeout,
    TooManyWaiters,
)
from async_repool.config import PoolConfig
from async_repool.testing import virtual_clock
from async_repool.testing.scripted import ScriptedConnection, ScriptedConnector, error, never, ok, slow
from pool_kit import acquire_soon, open_pool, turn

pytestmark = pytest.mark.virtual_time


def number(lease: Lease) -> int:
    """Which connection a lease is on: 1 for the first that was opened."""
    return lease.number  # type: ignore[no-any-return]


# ---- acquire and release


async def test_a_lease_is_acquired_and_released() -> None:
    async with open_pool() as pool:
        lease = await pool.acquire()
        assert repr(pool) == "<AsyncConnectionPool 'main' open 1/3 leased, 0 waiting>"
        pool.release(lease)
        assert repr(pool) == "<AsyncConnectionPool 'main' open 0/3 leased, 0 waiting>"
    assert repr(pool) == "<AsyncConnectionPool 'main' closed>"


@pytest.mark.parametrize("how", ["plain", "awaited", "in a task", "gathered", "waited for"])
async def test_release_works_with_and_without_await(how: str) -> None:
    async with open_pool() as pool:
        lease = await pool.acquire()
        released = pool.release(lease)
        assert pool.stats().leased == 0, "the work is done before release returns"
        if how == "awaited":
            await released
        elif how == "in a task":
            await asyncio.create_task(released)
        elif how == "gathered":
            await asyncio.gather(released)
        elif how == "waited for":
            await asyncio.wait_for(released, 1)


async def test_connect_releases_at_the_end_of_the_block() -> None:
    async with open_pool() as pool:
        async with pool.connect() as lease:
            assert lease.is_open()
            assert pool.stats().leased == 1
        assert pool.stats().leased == 0


async def test_connect_releases_after_an_error_and_the_error_goes_on() -> None:
    async with open_pool() as pool:
        with pytest.raises(ZeroDivisionError):
            async with pool.connect():
                _ = 1 / 0
        assert pool.stats().leased == 0


async def test_a_query_runs_on_the_lease_with_its_options() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool, pool.connect() as lease:
        assert await lease._start("term", noreply=True) == {"noreply": True}
        assert connector.connections[0].queries == [("term", {"noreply": True})]


async def test_a_lease_passes_for_its_connection() -> None:
    async with open_pool() as pool, pool.connect() as lease:
        assert isinstance(lease, ScriptedConnection)
        assert isinstance(lease, Lease)
        assert (await lease.server())["name"] == "scripted"
        await lease.noreply_wait()


async def test_use_lasts_for_the_lease_only() -> None:
    async with open_pool(pool_size=1) as pool:
        async with pool.connect() as lease:
            lease.use("mine")
            assert lease.db == "mine"
            assert await lease._start("term") == {"db": "mine"}
            assert await lease._start("term", db="other") == {"db": "other"}
        async with pool.connect() as lease:
            assert lease.db is None
            assert await lease._start("term") == {}


async def test_setting_db_is_the_same_as_use() -> None:
    async with open_pool(pool_size=1) as pool:
        async with pool.connect() as lease:
            lease.db = "mine"
            assert await lease._start("term") == {"db": "mine"}
        async with pool.connect() as lease:
            assert lease.db is None


async def test_a_connection_that_its_user_closed_is_replaced() -> None:
    async with open_pool(pool_size=1) as pool:
        async with pool.connect() as lease:
            await lease.close()
        async with pool.connect() as lease:
            assert number(lease) == 2
            assert lease.is_open()


async def test_a_lease_as_context_manager_closes_its_connection_as_the_drivers_does() -> None:
    async with open_pool(pool_size=1) as pool:
        lease = await pool.acquire()
        async with lease:
            pass
        assert not lease.is_open()
        pool.release(lease)


@pytest.mark.parametrize(
    "use",
    [
        lambda lease: lease.is_open(),
        lambda lease: lease._start("term"),
        lambda lease: lease.use("db"),
        lambda lease: lease.db,
        lambda lease: lease.close,
        lambda lease: lease.server,
    ],
    ids=["is_open", "run", "use", "db", "close", "server"],
)
@pytest.mark.parametrize("is_leased_again", [False, True])
async def test_a_lease_is_dead_after_release(use: Callable[[Any], object], is_leased_again: bool) -> None:
    async with open_pool(pool_size=1) as pool:
        lease = await pool.acquire()
        pool.release(lease)
        other = await pool.acquire() if is_leased_again else None
        with pytest.raises(LeaseError, match="main: .* on a lease that was released before"):
            use(lease)
        if other is not None:
            assert other.is_open()
            pool.release(other)


async def test_a_second_release_is_refused_and_changes_nothing() -> None:
    async with open_pool(pool_size=1) as pool:
        lease = await pool.acquire()
        pool.release(lease)
        other = await pool.acquire()
        with pytest.raises(LeaseError, match="main: .*released before"):
            pool.release(lease)
        assert pool.stats().leased == 1
        assert (await acquire_soon(pool)).cancel(), "the other one is still leased to one user only"
        pool.release(other)


async def test_release_to_another_pool_is_refused_and_the_lease_stays_live() -> None:
    async with open_pool(name="one") as one, open_pool(name="other") as other:
        lease = await one.acquire()
        with pytest.raises(LeaseError, match="other: .*pool 'one'"):
            other.release(lease)
        assert lease.is_open()
        one.release(lease)


@pytest.mark.parametrize("thing", [None, object(), ScriptedConnector()])
async def test_release_of_something_else_is_refused(thing: Any) -> None:
    async with open_pool() as pool:
        with pytest.raises(LeaseError, match=r"release\(\) takes a lease"):
            pool.release(thing)


# ---- the line


async def test_callers_are_served_first_come_first_served() -> None:
    async with open_pool(pool_size=1) as pool:
        order: list[int] = []

        async def caller(n: int) -> None:
            async with pool.connect():
                order.append(n)
                await asyncio.sleep(1)

        await asyncio.gather(*(caller(n) for n in range(20)))
        assert order == list(range(20))


async def test_a_loop_that_releases_and_acquires_at_once_does_not_overtake_who_waits() -> None:
    async with open_pool(pool_size=1) as pool:
        turns: list[str] = []

        async def barge(name: str, times: int) -> None:
            for _ in range(times):
                async with pool.connect():
                    turns.append(name)
                    await asyncio.sleep(0)

        await asyncio.gather(barge("a", 50), barge("b", 50), barge("c", 50))
        assert turns == ["a", "b", "c"] * 50


async def test_cancelled_and_timed_out_callers_leave_the_order_of_the_others_alone() -> None:
    async with open_pool(pool_size=1) as pool:
        first = await pool.acquire()
        waiting = [await acquire_soon(pool, timeout=1 if n % 3 == 1 else None) for n in range(9)]
        for n in (0, 3, 6):
            waiting[n].cancel()
        await asyncio.sleep(2)
        assert pool.stats().waiting == 3
        pool.release(first)
        for n in (2, 5, 8):
            pool.release(await waiting[n])
        for n in (1, 4, 7):
            with pytest.raises(PoolTimeout):
                await waiting[n]


async def test_a_caller_cancelled_at_the_moment_of_the_hand_over_passes_the_slot_on() -> None:
    async with open_pool(pool_size=1) as pool:
        lease = await pool.acquire()
        first, second = await acquire_soon(pool), await acquire_soon(pool)
        pool.release(lease)  # handed to the first, which has not run yet …
        first.cancel()  # … and never will
        pool.release(await second)
        assert first.cancelled()
        assert pool.stats().acquired_total == 2


async def test_a_caller_that_times_out_at_the_moment_of_the_hand_over_passes_the_slot_on() -> None:
    async with open_pool(pool_size=1) as pool:
        lease = await pool.acquire()
        first = await acquire_soon(pool, timeout=10)
        second = await acquire_soon(pool)
        # This timer was set after the caller's own, for the same instant: the slot is handed over between the caller's
        # time-out and its wake-up; then the other way round, between its wake-up and its time-out.
        asyncio.get_running_loop().call_at(10, pool.release, lease)
        outcome = (await asyncio.gather(first, return_exceptions=True))[0]
        if isinstance(outcome, Lease):
            pool.release(outcome)
        else:
            assert isinstance(outcome, PoolTimeout)
        pool.release(await second)


async def test_a_timeout_says_what_was_asked_and_how_things_are() -> None:
    async with open_pool(pool_size=2) as pool:
        leases = await asyncio.gather(pool.acquire(), pool.acquire())
        with pytest.raises(PoolTimeout) as caught:
            await (await acquire_soon(pool, timeout=1.5))
        assert isinstance(caught.value, TimeoutError)
        assert str(caught.value).startswith(
            "main: no connection to scripted:28015 after waiting 1.5 s "
            "(2 of 2 leased, 0 idle, 0 connecting, 0 closing, 0 waiting). Release leases sooner, or raise pool_size."
        )
        for lease in leases:
            pool.release(lease)


async def test_acquire_waits_acquire_timeout_unless_told_otherwise() -> None:
    async with open_pool(pool_size=1, acquire_timeout=7) as pool, pool.connect():
        loop = asyncio.get_running_loop()
        for arguments, expected in (({}, 7), ({"timeout": 3}, 3), ({"timeout": 0}, 0)):
            began = loop.time()
            with pytest.raises(PoolTimeout):
                await pool.acquire(**arguments)
            assert loop.time() - began == pytest.approx(expected, abs=0.01)
            began = loop.time()
            with pytest.raises(PoolTimeout):
                async with pool.connect(**arguments):
                    pass
            assert loop.time() - began == pytest.approx(expected, abs=0.01)


async def test_a_timeout_of_none_waits_for_ever() -> None:
    async with open_pool(pool_size=1) as pool:
        lease = await pool.acquire()
        waiting = await acquire_soon(pool, timeout=None)
        await asyncio.sleep(86_400 * 365)
        pool.release(lease)
        pool.release(await waiting)


@pytest.mark.parametrize("timeout", ["1", -1, float("nan"), True])
async def test_a_bad_timeout_is_refused_with_its_value(timeout: Any) -> None:
    async with open_pool(pool_size=1) as pool, pool.connect():
        with pytest.raises((TypeError, ValueError), match=f"timeout must be .* not {timeout!r}"):
            await pool.acquire(timeout=timeout)
        with pytest.raises((TypeError, ValueError), match="timeout must be"):
            await pool.close(timeout=timeout)


async def test_max_waiting_refuses_who_comes_later() -> None:
    async with open_pool(pool_size=1, max_waiting=2) as pool:
        lease = await pool.acquire()
        waiting = [await acquire_soon(pool) for _ in range(2)]
        with pytest.raises(TooManyWaiters, match="main: .*max_waiting=2"):
            await pool.acquire()
        assert pool.stats().refused_total == 1
        pool.release(lease)
        for task in waiting:
            pool.release(await task)


# ---- time to live


async def test_time_to_live_counts_from_opening_also_for_a_busy_connection() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, connection_ttl=100) as pool:
        numbers = []
        for _ in range(30):
            async with pool.connect() as lease:
                numbers.append(number(lease))
                await asyncio.sleep(10)
        assert numbers[:9] == [1] * 9
        assert numbers[11] == 2
        assert numbers[-1] == 3


async def test_an_expired_connection_is_replaced_when_it_is_asked_for_and_not_before() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, connection_ttl=100) as pool:
        await asyncio.sleep(1000)
        assert len(connector.connections) == 3
        async with pool.connect() as lease:
            assert number(lease) > 3
        assert pool.stats().closed_by_reason == {"expired": 3}


async def test_connections_that_were_opened_at_once_do_not_expire_at_once() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=20, connection_ttl=1000) as pool:
        replaced_at = set()
        for _ in range(1100):
            leases = [await pool.acquire() for _ in range(20)]
            replaced_at |= {connection.opened_at for connection in connector.connections[20:]}
            for lease in leases:
                pool.release(lease)
            await asyncio.sleep(1)
        assert len(replaced_at) > 10
        assert min(replaced_at) >= 950
        assert max(replaced_at) <= 1002


@pytest.mark.parametrize("ttl", [0, None])
async def test_no_time_to_live_means_for_ever(ttl: float | None) -> None:
    async with open_pool(pool_size=1, connection_ttl=ttl) as pool:
        await asyncio.sleep(86_400 * 30)
        async with pool.connect() as lease:
            assert number(lease) == 1


# ---- broken connections


@pytest.mark.parametrize("is_told", [True, False])
async def test_a_connection_that_died_idle_is_never_handed_out(is_told: bool) -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        connector.drop(connector.connections[0], is_told=is_told)
        async with pool.connect() as lease:
            assert number(lease) == 2


async def test_a_connection_that_died_idle_is_replaced_before_anybody_asks() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector) as pool:
        for connection in connector.open_connections:
            connector.drop(connection)
        await asyncio.sleep(1)
        assert pool.stats().idle == 3
        assert pool.stats().closed_by_reason == {"broken": 3}


async def test_a_connection_that_dies_while_leased_never_comes_back() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        async with pool.connect() as lease:
            connector.drop(connector.connections[0])
            await turn()
            assert not lease.is_open()
        async with pool.connect() as lease:
            assert number(lease) == 2


async def test_a_connection_that_dies_while_leased_is_replaced_for_who_waits() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        lease = await pool.acquire()
        waiting = await acquire_soon(pool)
        connector.drop(connector.connections[0])
        pool.release(lease)
        lease = await waiting
        assert number(lease) == 2
        pool.release(lease)


async def test_a_replacement_that_fails_gives_its_place_back_and_the_next_acquire_tries_again() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, min_size=0, connection_ttl=10) as pool:
        async with pool.connect():
            pass
        await asyncio.sleep(20)
        refused = ConnectionRefusedError("refused")
        connector.connects.then(error(refused))
        with pytest.raises(ConnectFailed) as caught:
            await pool.acquire()
        assert caught.value.__cause__ is refused
        assert isinstance(caught.value, ConnectionError)
        assert str(caught.value).startswith(
            "main: no connection to scripted:28015 after waiting 0.0 s, the last attempt"
        )
        assert "ConnectionRefusedError: refused" in str(caught.value)
        assert pool.stats().size == 0
        async with pool.connect() as lease:
            assert number(lease) == 2


# ---- growing and shrinking


async def test_growing_opens_no_more_than_there_are_callers() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=10, min_size=0) as pool:
        leases = await asyncio.gather(*(pool.acquire() for _ in range(4)))
        assert connector.max_open_or_connecting == 4
        for lease in leases:
            pool.release(lease)
        for lease in await asyncio.gather(*(pool.acquire() for _ in range(4))):
            pool.release(lease)
        assert len(connector.connections) == 4


async def test_growing_stops_at_pool_size() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=3, min_size=1) as pool:

        async def user() -> None:
            async with pool.connect():
                await asyncio.sleep(1)

        await asyncio.gather(*(user() for _ in range(50)))
        assert connector.max_open_or_connecting == 3


@pytest.mark.parametrize("first", ["a new connection", "a released one"])
async def test_growth_serves_whoever_has_waited_longest(first: str) -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2, min_size=1) as pool:
        lease = await pool.acquire()
        opening = connector.connects.hold()
        oldest, next_one = await acquire_soon(pool), await acquire_soon(pool)
        if first == "a new connection":
            opening.release()
        else:
            pool.release(lease)
        await turn()
        assert (oldest.done(), next_one.done()) == (True, False)
        assert number(await oldest) == (2 if first == "a new connection" else 1)
        opening.release()
        if first == "a new connection":
            pool.release(lease)
        pool.release(await next_one)
        pool.release(await oldest)


async def test_a_cancelled_callers_half_opened_connection_serves_the_next_one() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, min_size=0) as pool:
        connector.connects.then(slow(10))
        first = await acquire_soon(pool)
        await asyncio.sleep(9)
        first.cancel()
        began = asyncio.get_running_loop().time()
        async with pool.connect():
            assert asyncio.get_running_loop().time() - began == pytest.approx(1)
        assert connector.connects.started_total == 1


async def test_shrinking_works_under_light_steady_traffic() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=8, min_size=2, max_idle=600, connection_ttl=0) as pool:
        for lease in await asyncio.gather(*(pool.acquire() for _ in range(8))):
            pool.release(lease)
        for _ in range(700):
            async with pool.connect():
                await asyncio.sleep(0.5)
            await asyncio.sleep(0.5)
        stats = pool.stats()
        assert (stats.size, stats.closed_by_reason) == (2, {"surplus": 6})


async def test_a_pool_that_is_not_used_shrinks_by_itself_max_idle_after_the_peak() -> None:
    async with open_pool(pool_size=5, min_size=1, max_idle=60) as pool:
        await asyncio.sleep(1000)
        for lease in await asyncio.gather(*(pool.acquire() for _ in range(5))):
            pool.release(lease)
        await asyncio.sleep(59)
        assert pool.stats().size == 5
        await asyncio.sleep(1.1)
        assert pool.stats().size == 1


async def test_a_pool_of_fixed_size_never_shrinks() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=3, max_idle=1, connection_ttl=0) as pool:
        await asyncio.sleep(86_400)
        assert (pool.stats().size, len(connector.connections)) == (3, 3)


# ---- opening


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


# ---- closing


async def test_close_wakes_who_waits_with_pool_closed() -> None:
    async with open_pool(pool_size=1) as pool:
        lease = await pool.acquire()
        waiting = [await acquire_soon(pool) for _ in range(3)]
        closing = asyncio.create_task(pool.close())
        for task in waiting:
            with pytest.raises(PoolClosed, match="main: the pool was closed while this caller waited"):
                await task
        pool.release(lease)
        await closing


async def test_close_waits_for_leases_and_leases_nothing_more() -> None:
    async with open_pool(pool_size=2) as pool:
        lease = await pool.acquire()
        closing = asyncio.create_task(pool.close(timeout=10))
        await asyncio.sleep(9)
        assert not closing.done()
        assert lease.is_open()
        with pytest.raises(PoolClosed, match="closing"):
            await pool.acquire()
        pool.release(lease)
        await closing
        assert asyncio.get_running_loop().time() == pytest.approx(9)


async def test_close_aborts_leases_when_its_time_is_up() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        lease = await pool.acquire()
        await pool.close(timeout=3)
        assert asyncio.get_running_loop().time() == pytest.approx(3)
        assert connector.aborted_connections == connector.connections
        assert not lease.is_open()
        pool.release(lease)  # as at the end of its block: nothing is wrong about it
        with pytest.raises(LeaseError):
            pool.release(lease)


async def test_a_lease_of_an_earlier_life_does_not_disturb_the_reopened_pool() -> None:
    async with open_pool(pool_size=1) as pool:
        stale = await pool.acquire()
        await pool.close(timeout=0)
        await pool.init_pool()
        lease = await pool.acquire()
        pool.release(stale)
        assert pool.stats().leased == 1
        pool.release(lease)


async def test_close_may_be_called_twice_and_at_the_same_time_and_on_a_pool_never_opened() -> None:
    async with open_pool() as pool:
        await asyncio.gather(pool.close(), pool.close())
        await pool.close()
    await AsyncConnectionPool(ScriptedConnector()).close()


async def test_close_cancelled_goes_on_by_itself_and_may_be_called_again() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        lease = await pool.acquire()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await pool.close(timeout=None)
        with pytest.raises(PoolClosed):
            await pool.acquire()
        pool.release(lease)
        await turn()
        connector.assert_nothing_left()
        await pool.close()


async def test_a_connection_that_does_not_close_politely_is_aborted_after_close_timeout() -> None:
    connector = ScriptedConnector()
    connector.closes.then(never(), error(OSError("broken pipe")), slow(2))
    async with open_pool(connector, close_timeout=5) as pool:
        await pool.close()
        assert asyncio.get_running_loop().time() == pytest.approx(5)
    assert len(connector.aborted_connections) == 2
    assert len(connector.closed_connections) == 1


async def test_release_pool_with_leases_out_says_how_many_and_changes_nothing() -> None:
    async with open_pool() as pool:
        leases = [await pool.acquire(), await pool.acquire()]
        with pytest.raises(PoolException, match=r"main: release_pool\(\) while 2 connection\(s\) are still leased"):
            await pool.release_pool()
        assert (await pool.acquire()).is_open()
        assert leases[0].is_open()
        await pool.close(timeout=0)


@pytest.mark.parametrize("how", ["close", "release_pool"])
async def test_a_closed_pool_can_be_opened_again(how: str) -> None:
    connector = ScriptedConnector()
    async with open_pool(connector) as pool:
        await getattr(pool, how)()
        connector.assert_nothing_left()
        await pool.init_pool()
        async with pool.connect() as lease:
            assert number(lease) == 4


def test_a_closed_pool_can_be_opened_in_another_loop() -> None:
    pool = AsyncConnectionPool(ScriptedConnector())

    async def use() -> None:
        async with pool, pool.connect():
            pass

    virtual_clock.run(use())
    virtual_clock.run(use())


# ---- drain


async def test_drain_replaces_idle_connections_now_and_leased_ones_when_they_come_home() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector) as pool:
        lease = await pool.acquire()
        await pool.drain()
        assert [connection.number for connection in connector.open_connections] == [1, 4, 5]
        assert lease.is_open()
        pool.release(lease)
        await asyncio.sleep(1)
        assert [connection.number for connection in connector.open_connections] == [4, 5, 6]
        assert pool.stats().closed_by_reason == {"drained": 3}


async def test_drain_raises_where_the_new_connections_cannot_be_opened_and_the_pool_goes_on_trying() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector) as pool:
        refused = OSError("refused")
        connector.connects.then(error(refused), error(refused), error(refused))
        with pytest.raises(ConnectFailed, match=r"drain\(\).*refused") as caught:
            await pool.drain()
        assert caught.value.__cause__ is refused
        await asyncio.sleep(60)
        assert pool.stats().idle == 3


async def test_drain_serves_who_waits_with_new_connections() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        lease = await pool.acquire()
        waiting = await acquire_soon(pool)
        await pool.drain()
        pool.release(lease)
        lease = await waiting
        assert number(lease) == 2
        pool.release(lease)


# ---- cursors that outlive their lease, and feeds


async def test_an_expired_connection_that_is_still_read_closes_when_the_last_cursor_has_ended() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, connection_ttl=10, cursor_grace=60) as pool:
        async with pool.connect():
            cursor = connector.connections[0].open_stream()
        await asyncio.sleep(20)
        async with pool.connect() as lease:
            assert number(lease) == 2, "its reader costs no capacity"
        assert pool.stats().retired == 1
        assert connector.connections[0].is_open()
        cursor.end()
        await turn()
        assert connector.closed_connections == [connector.connections[0]]


async def test_a_reader_has_cursor_grace_and_no_longer() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, cursor_grace=60) as pool:
        connector.connections[0].open_stream()
        await pool.drain()
        await asyncio.sleep(59)
        assert connector.connections[0].is_open()
        await asyncio.sleep(2)
        assert not connector.connections[0].is_open()


async def test_close_waits_for_cursors_as_for_leases() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        cursor = connector.connections[0].open_stream()
        asyncio.get_running_loop().call_later(3, cursor.end)
        await pool.close(timeout=10)
        assert asyncio.get_running_loop().time() == pytest.approx(3)
        await pool.init_pool()
        connector.connections[1].open_stream()
        await pool.close(timeout=10)
        assert asyncio.get_running_loop().time() == pytest.approx(13)


async def test_a_feed_leaves_the_pool_and_another_connection_takes_its_place() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool, pool.connect(looped_mode=True) as feed:
        assert number(feed) == 1
        assert pool.stats().feeds == 1
        async with pool.connect() as lease:
            assert number(lease) == 2


async def test_a_feed_that_ended_is_returned_if_there_is_room_and_else_closed() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, min_size=0) as pool:
        async with pool.connect(looped_mode=True):
            pass
        assert (pool.stats().idle, pool.stats().feeds) == (1, 0)
        async with pool.connect(looped_mode=True), pool.connect():
            pass
        await turn()
        assert (pool.stats().idle, pool.stats().feeds) == (1, 0)
        assert pool.stats().closed_by_reason == {"feed ended": 1}


async def test_a_feed_that_is_read_on_after_its_block_stays_in_the_lane_until_it_ends() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        async with pool.connect(looped_mode=True):
            feed = connector.connections[0].open_stream()
        await asyncio.sleep(86_400)
        assert pool.stats().feeds == 1
        assert connector.connections[0].is_open()
        feed.end()
        await turn()
        assert pool.stats().feeds == 0


async def test_release_to_looped_takes_the_connection_of_a_feed_out_of_the_pool() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        lease = await pool.acquire()
        feed = connector.connections[0].open_stream()
        await pool.release_to_looped(lease)
        async with pool.connect() as other:
            assert number(other) == 2
        assert pool.stats().feeds == 1
        with pytest.raises(LeaseError):
            lease.is_open()
        feed.end()
        await turn()
        assert pool.stats().feeds == 0


async def test_the_feed_lane_has_a_limit_and_says_so() -> None:
    async with open_pool(pool_size=2, max_feed_connections=1) as pool, pool.connect(looped_mode=True) as feed:
        with pytest.raises(PoolException, match="main: max_feed_connections=1"):
            async with pool.connect(looped_mode=True):
                pass
        async with pool.connect() as lease:
            with pytest.raises(PoolException, match="max_feed_connections=1"):
                pool.release_to_looped(lease)
            assert lease.is_open()
        assert feed.is_open()
        assert pool.stats().leased == 0


async def test_the_feed_lane_that_filled_up_while_a_caller_waited_refuses_it_and_keeps_its_connection() -> None:
    async with open_pool(pool_size=1, max_feed_connections=1) as pool:
        lease = await pool.acquire()

        async def feed() -> None:
            async with pool.connect(looped_mode=True):
                await asyncio.sleep(10)

        feeds = [asyncio.create_task(feed()) for _ in range(2)]
        await turn()
        pool.release(lease)
        await turn()
        with pytest.raises(PoolException, match="max_feed_connections=1"):
            await feeds[1]
        await feeds[0]
        assert pool.stats().idle == 1


async def test_close_ends_feeds_at_once() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool, pool.connect(looped_mode=True) as feed:
        connector.connections[0].open_stream()
        await pool.close(timeout=60)
        assert asyncio.get_running_loop().time() == pytest.approx(0)
        assert not feed.is_open()


async def test_release_pool_counts_the_leases_of_feeds() -> None:
    async with open_pool(pool_size=1) as pool, pool.connect(looped_mode=True):
        with pytest.raises(PoolException, match="1 connection"):
            await pool.release_pool()


# ---- hooks


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


# ---- outages


async def test_waiters_in_an_outage_get_connect_failed_when_their_time_is_up() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=3) as pool:
        refused = ConnectionRefusedError("refused")
        connector.connects.always(error(refused))
        for connection in connector.open_connections:
            connector.drop(connection)
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
        outcomes = await asyncio.gather(*(pool.acquire(timeout=10) for _ in range(20)), return_exceptions=True)
        assert asyncio.get_running_loop().time() - began == pytest.approx(10)
        assert {type(outcome) for outcome in outcomes} == {ConnectFailed}
        assert all(outcome.__cause__ is refused for outcome in outcomes if isinstance(outcome, Exception))
        connector.connects.always(ok())


async def test_waiters_that_still_have_time_are_served_when_the_server_is_back() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=3, acquire_timeout=60) as pool:
        connector.connects.always(error(OSError("down")))
        for connection in connector.open_connections:
            connector.drop(connection)
        await asyncio.sleep(1)
        waiting = [await acquire_soon(pool) for _ in range(3)]
        await asyncio.sleep(20)
        connector.connects.always(ok())
        for task in waiting:
            pool.release(await task)
        await asyncio.sleep(1)
        assert len(connector.connections) == 6, "after an outage a pool of 3 opens 3 connections"


async def test_during_an_outage_one_attempt_is_in_flight_at_a_time() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=5, acquire_timeout=100) as pool:
        connector.connects.always(slow(1, then=error(OSError("down"))))
        for connection in connector.open_connections:
            connector.drop(connection)
        await asyncio.sleep(3)
        connector.connects.max_in_progress = 0
        waiting = [await acquire_soon(pool) for _ in range(30)]
        await asyncio.sleep(50)
        assert connector.connects.max_in_progress == 1
        connector.connects.always(ok())
        for task in waiting:
            pool.release(await task)


async def test_a_hopeless_failure_is_told_to_everybody_at_once_and_tried_again_by_the_next_caller() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2, min_size=0) as pool:
        wrong = ConnectFailed("wrong password", is_permanent=True)
        connector.connects.then(*[error(wrong)] * 3)
        for _ in range(2):
            outcomes = await asyncio.gather(*(pool.acquire() for _ in range(5)), return_exceptions=True)
            assert all(isinstance(outcome, ConnectFailed) and outcome.is_permanent for outcome in outcomes)
        async with pool.connect():
            assert asyncio.get_running_loop().time() == pytest.approx(0, abs=0.001)


# ---- misuse


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


def forget(pools: list[AsyncConnectionPool]) -> None:
    pools.clear()
    gc.collect()


def stop_tasks(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(turn())


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


# ---- options


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"pool_size": 0}, ValueError, "pool_size must be 1 or more, not 0"),
        ({"pool_size": "3"}, TypeError, "pool_size must be an int, not '3'"),
        ({"pool_size": True}, TypeError, "pool_size must be an int, not True"),
        ({"connection_ttl": -1}, ValueError, "connection_ttl must be a finite number of seconds >= 0, not -1"),
        ({"connection_ttl": "1"}, TypeError, "connection_ttl must be a number of seconds or None, not '1'"),
        ({"min_size": 4}, ValueError, "min_size=4 is more than pool_size=3"),
        ({"min_size": -1}, ValueError, "min_size must be 0 or more, not -1"),
        ({"min_size": 1.5}, TypeError, "min_size must be an int or None, not 1.5"),
        ({"max_idle": float("nan")}, ValueError, "max_idle must be a finite number of seconds >= 0, not nan"),
        ({"acquire_timeout": -0.1}, ValueError, "acquire_timeout must be a finite number of seconds >= 0, not -0.1"),
        ({"connect_timeout": 0}, ValueError, "connect_timeout must be a finite number of seconds > 0, not 0"),
        ({"close_timeout": None}, TypeError, "close_timeout must be a number of seconds, not None"),
        ({"check_timeout": 0}, ValueError, "check_timeout must be a finite number of seconds > 0, not 0"),
        ({"cursor_grace": float("inf")}, ValueError, "cursor_grace must be a finite number of seconds >= 0, not inf"),
        ({"max_feed_connections": -1}, ValueError, "max_feed_connections must be 0 or more, not -1"),
        ({"max_waiting": -1}, ValueError, "max_waiting must be 0 or more, not -1"),
        ({"max_waiting": None}, TypeError, "max_waiting must be an int, not None"),
        ({"configure": 1}, TypeError, "configure must be an async callable or None, not 1"),
        ({"check": "no"}, TypeError, "check must be an async callable or None, not 'no'"),
        ({"reset": []}, TypeError, r"reset must be an async callable or None, not \[\]"),
        ({"name": 7}, TypeError, "name must be a str or None, not 7"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_bad_option_is_refused_at_construction_by_name_and_value(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        AsyncConnectionPool(ScriptedConnector(), **options)


@pytest.mark.parametrize("thing", [None, "localhost", 28015, ["localhost"]])
def test_what_is_neither_arguments_nor_a_connector_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="rethinkdb_connection_kwargs must be a mapping .* or a Connector, not"):
        AsyncConnectionPool(thing)


def test_every_option_of_the_configuration_is_an_argument_of_the_pool_with_the_same_default() -> None:
    arguments = dict(inspect.signature(AsyncConnectionPool).parameters)
    del arguments["rethinkdb_connection_kwargs"]
    options = inspect.signature(PoolConfig).parameters
    assert {name: argument.default for name, argument in arguments.items()} == {
        name: option.default for name, option in options.items()
    }


async def test_acquire_passes_for_a_coroutine_function_to_those_who_mock_it() -> None:
    pool = create_autospec(AsyncConnectionPool, instance=True)
    pool.acquire.return_value = "a lease"
    assert await pool.acquire() == "a lease"


def test_positional_arguments_are_those_of_1_0_1() -> None:
    pool = AsyncConnectionPool({}, 7, 42)
    assert (pool.pool_size, pool.connection_ttl, pool.empty) == (7, 42, True)


# ---- statistics, logs


async def test_statistics_tell_gauges_and_totals() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2) as pool:
        leases = [await pool.acquire(), await pool.acquire()]
        waiting = await acquire_soon(pool)
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=4)
        cancelled = await acquire_soon(pool)
        cancelled.cancel()
        await turn()
        stats = pool.stats()
        assert (stats.size, stats.leased, stats.idle, stats.waiting) == (2, 2, 0, 1)
        pool.release(leases[0])
        pool.release(await waiting)
        pool.release(leases[1])
        stats = pool.stats()
        assert (stats.size, stats.leased, stats.idle, stats.waiting) == (2, 0, 2, 0)
        assert (stats.acquired_total, stats.waited_total, stats.timeouts_total, stats.cancelled_total) == (3, 3, 1, 1)
        assert stats.waited_seconds_total == pytest.approx(8)
        assert (stats.opened_total, stats.connect_failures_total, stats.closed_total) == (2, 0, 0)
        with pytest.raises(AttributeError):
            stats.size = 7  # type: ignore[misc]


async def test_empty_tells_whether_no_connection_is_idle() -> None:
    async with open_pool(pool_size=1) as pool:
        assert not pool.empty
        async with pool.connect():
            assert pool.empty


async def test_an_outage_is_logged_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "async_repool")
    connector = ScriptedConnector()
    async with open_pool(connector):
        connector.connects.always(error(OSError("down")))
        for connection in connector.open_connections:
            connector.drop(connection)
        await asyncio.sleep(100)
        connector.connects.always(ok())
        await asyncio.sleep(100)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "main: cannot connect to scripted:28015: OSError: down"),
        ("INFO", "main: connected to scripted:28015 again"),
    ]


def test_pools_without_a_name_are_numbered() -> None:
    one, other = AsyncConnectionPool(ScriptedConnector()), AsyncConnectionPool(ScriptedConnector())
    assert one.name != other.name
    assert one.name.startswith("pool-")
    assert repr(one) == f"<AsyncConnectionPool {one.name!r} closed>"


async def test_the_repr_of_a_lease_tells_whether_it_is_live() -> None:
    async with open_pool(pool_size=1) as pool:
        lease = await pool.acquire()
        assert repr(lease) == "<Lease of pool 'main' on <ScriptedConnection 1, open>>"
        pool.release(lease)
        assert repr(lease) == "<Lease of pool 'main', released>"
