"""What the tests of cancellation at every step share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from async_repool import AsyncConnectionPool
from async_repool.testing.scripted import ScriptedConnector, ok
from async_repool.testing.virtual_clock import cancel_at_every_step

Use = Callable[[AsyncConnectionPool, ScriptedConnector], Awaitable[None]]


class Others:
    """Users beside the one that is cancelled. Whatever becomes of that one, each of them ends as it should."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def come(self, *visits: Coroutine[Any, Any, None]) -> None:
        self._tasks += [asyncio.create_task(visit) for visit in visits]

    async def have_been_served(self) -> None:
        tasks, self._tasks = self._tasks, []
        async with asyncio.timeout(1000):
            for task in tasks:
                await task


def survives(
    use: Use,
    connector: Callable[[], ScriptedConnector] = ScriptedConnector,
    *,
    is_closed: bool = False,
    others: Others | None = None,
    **options: Any,
) -> int:
    """Cancel the opening of a pool and its ``use`` at each step; returns at how many.

    The pool stays open afterwards, so that no close hides what was lost; except where the use itself closes it.
    """
    made: list[tuple[AsyncConnectionPool, ScriptedConnector]] = []
    opened: list[AsyncConnectionPool] = []

    async def scenario() -> None:
        this = connector()
        pool = AsyncConnectionPool(this, name="main", **options)
        made.append((pool, this))
        await pool.init_pool()
        opened.append(pool)
        await use(pool, this)

    async def after() -> None:
        if not made:
            return  # cancelled before its first step
        pool, this = made[-1]
        if pool not in opened:
            this.assert_nothing_left()
            return
        for verb in (this.connects, this.checks, this.closes, this.queries):
            verb.always(ok())
        await asyncio.sleep(100)  # every bounded wait is over
        if is_closed:
            await pool.close()
        if others is not None:
            await others.have_been_served()
        if is_closed:
            this.assert_nothing_left()
        if repr(pool).endswith("closed>"):
            await pool.init_pool()
        assert this.open_streams == [], "a stream was left open"
        assert (this.queries.in_progress, this.streams.in_progress) == (0, 0), "a query goes on that nobody waits for"
        await all_capacity_is_there(pool)
        await pool.close()
        this.assert_nothing_left()

    return cancel_at_every_step(scenario, after=after)


async def all_capacity_is_there(pool: AsyncConnectionPool) -> None:
    stats = pool.stats()
    assert (stats.leased, stats.waiting, stats.connecting, stats.closing) == (0, 0, 0, 0), stats
    assert (stats.shared, stats.queries_in_flight, stats.queries_waiting) == (0, 0, 0), stats
    assert (stats.feeds, stats.changefeeds, stats.retired) == (0, 0, 0), stats
    leases = [await pool.acquire(timeout=60) for _ in range(stats.max_size)]
    assert all(lease.is_open() for lease in leases)
    assert len({lease.number for lease in leases}) == stats.max_size
    assert pool.stats().size == stats.max_size
    for lease in leases:
        pool.release(lease)


async def hook(connection: object) -> None:
    await asyncio.sleep(0.1)


class Refused(Exception):
    """What the server says against a query."""


def later(seconds: float, callback: Callable[..., object], *arguments: object) -> None:
    asyncio.get_running_loop().call_later(seconds, callback, *arguments)


def lose(connector: ScriptedConnector) -> None:
    """Every connection ends; what is asked from now on is answered."""
    connector.queries.always(ok())
    for connection in connector.open_connections:
        connector.drop(connection)
