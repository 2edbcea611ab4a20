"""The connection on another event loop."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from rethinkdb.errors import ReqlDriverError

from async_repool.connectors.rethinkdb import R, RethinkDBConnector
from connection_kit import BULK, blocked, cancelled, turns
from scripted_server import ATOM, SEQUENCE, STOP, Link, ScriptedServer


def test_all_of_it_works_on_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with ScriptedServer().running() as scripted:
            connector = RethinkDBConnector(host=scripted.host, port=scripted.port)
            link = Link(await connector.connect(), await scripted.peer())
            await link.works()
            token = await cancelled(link)
            link.peer.answer(token, SEQUENCE)
            link.peer.answer(token, SEQUENCE)
            cursor, token = await link.streaming(1)
            del cursor
            await link.expect(token, STOP)
            link.peer.answer(token, SEQUENCE)
            link.peer.answer(token, SEQUENCE)
            await link.works()
            await blocked(link)
            await turns(5)
            waits = link.run(R.expr("waits"))
            await turns(5)
            link.peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert (await link.peer.request())[1][1] == BULK
            token, query = await link.peer.request()
            assert query[1] == "waits"
            link.peer.answer(token, ATOM, "long")
            assert await waits == "long"
            task, _ = await link.started()
            link.peer.end()
            with pytest.raises(ReqlDriverError, match="ended the connection"):
                await task
            for turn in range(60):
                connecting = asyncio.create_task(connector.connect())
                await turns(turn)
                connecting.cancel()
                await asyncio.wait([connecting])
                if not connecting.cancelled():
                    await (await connecting).close()

    with contextlib.closing(uvloop.new_event_loop()) as loop:
        loop.run_until_complete(asyncio.wait_for(main(), 30))
        loop.run_until_complete(loop.shutdown_asyncgens())
