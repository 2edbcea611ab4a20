"""Where the time goes: self time per function, sampled, of a turn of a pool and of a query.

A timer interrupts the loop many times a second and notes the function that runs. It slows nothing down in between, as
cProfile would; but Python looks at signals only at calls and jumps, so a microsecond may be booked on a neighbour. What
is done in C, such as a system call, is booked on the Python function that called it. Where the process was not at work
all the time since the sample before, as it waited for the server, the sample does not count.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import TypeAlias

from async_repool import AsyncConnectionPool

from .queries import Load, run_with
from .report import Table, microseconds
from .servers import Server
from .subjects import Subject
from .uncontended import CONNECTIONS

INTERVAL_SECONDS = 0.0005
BUSY_SHARE = 0.9

LEAST_SHARE = 0.01

LAYERS = {
    "async_repool": "the pool",
    "connectors": "its connections",
    "rethinkdb": "the driver's queries",
    "json": "JSON",
    "asyncio": "asyncio, with reading and writing sockets",
    "benchmarks": "the benchmark",
}
"""What lives in a folder. Of what is in none of them, the file is named."""

Samples: TypeAlias = Counter[CodeType]


def profile_turns(subject: Subject, seconds: float) -> tuple[float, Samples]:
    """Processor seconds per ``async with pool.connect()``, and what they went for."""
    return asyncio.run(_profile_turns(subject, seconds))


def profile_queries(load: Load, server: Server, seconds: float) -> tuple[float, Samples]:
    """Processor seconds of this process per ``pool.run()``, and what they went for."""
    return asyncio.run(_profile_queries(load, server, seconds))


def table(title: str, seconds: float, shares: dict[str, float]) -> Table:
    """The largest self time first."""
    result = Table(title, ("", "self time", "share"))
    for name, share in shares.items():
        if share >= LEAST_SHARE:
            result.rows.append((name, microseconds(share * seconds), f"{share:.0%}"))
    return result


def by_function(samples: Samples) -> dict[str, float]:
    """The share of each function, largest first."""
    return _shares(samples, lambda code: f"{Path(code.co_filename).name}: {code.co_qualname}")


def by_layer(samples: Samples) -> dict[str, float]:
    """The share of each folder of source files, largest first."""
    return _shares(samples, lambda code: LAYERS.get(Path(code.co_filename).parent.name, Path(code.co_filename).name))


def _shares(samples: Samples, name: Callable[[CodeType], str]) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for code, count in samples.items():
        counts[name(code)] += count
    return {name: count / counts.total() for name, count in counts.most_common()}


async def _profile_turns(subject: Subject, seconds: float) -> tuple[float, Samples]:
    turns = 0
    async with subject.open(CONNECTIONS) as connect:
        began, cpu_began = time.perf_counter(), time.process_time()
        with _sampling() as samples:
            while time.perf_counter() - began < seconds:
                for _ in range(1000):
                    async with connect():
                        pass
                turns += 1000
        return (time.process_time() - cpu_began) / turns, samples


async def _profile_queries(load: Load, server: Server, seconds: float) -> tuple[float, Samples]:
    queries, cpu_seconds = 0, 0.0
    samples: Samples = Counter()
    async with AsyncConnectionPool(server.arguments, load.connections) as pool:
        work = run_with(pool)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            asked = [[load.ask(n) for n in range(load.queries)] for _ in range(load.tasks)]
            cpu_began = time.process_time()
            with _sampling() as more:
                await asyncio.gather(*map(work, asked))
            cpu_seconds += time.process_time() - cpu_began
            queries += load.total
            samples += more
    return cpu_seconds / queries, samples


@contextmanager
def _sampling() -> Iterator[Samples]:
    samples: Samples = Counter()
    before, cpu_before = time.perf_counter(), time.process_time()

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal before, cpu_before
        now, cpu_now = time.perf_counter(), time.process_time()
        if frame is not None and cpu_now - cpu_before > BUSY_SHARE * (now - before):
            samples[frame.f_code] += 1
        before, cpu_before = now, cpu_now

    previous = signal.signal(signal.SIGALRM, note)
    signal.setitimer(signal.ITIMER_REAL, INTERVAL_SECONDS, INTERVAL_SECONDS)
    try:
        yield samples
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
