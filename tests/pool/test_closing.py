"""Closing the pool: what it waits for, aborts and reports, and whom it turns away."""

from __future__ import annotations

import asyncio

import pytest

from async_repool import AsyncConnectionPool, LeaseError, OutcomeUnknown, PoolClosed, PoolException, PoolTimeout
from async_repool.errors import QueryTimeout
from async_repool.stats import CloseReport
from async_repool.testing.scripted import ScriptedConnection, ScriptedConnector, error, never, ok, slow
from pool_kit import acquire_soon, feeding, now, open_pool, opened, run_soon, terms, turn

pytestmark = pytest.mark.virtual_time


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


async def test_a_close_that_is_cancelled_does_not_end_another_one() -> None:
    async with open_pool(pool_size=2) as pool:
        lease = await pool.acquire()
        first, second = asyncio.create_task(pool.close()), asyncio.create_task(pool.close(timeout=None))
        await turn()
        first.cancel()
        await asyncio.sleep(3)
        assert not second.done()
        pool.release(lease)
        assert await second == CloseReport(leases_waited_for=1, seconds=pytest.approx(3))


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


async def test_release_pool_while_the_pool_closes_is_refused_and_aborts_no_lease() -> None:
    async with open_pool(pool_size=2) as pool:
        lease = await pool.acquire()
        closing = asyncio.create_task(pool.close())
        await turn()
        with pytest.raises(PoolException, match="still leased"):
            await pool.release_pool()
        assert lease.is_open()
        pool.release(lease)
        await closing


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


async def test_on_reconnect_failed_may_close_the_pool_within_a_time_limit() -> None:
    connector = ScriptedConnector()
    closed = []

    async def give_up(pool: AsyncConnectionPool) -> None:
        await asyncio.wait_for(pool.close(), 60)
        closed.append(now())

    async with open_pool(connector, pool_size=2, reconnect_timeout=5, on_reconnect_failed=give_up) as pool:
        lease = await pool.acquire()
        connector.connects.always(error(OSError("down")))
        connector.drop(connector.connections[0])
        await asyncio.sleep(60)
        pool.release(lease)
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


# ---- queries


async def test_close_waits_for_queries_and_they_get_their_answers() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(3, ok("one")), slow(5, ok("two")))
    async with open_pool(connector, pool_size=1) as pool:
        tasks = [await run_soon(pool) for _ in range(2)]
        report = await pool.close(timeout=10)
        assert [task.result() for task in tasks] == ["one", "two"]
        assert (report.queries_waited_for, report.queries_aborted) == (2, 0)
        assert report.seconds == pytest.approx(5)
        assert connector.connections[0].ended_by == "close"


async def test_close_waits_for_no_check_of_a_connection_after_its_query_timed_out() -> None:
    connector = ScriptedConnector()
    connector.queries.always(never())
    connector.checks.always(never())
    async with open_pool(connector, pool_size=1) as pool:
        query = await run_soon(pool, timeout=2)
        report = await pool.close(timeout=100)
        with pytest.raises(QueryTimeout):
            await query
        assert report.seconds == pytest.approx(2)


@pytest.mark.parametrize("retry", [False, True])
async def test_close_aborts_queries_that_take_too_long_and_their_outcome_is_unknown(retry: bool) -> None:
    connector = ScriptedConnector()
    connector.queries.then(never(), never(), slow(1, ok("in time")))
    async with open_pool(connector, pool_size=2) as pool:
        tasks = [await run_soon(pool, retry=retry) for _ in range(3)]
        report = await pool.close(timeout=4)
        assert now() == pytest.approx(4)
        assert (report.queries_waited_for, report.queries_aborted) == (3, 2)
        await turn()
        for task in tasks[:2]:
            assert isinstance(task.exception(), OutcomeUnknown)
        assert tasks[2].result() == "in time"


async def test_close_refuses_the_queries_that_wait_and_each_gets_an_error_of_its_own() -> None:
    connector = ScriptedConnector()
    connector.queries.then(slow(2))
    async with open_pool(connector, pool_size=1, max_in_flight=1) as pool:
        tasks = [await run_soon(pool, number) for number in range(4)]
        await pool.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [dict, PoolClosed, PoolClosed, PoolClosed]
        assert len({id(outcome) for outcome in outcomes}) == 4
        assert terms(connector.connections[0]) == [0]


async def test_a_query_whose_turn_comes_as_the_pool_closes_is_answered_or_refused() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1, ok("answered")))
    async with open_pool(connector, pool_size=1) as pool:
        lease = await pool.acquire()
        query = await run_soon(pool)
        pool.release(lease)
        await pool.close()
        assert await query == "answered"


async def test_release_pool_refuses_while_queries_are_under_way_and_changes_nothing() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(2, ok("answered")))
    async with open_pool(connector, pool_size=2) as pool:
        tasks = [await run_soon(pool) for _ in range(3)]
        with pytest.raises(PoolException, match=r"main: release_pool\(\) .*3 queries are under way"):
            await pool.release_pool()
        assert [*await asyncio.gather(*tasks), await pool.run("a query")] == ["answered"] * 4
        await pool.release_pool()
        assert repr(pool) == "<AsyncConnectionPool 'main' closed>"


async def test_queries_that_wait_as_release_pool_closes_the_pool_are_refused() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, min_size=0) as pool:
        connector.connects.always(never())
        query = await run_soon(pool)
        await pool.release_pool()
        with pytest.raises(PoolClosed):
            await query


# ---- feeds


@pytest.mark.parametrize("is_read", [False, True])
async def test_close_ends_the_lease_of_a_feed_at_once_if_its_connection_was_drained(is_read: bool) -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        context = pool.connect(looped_mode=True)
        await context.__aenter__()
        if is_read:  # after its block
            connector.connections[0].open_stream()
            await context.__aexit__(None, None, None)
        assert pool.stats().feeds == 1
        await pool.drain()
        assert (await pool.close()).seconds < 1


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


async def test_two_closes_whose_time_is_up_together_both_report_the_leases_that_were_aborted() -> None:
    async with open_pool(pool_size=2) as pool:
        lease = await pool.acquire()
        reports = await asyncio.gather(pool.close(5), pool.close(5))
        assert [report.leases_aborted for report in reports] == [1, 1]
        assert not lease.is_open()


async def test_close_reports_a_feed_whose_connection_was_drained() -> None:
    async with open_pool(feeding(), pool_size=1) as pool:
        changes = await opened(pool)
        await pool.drain()
        assert (await pool.close()).feeds_ended == 1
        await changes.aclose()
