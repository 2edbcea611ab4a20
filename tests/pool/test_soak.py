"""Hours of a busy pool's life at random, in seconds: virtual time, scripted connections, several seeds.

Users come and go: they lease connections, run queries beside each other, read streams and follow feeds; are cancelled,
lose patience, drop leases and leave cursors open. Meanwhile connections die, the server is away for minutes and hours,
everything is slow, fails or never ends now and then, and the owner drains, closes and opens the pool. All is judged as
it happens; at the end everything has to be there.
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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, NoReturn

import pytest

from async_repool import (
    AsyncConnectionPool,
    ConnectFailed,
    FeedGap,
    PoolClosed,
    PoolException,
    PoolTimeout,
    TooManyWaiters,
)
from async_repool.connectors import Stream
from async_repool.errors import ConnectionLost, FeedLaneFull, NotSent, QueryTimeout
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
MOST_STEPS = 1_000_000  # of the loop, in one run: ten times as many as it takes
CONFIGURE_SECONDS = 0.1
ACQUIRE_SECONDS = 20.0
PATIENCE = 60.0  # seconds that a user gives a query that has no limit of its own
MOST_ATTEMPTS = 5


class Scripted(OSError):
    """What the script lets go wrong; so it is the cause of whatever users are told about connecting."""


class Refused(Scripted):
    """What the server says against a query. It may pass: a feed that is opened again is tried again."""


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


class Server(ScriptedConnector):
    """Shows the soak which query comes to which connection, and sends what streams and feeds have to say.

    Each query has a number of its own, its option ``n``, and is answered with it. A stream has the rows ``(n, 0)``,
    ``(n, 1)``, … A feed begins with ``("from", k)``, where ``k`` was the last change, and goes on with ``k + 1``, …
    """

    def __init__(self, soak: Soak) -> None:
        super().__init__(connect_timeout=5)
        self.passing_errors = (Refused,)
        self.changes_total = 0
        self._soak = soak

    async def run(self, connection: ScriptedConnection, query: Any, options: dict[str, Any], /) -> Any:
        await self._receive(connection, query, options["n"])
        if self._soak.random.random() < 0.2:
            self.queries.then(slow(self._soak.random.expovariate(1 / 10)))  # of the call in the next line
        return await super().run(connection, query, options)

    async def open_stream(self, connection: ScriptedConnection, query: Any, options: dict[str, Any], /) -> Stream:
        await self._receive(connection, query, options["n"])
        reader = await super().open_stream(connection, query, options)
        stream = self.opened_streams[-1]
        if query == "feed":
            stream.is_feed = True
            stream.send(("from", self.changes_total))
        else:
            self._send_rows(stream, options["n"], 0)
        return reader

    async def _receive(self, connection: ScriptedConnection, query: Any, n: int) -> None:
        draw = self._soak.random
        is_calm = self._soak.is_calm
        is_sent = draw.random() >= 0.01 or is_calm
        self._soak.come_to_a_connection(connection, query, n, is_sent=is_sent)
        if not is_sent:
            raise NotSent("it had just ended")
        if draw.random() < 0.01 and not is_calm:
            await asyncio.sleep(0)
            raise Refused("no such table")

    def _send_rows(self, stream: ScriptedStream, n: int, sent: int) -> None:
        """One row now, the others later, and then the end."""
        if not stream.is_open:
            return
        if sent == rows_of(n):
            stream.end()
            return
        stream.send((n, sent))
        pause = 0.0 if sent % 2 else self._soak.random.expovariate(1 / 2)
        asyncio.get_running_loop().call_later(pause, self._send_rows, stream, n, sent + 1)

    def change(self) -> None:
        """Something has changed: feeds that are open are told."""
        self.changes_total += 1
        self.opened_streams = self.open_streams  # nobody asks for the others any more
        for stream in self.opened_streams:
            if stream.is_feed:
                stream.send(self.changes_total)


def rows_of(n: int) -> int:
    return n % 6


class Seen:
    """What a feed has brought: each change once and in order, or a gap in its place."""

    def __init__(self) -> None:
        self.items = 0
        self.gaps = 0
        self.last = -1  # the last change
        self.is_new = True  # opened, or opened again after a gap

    def judge(self, item: object) -> None:
        self.items += 1
        if isinstance(item, FeedGap):
            assert self.items > 1, "a gap where nothing was open yet"
            assert not self.is_new, "a gap after a gap"
            assert item.reason.startswith(("ConnectionLost: ", "Refused: ")), item
            self.gaps += 1
            self.is_new = True
        elif isinstance(item, tuple):
            assert self.is_new, "opened again, and nobody was told"
            assert item[1] >= self.last, "changes come twice"
            self.last, self.is_new = item[1], False
        else:
            assert not self.is_new
            assert item == self.last + 1, "a change is missing, and nobody was told"
            self.last += 1


class ToldNo(Exception):
    """A user was told no, and it was judged to be right."""


class Soak:
    """One pool, those who use it, and the weather."""

    def __init__(self, seed: int, options: dict[str, Any]) -> None:
        self.random = random.Random(seed)
        self.connector = Server(self)
        self.options = {"name": "main", "acquire_timeout": ACQUIRE_SECONDS, "check_timeout": 2, **options}
        self.has_hooks = self.options.pop("hooks", False)
        if self.has_hooks:
            self.options |= {"configure": self.configure, "check": self.connector.check, "reset": self.reset}
        self.pool = AsyncConnectionPool(self.connector, **self.options)
        self.arrivals = itertools.count()
        self.in_line: dict[int, None] = {}
        self.overtaken_at: dict[int, float] = {}  # who came earlier, but somebody later was served before
        self.held: dict[int, bool] = {}  # number of the connection in a user's hands: whether it serves a feed
        self.dropping = 0  # leases and feeds dropped that the pool may not have taken back yet
        self.asking: dict[int, int] = {}  # who runs a query or reads a stream: how often it was sent
        self.attempts: Counter[int] = Counter()  # the same, and how often it could not be sent
        self.asked_at: dict[int, float] = {}  # when it came, or could not be sent last time
        self.followed: dict[int, Seen] = {}  # who follows a feed
        self.most_feeds = self.options.get("max_feed_connections", self.options.get("pool_size", 3))
        self.streams: list[ScriptedStream] = []  # open as far as their readers know
        self.granted_total = 0
        self.outcomes: Counter[str] = Counter()
        self.drained_at = float("-inf")
        self.is_closed = False
        self.is_calm = False  # hooks do not fail any more
        self.reopened_at = 0.0
        self.totals: dict[str, float] = {}

    # ---- hooks

    async def configure(self, connection: Any) -> None:
        await asyncio.sleep(CONFIGURE_SECONDS)
        if self.random.random() < 0.01 and not self.is_calm:
            raise Scripted("configure failed")

    async def reset(self, connection: Any) -> None:
        await asyncio.sleep(0.01)
        if self.random.random() < 0.01 and not self.is_calm:
            raise Scripted("reset failed")

    # ---- what is always true

    def check_stats(self) -> None:
        stats = self.pool.stats()
        in_use = stats.leased + stats.shared
        assert stats.size == stats.idle + in_use + stats.connecting + stats.closing <= stats.max_size
        assert stats.feeds <= self.most_feeds
        assert stats.closed_total == sum(stats.closed_by_reason.values())
        # A connecting slot holds a connection while that is checked or reset, and none while it is opened.
        least = stats.idle + in_use + stats.closing + stats.feeds + stats.retired
        assert least <= stats.opened_total - stats.closed_total <= least + stats.connecting
        totals = {name: getattr(stats, name) for name in vars(stats) if name.endswith("_total")}
        shrunk = {name: (self.totals[name], totals[name]) for name in self.totals if totals[name] < self.totals[name]}
        assert shrunk.keys() <= {"acquired_total", "queries_done_total"}, shrunk
        self.totals = totals
        assert stats.waiting <= len(self.in_line) + len(self.asking) + len(self.followed)
        assert stats.queries_waiting + stats.queries_in_flight <= len(self.asking)
        assert stats.queries_in_flight <= stats.shared * self.options.get("max_in_flight", 128)
        assert stats.changefeeds <= len(self.followed) + self.dropping
        assert stats.queries_done_total >= self.outcomes["a query was answered beside others"]
        assert stats.timeouts_total >= self.outcomes["PoolTimeout"]
        assert stats.refused_total >= self.outcomes["TooManyWaiters"]
        if not self.is_closed:
            assert len(self.connector.open_connections) <= stats.size + stats.feeds + stats.retired
            mine = sum(not is_feed for number, is_feed in self.held.items() if not self.was_ended_by_pool(number))
            assert mine <= stats.leased <= mine + len(self.in_line) + self.dropping

    def connection(self, number: int) -> ScriptedConnection:
        return self.connector.connections[number - 1]

    def was_ended_by_pool(self, number: int) -> bool:
        return self.connection(number).ended_by in ("close", "abort")

    # ---- the line, whatever for

    def arrive(self) -> int:
        arrival = next(self.arrivals)
        self.in_line[arrival] = None
        return arrival

    def leave(self, arrival: int) -> None:
        self.in_line.pop(arrival, None)
        self.overtaken_at.pop(arrival, None)

    def be_served(self, arrival: int, *, may_overtake: bool = False) -> None:
        """Strictly first come, first served, leases and queries together. Only a feed that is put beside others takes
        nothing that anybody waits for.
        """
        assert self.overtaken_at.get(arrival, now()) == now(), "somebody who came later was served before"
        self.leave(arrival)
        for earlier in self.in_line if not may_overtake else ():
            if earlier > arrival:
                break
            self.overtaken_at.setdefault(earlier, now())  # right, unless that one is served later

    def judge_fit(self, connection: ScriptedConnection) -> None:
        """Of a connection that somebody was given."""
        time = now()
        assert connection.lost_at in (None, time), "given after it was lost"
        assert connection.ended_at in (None, time), "given after it was ended"
        assert connection.opened_at is not None
        assert not connection.opened_at < self.drained_at < time, "given after it was drained"

    def judge_young(self, connection: ScriptedConnection) -> None:
        ttl = self.options.get("connection_ttl", HOUR) or float("inf")
        assert now() <= connection.opened_at + CONFIGURE_SECONDS * self.has_hooks + ttl, "given after it expired"

    # ---- acquire and release, judged

    async def take(self, acquire: Callable[[], Awaitable[Any]], timeout: float, *, is_feed: bool = False) -> Any:
        """A lease; or :class:`ToldNo`."""
        arrival, began = self.arrive(), now()
        try:
            lease = await acquire()
            self.be_served(arrival)
        except PoolException as refusal:
            self.tell_no(refusal, began, timeout)
        finally:
            self.leave(arrival)
        self.granted_total += 1
        number = lease.number
        assert number not in self.held, "leased to two users at once"
        connection = self.connection(number)
        self.judge_fit(connection)
        self.judge_young(connection)
        assert not connection.in_flight, "leased while it carries queries of others"
        self.held[number] = is_feed
        self.check_stats()
        return lease

    def tell_no(self, refusal: PoolException, began: float, timeout: float) -> NoReturn:
        self.judge(refusal, began, timeout)
        self.outcomes[type(refusal).__name__] += 1
        raise ToldNo from None

    def judge(self, refusal: PoolException, began: float, timeout: float) -> None:
        """Whether there was a reason to refuse, and whether it was told. ``began``: when it came to the line."""
        waited, text = now() - began, str(refusal)
        if isinstance(refusal.__cause__, NotSent):
            assert f"{MOST_ATTEMPTS} connections to scripted:28015 in turn ended before that" in text
        elif isinstance(refusal, ConnectFailed):
            self.judge_cause(refusal)
            assert f"scripted:28015 after waiting {waited:.1f} s, the last attempt failed: " in text
            assert waited <= timeout + 1e-6
        elif isinstance(refusal, PoolTimeout):
            assert type(refusal) is PoolTimeout, "nobody here holds one lease and waits for another"
            assert waited == pytest.approx(timeout)
            assert f"scripted:28015 after waiting {waited:.1f} s" in text
            sharing = r"(?:(\d+) shared by \d+ queries, )?"
            counts = re.search(rf"(\d+) of (\d+) leased, {sharing}(\d+) idle, (\d+) connecting, (\d+) closing", text)
            assert counts is not None
            leased, size, shared, idle, connecting, closing = (int(count or 0) for count in counts.groups())
            assert not idle or self.has_hooks, "idle ones were there"
            assert connecting or leased + shared + closing == size, "nothing was done for this caller"
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
        assert type(refusal) is FeedLaneFull
        assert "serve feeds" in str(refusal)

    def give(self, lease: Any) -> None:
        del self.held[lease.number]
        self.pool.release(lease)

    async def query(self, lease: Any) -> None:
        n = self.random.randrange(1000)
        number = lease.number
        try:
            async with asyncio.timeout(PATIENCE):
                assert await lease._start("term", n=n) == {"n": n}
        except ConnectionResetError:
            self.judge_lost(self.connection(number))
            self.outcomes["a query failed"] += 1
        except (TimeoutError, Scripted) as trouble:
            self.outcomes[f"a query: {type(trouble).__name__}"] += 1
        else:
            self.outcomes["a query was answered"] += 1

    # ---- queries without leases, judged

    def come_to_a_connection(self, connection: ScriptedConnection, query: str, n: int, *, is_sent: bool) -> None:
        """A query has left the line; or comes again."""
        is_feed = query == "feed"
        if n in self.in_line:
            self.be_served(n, may_overtake=is_feed)
        self.judge_fit(connection)
        assert connection.number not in self.held, "a query on a connection that somebody else has leased"
        assert is_feed or not any(stream.is_feed for stream in connection.open_streams), "a query in the feed lane"
        if is_feed:
            return
        self.judge_young(connection)
        assert connection.in_flight < self.options.get("max_in_flight", 128), "more queries than it may carry"
        self.attempts[n] += 1
        self.asking[n] += is_sent
        self.asked_at[n] = now()

    @asynccontextmanager
    async def asked(self, timeout: float | None, *, retry: bool = False) -> AsyncIterator[int]:
        """The number of a new query; whatever comes out of it is judged."""
        n, began = self.arrive(), now()
        self.asking[n], self.asked_at[n] = 0, began
        try:
            async with asyncio.timeout(PATIENCE) as patience:
                yield n
        except ConnectionLost as lost:
            assert self.asking[n], "it was never sent"
            is_in_vain = self.attempts[n] == MOST_ATTEMPTS or isinstance(lost.__cause__, PoolException)
            assert not retry or is_in_vain, "it was not tried often enough"
            self.outcomes[type(lost).__name__] += 1
        except QueryTimeout:
            assert self.asking[n], "it was never sent"
            assert now() - began == pytest.approx(timeout)
            self.outcomes["QueryTimeout"] += 1
        except PoolException as refusal:
            assert not self.asking[n], "it was sent"
            again_at = self.asked_at[n]  # the same as ``began``, unless it could not be sent at first
            left = ACQUIRE_SECONDS if timeout is None else min(began + timeout - again_at, ACQUIRE_SECONDS)
            self.tell_no(refusal, again_at, left)
        except Scripted:
            self.outcomes["a query was refused"] += 1
        except TimeoutError:
            assert patience.expired()
            self.outcomes["a query was given up"] += 1
        finally:
            self.leave(n)
            assert self.asking.pop(n) <= (MOST_ATTEMPTS if retry else 1), "it was repeated"
            del self.attempts[n], self.asked_at[n]
            self.check_stats()

    async def run(self, *, timeout: float | None = None, retry: bool = False) -> None:
        async with self.asked(timeout, retry=retry) as n:
            assert await self.pool.run("term", n=n, timeout=timeout, retry=retry) == {"n": n}
            self.outcomes["a query was answered beside others"] += 1

    async def stream(self, *, timeout: float | None = None, is_left: bool = False) -> None:
        async with self.asked(timeout) as n:
            seen = 0
            async with self.pool.stream("rows", n=n, timeout=timeout) as rows:
                async for row in rows:
                    assert row == (n, seen), "the row of another query, or in another's place"
                    seen += 1
                    if is_left and self.random.random() < 0.5:
                        self.outcomes["a stream was left"] += 1
                        return
            assert seen == rows_of(n), "rows are missing, and nobody was told"
            self.outcomes["a stream was read"] += 1

    # ---- feeds that survive, judged

    async def follow(self, *, is_dropped_after: int | None = None) -> None:
        """Until it ends, or is dropped after so many changes."""
        n, began = self.arrive(), now()
        seen = self.followed[n] = Seen()
        changes = self.pool.changes("feed", n=n, timeout=5)
        try:
            while is_dropped_after is None or seen.items < is_dropped_after:
                try:
                    async with asyncio.timeout(self.random.choice([None, None, 60])) as patience:
                        seen.judge(await anext(changes))
                except TimeoutError:
                    if not patience.expired():
                        raise
        except PoolException as refusal:
            if isinstance(refusal, QueryTimeout | ConnectionLost) and not seen.items:
                self.outcomes[f"{type(refusal).__name__} of a feed"] += 1
                raise ToldNo from None
            is_right = isinstance(refusal, PoolClosed) or not seen.items
            assert is_right, "it did not survive"
            self.tell_no(refusal, began, ACQUIRE_SECONDS)
        except Scripted as trouble:
            is_passing = isinstance(trouble, Refused) and seen.items > 0
            assert not is_passing, "it did not survive"
            self.outcomes["a feed was refused"] += 1
        finally:
            self.leave(n)
            del self.followed[n]
            self.outcomes["a change was seen"] += seen.items
            self.outcomes["a gap was told"] += seen.gaps
            if seen.items == is_dropped_after and not seen.gaps:  # else the script keeps what told it of the gap
                del changes
                self.dropping += 1
                asyncio.get_running_loop().call_soon(self.took_back)
            else:
                await changes.aclose()

    # ---- users

    async def user(self) -> None:
        draw = self.random
        visits: list[Callable[[], Awaitable[None]]] = [
            *([self.visit] * 6),
            *([self.run] * 6),
            self.run_and_repeat_it,
            self.run_with_a_limit,
            self.run_in_a_crowd,
            self.run_in_a_crowd,
            *([self.stream] * 3),
            self.stream_with_a_limit,
            self.leave_a_stream,
            self.follow_for_a_while,
            self.drop_a_feed,
            self.visit_in_a_block,
            self.work_without_a_pause,
            self.lose_patience,
            *([self.be_cancelled] * 4),
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
            except ToldNo:
                await asyncio.sleep(draw.expovariate(1 / 60))

    async def run_and_repeat_it(self) -> None:
        await self.run(retry=True)

    async def run_with_a_limit(self) -> None:
        await self.run(timeout=self.random.choice([0.5, 2, 30]), retry=self.random.random() < 0.3)

    async def run_in_a_crowd(self) -> None:
        """Many at once, one of them cancelled."""
        visits = [self.run(retry=self.random.random() < 0.5) for _ in range(self.random.randrange(2, 8))]
        tasks = [asyncio.create_task(visit) for visit in visits]
        asyncio.get_running_loop().call_later(self.random.random(), self.random.choice(tasks).cancel)
        try:
            await asyncio.wait(tasks)
        finally:
            await self.end(*tasks)

    async def stream_with_a_limit(self) -> None:
        await self.stream(timeout=self.random.choice([0.5, 2, 30]))

    async def leave_a_stream(self) -> None:
        await self.stream(is_left=True)

    async def follow_for_a_while(self) -> None:
        following = asyncio.create_task(self.follow())
        try:
            await asyncio.wait([following], timeout=self.random.expovariate(1 / 600))
        finally:
            await self.end(following)

    async def drop_a_feed(self) -> None:
        await self.follow(is_dropped_after=3)

    async def follow_for_ever(self) -> None:
        while True:
            with suppress(ToldNo):
                await self.follow()
            await asyncio.sleep(10)

    async def end(self, *tasks: asyncio.Task[None]) -> None:
        """Cancel them, and judge what became of them."""
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if task.cancelled():
                self.outcomes["cancelled"] += 1
            elif not isinstance(task.exception(), ToldNo):
                task.result()

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
        visit = self.random.choice([self.visit, self.run, self.run_and_repeat_it, self.stream, self.drop_a_feed])
        task = asyncio.create_task(visit())
        try:
            await asyncio.wait([task], timeout=self.random.choice([0, 1, 10]) * self.random.random())
        finally:
            await self.end(task)

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
        verbs += [connector.queries, connector.streams]
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
        connector = self.connector
        for verb in (connector.connects, connector.checks, connector.closes, connector.queries, connector.streams):
            verb.always(ok())

    async def changes(self) -> None:
        while True:
            await asyncio.sleep(self.random.expovariate(1 / 60))
            self.connector.change()

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
                self.most_feeds += self.pool.stats().feeds  # those that end by and by take nobody's place
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
        assert report.queries_aborted <= report.queries_waited_for
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
                self.most_feeds = self.options.get("max_feed_connections", self.pool.pool_size)
                return

    # ---- all together

    async def live(self, seconds: float) -> None:
        """Let it happen, for so long, and then let it calm down: everything must be there."""
        pool = self.pool
        self.is_calm = False
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.user()) for _ in range(6 + 2 * pool.pool_size)]
            tasks += [group.create_task(work()) for work in (self.weather, self.deaths, self.owner, self.changes)]
            followers = [group.create_task(self.follow_for_ever()) for _ in range(3)]
            await asyncio.sleep(seconds)
            for task in tasks:
                task.cancel()
            self.clear_up()
            self.is_calm = True
            for feed in list(self.streams):
                self.end_stream(feed)
            if self.is_closed:
                await pool.close()
                await self.reopen()
            await asyncio.sleep(200)  # every bounded wait, pause and grace is over
            self.connector.change()
            await asyncio.sleep(0.1)
            assert [seen.last for seen in self.followed.values()] == [self.connector.changes_total] * len(followers)
            for task in followers:
                task.cancel()
        await asyncio.sleep(1)
        self.check_stats()
        stats = pool.stats()
        assert (stats.leased, stats.shared, stats.waiting, stats.closing, stats.feeds) == (0, 0, 0, 0, 0), stats
        assert not self.held
        assert self.connector.open_streams == []
        assert not self.in_line
        assert stats.idle + stats.connecting >= stats.min_size
        leases = [await self.acquire() for _ in range(stats.max_size)]
        assert pool.stats().leased == stats.max_size == len({lease.number for lease in leases})
        for lease in leases:
            self.give(lease)
        assert 0 <= pool.stats().acquired_total - self.granted_total <= self.outcomes["FeedLaneFull"]
        max_idle = self.options.get("max_idle", 600)
        if max_idle is not None:
            await asyncio.sleep(max_idle + 61)
            assert (pool.stats().size, pool.stats().retired) == (stats.min_size, 0)

    def forget_records(self) -> None:
        """Of the connections that have ended: what only the test keeps."""
        for connection in self.connector.connections:
            if connection.ended_by is not None:
                connection.queries.clear()
        self.connector.opened_streams = self.connector.open_streams


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
