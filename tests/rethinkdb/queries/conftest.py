"""Connections whose queries run as the pool runs them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from async_repool.connectors.rethinkdb import R, RethinkDBConnection, RethinkDBConnector
from scripted_server import PoolLink, linked


@pytest.fixture
async def link() -> AsyncIterator[PoolLink]:
    async with linked(PoolLink) as link:
        yield link


@pytest.fixture
async def connection(rethinkdb_server: Any) -> AsyncIterator[RethinkDBConnection]:
    """A connection to the server of this session."""
    async with await RethinkDBConnector(**rethinkdb_server.connect_arguments).connect() as connection:
        yield connection


@pytest.fixture
async def table(connection: RethinkDBConnection) -> AsyncIterator[Any]:
    """A table of 1,000 rows."""
    name = f"async_repool_{random.randrange(10**9)}"
    await R.db_create(name).run(connection)
    await R.db(name).table_create("rows").run(connection)
    await R.db(name).table("rows").insert([{"id": i, "text": f"row {i}"} for i in range(1000)]).run(connection)
    yield R.db(name).table("rows")
    await R.db_drop(name).run(connection)
