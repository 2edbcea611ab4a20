"""What tests of the stand-in's answers share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from rethinkdb import RethinkDB

from async_repool.testing import StandInServer

r = RethinkDB()
r.set_loop_type("asyncio")
T = r.table("t")


@asynccontextmanager
async def connection_with_rows(rows: list[Any]) -> AsyncIterator[Any]:
    """A connection to a stand-in server of its own, with these rows in table ``t``."""
    async with StandInServer() as server:
        conn = await r.connect(server.host, server.port)
        await r.table_create("t").run(conn)
        await T.insert(rows).run(conn)
        yield conn
        await conn.close(False)


async def value_of(term: Any, conn: Any) -> Any:
    value = await term.run(conn)
    return [row async for row in value] if hasattr(value, "fetch_next") else value
