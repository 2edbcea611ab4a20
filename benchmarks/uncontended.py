"""``async with pool.connect(): pass`` with an idle connection at hand, in seconds per turn; and the same by hand."""

from __future__ import annotations

import asyncio
import time

from async_repool import AsyncConnectionPool

from .servers import Server
from .subjects import QUEUE, FakeConnector, Subject, filled_queue

CONNECTIONS = 3


def measure(subject: Subject, turns: int) -> float:
    """Seconds per turn. The bare queue's turn is ``await get()`` and ``await put()``, and nothing else."""
    return asyncio.run(_time_queue(turns) if subject.name == QUEUE else _time_pool(subject, turns))


def measure_acquire(turns: int, server: Server | None = None) -> float:
    """Seconds per ``acquire()`` and ``release()``, on connections to this server; None: on fake ones."""
    return asyncio.run(_time_acquire(turns, server))


async def _time_pool(subject: Subject, turns: int) -> float:
    async with subject.open(CONNECTIONS) as connect:
        began = time.perf_counter()
        for _ in range(turns):
            async with connect():
                pass
        return (time.perf_counter() - began) / turns


async def _time_queue(turns: int) -> float:
    queue = filled_queue(CONNECTIONS)
    began = time.perf_counter()
    for _ in range(turns):
        item = await queue.get()
        await queue.put(item)
    return (time.perf_counter() - began) / turns


async def _time_acquire(turns: int, server: Server | None) -> float:
    async with AsyncConnectionPool(FakeConnector() if server is None else server.arguments, CONNECTIONS) as pool:
        began = time.perf_counter()
        for _ in range(turns):
            pool.release(await pool.acquire())
        return (time.perf_counter() - began) / turns
