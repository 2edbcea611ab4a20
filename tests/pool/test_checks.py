"""Broken connections are found, by checks and otherwise, and replaced before anybody is given one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, ConnectFailed
from async_repool.testing.scripted import ScriptedConnection, ScriptedConnector, error, never, ok, slow
from pool_kit import acquire_soon, now, number, open_pool, run_soon, turn

pytestmark = pytest.mark.virtual_time


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


async def test_a_replacement_that_fails_gives_its_place_back_and_the_caller_is_told_when_its_time_is_up() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, min_size=0, connection_ttl=10) as pool:
        async with pool.connect():
            pass
        await asyncio.sleep(20)
        refused = ConnectionRefusedError("refused")
        connector.connects.always(error(refused))
        with pytest.raises(ConnectFailed) as caught:
            await pool.acquire(timeout=3)
        connector.connects.always(ok())
        assert caught.value.__cause__ is refused
        assert isinstance(caught.value, ConnectionError)
        assert str(caught.value).startswith(
            "main: no connection to scripted:28015 after waiting 3.0 s, the last attempt"
        )
        assert "ConnectionRefusedError: refused" in str(caught.value)
        assert pool.stats().size == 0
        async with pool.connect() as lease:
            assert number(lease) == 2


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


async def test_a_connection_that_passed_its_check_serves_who_waits_if_another_check_still_runs() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=3, check=connector.check) as pool:
        leases = [await pool.acquire() for _ in range(3)]
        for lease in leases[:2]:
            await asyncio.sleep(1)
            pool.release(lease)
        passes, hangs = connector.checks.hold(), connector.checks.hold()
        first, second = [await acquire_soon(pool) for _ in range(2)]
        second.cancel()
        await asyncio.sleep(1)
        pool.release(leases[2])
        await turn()
        passes.release()
        await turn(10)
        assert first.done()
        hangs.release()
        pool.release(await first)


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


async def test_pings_go_on_for_ever() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=2, ping_interval=10):
        await asyncio.sleep(1005)
        assert connector.checks.started_total == 200


# ---- checks before queries


async def test_a_connection_is_checked_before_it_is_shared_and_not_for_each_query_on_it() -> None:
    connector = ScriptedConnector()
    checked: list[int] = []

    async def check(connection: ScriptedConnection) -> None:
        checked.append(connection.number)
        await asyncio.sleep(0.1)

    connector.queries.always(slow(1))
    async with open_pool(connector, pool_size=1, check=check) as pool:
        await asyncio.gather(*(pool.run("a query") for _ in range(20)))
        assert checked == [1]
        await pool.run("a query")
        assert checked == [1, 1]


async def test_a_connection_that_fails_its_check_carries_no_query() -> None:
    connector = ScriptedConnector()

    async def check(connection: ScriptedConnection) -> None:
        if connection.number == 1:
            raise OSError("unfit")

    async with open_pool(connector, pool_size=1, check=check) as pool:
        assert await pool.run("a query") == {}
        assert [len(connection.queries) for connection in connector.connections] == [0, 1]
        assert pool.stats().closed_by_reason == {"unfit": 1}


async def test_with_a_check_hook_queries_use_the_shared_connection_while_idle_ones_are_checked() -> None:
    connector = ScriptedConnector()
    connector.queries.always(slow(1))

    async def check(connection: ScriptedConnection) -> None:
        await asyncio.sleep(0.1 if connection.number == 2 else 3)  # the last one is on top

    async with open_pool(connector, pool_size=2, check=check) as pool:
        first = await run_soon(pool)
        await asyncio.sleep(0.5)
        began = now()
        await pool.run("a query")
        assert now() - began == pytest.approx(1)
        await first


async def test_a_connection_unused_for_check_idle_is_checked_before_it_is_shared() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, check_idle=60) as pool:
        await asyncio.sleep(59)
        await pool.run("a query")
        assert connector.checks.started_total == 0
        await asyncio.sleep(61)
        connector.checks.then(error(OSError("gone")))
        await pool.run("a query")
        assert [len(connection.queries) for connection in connector.connections] == [1, 1]


async def test_vanished_peers_cost_a_query_one_bounded_check() -> None:
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=3, check_idle=60, check_timeout=5) as pool:
        await asyncio.sleep(100)
        connector.checks.always(never())
        began = now()
        await pool.run("a query")
        assert now() - began == pytest.approx(5)
        assert len(connector.connections) > 3


async def test_a_connection_that_shared_queries_have_used_is_not_reset() -> None:
    reset: list[object] = []

    async def note(connection: object) -> None:
        reset.append(connection)

    async with open_pool(pool_size=1, reset=note) as pool:
        await pool.run("a query")
        async with pool.connect():
            assert reset == []
        await asyncio.sleep(1)
        assert len(reset) == 1
