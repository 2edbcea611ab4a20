"""A soak in real time: users on real sockets, through a proxy that cuts and freezes at random. Nobody may ever get a
wrong answer or hang, and nothing may be left.

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
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from async_repool import AsyncConnectionPool, PoolException, R
from async_repool.testing import Fault, FaultProxy, StandInServer

POOL_SIZE: Final = 5
USERS: Final = 25
ROWS: Final = 500
PATIENCE: Final = 1.0  # seconds that a user gives a query; the driver itself waits for ever
HANG_SECONDS: Final = 20.0  # longer than every bounded wait of one visit together
BACK_SECONDS: Final = 15.0  # for the whole capacity to be there, once nothing fails any more; the pool may pause for 10
MORE_MEMORY: Final = 64 * 2**20  # bytes by which the process may grow after its first quarter


@dataclass
class Tally:
    """What users saw, and what was wrong."""

    answered: int = 0
    rows: int = 0
    changes: int = 0
    cancelled: int = 0
    failed: Counter[str] = field(default_factory=Counter)
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
        self._visits: list[Callable[[], Awaitable[None]]] = [
            *([self._ask] * 10),
            *([self._get] * 10),
            self._sum,
            self._read,
            self._read_after_the_lease,
            self._leave_a_cursor,
            self._be_cancelled,
            self._be_cancelled,
            self._follow,
        ]

    async def come_and_go(self) -> None:
        """Visit after visit, until cancelled."""
        while True:
            await asyncio.sleep(self.draw.expovariate(1 / 0.02))
            await self._watched(self.draw.choice(self._visits))

    async def _watched(self, visit: Callable[[], Awaitable[None]]) -> None:
        """Each call has a watchdog, apart from the limits that it has itself."""
        name = getattr(visit, "__name__", "visit").strip("_")
        try:
            async with asyncio.timeout(HANG_SECONDS) as watchdog:
                await visit()
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

    async def _be_cancelled(self) -> None:
        task = asyncio.create_task(self._get())
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
    parts = urlsplit(url)
    if parts.scheme != "rethinkdb" or not parts.hostname:
        raise SystemExit("--url must look like rethinkdb://user:password@host:port")
    given = {"user": parts.username, "password": parts.password}
    named = {name: unquote(value) for name, value in given.items() if value}
    yield {"host": parts.hostname, "port": parts.port or 28015, **named}


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
            )
            await pool.init_pool()
            warm = await _live(Users(pool, table, draw, tally), proxy, seconds, show)
            proxy.faults.clear()
            await _come_back(pool, tally)
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
        f"answered   {tally.answered:,}; {tally.rows:,} rows and {tally.changes:,} changes read",
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
