"""Small helpers for tests that watch the event loop."""

from __future__ import annotations

import asyncio


def now() -> float:
    """The loop's time."""
    return asyncio.get_running_loop().time()


async def turns(number: int = 5) -> None:
    """Wait for so many turns of the loop."""
    for _ in range(number):
        await asyncio.sleep(0)
