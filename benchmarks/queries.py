"""Queries on a server: ``pool.run()``, a lease per query, the bare driver and the floor, at the same work.

One measurement is one event loop: connections are opened and warmed up, queries are made, and only then the clock runs,
with the collector off. Each query object is run once. The last answers are looked at after the clock has stopped.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from async_repool import AsyncConnectionPool

from . import floor
from .servers import Server, r

RUN = "pool.run()"
LEASE = "a lease per query"
DRIVER = "bare driver"
FLOOR = "floor"
DOZING_FLOOR = "floor, reading every 0.2 ms"

WARM_UP = 1
"""Queries of each task before the clock runs."""

Work: TypeAlias = Callable[[list[Any]], Coroutine[Any, Any, Any]]
"""What one task does: runs queries one after another, and returns the last answer."""

LoopFactory: TypeAlias = Callable[[], asyncio.AbstractEventLoop]


@dataclass(frozen=True)
class Load:
    """What is asked, and by how many at once."""

    title: str
    tasks: int
    queries: int
    """Of each task."""
    connections: int
    ask: Callable[[int], Any]
    """Makes query number n."""
    is_right: Callable[[int, Any], bool]
    """Whether this is the answer to query number n."""
    is_sequence: bool = False

    @property
    def total(self) -> int:
        return self.tasks * self.queries


@dataclass
class Cost:
    """Of one query."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Processor time of this process, which has no other thread that works."""


class WrongAnswer(Exception):
    """Whatever was measured is worth nothing."""


def ones(tasks: int, queries: int, connections: int) -> Load:
    """``r.expr(1)``: all work and no data."""
    title = f"r.expr(1), {tasks} task{'s' * (tasks > 1)}"
    return Load(title, tasks, queries, connections, lambda n: r.expr(1), lambda n, answer: answer == 1)


# ---------------------------------------------------------------------- the sides


@asynccontextmanager
async def _run(server: Server, load: Load) -> AsyncIterator[list[Work]]:
    async with AsyncConnectionPool(server.arguments, load.connections) as pool:
        yield [run_with(pool)] * load.tasks


def run_with(pool: AsyncConnectionPool) -> Work:
    async def work(queries: list[Any]) -> Any:
        answer = None
        for query in queries:
            answer = await pool.run(query)
        return answer

    return work


@asynccontextmanager
async def _lease(server: Server, load: Load) -> AsyncIterator[list[Work]]:
    async with AsyncConnectionPool(server.arguments, load.connections) as pool:

        async def work(queries: list[Any]) -> Any:
            answer = None
            for query in queries:
                async with pool.connect() as conn:
                    answer = await query.run(conn)
            return answer

        yield [work] * load.tasks


@asynccontextmanager
async def _driver(server: Server, load: Load) -> AsyncIterator[list[Work]]:
    work_on = _rows_from if load.is_sequence else _values_from
    async with driver_connections(server, load.connections) as connections:
        yield [work_on(connections[task % load.connections]) for task in range(load.tasks)]


def _values_from(conn: Any) -> Work:
    async def work(queries: list[Any]) -> Any:
        answer = None
        for query in queries:
            answer = await query.run(conn)
        return answer

    return work


def _rows_from(conn: Any) -> Work:
    async def work(queries: list[Any]) -> Any:
        answer = None
        for query in queries:
            answer = [row async for row in await query.run(conn)]
        return answer

    return work


@asynccontextmanager
async def driver_connections(server: Server, count: int) -> AsyncIterator[list[Any]]:
    """Connections of the bare driver."""
    connections: list[Any] = []
    try:
        for _ in range(count):
            connections.append(await r.connect(**server.arguments))
        yield connections
    finally:
        for conn in connections:
            await conn.close(noreply_wait=False)


_SIDES = {RUN: _run, LEASE: _lease, DRIVER: _driver}


# ---------------------------------------------------------------------- measuring


def measure(side: str, load: Load, server: Server, new_loop: LoopFactory | None = None) -> Cost:
    """What a query of this load costs. Raises :class:`WrongAnswer`."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        if side in (FLOOR, DOZING_FLOOR):
            return runner.run(_measure_floor(load, server, is_dozing=side == DOZING_FLOOR))
        return runner.run(_measure(side, load, server))


async def _measure(side: str, load: Load, server: Server) -> Cost:
    async with _SIDES[side](server, load) as works:
        return await time_load(works, load)


async def time_load(works: list[Work], load: Load) -> Cost:
    """Warm up, then let each of ``works`` do its part of the load, all at once."""
    await asyncio.gather(*(work([load.ask(n) for n in range(WARM_UP)]) for work in works))
    size = load.queries
    asked = [[load.ask(n) for n in range(task * size, task * size + size)] for task in range(load.tasks)]
    with stopwatch(load.total) as cost:
        answers = await asyncio.gather(*map(_call, works, asked))
    for task, answer in enumerate(answers):
        if not load.is_right(task * size + size - 1, answer):
            raise WrongAnswer(f"{load.title}: {answer!r:.200}")
    return cost


def _call(work: Work, queries: list[Any]) -> Coroutine[Any, Any, Any]:
    return work(queries)


@contextmanager
def stopwatch(count: int) -> Iterator[Cost]:
    """The cost of each of ``count`` things, with the collector off: it would run in one side and not in the other."""
    cost = Cost()
    gc.collect()
    gc.disable()
    try:
        cpu_began, began = time.process_time(), time.perf_counter()
        yield cost
        cost.seconds = (time.perf_counter() - began) / count
        cost.cpu_seconds = (time.process_time() - cpu_began) / count
    finally:
        gc.enable()


async def _measure_floor(load: Load, server: Server, *, is_dozing: bool) -> Cost:
    count = load.total // load.connections
    tasks = [len(range(number, load.tasks, load.connections)) for number in range(load.connections)]
    clients = [await floor.connect(server.arguments, floor.frames(load.ask, count), in_flight) for in_flight in tasks]
    try:
        with stopwatch(count * load.connections) as cost:
            await floor.run(clients, is_dozing=is_dozing)
    finally:
        for client in clients:
            client.close()
    return cost
