"""What a pool and an idle slot of it weigh: bytes by tracemalloc, which hardly vary. The fake connection is some 50."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from dataclasses import dataclass

from .subjects import Subject

MANY = 1_001


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
