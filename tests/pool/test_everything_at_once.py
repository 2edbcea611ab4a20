"""Queries, leases and feeds mixed at random: each gets what is its own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest

from async_repool import ConnectFailed, FeedGap, OutcomeUnknown, PoolTimeout
from async_repool.errors import ConnectionLost, NotSent
from async_repool.testing.scripted import Behaviour, ScriptedConnection, ScriptedConnector, error, never, ok, slow
from pool_kit import drop_all, feeding, finish, is_whole, open_pool

pytestmark = [pytest.mark.virtual_time, pytest.mark.usefixtures("repeatable")]


# ---- queries


class Answering(ScriptedConnector):
    """Answers each query with itself, after a while, or with a fault."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.dice = dice
        self.is_faulty = True
        self.sent: Counter[Any] = Counter()

    def play(self, connection: ScriptedConnection, query: Any, answer: Any) -> Behaviour:
        chance = self.dice.random() if self.is_faulty else 1.0
        if chance < 0.03 or not connection.is_open():
            return error(NotSent("ended"))
        self.sent[query] += 1
        if chance < 0.05:
            return never()
        if chance < 0.07:
            return error(LookupError(answer))
        return slow(self.dice.random(), ok(answer))

    async def run(self, connection: ScriptedConnection, query: Any, options: dict[str, Any], /) -> Any:
        self.queries.then(self.play(connection, query, query))
        return await super().run(connection, query, options)

    async def open_stream(self, connection: ScriptedConnection, query: Any, options: dict[str, Any], /) -> Any:
        self.streams.then(self.play(connection, query, [query] * 3))
        return await super().open_stream(connection, query, options)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [
        {"pool_size": 1, "max_in_flight": 3},
        {"pool_size": 3, "min_size": 0, "connection_ttl": 7, "max_idle": 3},
        {"pool_size": 4, "max_in_flight": 2, "ping_interval": 2, "check_idle": 1},
    ],
    ids=str,
)
async def test_whatever_is_mixed_every_answer_is_the_right_one_and_nobody_starves(
    seed: int, options: dict[str, Any]
) -> None:
    dice = random.Random(seed)
    connector = Answering(dice)
    outcomes: Counter[str] = Counter()
    retried: set[str] = set()
    async with open_pool(connector, acquire_timeout=None, **options) as pool:

        async def use(name: str) -> None:
            for number in range(12):
                query = f"{name}.{number}"
                kind = dice.choice(["run", "run", "retried", "impatient", "stream", "lease", "pause"])
                retried.update([query] if kind == "retried" else [])
                try:
                    if kind == "stream":
                        async with pool.stream(query, timeout=5) as rows:
                            assert [row async for row in rows] == [query] * 3
                    elif kind == "lease":
                        async with pool.connect():
                            await asyncio.sleep(dice.random())
                    elif kind == "pause":
                        await asyncio.sleep(dice.random() * 3)
                    else:
                        timeout = 0.5 if kind == "impatient" else 20
                        assert await pool.run(query, timeout=timeout, retry=kind == "retried") == query
                    outcomes["done"] += 1
                except (LookupError, OutcomeUnknown, PoolTimeout, ConnectFailed) as failure:
                    outcomes[type(failure).__name__] += 1

        async def spoil() -> None:
            while True:
                await asyncio.sleep(dice.random() * 4)
                fault = dice.choice(["drop", "drop untold", "drain", "cancel", "refuse"])
                if fault == "drain":
                    with contextlib.suppress(ConnectFailed):
                        await pool.drain()
                elif fault == "cancel":
                    users[dice.randrange(len(users))].cancel()
                elif fault == "refuse":
                    connector.connects.then(error(OSError("refused")), slow(1))
                elif connector.open_connections:
                    connector.drop(dice.choice(connector.open_connections), is_told=fault == "drop")

        users = [asyncio.create_task(use(str(number))) for number in range(12)]
        spoiling = asyncio.create_task(spoil())
        async with asyncio.timeout(1000):
            results = await asyncio.gather(*users, return_exceptions=True)
        await finish([spoiling])
        assert not [result for result in results if isinstance(result, Exception)]
        assert outcomes["done"] > 20
        assert not any(connection.has_mixed for connection in connector.connections)
        assert max(c.max_in_flight for c in connector.connections) <= options.get("max_in_flight", 128)
        assert {query for query, times in connector.sent.items() if times > 1} <= retried
        connector.is_faulty = False
        await asyncio.sleep(100)
        stats = pool.stats()
        assert (stats.leased, stats.shared, stats.waiting, stats.queries_in_flight) == (0, 0, 0, 0)
        while connector.connects.unused:
            with contextlib.suppress(ConnectFailed):
                await pool.drain()
            with contextlib.suppress(ConnectFailed):
                await pool.run("at the end", timeout=10)
            await asyncio.sleep(1)
        assert await pool.run("at the end", timeout=10) == "at the end"


# ---- feeds


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [
        {"pool_size": 1, "max_in_flight": 3},
        {"pool_size": 3, "min_size": 0, "connection_ttl": 20, "max_idle": 5, "max_feed_connections": 2},
    ],
    ids=str,
)
async def test_whatever_happens_each_feed_gets_its_own_changes_in_order_with_gaps_where_some_are_missing(
    seed: int, options: dict[str, Any]
) -> None:
    dice = random.Random(seed)
    connector = feeding()
    seen: dict[str, list[Any]] = {str(number): [] for number in range(10)}
    async with open_pool(connector, acquire_timeout=None, **options) as pool:

        async def follow(name: str) -> None:
            async with pool.changes(name) as changes:
                while True:
                    try:
                        async with asyncio.timeout(dice.random()):
                            seen[name].append(await anext(changes))
                    except TimeoutError:
                        pass

        async def send() -> None:
            for number in range(300):
                for stream in connector.open_streams:
                    if stream.query is not None:
                        stream.send((stream.query.term, number))
                await asyncio.sleep(0.1)

        async def spoil() -> None:
            while True:
                await asyncio.sleep(dice.random() * 6)
                fault = dice.choice(["drop", "drop untold", "drain", "lease", "query", "not sent", "lost"])
                if fault == "drain":
                    await pool.drain()
                elif fault == "lease":
                    async with pool.connect():
                        await asyncio.sleep(dice.random())
                elif fault == "query":
                    await pool.run("a query", retry=True)
                elif fault == "not sent":
                    connector.streams.then(error(NotSent("ended")))
                elif fault == "lost" and connector.opened_streams:
                    connector.streams.then(slow(0.3, error(ConnectionLost("again"))))
                    drop_all(connector)
                elif connector.open_connections:
                    connector.drop(dice.choice(connector.open_connections), is_told=fault == "drop")

        async def first(name: str) -> None:
            while True:  # a first opening may fail
                with suppress(ConnectionLost):
                    await follow(name)

        followers = [asyncio.create_task(first(name)) for name in seen]
        spoiling = asyncio.create_task(spoil())
        await send()
        for task in (spoiling, *followers):
            task.cancel()
        results = await asyncio.gather(spoiling, *followers, return_exceptions=True)
        assert not [result for result in results if not isinstance(result, asyncio.CancelledError)]
        gaps = 0
        for name, items in seen.items():
            numbers = [item[1] for item in items if not isinstance(item, FeedGap)]
            gaps += len(items) - len(numbers)
            assert {item[0] for item in items if not isinstance(item, FeedGap)} == {name}
            assert numbers == sorted(set(numbers))
            missing = sum(
                after[1] - before[1] != 1
                for before, after in itertools.pairwise(items)
                if not isinstance(before, FeedGap) and not isinstance(after, FeedGap)
            )
            assert missing == 0, "wherever some are missing, a gap tells so"
            assert len(numbers) > 150
        assert gaps > 5
        await asyncio.sleep(100)
        assert connector.open_streams == []
        assert await is_whole(pool)
