"""Days of a busy pool's life at random, in seconds: virtual time, scripted connections, several seeds.

Users come and go, are cancelled, lose patience, drop leases, leave cursors open and follow feeds. Meanwhile connections
die, the server is away for minutes and hours, everything is slow, fails or never ends now and then, and the owner
drains, closes and opens the pool. All is judged as it happens; at the end everything has to be there.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import random
import re
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, ConnectFailed, PoolClosed, PoolException, PoolTimeout, TooManyWaiters
from async_repool.testing import virtual_clock
from async_repool.testing.scripted import (
    Behaviour,
    ScriptedConnection,
    ScriptedConnector,
    ScriptedStream,
    Verb,
    error,
    never,
    ok,
    slow,
)

HOUR = 3600.0
DAY = 24 * HOUR
CONFIGURE_SECONDS = 0.1


class Scripted(OSError):
    """What the script lets go wrong; so it is the cause of whatever users are told about connecting."""


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "shrinking": {"pool_size": 5, "min_size": 1, "max_idle": 120, "connection_ttl": 1800},
    "from nothing": {"pool_size": 4, "min_size": 0, "max_idle": 0, "ping_interval": 30, "check_idle": 20},
    "with hooks": {"pool_size": 3, "min_size": 1, "hooks": True, "connection_ttl": 600},
    "few may wait": {"debug": True, "pool_size": 1, "max_waiting": 3, "check_idle": 0, "close_timeout": 0},
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


class Refused(Exception):
    """A user was told no, and it was judged to be right."""


class Soak:
    """One pool, those who use it, and the weather."""

    def __init__(self, seed: int, options: dict[str, Any]) -> None:
        self.random = random.Random(seed)
        self.connector = ScriptedConnector(connect_timeout=5)
        self.options = {"name": "main", "acquire_timeout": 20, "check_timeout": 2, "cursor_grace": 60, **options}
        self.has_hooks = self.options.pop("hooks", False)
        if self.has_hooks:
            self.options |= {"configure": self.configure, "check": self.connector.check, "reset": self.reset}
        self.pool = AsyncConnectionPool(self.connector, **self.options)
        self.arrivals = itertools.count()
        self.in_line: dict[int, None] = {}
        self.overtaken_at: dict[int, float] = {}  # who came earlier, but somebody later was served before
        self.held: dict[int, bool] = {}  # number of the connection in a user's hands: whether it serves a feed
        self.dropping = 0  # leases dropped that the pool may not have taken back yet
        self.streams: list[ScriptedStream] = []  # open as far as their readers know
        self.granted_total = 0
        self.outcomes: Counter[str] = Counter()
        self.drained_at = float("-inf")
        self.is_closed = False
        self.reopened_at = 0.0
        self.totals: dict[str, float] = {}

    # ---- hooks

    async def configure(self, connection: Any) -> None:
        await asyncio.sleep(CONFIGURE_SECONDS)
        if self.random.random() < 0.01:
            raise Scripted("configure failed")

    async def reset(self, connection: Any) -> None:
        await asyncio.sleep(0.01)
        if self.random.random() < 0.01:
            raise Scripted("reset failed")

    # ---- what is always true

    def check_stats(self) -> None:
        stats = self.pool.stats()
        assert stats.size == stats.idle + stats.leased + stats.connecting + stats.closing <= stats.max_size
        assert stats.feeds <= self.options.get("max_feed_connections", stats.max_size)
        assert stats.closed_total == sum(stats.closed_by_reason.values())
        # A connecting slot holds a connection while that is checked or reset, and none while it is opened.
        least = stats.idle + stats.leased + stats.closing + stats.feeds + stats.retired
        assert least <= stats.opened_total - stats.closed_total <= least + stats.connecting
        totals = {name: getattr(stats, name) for name in vars(stats) if name.endswith("_total")}
        assert all(totals[name] >= self.totals.get(name, 0) for name in totals if name != "acquired_total")
        self.totals = totals
        assert stats.waiting <= len(self.in_line)
        assert stats.timeouts_total >= self.outcomes["PoolTimeout"]
        assert stats.refused_total == self.outcomes["TooManyWaiters"]
        if not self.is_closed:
            assert len(self.connector.open_connections) <= stats.size + stats.feeds + stats.retired
            mine = sum(not is_feed for number, is_feed in self.held.items() if not self.was_ended_by_pool(number))
            assert mine <= stats.leased <= mine + len(self.in_line) + self.dropping

    def connection(self, number: int) -> ScriptedConnection:
        return self.connector.connections[number - 1]

    def was_ended_by_pool(self, number: int) -> bool:
        return self.connection(number).ended_by in ("close", "abort")

    # ---- acquire and release, judged

    async def take(self, acquire: Callable[[], Awaitable[Any]], timeout: float, *, is_feed: bool = False) -> Any:
        """A lease; or :class:`Refused`."""
        arrival, began = next(self.arrivals), now()
        self.in_line[arrival] = None
        try:
            lease = await acquire()
        except PoolException as refusal:
            self.judge(refusal, began, timeout)
            self.outcomes[type(refusal).__name__] += 1
            raise Refused from None
        finally:
            del self.in_line[arrival]
        time = now()
        self.granted_total += 1
        overtaken_at = self.overtaken_at.pop(arrival, time)
        assert overtaken_at == time, "somebody who came later was served before"
        for earlier in self.in_line:
            if earlier > arrival:
                break
            self.overtaken_at.setdefault(earlier, time)  # right, unless that one is served later
        number = lease.number
        assert number not in self.held, "leased to two users at once"
        connection = self.connection(number)
        assert connection.lost_at in (None, time), "leased after it was lost"
        assert connection.ended_at in (None, time), "leased after it was ended"
        assert not connection.opened_at < self.drained_at < time, "leased after it was drained"
        ttl = self.options.get("connection_ttl", HOUR) or float("inf")
        assert time <= connection.opened_at + CONFIGURE_SECONDS * self.has_hooks + ttl, "leased after it expired"
        self.held[number] = is_feed
        self.check_stats()
        return lease

    def judge(self, refusal: PoolException, began: float, timeout: float) -> None:
        """Whether there was a reason to refuse, and whether it was told."""
        waited, text = now() - began, str(refusal)
        if isinstance(refusal, ConnectFailed):
            self.judge_cause(refusal)
            assert f"scripted:28015 after waiting {waited:.1f} s, the last attempt failed: " in text
            assert waited <= timeout + 1e-6
        elif isinstance(refusal, PoolTimeout):
            assert type(refusal) is PoolTimeout, "nobody here holds one lease and waits for another"
            assert waited == pytest.approx(timeout)
            assert f"scripted:28015 after waiting {waited:.1f} s" in text
            counts = re.search(r"(\d+) of (\d+) leased, (\d+) idle, (\d+) connecting, (\d+) closing", text)
            assert counts is not None
            leased, size, idle, connecting, closing = map(int, counts.groups())
            assert not idle or self.has_hooks, "idle ones were there"
            assert connecting or leased + closing == size, "nothing was done for this caller"
        elif isinstance(refusal, TooManyWaiters):
            assert self.options["max_waiting"] <= self.pool.stats().waiting
            assert waited == 0
        elif isinstance(refusal, PoolClosed):
            assert self.is_closed or self.reopened_at >= began
        else:
            self.judge_lane_full(refusal)

    def judge_cause(self, refusal: ConnectFailed) -> None:
        assert isinstance(refusal.__cause__, (Scripted, TimeoutError, ConnectionResetError)), refusal.__cause__
        assert type(refusal.__cause__).__name__ in str(refusal)

    def judge_lost(self, connection: ScriptedConnection) -> None:
        assert connection.is_lost or connection.ended_by, "a query failed on a connection that was well"

    def judge_lane_full(self, refusal: PoolException) -> None:
        assert type(refusal) is PoolException
        assert "serve feeds" in str(refusal)

    def give(self, lease: Any) -> None:
        del self.held[lease.number]
        self.pool.release(lease)

    async def query(self, lease: Any) -> None:
        n = self.random.randrange(1000)
        number = lease.number
        try:
            assert await lease._start("term", n=n) == {"n": n}
        except ConnectionResetError:
            self.judge_lost(self.connection(number))
            self.outcomes["a query failed"] += 1
        else:
            self.outcomes["a query was answered"] += 1

    # ---- users

    async def user(self) -> None:
        draw = self.random
        visits: list[Callable[[], Awaitable[None]]] = [
            *([self.visit] * 12),
            self.visit_in_a_block,
            self.work_without_a_pause,
            self.lose_patience,
            self.be_cancelled,
            self.be_cancelled,
            self.close_under_the_lease,
            self.drop_a_lease,
            self.leave_a_cursor,
            self.read_a_cursor,
            self.follow_a_feed,
            self.turn_into_a_feed,
        ]
        while True:
            await asyncio.sleep(draw.expovariate(1 / 60))
            try:
                await draw.choice(visits)()
            except Refused:
                await asyncio.sleep(draw.expovariate(1 / 60))

    async def hold(self, lease: Any) -> None:
        await self.query(lease)
        await asyncio.sleep(self.random.choice([0, 0.01, self.random.expovariate(1 / 20)]))
        await self.query(lease)

    async def acquire(self, timeout: float = 20) -> Any:
        return await self.take(lambda: self.pool.acquire(timeout=timeout), timeout)

    async def visit(self) -> None:
        lease = await self.acquire()
        try:
            await self.hold(lease)
        finally:
            self.give(lease)

    async def work_without_a_pause(self) -> None:
        """Acquire again at once, in a tight loop, while others wait."""
        for _ in range(20):
            await self.visit_in_a_block()

    async def visit_in_a_block(self) -> None:
        context = self.pool.connect()
        lease = await self.take(context.__aenter__, 20)
        try:
            await self.hold(lease)
        finally:
            del self.held[lease.number]
            await context.__aexit__(None, None, None)

    async def lose_patience(self) -> None:
        lease = await self.acquire(timeout=self.random.choice([0, 0.001, 1]))
        self.give(lease)

    async def be_cancelled(self) -> None:
        task = asyncio.create_task(self.visit())
        asyncio.get_running_loop().call_later(self.random.choice([0, 1, 10]) * self.random.random(), task.cancel)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
            await asyncio.wait([task])
        if task.cancelled():
            self.outcomes["cancelled"] += 1
        else:
            task.result()

    async def close_under_the_lease(self) -> None:
        lease = await self.acquire()
        try:
            await lease.close()
        finally:
            self.give(lease)

    async def drop_a_lease(self) -> None:
        lease = await self.acquire()
        del self.held[lease.number]
        self.dropping += 1
        del lease
        asyncio.get_running_loop().call_soon(self.took_back)

    def took_back(self) -> None:
        self.dropping -= 1

    async def leave_a_cursor(self) -> None:
        lease = await self.acquire()
        stream = self.open_stream(lease.number)
        self.give(lease)
        await asyncio.sleep(self.random.expovariate(1 / HOUR))
        self.end_stream(stream)

    async def read_a_cursor(self) -> None:
        lease = await self.acquire()
        stream = self.open_stream(lease.number)
        self.give(lease)
        await asyncio.sleep(self.random.expovariate(1 / 50))
        self.end_stream(stream)

    async def follow_a_feed(self) -> None:
        context = self.pool.connect(looped_mode=True)
        lease = await self.take(context.__aenter__, 20, is_feed=True)
        feed = self.open_stream(lease.number)
        try:
            await asyncio.sleep(self.random.expovariate(1 / 600))
            await self.query(lease)
        finally:
            del self.held[lease.number]
            await context.__aexit__(None, None, None)
        await asyncio.sleep(self.random.choice([0, 30]))
        self.end_stream(feed)

    async def turn_into_a_feed(self) -> None:
        lease = await self.acquire()
        number = lease.number
        feed = self.open_stream(number)
        try:
            self.pool.release_to_looped(lease)
        except PoolException as refusal:
            self.judge_lane_full(refusal)
            self.end_stream(feed)
            self.give(lease)
            return
        del self.held[number]
        await asyncio.sleep(self.random.expovariate(1 / 600))
        self.end_stream(feed)

    def open_stream(self, number: int) -> ScriptedStream | None:
        connection = self.connection(number)
        if not connection.is_open():
            return None
        self.streams.append(connection.open_stream())
        return self.streams[-1]

    def end_stream(self, stream: ScriptedStream | None) -> None:
        if stream is not None:
            self.streams.remove(stream)
            stream.end()

    # ---- the weather, and the owner

    async def weather(self) -> None:
        """Sometimes everything fails, hangs or is slow: for seconds, minutes, hours."""
        draw, connector = self.random, self.connector
        verbs: list[Verb] = [connector.connects, connector.connects, connector.checks, connector.closes]
        while True:
            await asyncio.sleep(draw.expovariate(1 / 1500))
            lasting = draw.expovariate(1 / draw.choice([10, 10, 200, 200, HOUR]))
            if draw.random() < 0.3:  # an outage
                for verb in (connector.connects, connector.checks):
                    verb.always(self.trouble())
                self.drop(connector.open_connections, is_told=draw.random() < 0.5)
            else:
                draw.choice(verbs).always(self.trouble())
            await asyncio.sleep(lasting)
            self.clear_up()

    def trouble(self) -> Behaviour:
        draw = self.random
        failing = error(Scripted("refused"))
        return draw.choice([failing, failing, slow(draw.expovariate(1.0)), slow(draw.random(), failing), never()])

    def clear_up(self) -> None:
        for verb in (self.connector.connects, self.connector.checks, self.connector.closes):
            verb.always(ok())

    async def deaths(self) -> None:
        """Now and then a connection dies, or all of them; not every time it is told."""
        while True:
            await asyncio.sleep(self.random.expovariate(1 / 400))
            connections = self.connector.open_connections
            if self.random.random() < 0.8:
                connections = self.random.sample(connections, min(1, len(connections)))
            self.drop(connections, is_told=self.random.random() < 0.7)

    def drop(self, connections: list[ScriptedConnection], *, is_told: bool) -> None:
        for connection in connections:
            self.connector.drop(connection, is_told=is_told)

    async def owner(self) -> None:
        draw = self.random
        while True:
            await asyncio.sleep(draw.expovariate(1 / HOUR))
            if draw.random() < 0.7:
                self.drained_at = now()
                try:
                    await self.pool.drain()
                except ConnectFailed as refusal:
                    self.judge_cause(refusal)
                    self.outcomes["drain failed"] += 1
                else:
                    self.outcomes["drained"] += 1
            else:
                await self.close(timeout=draw.choice([0, 1, 20]))
                self.outcomes["closed"] += 1
                await asyncio.sleep(draw.choice([0, 60]))
                await self.reopen()

    async def close(self, timeout: float) -> None:
        self.is_closed = True
        began = now()
        report = await self.pool.close(timeout=timeout)
        assert now() - began <= timeout + self.options.get("close_timeout", 5) + 1e-6
        assert report.leases_aborted <= report.leases_waited_for
        stats = self.pool.stats()
        assert (stats.size, stats.feeds, stats.retired, stats.waiting) == (0, 0, 0, 0)
        assert stats.opened_total == stats.closed_total
        self.judge_nothing_open()

    def judge_nothing_open(self) -> None:
        assert self.connector.open_connections == []

    async def reopen(self) -> None:
        while True:
            try:
                await self.pool.init_pool()
            except ConnectFailed as refusal:
                self.judge_cause(refusal)
                self.judge_nothing_open()
                await asyncio.sleep(30)
            else:
                self.is_closed, self.reopened_at = False, now()
                return

    # ---- all together

    async def live(self, seconds: float) -> None:
        """Let it happen, for so long, and then let it calm down: everything must be there."""
        pool = self.pool
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.user()) for _ in range(6 + 2 * pool.pool_size)]
            tasks += [group.create_task(work()) for work in (self.weather, self.deaths, self.owner)]
            await asyncio.sleep(seconds)
            for task in tasks:
                task.cancel()
        self.clear_up()
        for feed in list(self.streams):
            self.end_stream(feed)
        if self.is_closed:
            await pool.close()
            await self.reopen()
        await asyncio.sleep(200)  # every bounded wait, pause and grace is over
        self.check_stats()
        stats = pool.stats()
        assert (stats.leased, stats.waiting, stats.closing, stats.feeds) == (0, 0, 0, 0), stats
        assert not self.held
        assert not self.in_line
        assert stats.idle + stats.connecting >= stats.min_size
        leases = [await self.acquire() for _ in range(stats.max_size)]
        assert pool.stats().leased == stats.max_size == len({lease.number for lease in leases})
        for lease in leases:
            self.give(lease)
        assert 0 <= pool.stats().acquired_total - self.granted_total <= self.outcomes["PoolException"]
        max_idle = self.options.get("max_idle", 600)
        if max_idle is not None:
            await asyncio.sleep(max_idle + 61)
            assert (pool.stats().size, pool.stats().retired) == (stats.min_size, 0)

    def forget_records(self) -> None:
        """Of the connections that have ended: what only the test keeps."""
        for connection in self.connector.connections:
            if connection.ended_by is not None:
                connection.queries.clear()


def now() -> float:
    return asyncio.get_running_loop().time()


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


@pytest.mark.parametrize("options", OPTIONS)
def test_whatever_happens_for_days_everybody_gets_a_right_answer_and_nothing_is_lost(
    options: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    seed = list(OPTIONS).index(options)
    with repeatable(seed):
        this = virtual_clock.run(soak(seed, OPTIONS[options], DAY), max_steps=None)
    told = [record.getMessage() for record in caplog.records]
    assert not [line for line in told if "deadlock" in line], "nobody here holds one lease and waits for another"
    assert this.outcomes["a query was answered"] > 1000
    for seen in ("a query failed", "cancelled", "PoolTimeout", "ConnectFailed", "PoolClosed", "drained", "closed"):
        assert this.outcomes[seen], f"{seen}: never came to pass, so the soak tests too little: {this.outcomes}"
    with capsys.disabled():
        print(f" [{this.granted_total} leases]", end="")


def test_memory_is_flat() -> None:
    seconds = DAY / 5

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
            grown = virtual_clock.run(scenario(), max_steps=None)
    finally:
        tracemalloc.stop()
    assert grown < 50_000, f"{grown} bytes more after the second half"
