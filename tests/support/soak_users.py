"""The soak: users of a pool that come and go at random, the weather, and the owner."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from async_repool import ConnectFailed, PoolException
from async_repool.testing.scripted import Behaviour, ScriptedConnection, ScriptedStream, Verb, error, never, ok, slow
from soak_judge import HOUR, Judge, Scripted, ToldNo, now


class Soak(Judge):
    """One pool, those who use it, and the weather."""

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
