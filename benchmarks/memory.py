"""What a pool, an idle slot of it and a connection weigh: bytes by tracemalloc, which hardly vary."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from async_repool import AsyncConnectionPool
from async_repool.connectors.rethinkdb import RethinkDBConnector

from .servers import Server, r
from .subjects import Subject

MANY = 1_001
"""Slots, with fake connections of some 50 bytes."""


@dataclass(frozen=True)
class Weight:
    """Bytes."""

    pool: float
    """A pool that is open, with its tasks, and the first slot."""
    slot: float
    """Each slot more, with its idle fake connection."""


def weigh(subject: Subject) -> Weight:
    """Open a pool of 1 and one of :data:`MANY`, and compare."""
    asyncio.run(_weigh(subject, 1))  # caches and imports
    one, many = asyncio.run(_weigh(subject, 1)), asyncio.run(_weigh(subject, MANY))
    return Weight(pool=one, slot=(many - one) / (MANY - 1))


async def _weigh(subject: Subject, size: int) -> float:
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        async with subject.open(size) as _connect:
            gc.collect()
            return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------------- on a server


@dataclass(frozen=True)
class OnServer:
    """Bytes, of things that are open and idle, with their transports and buffers as far as Python allocates them."""

    connection: float
    driver_connection: float
    pool: float
    """Of :data:`POOL_SIZE` connections, which are counted in."""


CONNECTIONS = 100
POOL_SIZE = 3


def weigh_on(server: Server) -> OnServer:
    """Open many connections of each kind, then a pool, and look."""
    return OnServer(
        connection=asyncio.run(_weigh_many(RethinkDBConnector(**server.arguments).connect)),
        driver_connection=asyncio.run(_weigh_many(partial(r.connect, **server.arguments))),
        pool=asyncio.run(_weigh_pool(server)),
    )


async def _weigh_many(connect: Callable[[], Awaitable[Any]]) -> float:
    connections = [await connect()]  # caches and imports
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        connections += [await connect() for _ in range(CONNECTIONS)]
        await asyncio.sleep(0)
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - before) / CONNECTIONS
    finally:
        tracemalloc.stop()
        for connection in connections:
            await connection.close(noreply_wait=False)


async def _weigh_pool(server: Server) -> float:
    async with AsyncConnectionPool(server.arguments, POOL_SIZE):
        pass  # caches and imports
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        async with AsyncConnectionPool(server.arguments, POOL_SIZE):
            gc.collect()
            return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
