"""More workers than connections: 30 workers on 3 connections, each holding one for 5 ms, 5 times. Ideal: 0.25 s."""

from __future__ import annotations

import asyncio
import time

from .subjects import Subject

WORKERS = 30
CONNECTIONS = 3
HOLDS = 5
HOLD_SECONDS = 0.005
IDEAL_SECONDS = WORKERS * HOLDS * HOLD_SECONDS / CONNECTIONS


def measure(subject: Subject) -> float:
    """Seconds until all are done."""
    return asyncio.run(_measure(subject))


async def _measure(subject: Subject) -> float:
    async with subject.open(CONNECTIONS) as connect:

        async def work() -> None:
            for _ in range(HOLDS):
                async with connect():
                    await asyncio.sleep(HOLD_SECONDS)

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(WORKERS)))
        return time.perf_counter() - began
