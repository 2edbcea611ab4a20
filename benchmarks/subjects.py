"""What is measured: our pool, other pools, and a bare queue, each on connections that do nothing.

The fakes leave out what real connections do when they are entered, left, checked or committed, so what remains is the
pool's own work. Where a pool can be set up in several ways, it gets the fastest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from async_repool import AsyncConnectionPool, Connector

from .servers import Server

Connect: TypeAlias = Callable[[], AbstractAsyncContextManager[object]]
"""``async with connect():`` holds one connection."""

OURS = "async-repool"
REAL = "async-repool, real connections"
QUEUE = "bare asyncio.Queue"
PSYCOPG = "psycopg_pool"
GENERIC = "generic-connection-pool"
RELEASED = "async-repool 1.0.1"


@dataclass(frozen=True)
class Subject:
    """Something that hands out connections. ``open`` is given how many; all of them are idle when it is entered."""

    name: str
    open: Callable[[int], AbstractAsyncContextManager[Connect]]


class NotInstalled(Exception):
    """A package that is only measured where it is installed."""


def find_subjects() -> tuple[list[Subject], dict[str, str]]:
    """Those that can be measured here, ours and the bare queue first; and for each of the others, why not."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    found = [Subject(OURS, _async_repool), Subject(QUEUE, _queue)]
    missing = {}
    for name, load in ((PSYCOPG, _load_psycopg_pool), (GENERIC, _load_generic_connection_pool)):
        try:
            found.append(Subject(name, load()))
        except ImportError as error:
            hint = "pip install 'async-repool[bench]'"
            if "libpq" in str(error):
                hint += ", and libpq or 'psycopg[binary]'"
            missing[name] = f"{str(error).splitlines()[0]}: {hint}"
    return found, missing


# ---------------------------------------------------------------------- ours


class FakeConnection:
    __slots__ = ("__weakref__",)


class FakeConnector:
    """The least that the ``Connector`` protocol asks for. RethinkDB's own ``is_open`` costs a little more."""

    endpoint = "nowhere"
    connect_timeout = 20.0

    async def connect(self) -> FakeConnection:
        return FakeConnection()

    def is_open(self, connection: Any, /) -> bool:
        return True

    def on_lost(self, connection: Any, callback: Callable[[], None], /) -> None:
        pass

    def has_streams(self, connection: Any, /) -> bool:
        return False

    async def wait_streams(self, connection: Any, /) -> None:
        pass

    async def check(self, connection: Any, /) -> None:
        pass

    async def close(self, connection: Any, /) -> None:
        pass

    def abort(self, connection: Any, /) -> None:
        pass


@asynccontextmanager
async def _async_repool(size: int) -> AsyncIterator[Connect]:
    connector: Connector = FakeConnector()
    async with AsyncConnectionPool(connector, size) as pool:
        yield pool.connect


def on_server(server: Server) -> Subject:
    """Ours on real connections. What they are asked at each turn, whether they are open, costs more than with fakes."""

    @asynccontextmanager
    async def open_pool(size: int) -> AsyncIterator[Connect]:
        async with AsyncConnectionPool(server.arguments, size) as pool:
            yield pool.connect

    return Subject(REAL, open_pool)


# ---------------------------------------------------------------------- a bare queue, the yardstick


class QueueTurn:
    """``async with``: get, and put back. With a time limit and a step aside, which every pool needs or has."""

    __slots__ = ("_item", "_queue")

    def __init__(self, queue: asyncio.Queue[object]) -> None:
        self._queue = queue
        self._item: object = None

    async def __aenter__(self) -> object:
        async with asyncio.timeout(30):
            self._item = await self._queue.get()
        return self._item

    async def __aexit__(self, *_: object) -> None:
        await self._queue.put(self._item)
        # A queue is not fair: without this, who puts and gets again at once starves all who wait.
        await asyncio.sleep(0)


def filled_queue(size: int) -> asyncio.Queue[object]:
    """A queue of ``size`` items."""
    queue: asyncio.Queue[object] = asyncio.Queue()
    for _ in range(size):
        queue.put_nowait(FakeConnection())
    return queue


@asynccontextmanager
async def _queue(size: int) -> AsyncIterator[Connect]:
    yield partial(QueueTurn, filled_queue(size))


# ---------------------------------------------------------------------- psycopg_pool


def _load_psycopg_pool() -> Callable[[int], AbstractAsyncContextManager[Connect]]:
    import psycopg_pool
    from psycopg.pq import TransactionStatus

    class FakePgConn:
        __slots__ = ()
        transaction_status = TransactionStatus.IDLE

    class FakeAsyncConnection:
        """As much of ``psycopg.AsyncConnection`` as its pool asks for. The real one commits when it is left."""

        __slots__ = ("_created_at", "_expire_at", "_pool")
        pgconn = FakePgConn()

        @classmethod
        async def connect(cls, conninfo: str = "", **_: Any) -> FakeAsyncConnection:
            return cls()

        async def __aenter__(self) -> FakeAsyncConnection:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def close(self) -> None:
            pass

    fake_class: Any = FakeAsyncConnection

    @asynccontextmanager
    async def open_pool(size: int) -> AsyncIterator[Connect]:
        pool: Any = psycopg_pool.AsyncConnectionPool(
            connection_class=fake_class, min_size=size, max_size=size, open=False
        )
        await pool.open(wait=True)
        try:
            yield pool.connection
        finally:
            await pool.close()

    return open_pool


# ---------------------------------------------------------------------- generic-connection-pool


def _load_generic_connection_pool() -> Callable[[int], AbstractAsyncContextManager[Connect]]:
    from generic_connection_pool.asyncio import BaseConnectionManager, ConnectionPool

    base: Any = BaseConnectionManager

    class FakeManager(base):  # type: ignore[misc]
        async def create(self, endpoint: str) -> FakeConnection:
            return FakeConnection()

        async def dispose(self, endpoint: str, conn: FakeConnection) -> None:
            pass

    @asynccontextmanager
    async def open_pool(size: int) -> AsyncIterator[Connect]:
        pool: Any = ConnectionPool(
            FakeManager(),
            acquire_timeout=30,
            background_collector=True,  # the default, False, looks for what to dispose of at each release
            min_idle=size,
            max_size=size,
            total_max_size=size,
        )
        for connection in [await pool.acquire("nowhere") for _ in range(size)]:
            await pool.release(connection, "nowhere")
        try:
            yield partial(pool.connection, "nowhere")
        finally:
            await pool.close(timeout=5)

    return open_pool
