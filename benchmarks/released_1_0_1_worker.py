"""Measures async-repool 1.0.1, in a process and an environment of its own: both releases have the same import name.

Run by ``released_1_0_1.py`` with the Python of that environment. Knows nothing of this checkout. One JSON object per
line on stdin says what to measure, one per line on stdout answers.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import async_repool
from async_repool import async_pool


class FakeConnection:
    """As much of a driver's connection as 1.0.1 asks for."""

    def is_open(self) -> bool:
        return True

    async def close(self, noreply_wait: bool = True) -> None:
        pass


async def fake_connect(**_: Any) -> FakeConnection:
    return FakeConnection()


async def open_pool(size: int) -> Any:
    pool: Any = async_repool.AsyncConnectionPool({}, pool_size=size)
    await pool.init_pool()
    return pool


async def uncontended(turns: int) -> float:
    """Seconds per turn, as ``uncontended.py`` measures it."""
    pool = await open_pool(3)
    connect = pool.connect
    began = time.perf_counter()
    for _ in range(turns):
        async with connect():
            pass
    return (time.perf_counter() - began) / turns


async def contended(workers: int, connections: int, holds: int, hold_seconds: float) -> float:
    """Seconds until all are done, as ``contended.py`` measures it."""
    pool = await open_pool(connections)

    async def work() -> None:
        for _ in range(holds):
            async with pool.connect():
                await asyncio.sleep(hold_seconds)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(workers)))
    return time.perf_counter() - began


def main() -> None:
    async_pool.R.connect = fake_connect
    measures: dict[str, Any] = {"uncontended": uncontended, "contended": contended}
    for line in sys.stdin:
        request = json.loads(line)
        measure = measures[request.pop("measure")]
        print(json.dumps({"seconds": asyncio.run(measure(**request))}), flush=True)


if __name__ == "__main__":
    main()
