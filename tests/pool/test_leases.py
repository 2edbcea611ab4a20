"""Leases: acquired, used as the connection, released once, and never used again."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import pytest

from async_repool import Lease, LeaseError, PoolException, PoolTimeout
from async_repool.testing.scripted import ScriptedConnection, ScriptedConnector
from pool_kit import acquire_soon, number, open_pool

pytestmark = pytest.mark.virtual_time


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


async def test_a_connection_that_its_user_closed_is_replaced() -> None:
    async with open_pool(pool_size=1) as pool:
        async with pool.connect() as lease:
            await lease.close()
        async with pool.connect() as lease:
            assert number(lease) == 2
            assert lease.is_open()


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


async def test_the_repr_of_a_lease_tells_whether_it_is_live() -> None:
    async with open_pool(pool_size=1) as pool:
        lease = await pool.acquire()
        assert repr(lease) == "<Lease of pool 'main' on <ScriptedConnection 1, open>>"
        pool.release(lease)
        assert repr(lease) == "<Lease of pool 'main', released>"
