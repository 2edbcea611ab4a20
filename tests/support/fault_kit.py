"""Fault controls, calls of the pool, and what must hold whenever the one meets the other.

Each combination has a pool, and an endpoint with faults, of its own: the stand-in server itself, or a proxy in front of
the session's server. After the fault the whole capacity has to work again, and nothing may be left when the pool is
closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from rethinkdb.errors import ReqlError

from async_repool import AsyncConnectionPool, ConnectFailed, PoolClosed, PoolTimeout, R
from async_repool.testing import Fault, FaultProxy, Faults, StandInServer

HANG_SECONDS = 10.0
POOL_SIZE = 2
LAST_ROW = 1000
LONG = R.range(1_000_000).map(lambda x: x * x).sum()
CONTROLS: dict[str, Callable[[Faults], object]] = {
    "refuse": Faults.refuse,
    "mute": Faults.mute,
    "freeze": Faults.freeze,
    "a short delay": lambda faults: setattr(faults, "delay", 0.02),
    "a long delay": lambda faults: setattr(faults, "delay", 0.5),
    "reset now": lambda faults: faults.cut(),
    "eof now": lambda faults: faults.cut(orderly=True),
    "reset the next connection": lambda faults: faults.cut(when="next connection"),
    "eof on the next connection": lambda faults: faults.cut(orderly=True, when="next connection"),
    "reset after the next answer": lambda faults: faults.cut(when="after next answer"),
    "eof after the next answer": lambda faults: faults.cut(orderly=True, when="after next answer"),
    "garbage": lambda faults: faults.inject(Fault.GARBAGE),
    "bad json": lambda faults: faults.inject(Fault.BAD_JSON),
    "half an answer": lambda faults: faults.inject(Fault.HALF_ANSWER),
    "wrong token": lambda faults: faults.inject(Fault.WRONG_TOKEN),
}


HARMLESS = {"a short delay"}
SILENT = {"freeze", "a long delay"}  # an open connection lives on, and says nothing for as long as anybody waits


@dataclass
class Place:
    """An endpoint with faults, and a table behind it."""

    endpoint: StandInServer | FaultProxy
    arguments: dict[str, Any]
    """What connects to the endpoint."""
    way_round: dict[str, Any]
    """What connects to the server; where that has faults of its own, to the same endpoint."""
    table: Any


@contextlib.asynccontextmanager
async def stand_in() -> AsyncIterator[Place]:
    async with StandInServer() as server:
        arguments = {"host": server.host, "port": server.port}
        conn = await R.connect(**arguments)
        await R.db_create("faults").run(conn)
        await R.db("faults").table_create("t").run(conn)
        await conn.close()
        yield Place(server, arguments, arguments, R.db("faults").table("t"))


@contextlib.asynccontextmanager
async def proxy(arguments: dict[str, Any], table: Any) -> AsyncIterator[Place]:
    async with FaultProxy(arguments["host"], arguments["port"]) as proxy:
        yield Place(proxy, {**arguments, "host": proxy.host, "port": proxy.port}, arguments, table)


@dataclass
class Scene:
    """One control on one call."""

    control: str
    place: Place
    pool: AsyncConnectionPool
    errors: list[str] = field(default_factory=list)
    """What users were told; not the errors themselves, whose tracebacks would keep cursors alive."""

    def begin(self) -> None:
        """From here on things go wrong."""
        CONTROLS[self.control](self.place.endpoint.faults)

    @contextlib.contextmanager
    def may_fail(self, *expected: type[BaseException]) -> Iterator[None]:
        try:
            yield
        except expected as error:
            if len(str(error)) < 10 or (isinstance(error, ConnectFailed) and error.__cause__ is None):
                raise AssertionError(f"{error!r} says too little") from error
            self.errors.append(repr(error))

    @contextlib.asynccontextmanager
    async def patience(self) -> AsyncIterator[None]:
        """Around the driver's calls, which wait as long as their caller: for a silent peer, and for no other."""
        with self.may_fail(ReqlError):
            try:
                async with asyncio.timeout(0.3 if self.control in SILENT else 5):
                    yield
            except TimeoutError:
                if self.control not in SILENT:
                    raise AssertionError("a query waited for an answer that could not come") from None
                self.errors.append("TimeoutError()")

    async def ask(self, conn: Any, n: int) -> None:
        async with self.patience():
            answer = await (R.expr(n) * 2).run(conn)
            assert answer == 2 * n, "a wrong answer"

    async def use(self, n: int) -> None:
        """What users do all day."""
        with self.may_fail(ConnectFailed, PoolTimeout):
            async with self.pool.connect() as conn:
                await self.ask(conn, n)

    async def recovers(self) -> None:
        """Clear the fault: the whole capacity must work, at once, with no failure."""
        self.place.endpoint.faults.clear()
        await asyncio.sleep(0.02)
        await self.settles(lambda: not (self.pool.stats().connecting or self.pool.stats().closing))
        with contextlib.suppress(PoolClosed):
            self.pool.release(await self.pool.acquire(timeout=5))
        await self.pool.init_pool()  # does nothing where it is open
        leases = [await self.pool.acquire(timeout=5) for _ in range(POOL_SIZE)]
        answers = await asyncio.gather(*((R.expr(n) * 2).run(lease) for n, lease in enumerate(leases)))
        assert answers == [0, 2]
        for lease in leases:
            self.pool.release(lease)

    async def settles(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(3):
            while not is_so():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def is_each_connection_accounted_for(self) -> bool:
        stats = self.pool.stats()
        return self.place.endpoint.connections == stats.size + stats.feeds + stats.retired

    def is_nothing_in_use(self) -> bool:
        stats = self.pool.stats()
        return (stats.leased, stats.waiting, stats.feeds) == (0, 0, 0)


Use = Callable[[Scene], Awaitable[None]]


async def init_pool(scene: Scene) -> None:
    scene.begin()
    with scene.may_fail(ConnectFailed):
        await scene.pool.init_pool()
        await scene.use(1)


async def acquire_an_idle_one(scene: Scene) -> None:
    await scene.pool.init_pool()
    scene.begin()
    await scene.use(1)
    await scene.use(2)


async def acquire_a_new_one(scene: Scene) -> None:
    await scene.pool.init_pool()
    async with scene.pool.connect():
        scene.begin()
        await scene.use(1)


async def acquire_after_waiting(scene: Scene) -> None:
    await scene.pool.init_pool()
    leases = [await scene.pool.acquire() for _ in range(POOL_SIZE)]
    scene.begin()
    waiting = [asyncio.create_task(scene.use(n)) for n in range(3)]
    await asyncio.sleep(0.02)
    for lease in leases:
        scene.pool.release(lease)
    await asyncio.gather(*waiting)


async def acquire_in_place_of_an_expired_one(scene: Scene) -> None:
    await scene.pool.init_pool()
    await asyncio.sleep(0.06)
    scene.begin()
    await scene.use(1)


async def acquire_a_checked_one(scene: Scene) -> None:
    await scene.pool.init_pool()
    scene.begin()
    await scene.use(1)


async def run_queries(scene: Scene) -> None:
    await scene.pool.init_pool()
    async with scene.pool.connect() as conn:
        scene.begin()
        await asyncio.gather(*(scene.ask(conn, n) for n in range(5)))


async def be_cancelled_in_a_query(scene: Scene) -> None:
    await scene.pool.init_pool()
    async with scene.pool.connect() as conn:
        query = asyncio.create_task(LONG.run(conn))
        await asyncio.sleep(0.01)
        scene.begin()
        query.cancel()
        with contextlib.suppress(asyncio.CancelledError), scene.may_fail(ReqlError):
            await query
        await scene.ask(conn, 1)
    await scene.use(2)


async def read_a_cursor(scene: Scene) -> None:
    await scene.pool.init_pool()
    async with scene.pool.connect() as conn:
        cursor = await R.range(LAST_ROW).run(conn, max_batch_rows=200)
    rows = [await anext(cursor) for _ in range(100)]
    scene.begin()
    before = len(scene.errors)
    async with scene.patience():
        async for row in cursor:
            rows.append(row)
    await cursor.close()
    assert rows == list(range(len(rows))), "wrong rows"
    assert len(rows) == LAST_ROW or len(scene.errors) > before, "rows are missing, and nobody was told"


async def follow_a_feed(scene: Scene) -> None:
    await scene.pool.init_pool()
    name = uuid.uuid4().hex
    writer = await R.connect(**scene.place.way_round)
    try:
        async with scene.pool.connect(looped_mode=True) as conn:
            feed = await scene.place.table.filter({"scene": name}).changes().run(conn)
            scene.begin()
            seen = []
            async with scene.patience():
                for n in range(5):  # noreply, so that the fault strikes the feed and not the answer to the writer
                    await scene.place.table.insert({"scene": name, "n": n}).run(writer, noreply=True)
                    change = await anext(feed)
                    seen.append(change["new_val"]["n"])
            assert seen == list(range(len(seen))), "wrong changes"
            assert len(seen) == 5 or scene.errors, "changes are missing, and nobody was told"
            await feed.close()
    finally:
        writer.abort()


async def begin_a_feed(scene: Scene) -> None:
    await scene.pool.init_pool()
    scene.begin()
    with scene.may_fail(ConnectFailed, PoolTimeout):
        async with scene.pool.connect(looped_mode=True) as conn, scene.patience():
            feed = await scene.place.table.changes().run(conn)
            await feed.close()


async def release(scene: Scene) -> None:
    await scene.pool.init_pool()
    leases = [await scene.pool.acquire() for _ in range(POOL_SIZE)]
    scene.begin()
    for lease in leases:
        scene.pool.release(lease)
    assert scene.pool.stats().leased == 0
    await scene.use(1)


async def release_to_looped(scene: Scene) -> None:
    await scene.pool.init_pool()
    lease = await scene.pool.acquire()
    cursor = await R.range(LAST_ROW).run(lease, max_batch_rows=200)
    scene.begin()
    scene.pool.release_to_looped(lease)
    await scene.use(1)
    before = len(scene.errors)
    rows: list[int] = []
    async with scene.patience():
        async for row in cursor:
            rows.append(row)
    await cursor.close()
    assert rows == list(range(len(rows))), "wrong rows"
    assert len(rows) == LAST_ROW or len(scene.errors) > before, "rows are missing, and nobody was told"


async def drain(scene: Scene) -> None:
    await scene.pool.init_pool()
    async with scene.pool.connect() as conn:
        scene.begin()
        with scene.may_fail(ConnectFailed):
            await scene.pool.drain()
        await scene.ask(conn, 1)
    await scene.use(2)


async def close(scene: Scene) -> None:
    await scene.pool.init_pool()
    async with scene.pool.connect() as conn:
        await R.expr([1]).run(conn, noreply=True)  # a polite close has to wait for this
    scene.begin()
    await scene.pool.close()
    with pytest.raises(PoolClosed):
        await scene.pool.acquire()


async def close_in_use(scene: Scene) -> None:
    await scene.pool.init_pool()
    leases = [await scene.pool.acquire() for _ in range(POOL_SIZE)]
    cursor = await R.range(50_000_000).run(leases[0])
    query = asyncio.create_task(LONG.run(leases[0]))
    waiting = asyncio.create_task(scene.pool.acquire(timeout=HANG_SECONDS))
    await asyncio.sleep(0.01)
    scene.begin()
    await scene.pool.close(timeout=0.1)
    with pytest.raises(PoolClosed):
        await waiting
    with pytest.raises(ReqlError):
        await query
    with pytest.raises(ReqlError):
        async for _ in cursor:
            pass
    for lease in leases:
        scene.pool.release(lease)


async def release_pool(scene: Scene) -> None:
    await scene.pool.init_pool()
    scene.begin()
    await scene.pool.release_pool()
    with pytest.raises(PoolClosed):
        await scene.pool.acquire()


async def is_there(connection: Any) -> None:
    await connection.check()


USES: dict[Use, dict[str, Any]] = {
    init_pool: {"configure": is_there},
    acquire_an_idle_one: {},
    acquire_a_new_one: {"min_size": 1},
    acquire_after_waiting: {},
    acquire_in_place_of_an_expired_one: {"connection_ttl": 0.05},
    acquire_a_checked_one: {"check": AsyncConnectionPool.check_connection},
    run_queries: {},
    be_cancelled_in_a_query: {},
    read_a_cursor: {},
    follow_a_feed: {},
    begin_a_feed: {},
    release: {"reset": is_there},
    release_to_looped: {},
    drain: {},
    close: {},
    close_in_use: {},
    release_pool: {},
}


OPTIONS: dict[str, Any] = {
    "pool_size": POOL_SIZE,
    "acquire_timeout": 0.5,
    "connect_timeout": 0.3,
    "check_timeout": 0.3,
    "close_timeout": 0.3,
    "cursor_grace": 0.3,
}


async def combine(control: str, use: Use, at: Callable[[], contextlib.AbstractAsyncContextManager[Place]]) -> Scene:
    """One control on one call; returns what happened."""
    options = {**OPTIONS, **USES[use]}
    try:
        async with at() as place:
            pool = AsyncConnectionPool(place.arguments, name=use.__name__, **options)
            scene = Scene(control, place, pool)
            try:
                async with asyncio.timeout(HANG_SECONDS):
                    await use(scene)
                if control in HARMLESS:
                    assert scene.errors == []
                async with asyncio.timeout(HANG_SECONDS):
                    await scene.recovers()
                await scene.settles(scene.is_each_connection_accounted_for)
                await scene.settles(scene.is_nothing_in_use)  # a connection in question may take its check_timeout
            finally:
                place.endpoint.faults.clear()
                async with asyncio.timeout(HANG_SECONDS):
                    await pool.close(timeout=1)
            assert pool.stats().size == 0
            assert pool.stats().opened_total == pool.stats().closed_total
            await scene.settles(lambda: place.endpoint.connections == 0)
            return scene
    except BaseException as problem:
        problem.add_note(f"control: {control}; call: {use.__name__}; seen before: {scene.errors}")
        raise
