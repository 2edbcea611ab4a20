"""``async with pool.connect(): pass`` with an idle connection at hand, in seconds per turn."""

from __future__ import annotations

import asyncio
import time

from .subjects import QUEUE, Subject, filled_queue

CONNECTIONS = 3


def measure(subject: Subject, turns: int) -> float:
    """Seconds per turn. The bare queue's turn is ``await get()`` and ``await put()``, and nothing else."""
    return asyncio.run(_time_queue(turns) if subject.name == QUEUE else _time_pool(subject, turns))


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
