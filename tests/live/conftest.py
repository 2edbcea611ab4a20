"""A pool on the server of the session, and tables of its own for each test."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, R
from async_repool.testing import StandInServer
from live_kit import Watched, a_database


@pytest.fixture
def arguments(rethinkdb_server: Any) -> dict[str, Any]:
    """What connects to the server of this session."""
    return rethinkdb_server.connect_arguments  # type: ignore[no-any-return]


@pytest.fixture
async def pool(arguments: dict[str, Any]) -> AsyncIterator[AsyncConnectionPool]:
    async with AsyncConnectionPool(arguments, pool_size=3, name="main") as pool:
        yield pool


@pytest.fixture
async def db(pool: AsyncConnectionPool) -> AsyncIterator[str]:
    """A database of this test's own, with an empty table ``t``."""
    name = "repool_" + uuid.uuid4().hex
    async with a_database(pool, name):
        yield name


@pytest.fixture
def table(db: str) -> Any:
    return R.db(db).table("t")


@pytest.fixture
async def watched(rethinkdb_server: Any) -> AsyncIterator[Watched]:
    mark = uuid.uuid4().hex
    if rethinkdb_server.kind == "stand-in":  # which is in another process, and has no table of jobs
        async with StandInServer() as server:

            async def count() -> int:
                return server.running_queries + server.open_streams

            yield Watched({"host": server.host, "port": server.port}, mark, count)
        return
    jobs = R.db("rethinkdb").table("jobs")["info"]["query"]
    jobs = jobs.filter(lambda query: query.match(mark) & ~query.match("jobs"))
    async with AsyncConnectionPool(rethinkdb_server.connect_arguments, 1, name="watch") as watch:

        async def count_jobs() -> int:
            return len(await watch.run(jobs))

        yield Watched(rethinkdb_server.connect_arguments, mark, count_jobs)
