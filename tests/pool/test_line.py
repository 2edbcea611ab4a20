"""The line: leases and queries are served first come, first served, and those who give up disturb nobody."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, Lease, PoolTimeout, TooManyWaiters
from async_repool.testing.scripted import ScriptedConnection, ScriptedConnector, never, slow
from pool_kit import acquire_soon, finish, now, open_pool, run, run_soon, stream, turn

pytestmark = pytest.mark.virtual_time


# ---- leases


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


async def test_a_timeout_of_zero_takes_an_idle_connection_and_does_not_wait() -> None:
    async with open_pool(pool_size=1) as pool:
        async with pool.connect(timeout=0):
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0)
        assert now() == 0


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


# ---- between a hand-over and the turn of who was served


async def test_two_workers_that_take_turns_are_no_deadlock(caplog: pytest.LogCaptureFixture) -> None:
    async with open_pool(pool_size=1, debug=True) as pool:

        async def worker() -> None:
            for _ in range(20):
                async with pool.connect():
                    await asyncio.sleep(0)

        await asyncio.gather(worker(), worker(), worker())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("options", [{}, {"leak_threshold": 0.01}, {"debug": True}], ids=str)
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


# ---- leases and queries


async def test_leases_and_queries_are_served_in_the_order_in_which_they_came() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    served: list[Any] = []
    async with open_pool(connector, pool_size=1) as pool:

        async def lease(number: int) -> None:
            async with pool.connect():
                served.append(number)
                await asyncio.sleep(1)

        async def query(number: int) -> None:
            await pool.run(number)
            served.append(number)

        async with asyncio.TaskGroup() as group:
            for number, use in enumerate([lease, query, query, lease, query, lease, lease, query]):
                group.create_task(use(number))
                await turn()
        assert served == list(range(8))
        assert not connector.connections[0].has_mixed


async def test_a_lease_in_line_is_not_overtaken_by_later_queries() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=1) as pool:
        first = await run_soon(pool)
        leasing = await acquire_soon(pool)
        later = await run_soon(pool, "later")
        assert (pool.stats().queries_in_flight, pool.stats().queries_waiting) == (1, 1), "though there is room"
        lease = await leasing
        assert first.done()
        assert not later.done()
        pool.release(lease)
        await later


@pytest.mark.parametrize("how", ["cancelled", "out of time", "served"])
async def test_queries_behind_a_lease_go_on_at_once_when_it_is_out_of_the_way(how: str) -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(100))
    async with open_pool(connector, pool_size=2) as pool:
        lease = await pool.acquire()
        long = await run_soon(pool)
        leasing = await acquire_soon(pool, timeout=2 if how == "out of time" else None)
        behind = [await run_soon(pool) for _ in range(5)]
        await asyncio.sleep(1)
        assert pool.stats().queries_waiting == 5
        began = now()
        if how == "cancelled":
            leasing.cancel()
        elif how == "served":
            pool.release(lease)
        await asyncio.gather(*behind)
        assert now() - began == pytest.approx(1 if how == "out of time" else 0)
        if how == "served":
            lease = await leasing
        pool.release(lease)
        await finish([long])
        await asyncio.gather(leasing, return_exceptions=True)


async def test_queries_behind_a_feed_go_on_at_once_when_it_gives_up() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(100))
    async with open_pool(connector, pool_size=1) as pool:
        long = await run_soon(pool)
        feed = pool.changes("a feed")
        opening = asyncio.create_task(feed.__anext__())
        await turn()
        behind = await run_soon(pool)
        await asyncio.sleep(1)
        assert not behind.done()
        opening.cancel()
        await behind
        assert now() == pytest.approx(1)
        await finish([long])


async def test_a_feed_behind_a_query_goes_on_as_soon_as_another_feed_has_a_connection() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        lease = await pool.acquire()
        connector.connects.always(slow(15))
        feeds = [pool.changes(number) for number in range(2)]
        first = asyncio.create_task(feeds[0].__anext__())
        await turn()
        query = await run_soon(pool)
        second = asyncio.create_task(feeds[1].__anext__())
        await turn()
        connector.streams.always(never())
        pool.release(lease)  # the first feed takes the only connection to the lane; the query waits for another one
        await asyncio.sleep(1)
        assert (pool.stats().changefeeds, pool.stats().waiting) == (2, 1)
        query.cancel()
        await finish([first, second])


async def test_endless_queries_do_not_starve_a_lease() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    for pool_size in (1, 2):
        async with open_pool(connector, pool_size=pool_size) as pool:

            async def user() -> None:
                while True:
                    await pool.run("a query")

            users = []
            for _ in range(10):
                users.append(asyncio.create_task(user()))
                await asyncio.sleep(0.1)
            for _ in range(10):
                began = now()
                async with pool.connect():
                    assert now() - began < 1.2
            await finish(users)


async def test_endless_leases_do_not_starve_a_query() -> None:
    connector = ScriptedConnector()
    for pool_size in (1, 2):
        async with open_pool(connector, pool_size=pool_size) as pool:

            async def user() -> None:
                while True:
                    async with pool.connect():
                        await asyncio.sleep(1)

            users = [asyncio.create_task(user()) for _ in range(pool_size + 3)]
            await asyncio.sleep(0.5)
            for _ in range(10):
                began = now()
                await pool.run("a query")
                assert now() - began < 5, "as many leases as stood before it"
            await finish(users)


async def test_a_worker_that_leases_again_at_once_does_not_overtake_a_query_nor_the_other_way_round() -> None:
    connector = ScriptedConnector()
    turns: list[str] = []
    async with open_pool(connector, pool_size=1) as pool:

        async def leases() -> None:
            for _ in range(50):
                async with pool.connect():
                    turns.append("lease")
                    await asyncio.sleep(0)

        async def queries() -> None:
            for _ in range(50):
                await pool.run("a query")
                turns.append("query")

        await asyncio.gather(leases(), queries())
        assert turns == ["lease", "query"] * 50


# ---- limits of the line


async def test_queries_in_line_count_against_max_waiting() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, max_waiting=2) as pool:
        lease = await pool.acquire()
        waiting = [await run_soon(pool), await acquire_soon(pool)]
        for call in (run, stream, AsyncConnectionPool.acquire):
            with pytest.raises(TooManyWaiters, match="main: .* was refused, max_waiting=2 callers wait already"):
                await call(pool)
        assert pool.stats().refused_total == 3
        pool.release(lease)
        await waiting[0]
        pool.release(await waiting[1])


async def test_queries_that_find_a_place_at_once_do_not_count_against_max_waiting() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=1, max_waiting=1, max_in_flight=10) as pool:
        tasks = [await run_soon(pool) for _ in range(11)]
        with pytest.raises(TooManyWaiters):
            await pool.run("a query")
        await asyncio.gather(*tasks)


async def test_queries_that_a_connection_is_on_its_way_to_do_not_count_against_max_waiting() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2, min_size=0, max_waiting=1) as pool:
        connector.connects.always(slow(1))
        await asyncio.gather(*(pool.run("a query") for _ in range(20)))
        assert pool.stats().refused_total == 0
