"""Where the time of one ``async with pool.connect()`` goes: self time per function, sampled.

A timer interrupts the loop many times a second and notes the function that runs. It slows nothing down between samples,
unlike cProfile; but Python looks at signals only at calls and jumps, so a microsecond may be booked on a neighbour.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from .subjects import Connect, Subject
from .uncontended import CONNECTIONS

INTERVAL_SECONDS = 0.0005


def profile(subject: Subject, seconds: float) -> tuple[float, list[tuple[str, float]]]:
    """Seconds per turn, and the share of each function in it, largest first."""
    return asyncio.run(_profile(subject, seconds))


async def _profile(subject: Subject, seconds: float) -> tuple[float, list[tuple[str, float]]]:
    samples: Counter[str] = Counter()

    def note(number: int, frame: FrameType | None) -> None:
        if frame is not None:
            code = frame.f_code
            samples[f"{Path(code.co_filename).name}: {code.co_qualname}"] += 1

    async with subject.open(CONNECTIONS) as connect:
        before = signal.signal(signal.SIGALRM, note)
        signal.setitimer(signal.ITIMER_REAL, INTERVAL_SECONDS, INTERVAL_SECONDS)
        try:
            turns, took = await _turn(connect, seconds)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    return took / turns, [(name, n / samples.total()) for name, n in samples.most_common()]


async def _turn(connect: Connect, seconds: float) -> tuple[int, float]:
    began = time.perf_counter()
    for turns in itertools.count(1000, 1000):
        for _ in range(1000):
            async with connect():
                pass
        if (took := time.perf_counter() - began) >= seconds:
            return turns, took
    raise AssertionError
