"""Outages: who waits, who is told what and when, and how often the server is called."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, ConnectFailed, OutcomeUnknown, PoolTimeout, events
from async_repool.testing.scripted import ScriptedConnection, ScriptedConnector, error, never, ok, slow
from pool_kit import Call, acquire_soon, drop_all, each_call, now, open_pool, run_soon, turn, warnings_of

pytestmark = pytest.mark.virtual_time


# ---- leases


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


async def test_a_caller_without_time_for_an_attempt_of_its_own_gets_connect_failed_in_an_outage() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, min_size=0) as pool:
        connector.connects.always(error(OSError("refused")))
        for timeout in (60, 0.001):
            with pytest.raises(ConnectFailed, match="refused"):
                await pool.acquire(timeout=timeout)


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
        async with pool.connect():
            assert pool.stats().connect_failures_total == 1
    connector.connects.then(error(asyncio.CancelledError()))
    with pytest.raises(ConnectFailed, match="the opening was cancelled"):
        await AsyncConnectionPool(connector, 1).init_pool()


async def test_a_timeout_while_every_check_fails_names_the_failure() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, check_timeout=1) as pool:
        await asyncio.sleep(100)
        connector.checks.always(never())
        connector.connects.always(slow(100))
        with pytest.raises(PoolTimeout, match="the last failure: TimeoutError"):
            await pool.acquire(timeout=3)
        connector.connects.always(ok())


@pytest.mark.usefixtures("repeatable")
async def test_an_outage_begins_with_a_short_pause_if_another_one_has_ended() -> None:
    connector = ScriptedConnector()
    pauses: list[float] = []
    async with open_pool(connector, pool_size=2, min_size=1) as pool:
        for _ in range(5):
            connector.connects.then(*[error(OSError("refused"))] * 8)
            drop_all(connector)
            await asyncio.sleep(10_000)
            first = await pool.acquire()
            second = await pool.acquire()  # a second connection is opened
            await asyncio.sleep(0.5)
            connector.connects.then(error(OSError("refused")))
            pool.release(second)
            await turn()
            drop_all(connector)
            pool.release(first)
            began = now()
            async with pool.connect(timeout=60):
                pauses.append(now() - began)
    assert max(pauses) < 0.2, "one failure, one short pause"


# ---- queries


async def test_queries_wait_for_the_end_of_an_outage() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2, acquire_timeout=60) as pool:
        connector.connects.always(error(OSError("refused")))
        for connection in connector.open_connections:
            connector.drop(connection)
        await asyncio.sleep(1)
        tasks = [await run_soon(pool, number=number) for number in range(50)]
        await asyncio.sleep(20)
        assert pool.stats().queries_waiting == 50
        connector.connects.always(ok())
        assert await asyncio.gather(*tasks) == [{"number": number} for number in range(50)]
        assert now() < 27, "one pause of the back-off later"


async def test_a_query_whose_time_is_up_in_an_outage_is_told_why() -> None:
    connector = ScriptedConnector(endpoint="db1:28015")
    async with open_pool(connector, pool_size=1, acquire_timeout=10) as pool:
        connector.connects.always(error(OSError("connection refused")))
        connector.drop(connector.connections[0])
        await asyncio.sleep(1)
        for timeout, at in ((None, 11), (5, 16)):
            with pytest.raises(
                ConnectFailed, match="main: a query was never sent, .*db1:28015.*connection refused"
            ) as c:
                await pool.run("a query", timeout=timeout)
            assert now() == pytest.approx(at)
            assert isinstance(c.value.__cause__, OSError)
            assert not isinstance(c.value, OutcomeUnknown)
        connector.connects.always(ok())


@each_call
async def test_a_refusal_for_good_is_told_at_once(call: Call) -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1) as pool:
        connector.connects.always(error(ConnectFailed("wrong password", is_permanent=True)))
        connector.drop(connector.connections[0])
        began = now()
        with pytest.raises(ConnectFailed) as caught:
            await call(pool)
        assert caught.value.is_permanent
        assert now() - began < 1
        connector.connects.always(ok())


async def test_queries_do_not_call_a_server_more_often_that_is_away() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=3, acquire_timeout=1) as pool:
        connector.connects.always(error(OSError("refused")))
        for connection in connector.open_connections:
            connector.drop(connection)

        async def user() -> None:
            while now() < 60:
                with contextlib.suppress(ConnectFailed):
                    await pool.run("a query")

        await asyncio.gather(*(user() for _ in range(20)))
        assert connector.connects.failed_total < 60
        connector.connects.always(ok())


# ---- what is told of them


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
        leases = [await pool.acquire() for _ in range(min_size)]
        connector.connects.always(error(OSError("busy")))
        with pytest.raises(ConnectFailed):
            await pool.acquire(timeout=1)
        connector.connects.always(ok())
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
        connector.connects.always(error(OSError("busy")))
        with pytest.raises(ConnectFailed):
            await pool.acquire(timeout=1)
        connector.connects.always(ok())
        await asyncio.sleep(40)
        async with pool.connect():
            pass
    assert calls == []


async def test_each_outage_is_logged_when_it_begins(caplog: pytest.LogCaptureFixture) -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2, min_size=1) as pool, pool.connect():
        for what in ("one", "another"):
            connector.connects.always(error(OSError(what)))
            with pytest.raises(ConnectFailed):
                await pool.acquire(timeout=1)
            connector.connects.always(ok())
            async with pool.connect():
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


async def test_an_outage_is_logged_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "async_repool")
    connector = ScriptedConnector()
    async with open_pool(connector):
        await asyncio.sleep(2)
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


async def two_outages(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
    """A short outage. Hours later another begins, just after a connection could still be opened."""
    connector.connects.then(error(OSError("refused")))
    connector.drop(connector.connections[0])
    await asyncio.sleep(10_000)
    assert pool.stats().idle == 1
    leases = [await pool.acquire() for _ in range(2)]  # a second connection is opened
    await asyncio.sleep(0.5)
    connector.connects.always(error(OSError("refused")))
    drop_all(connector)
    for lease in leases:
        pool.release(lease)


async def test_reconnect_timeout_counts_from_the_beginning_of_the_outage_and_not_of_a_former_one() -> None:
    calls: list[float] = []
    connector = ScriptedConnector()
    options: dict[str, Any] = {"reconnect_timeout": 300, "on_reconnect_failed": lambda pool: calls.append(now())}
    async with open_pool(connector, pool_size=2, min_size=1, **options) as pool:
        await two_outages(pool, connector)
        began = now()
        await asyncio.sleep(1000)
        (when,) = calls
        assert 299 < when - began < 306, "within one pause of the back-off"


async def test_an_outage_that_begins_just_after_a_connection_was_opened_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2, min_size=1) as pool:
        await two_outages(pool, connector)
        await asyncio.sleep(10)
    assert len([text for text in warnings_of(caplog) if "cannot connect" in text]) == 2


async def test_an_outage_has_not_ended_if_new_connections_are_lost_at_once() -> None:
    seen: list[type[events.Event]] = []

    def observer(event: events.Event) -> None:
        if isinstance(event, (events.OutageBegan, events.OutageEnded)):
            seen.append(type(event))

    class HangsUp(ScriptedConnector):
        hangs_up = False

        async def connect(self) -> ScriptedConnection:
            connection = await super().connect()
            if self.hangs_up:
                asyncio.get_running_loop().call_later(0.01, self.drop, connection)
            return connection

    connector = HangsUp()
    async with open_pool(connector, pool_size=1, observer=observer):
        connector.hangs_up = True
        connector.connects.then(error(OSError("refused")))
        connector.drop(connector.connections[0])
        await asyncio.sleep(60)
        assert seen.count(events.OutageBegan) - seen.count(events.OutageEnded) == 1
        connector.hangs_up = False
        await asyncio.sleep(60)
        assert seen.count(events.OutageBegan) == seen.count(events.OutageEnded)
