"""Connections to a scripted server, to the stand-in, and to any server."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from async_repool.connectors.rethinkdb import R, RethinkDBConnection, RethinkDBConnector
from async_repool.testing import StandInServer
from scripted_server import Link, linked


@pytest.fixture
async def link() -> AsyncIterator[Link]:
    async with linked(Link) as link:
        yield link


@pytest.fixture
async def server() -> AsyncIterator[StandInServer]:
    async with StandInServer() as server:
        yield server


@pytest.fixture
async def connection(server: StandInServer) -> AsyncIterator[RethinkDBConnection]:
    """A connection to the stand-in server, whose insides tests may look at."""
    async with await R.connect(server.host, server.port) as connection:
        yield connection


@pytest.fixture
async def any_connection(server: StandInServer) -> AsyncIterator[RethinkDBConnection]:
    """A connection to any server: a real one where the environment names it."""
    connector = RethinkDBConnector(url=os.environ.get("RETHINKDB_URL") or server.url)
    async with await connector.connect() as connection:
        yield connection


@pytest.fixture
async def table(any_connection: RethinkDBConnection) -> AsyncIterator[Any]:
    """A table of 2,500 rows."""
    name = f"async_repool_{random.randrange(10**9)}"
    await R.db_create(name).run(any_connection)
    await R.db(name).table_create("rows").run(any_connection)
    table = R.db(name).table("rows")
    for start in range(0, 2500, 500):
        await table.insert([{"id": i, "text": f"row {i}"} for i in range(start, start + 500)]).run(any_connection)
    yield table
    await R.db_drop(name).run(any_connection)
