"""Many ``run()`` at once, and queries beside many feeds, on one pool: what the number of others costs each."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from async_repool import AsyncConnectionPool

from .queries import RUN, Cost, Load, Work, WrongAnswer, driver_connections, run_with, stopwatch, time_load
from .servers import Server, r

CONNECTIONS = 3


# ---------------------------------------------------------------------- at once


def measure_at_once(side: str, at_once: int, total: int, server: Server) -> Cost:
    """What each of ``total`` queries costs, so many of them at once. Every answer is looked at."""
    return asyncio.run(_measure_at_once(side, at_once, total // at_once, server))


def weigh_at_once(side: str, at_once: int, server: Server) -> float:
    """Bytes that each of so many queries at once takes at the peak, with its task and its place in line."""
    asyncio.run(_weigh_at_once(side, 10, server))  # caches and imports
    return asyncio.run(_weigh_at_once(side, at_once, server))


@asynccontextmanager
async def _works(side: str, server: Server) -> AsyncIterator[list[Work]]:
    if side == RUN:
        async with AsyncConnectionPool(server.arguments, CONNECTIONS) as pool:
            yield [run_with(pool)]
    else:
        async with driver_connections(server, CONNECTIONS) as connections:
            yield [_ask(conn) for conn in connections]


def _ask(conn: Any) -> Work:
    async def work(queries: list[Any]) -> Any:
        answer = None
        for query in queries:
            answer = await query.run(conn)
        return answer

    return work


async def _measure_at_once(side: str, at_once: int, times: int, server: Server) -> Cost:
    async with _works(side, server) as works:
        await _all_at_once(works, at_once)
        with stopwatch(at_once * times) as cost:
            for _ in range(times):
                await _all_at_once(works, at_once)
    return cost


async def _weigh_at_once(side: str, at_once: int, server: Server) -> float:
    async with _works(side, server) as works:
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            await _all_at_once(works, at_once)
            return (tracemalloc.get_traced_memory()[1] - before) / at_once
        finally:
            tracemalloc.stop()


async def _all_at_once(works: list[Work], count: int) -> None:
    answers = await asyncio.gather(*(works[n % len(works)]([r.expr(n)]) for n in range(count)))
    if answers != list(range(count)):
        raise WrongAnswer(f"{count:,} at once: {sum(a != n for n, a in enumerate(answers))} answers are not their own")


# ---------------------------------------------------------------------- beside feeds


def measure_beside(feeds: int, load: Load, database: str, server: Server, deliveries: list[float]) -> Cost:
    """What a query costs beside so many open feeds on the same pool.

    Then one change is written, which has to reach each of them: how long that took is appended to ``deliveries``.
    """
    return asyncio.run(_measure_beside(feeds, load, r.db(database).table("one").get(0), server, deliveries))


async def _measure_beside(feeds: int, load: Load, row: Any, server: Server, deliveries: list[float]) -> Cost:
    opened, told = asyncio.Semaphore(0), asyncio.Semaphore(0)
    mark = uuid.uuid4().hex

    async def follow() -> None:
        async with pool.changes(row.changes(include_initial=True)) as changes:
            await anext(changes)
            opened.release()
            change = await anext(changes)
            if change["new_val"]["mark"] != mark:
                raise WrongAnswer(f"a feed told of {change!r:.200}")
            told.release()

    async with AsyncConnectionPool(server.arguments, load.connections) as pool, asyncio.TaskGroup() as group:
        for _ in range(feeds):
            group.create_task(follow())
        for _ in range(feeds):
            await opened.acquire()
        cost = await time_load([run_with(pool)] * load.tasks, load)
        began = time.perf_counter()
        await pool.run(row.update({"mark": mark}))
        for _ in range(feeds):
            await told.acquire()
        if feeds:
            deliveries.append(time.perf_counter() - began)
    return cost
