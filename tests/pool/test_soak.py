"""Hours of a busy pool's life at random, in seconds: virtual time, scripted connections, several seeds.

Users come and go: they lease connections, run queries beside each other, read streams and follow feeds; are cancelled,
lose patience, drop leases and leave cursors open. Meanwhile connections die, the server is away for minutes and hours,
everything is slow, fails or never ends now and then, and the owner drains, closes and opens the pool. All is judged as
it happens; at the end everything has to be there.
"""

from __future__ import annotations

import gc
import logging
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from async_repool.testing import virtual_clock
from soak_judge import HOUR, now
from soak_users import Soak

MOST_STEPS = 1_000_000  # of the loop, in one run: ten times as many as it takes

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "shrinking": {"pool_size": 5, "min_size": 1, "max_idle": 120, "connection_ttl": 1800, "max_in_flight": 2},
    "from nothing": {"pool_size": 4, "min_size": 0, "max_idle": 0, "ping_interval": 30, "check_idle": 20},
    "with hooks": {"pool_size": 3, "min_size": 1, "hooks": True, "connection_ttl": 600},
    "few may wait": {"debug": True, "pool_size": 1, "max_waiting": 3, "check_idle": 0, "close_timeout": 0},
    "one at a time": {"pool_size": 2, "max_in_flight": 1},
    "for ever": {
        "pool_size": 6,
        "min_size": 2,
        "max_idle": None,
        "connection_ttl": 0,
        "ping_interval": 60,
        "check_idle": 5,
        "max_feed_connections": 1,
        "leak_threshold": 30,
    },
}


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """The pool draws from the common generator."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


async def soak(seed: int, options: dict[str, Any], seconds: float) -> Soak:
    this = Soak(seed, options)
    try:
        await this.pool.init_pool()
        await this.live(seconds)
        await this.close(timeout=10)
        this.connector.assert_nothing_left()
    except BaseException as problem:
        problem.add_note(f"at {now():.3f} s of seed {seed}; {this.pool!r}; {dict(this.outcomes)}")
        raise
    return this


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[str, Counter[str]]]:
    """What has come to pass, by options. All of them together must have tried everything."""
    outcomes: dict[str, Counter[str]] = {}
    yield outcomes
    if outcomes.keys() == OPTIONS.keys():
        together = sum(outcomes.values(), Counter[str]())
        assert not [what for what in TO_BE_SEEN if not together[what]], f"never came to pass: {together}"


TO_BE_SEEN = [
    *("a query was answered", "a query failed", "a query was answered beside others", "a query was refused"),
    *("a stream was read", "a stream was left", "a change was seen", "a gap was told", "a feed was refused"),
    *("cancelled", "drained", "closed"),
    *("PoolTimeout", "ConnectFailed", "PoolClosed", "TooManyWaiters", "FeedLaneFull", "ConnectionLost", "QueryTimeout"),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_whatever_happens_for_hours_everybody_gets_a_right_answer_and_nothing_is_lost(
    options: str,
    seen: dict[str, Counter[str]],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    seed = list(OPTIONS).index(options)
    with repeatable(seed):
        this = virtual_clock.run(soak(seed, OPTIONS[options], 5 * HOUR), max_steps=MOST_STEPS)
    seen[options] = this.outcomes
    told = [record.getMessage() for record in caplog.records]
    assert not [line for line in told if "deadlock" in line], "nobody here holds one lease and waits for another"
    for what in (
        "a query was answered",
        "a query was answered beside others",
        "a stream was read",
        "a change was seen",
    ):
        assert this.outcomes[what] > 5, f"the soak tests too little: {this.outcomes}"
    with capsys.disabled():
        queries = this.outcomes["a query was answered beside others"]
        print(f" [{this.granted_total} leases, {queries} queries, {this.outcomes['a gap was told']} gaps]", end="")


def test_memory_is_flat() -> None:
    seconds = HOUR

    async def scenario() -> int:
        this = Soak(1, OPTIONS["shrinking"])
        await this.pool.init_pool()
        await this.live(seconds)
        before = measure(this)
        await this.live(seconds)
        after = measure(this)
        await this.close(timeout=10)
        return after - before

    def measure(this: Soak) -> int:
        this.forget_records()
        gc.collect()
        ours = (tracemalloc.Filter(True, "*/async_repool/*"), tracemalloc.Filter(False, "*/async_repool/testing/*"))
        return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(ours).traces)

    tracemalloc.start()
    try:
        with repeatable(1):
            grown = virtual_clock.run(scenario(), max_steps=MOST_STEPS)
    finally:
        tracemalloc.stop()
    assert grown < 50_000, f"{grown} bytes more after the second half"
