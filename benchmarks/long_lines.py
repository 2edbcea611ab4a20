"""What a hand-over costs, and leaving the line, when 10, 1,000 or 10,000 wait for one connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from .subjects import Connect, Subject

TURNS_TO_SETTLE = 20
"""Turns of the event loop after which every task that was just made stands in line, in every pool measured here."""

GIVE_UP_SECONDS = 10


def measure_hand_over(subject: Subject, line: int, hand_overs: int) -> float:
    """Seconds per hand-over. Whoever is served goes to the end of the line, which so keeps its length."""
    return asyncio.run(_measure_hand_over(subject, line, hand_overs))


def measure_cancel(subject: Subject, line: int, cancellations: int) -> float:
    """Seconds per waiter, where all are cancelled at once, in as many lines as it takes."""
    return asyncio.run(_measure_cancel(subject, line, max(1, cancellations // line)))


async def _measure_hand_over(subject: Subject, line: int, hand_overs: int) -> float:
    served = 0
    enough = asyncio.Event()

    async def come_again(connect: Connect) -> None:
        nonlocal served
        while not enough.is_set():
            async with connect():
                served += 1
                if served == hand_overs:
                    enough.set()

    async with subject.open(1) as connect:
        async with _line(connect, come_again, line) as waiting:
            began = time.perf_counter()
        await enough.wait()
        seconds = time.perf_counter() - began
        await _cancel(waiting)
    return seconds / hand_overs


async def _measure_cancel(subject: Subject, line: int, times: int) -> float:
    async def come(connect: Connect) -> None:
        async with connect():
            pass

    seconds = 0.0
    async with subject.open(1) as connect:
        for _ in range(times):
            async with _line(connect, come, line) as waiting:
                began = time.perf_counter()
                await _cancel(waiting)
                seconds += time.perf_counter() - began
    return seconds / (line * times)


@asynccontextmanager
async def _line(
    connect: Connect, work: Callable[[Connect], Coroutine[Any, Any, None]], length: int
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Hold the one connection while ``length`` tasks stand in line for it."""
    async with connect():
        waiting = [asyncio.create_task(work(connect)) for _ in range(length)]
        for _ in range(TURNS_TO_SETTLE):
            await asyncio.sleep(0)
        yield waiting


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(
        tasks, timeout=GIVE_UP_SECONDS
    )  # some pools swallow a cancellation, or lose the connection by it
