"""What users of a pool are due in the soak, and a server that shows which query comes to which connection."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
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
from async_repool.testing.scripted import ScriptedConnection, ScriptedConnector, ScriptedStream, slow

HOUR = 3600.0
CONFIGURE_SECONDS = 0.1
ACQUIRE_SECONDS = 20.0
PATIENCE = 60.0  # seconds that a user gives a query that has no limit of its own
MOST_ATTEMPTS = 5


class Scripted(OSError):
    """What the script lets go wrong; so it is the cause of whatever users are told about connecting."""


class Refused(Scripted):
    """What the server says against a query. It may pass: a feed that is opened again is tried again."""


class Server(ScriptedConnector):
    """Shows the soak which query comes to which connection, and sends what streams and feeds have to say.

    Each query has a number of its own, its option ``n``, and is answered with it. A stream has the rows ``(n, 0)``,
    ``(n, 1)``, … A feed begins with ``("from", k)``, where ``k`` was the last change, and goes on with ``k + 1``, …
    """

    def __init__(self, soak: Judge) -> None:
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


class Judge:
    """One pool, and what those who use it are due: all that comes to pass is judged."""

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
            assert f"{MOST_ATTEMPTS} connections to scripted:28015 ended before that, one after another" in text
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

    def took_back(self) -> None:
        self.dropping -= 1


def now() -> float:
    return asyncio.get_running_loop().time()
