"""What tests of the stand-in server share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from rethinkdb import RethinkDB

from async_repool.testing import StandInServer
from wire_client import DB, INSERT, SEQUENCE, TABLE

r = RethinkDB()
r.set_loop_type("asyncio")
T = r.table("t")
WIRE_T = [TABLE, [[DB, ["test"]], "t"]]
"""The same table as ``T``, for a ``WireClient``."""
STOPPED = {"t": SEQUENCE, "r": []}
"""The answer to a STOP."""


@asynccontextmanager
async def connection_with_rows(rows: list[Any]) -> AsyncIterator[Any]:
    """A connection to a new stand-in server, with these rows in table ``t``."""
    async with StandInServer() as server:
        conn = await r.connect(server.host, server.port)
        await r.table_create("t").run(conn)
        await T.insert(rows).run(conn)
        yield conn
        await conn.close(False)


async def value_of(term: Any, conn: Any) -> Any:
    value = await term.run(conn)
    return [row async for row in value] if hasattr(value, "fetch_next") else value


async def eventually(holds: Callable[[], bool]) -> None:
    """Let the loop run until ``holds()`` is true."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110  (it polls counters of the server)
            await asyncio.sleep(0.001)


def insert(**document: object) -> list[Any]:
    return [INSERT, [WIRE_T, document]]
