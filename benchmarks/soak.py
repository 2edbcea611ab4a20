"""A soak in real time: users on real sockets, through a proxy that cuts and freezes at random. They lease connections,
run queries beside each other, read streams and follow feeds. Nobody may ever get a wrong answer or hang, no write be
done twice or get lost, no change be missed that nobody told of, and nothing may be left.

    python -m benchmarks.soak --seconds 30 [--url rethinkdb://user:password@host:port] [--seed 1]

Without a url the server is the package's stand-in, in this very process. Exit status 1 if anything was wrong, hung or
leaked. It stops by itself, soon after the seconds that were asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import random
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from async_repool import AsyncConnectionPool, FeedGap, OutcomeUnknown, PoolException, R
from async_repool.testing import Fault, FaultProxy, StandInServer

from .servers import arguments_of

POOL_SIZE: Final = 5
USERS: Final = 25
ROWS: Final = 500
CROWD: Final = 20  # queries that one user asks at once
COUNTERS: Final = [f"counter {n}" for n in range(CROWD)]
LOOSE_COUNTER: Final = "counter of cancelled writes"  # of which nobody knows whether they were done
ALL_COUNTERS: Final = [*COUNTERS, LOOSE_COUNTER]
FOLLOWERS: Final = 3  # of one feed each, from the beginning to the end
PATIENCE: Final = 1.0  # seconds that a user gives a query; the driver itself waits for ever
EVERYBODY_SECONDS: Final = 10.0  # after which somebody of each kind must have been served
HANG_SECONDS: Final = 20.0  # longer than every bounded wait of one visit together
BACK_SECONDS: Final = 15.0  # for the whole capacity to be there, once nothing fails any more; the pool may pause for 10
MORE_MEMORY: Final = 64 * 2**20  # bytes by which the process may grow after its first quarter


@dataclass
class Tally:
    """What users saw, and what was wrong."""

    answered: int = 0
    rows: int = 0
    changes: int = 0
    gaps: int = 0
    cancelled: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    longest: dict[str, float] = field(default_factory=dict)
    """Seconds that the longest visit of each kind took, which was answered."""
    wrong: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)

    def expect(self, what: str, answer: object, right: object) -> None:
        """An answer came; judge it."""
        self.answered += 1
        if answer != right:
            self.wrong.append(f"{what}: {answer!r:.80} instead of {right!r:.80}")


@dataclass(frozen=True)
class Resources:
    """What the process holds."""

    files: int
    tasks: int
    memory: int


def measure() -> Resources:
    """What the process holds now; 0 where the system does not tell."""
    gc.collect()
    files = memory = 0
    with contextlib.suppress(OSError):
        files = len(os.listdir("/proc/self/fd"))
        with open("/proc/self/statm") as statm:
            memory = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Resources(files, len(asyncio.all_tasks()), memory)


# ---------------------------------------------------------------------- the users


class Users:
    """What they do, each visit at random."""

    def __init__(self, pool: AsyncConnectionPool, table: Any, draw: random.Random, tally: Tally) -> None:
        self.pool = pool
        self.table = table
        self.draw = draw
        self.tally = tally
        self._visits: list[Callable[[], Coroutine[Any, Any, None]]] = [
            *([self._ask] * 5),
            *([self._get] * 5),
            self._sum,
            self._read,
            self._read_after_the_lease,
            self._leave_a_cursor,
            self._follow,
            *([self._run] * 10),
            *([self._run_many] * 3),
            *([self._count_many] * 3),
            self._stream,
            self._leave_a_stream,
            self._changes,
            *([self._be_cancelled] * 4),
        ]
        self.counted: Counter[str] = Counter()  # by document: writes that were done, for all that is known
        self.uncertain: Counter[str] = Counter()  # and those that may have been done

    async def come_and_go(self) -> None:
        """Visit after visit, until cancelled."""
        while True:
            await asyncio.sleep(self.draw.expovariate(1 / 0.02))
            await self._watched(self.draw.choice(self._visits))

    async def _watched(self, visit: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Each call has a watchdog, apart from the limits that it has itself."""
        name = visit.__name__.strip("_")
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(HANG_SECONDS) as watchdog:
                await visit()
            self.tally.longest[name] = max(self.tally.longest.get(name, 0.0), loop.time() - began)
        except (PoolException, R.ReqlError, TimeoutError) as error:
            if watchdog.expired():
                self.tally.hung.append(f"{name}: {self.pool.stats()}")
            else:
                self.tally.failed[type(error).__name__.strip("_")] += 1
        except Exception as error:  # nothing else may come out of a call; a cancellation passes
            self.tally.wrong.append(f"{name} raised {type(error).__name__}: {error}")

    async def _ask(self) -> None:
        n = self.draw.randrange(1_000_000)
        async with self.pool.connect() as conn, asyncio.timeout(PATIENCE):
            self.tally.expect("a sum", await (R.expr(n) + 1).run(conn), n + 1)

    async def _get(self) -> None:
        n = self.draw.randrange(ROWS)
        async with self.pool.connect() as conn, asyncio.timeout(PATIENCE):
            self.tally.expect("a row", await self.table.get(n).run(conn), {"id": n, "square": n * n})

    async def _sum(self) -> None:
        n = self.draw.randrange(2_000)
        lease = await self.pool.acquire()
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await R.range(n).map(lambda x: x * 2).sum().run(lease)
                self.tally.expect("a long sum", answer, n * (n - 1))
        finally:
            self.pool.release(lease)

    async def _read(self) -> None:
        async with self.pool.connect() as conn:
            await self._rows(await self._cursor(conn))

    async def _read_after_the_lease(self) -> None:
        async with self.pool.connect() as conn:
            cursor = await self._cursor(conn)
        await self._rows(cursor)

    async def _leave_a_cursor(self) -> None:
        async with self.pool.connect() as conn:
            cursor = await self._cursor(conn)
            async with asyncio.timeout(PATIENCE):
                self.tally.expect("a first row", await anext(cursor), 0)

    async def _cursor(self, conn: Any) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await R.range(ROWS).run(conn, max_batch_rows=100)

    async def _rows(self, cursor: Any) -> None:
        async with asyncio.timeout(PATIENCE):
            rows = [row async for row in cursor]
        self.tally.rows += len(rows)
        self.tally.expect("rows", rows, list(range(ROWS)))

    async def settle(self, conn: Any, seconds: float) -> None:
        """At the end: each write was done as often as it was said, and everybody was served."""
        for name in ALL_COUNTERS:
            least = self.counted[name]
            count = (await self.table.get(name).run(conn))["count"]
            if not least <= count <= least + self.uncertain[name]:
                most = least + self.uncertain[name]
                self.tally.wrong.append(f"{name} is {count}, and {least} to {most} writes were done")
        if seconds >= EVERYBODY_SECONDS:
            names = {visit.__name__.strip("_") for visit in self._visits}
            self.tally.hung += [f"{name}: nobody was ever served" for name in names - self.tally.longest.keys()]

    # Queries without leases.

    async def _run(self) -> None:
        n = self.draw.randrange(1_000_000)
        retry = self.draw.random() < 0.5
        self.tally.expect("an echo", await self.pool.run(R.expr(n) + 1, timeout=PATIENCE, retry=retry), n + 1)

    async def _run_many(self) -> None:
        await self._at_once(self._get_beside(self.draw.randrange(ROWS)) for _ in range(CROWD))

    async def _get_beside(self, n: int) -> None:
        answer = await self.pool.run(self.table.get(n), timeout=PATIENCE)
        self.tally.expect("a row", answer, {"id": n, "square": n * n})

    async def _count_many(self) -> None:
        await self._at_once(self._count(name) for name in self.draw.sample(COUNTERS, CROWD))

    async def _count(self, name: str) -> None:
        """A write that must not be done twice, and not be lost where it is said to be done."""
        self.uncertain[name] += 1  # unless it turns out that it was done, or never sent
        try:
            counted = self.table.get(name).update(lambda row: {"count": row["count"] + 1})
            answer = await self.pool.run(counted, timeout=PATIENCE)
        except OutcomeUnknown:
            raise
        except PoolException:  # it was never sent
            self.uncertain[name] -= 1
            raise
        self.uncertain[name] -= 1
        self.counted[name] += 1
        self.tally.expect("a write", answer["replaced"], 1)

    async def _count_loosely(self) -> None:
        await self._count(LOOSE_COUNTER)

    async def _at_once(self, visits: Iterable[Coroutine[Any, Any, None]]) -> None:
        for outcome in await asyncio.gather(*visits, return_exceptions=True):
            if isinstance(outcome, PoolException):
                self.tally.failed[type(outcome).__name__] += 1
            elif isinstance(outcome, BaseException):
                raise outcome

    async def _stream(self) -> None:
        async with self.pool.stream(R.range(ROWS), timeout=PATIENCE, max_batch_rows=100) as rows:
            await self._rows(rows)

    async def _leave_a_stream(self) -> None:
        async with self.pool.stream(R.range(ROWS), timeout=PATIENCE, max_batch_rows=100) as rows:
            async with asyncio.timeout(PATIENCE):
                self.tally.expect("a first row", await anext(rows), 0)

    async def _changes(self) -> None:
        """A feed on rows of one's own, which may be broken: then it tells of a gap."""
        name = uuid.uuid4().hex
        async with self.pool.changes(self.table.filter({"feed": name}).changes(), timeout=PATIENCE) as feed:
            for n in range(3):
                row = {"id": f"{name} {n}", "feed": name, "n": n}
                await self.pool.run(self.table.insert(row), timeout=PATIENCE, retry=True)
                async with asyncio.timeout(PATIENCE):
                    change = await anext(feed)
                if isinstance(change, FeedGap):
                    self.tally.gaps += 1
                    return
                self.tally.changes += 1
                self.tally.expect("a change", (change["old_val"], change["new_val"]["n"]), (None, n))

    async def _be_cancelled(self) -> None:
        visit = self.draw.choice([self._get, self._run, self._count_loosely, self._stream, self._changes])
        task = asyncio.create_task(visit())
        asyncio.get_running_loop().call_later(self.draw.expovariate(1 / 0.003), task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if not task.cancelled() or (current is not None and current.cancelling()):
                task.cancel()
                raise
            self.tally.cancelled += 1

    async def _follow(self) -> None:
        """A feed on rows of one's own, each of which is written through another lease."""
        name = uuid.uuid4().hex
        async with self.pool.connect(looped_mode=True) as conn:
            async with asyncio.timeout(PATIENCE):
                feed = await self.table.filter({"feed": name}).changes().run(conn)
            for n in range(3):
                async with self.pool.connect() as other, asyncio.timeout(PATIENCE):
                    await self.table.insert({"feed": name, "n": n}).run(other)
                async with asyncio.timeout(PATIENCE):
                    change = await anext(feed)
                self.tally.changes += 1
                self.tally.expect("a change", (change["old_val"], change["new_val"]["n"]), (None, n))


class Diary:
    """A document whose number goes up, written past the proxy; and followers, who must see each number, or a gap."""

    def __init__(self, pool: AsyncConnectionPool, table: Any, tally: Tally) -> None:
        self.pool = pool
        self.table = table
        self.tally = tally
        self.written = 0
        self.seen = [0] * FOLLOWERS

    async def write(self, conn: Any) -> None:
        """One number after the other, until cancelled."""
        while True:
            await asyncio.sleep(0.01)
            self.written += 1
            await self.table.get("diary").update({"n": self.written}).run(conn)

    async def follow(self, follower: int) -> None:
        """Until cancelled. Once it was open, the feed has to survive whatever happens."""
        feed, was_open, is_new = self._feed(), False, True
        while True:
            try:
                item = await anext(feed)
            except Exception as error:
                if was_open:
                    self.tally.wrong.append(f"a feed did not survive {type(error).__name__}: {error}")
                feed, was_open, is_new = self._feed(), False, True
                await asyncio.sleep(0.1)
                continue
            was_open = True
            if isinstance(item, FeedGap):
                self.tally.gaps += 1
                is_new = True
                continue
            last, n = self.seen[follower], item["new_val"]["n"]
            if n != last + 1 and not (is_new and n > last):
                self.tally.wrong.append(f"after change {last} came {n}, and nobody told of a gap")
            self.tally.changes += 1
            self.seen[follower], is_new = n, False

    def _feed(self) -> Any:
        return self.pool.changes(self.table.get("diary").changes(), timeout=PATIENCE)

    async def end(self) -> None:
        """Nothing fails any more: all followers have to be back, and to see what is written from now on."""
        loop = asyncio.get_running_loop()
        written, until = self.written, loop.time() + BACK_SECONDS
        while min(self.seen) <= written:
            if loop.time() > until:
                self.tally.leaked.append(f"changes: at the end followers saw {self.seen} of {self.written}")
                return
            await asyncio.sleep(0.05)


async def trouble(proxy: FaultProxy, draw: random.Random) -> None:
    """Cut, freeze and worse, now and then, until cancelled."""
    faults = proxy.faults
    once: list[Callable[[], object]] = [
        faults.cut,
        lambda: faults.cut(orderly=True),
        lambda: faults.cut(when="next connection"),
        lambda: faults.cut(when="after next answer"),
        lambda: faults.cut(orderly=True, when="after next answer"),
        lambda: faults.inject(Fault.GARBAGE),
        lambda: faults.inject(Fault.BAD_JSON),
        lambda: faults.inject(Fault.HALF_ANSWER),
        lambda: faults.inject(Fault.WRONG_TOKEN),
    ]
    for_a_while: list[Callable[[], object]] = [
        faults.freeze,
        faults.freeze,
        faults.refuse,
        faults.mute,
        lambda: setattr(faults, "delay", draw.random() / 10),
    ]
    while True:
        await asyncio.sleep(draw.expovariate(1 / 0.4))
        if draw.random() < 0.7:
            if not faults.pending:  # or they would add up while nobody can connect
                draw.choice(once)()
            continue
        draw.choice(for_a_while)()
        if draw.random() < 0.3:
            faults.cut()
        await asyncio.sleep(draw.expovariate(1 / 0.4))
        faults.clear()


# ---------------------------------------------------------------------- the run


@contextlib.asynccontextmanager
async def the_server(url: str | None) -> AsyncIterator[dict[str, Any]]:
    """What connects to the server that was asked for, or to a stand-in."""
    if url is None:
        async with StandInServer() as server:
            yield {"host": server.host, "port": server.port}
        return
    yield arguments_of(url)


@contextlib.asynccontextmanager
async def a_table(arguments: dict[str, Any]) -> AsyncIterator[Any]:
    """A table of this run's own, made and dropped past the proxy."""
    db = "soak_" + uuid.uuid4().hex
    table = R.db(db).table("t")
    async with await R.connect(**arguments) as conn:
        await R.db_create(db).run(conn)
        await R.db(db).table_create("t").run(conn)
        await table.wait().run(conn)
        await table.insert([{"id": n, "square": n * n} for n in range(ROWS)]).run(conn)
        await table.insert([{"id": "diary", "n": 0}, *({"id": name, "count": 0} for name in ALL_COUNTERS)]).run(conn)
        try:
            yield table
        finally:
            await R.db_drop(db).run(conn)


async def soak(seconds: float, url: str | None, seed: int, show: Callable[[float, Tally], None]) -> bool:
    """Run it and print the summary; returns whether all was well."""
    draw, tally = random.Random(seed), Tally()
    before = measure()
    async with the_server(url) as arguments, a_table(arguments) as table:
        quiet = measure()
        async with FaultProxy(arguments["host"], arguments["port"]) as proxy:
            pool = AsyncConnectionPool(
                {**arguments, "host": proxy.host, "port": proxy.port},
                POOL_SIZE,
                30,
                name="soak",
                min_size=2,
                max_idle=5,
                acquire_timeout=2,
                connect_timeout=0.5,
                check_timeout=0.5,
                close_timeout=0.5,
                cursor_grace=1,
                check_idle=0.5,
                ping_interval=1,
                max_in_flight=16,
            )
            await pool.init_pool()
            users = Users(pool, table, draw, tally)
            async with await R.connect(**arguments) as conn, _written(Diary(pool, table, tally), conn):
                warm = await _live(users, proxy, seconds, show)
                proxy.faults.clear()
                await _come_back(pool, tally)
                await users.settle(conn, seconds)
            stats = pool.stats()
            await _bounded("close()", pool.close(timeout=2), tally)
            if pool.stats().size or pool.stats().opened_total != pool.stats().closed_total:
                tally.leaked.append(f"connections of the closed pool: {pool.stats()}")
            happened = {fault.value: proxy.faults.happened(fault) for fault in Fault if proxy.faults.happened(fault)}
        await asyncio.sleep(0.1)
        calm = measure()
    after = measure()
    for name, now, then in (("files", calm, quiet), ("tasks", calm, quiet), ("files", after, before)):
        if (more := getattr(now, name) - getattr(then, name)) > 0:
            tally.leaked.append(f"{more} {name} more than before")
    if after.memory - warm.memory > MORE_MEMORY:
        tally.leaked.append(f"{_mib(after.memory - warm.memory)} of memory")
    print(f"leases     {stats.acquired_total:,}, on {stats.opened_total:,} connections")
    print(_summary(tally, happened, before, after, warm))
    return not (tally.wrong or tally.hung or tally.leaked)


async def _live(users: Users, proxy: FaultProxy, seconds: float, show: Callable[[float, Tally], None]) -> Resources:
    """Let users and faults loose; returns what the process held after the first quarter."""
    loop = asyncio.get_running_loop()
    began, warm = loop.time(), None
    tasks = [asyncio.create_task(users.come_and_go()) for _ in range(USERS)]
    tasks.append(asyncio.create_task(trouble(proxy, users.draw)))
    try:
        while (passed := loop.time() - began) < seconds:
            if warm is None and passed > seconds / 4:
                warm = measure()
            show(passed / seconds, users.tally)
            await asyncio.wait(tasks, timeout=min(0.2, seconds - passed), return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
    finally:
        for task in tasks:
            task.cancel()
        _, stuck = await asyncio.wait(tasks, timeout=HANG_SECONDS)
    users.tally.hung += [f"{len(stuck)} cancelled users"] if stuck else []
    show(1, users.tally)
    return warm or measure()


@contextlib.asynccontextmanager
async def _written(diary: Diary, conn: Any) -> AsyncIterator[None]:
    """Writes and follows it, inside; at the end everybody must have seen it."""
    writer = asyncio.create_task(diary.write(conn))
    followers = [asyncio.create_task(diary.follow(n)) for n in range(FOLLOWERS)]
    try:
        yield
        await diary.end()
    finally:
        for task in (writer, *followers):
            task.cancel()
        await asyncio.wait([writer, *followers])


async def _bounded(call: str, work: Awaitable[Any], tally: Tally) -> None:
    try:
        async with asyncio.timeout(HANG_SECONDS):
            await work
    except TimeoutError:
        tally.hung.append(call)


async def _come_back(pool: AsyncConnectionPool, tally: Tally) -> None:
    """Nothing fails any more: the whole capacity has to come back, and each connection to answer."""
    leases: list[Any] = []
    await asyncio.sleep(0.2)  # what was sent while things failed has arrived
    try:
        async with asyncio.timeout(BACK_SECONDS):
            while len(leases) < POOL_SIZE:
                with contextlib.suppress(PoolException):  # openings that had begun before may fail yet
                    leases.append(await pool.acquire(timeout=1))
            for n, lease in enumerate(leases):
                tally.expect("at the end", await R.expr([n]).run(lease), [n])
    except (TimeoutError, R.ReqlError) as error:
        tally.leaked.append(f"capacity: only {len(leases)} of {POOL_SIZE} leases at the end, {error!r}: {pool.stats()}")
    for lease in leases:
        pool.release(lease)


# ---------------------------------------------------------------------- what is told


def _summary(tally: Tally, happened: dict[str, int], before: Resources, after: Resources, warm: Resources) -> str:
    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())) or "none"

    lines = [
        f"answered   {tally.answered:,}; {tally.rows:,} rows, {tally.changes:,} changes and {tally.gaps:,} gaps read",
        f"longest    {', '.join(f'{name} {took:.1f} s' for name, took in sorted(tally.longest.items()))}",
        f"cancelled  {tally.cancelled:,}",
        f"failed     {tally.failed.total():,}: {listed(tally.failed)}",
        f"faults     {listed(happened)}",
        f"wrong      {len(tally.wrong)}",
        f"hung       {len(tally.hung)}",
        f"leaked     {len(tally.leaked)}",
        f"files      {before.files} before, {after.files} after",
        f"tasks      {before.tasks} before, {after.tasks} after",
        f"memory     {_mib(before.memory)} before, {_mib(warm.memory)} warm, {_mib(after.memory)} after",
    ]
    for what in ("wrong", "hung", "leaked"):
        lines += [f"  {what}: {line}" for line in getattr(tally, what)[:5]]
    return "\n".join(lines)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


class Bar:
    """Progress on stderr: in place on a terminal, else a line for each tenth."""

    def __init__(self) -> None:
        self._tenths = -1

    def __call__(self, part: float, tally: Tally) -> None:
        filled = int(min(1.0, part) * 30)
        failed, amiss = tally.failed.total(), len(tally.wrong) + len(tally.hung)
        line = f"[{'#' * filled}{'.' * (30 - filled)}] {tally.answered:,} answered, {failed:,} failed, {amiss} amiss"
        if sys.stderr.isatty():
            print(f"\r{line}", end="\n" if part >= 1 else "", file=sys.stderr, flush=True)
        elif (tenths := int(part * 10)) > self._tenths:
            self._tenths = tenths
            print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="how long users come and go (default: 30)")
    parser.add_argument("--url", help="rethinkdb://user:password@host:port of a real server (default: the stand-in)")
    parser.add_argument("--seed", type=int, default=1, help="of what happens (default: 1)")
    given = parser.parse_args(arguments)
    if not given.seconds > 0:
        parser.error("--seconds must be more than 0")
    logging.getLogger("async_repool").setLevel(logging.ERROR)  # there are outages all the time
    random.seed(given.seed)
    sys.exit(0 if asyncio.run(soak(given.seconds, given.url, given.seed, Bar())) else 1)


if __name__ == "__main__":
    main()
