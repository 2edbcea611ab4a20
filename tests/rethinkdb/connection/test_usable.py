"""Whether a connection may be given to the next user: one attribute of the wire, kept true at every change."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from rethinkdb.errors import ReqlDriverError
from rethinkdb.net import Query

from async_repool.connectors.rethinkdb import R
from async_repool.connectors.rethinkdb.codec import Codec
from async_repool.connectors.rethinkdb.wire import MOST_FORGOTTEN, Wire
from connection_kit import turns
from scripted_server import ATOM, CONNECTOR, SEQUENCE, START, STOP, Link


async def test_a_connection_is_usable_until_it_is_closed(link: Link) -> None:
    assert CONNECTOR.is_open(link.connection)
    await link.works()
    assert CONNECTOR.is_open(link.connection)
    await link.connection.close()
    assert not CONNECTOR.is_open(link.connection)


async def forget(link: Link, count: int) -> list[int]:
    """The tokens of so many queries that were cancelled, and are not answered yet."""
    tasks = [link.run() for _ in range(count)]
    tokens = [(await link.peer.request())[0] for _ in range(count)]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for token in tokens:
        await link.expect(token, STOP)
    return tokens


async def test_a_connection_with_too_many_forgotten_queries_is_usable_again_when_they_are_answered(link: Link) -> None:
    tokens = await forget(link, MOST_FORGOTTEN)
    assert CONNECTOR.is_open(link.connection)
    tokens += await forget(link, 1)
    assert not CONNECTOR.is_open(link.connection)
    assert link.connection.is_open(), "its present user may go on"
    link.peer.answer(tokens[0], SEQUENCE)
    await turns(3)
    assert not CONNECTOR.is_open(link.connection), "the answer to its STOP is still to come"
    link.peer.answer(tokens[0], SEQUENCE)
    await turns(3)
    assert CONNECTOR.is_open(link.connection)
    link.connection.abort()
    assert not CONNECTOR.is_open(link.connection)


async def test_late_answers_do_not_make_a_lost_connection_usable(link: Link) -> None:
    tokens = await forget(link, MOST_FORGOTTEN + 1)
    for token in tokens[:10]:
        link.peer.answer(token, SEQUENCE)
        link.peer.answer(token, SEQUENCE)
    link.peer.answer(12345, ATOM)
    for token in tokens[10:]:
        link.peer.answer(token, SEQUENCE)
        link.peer.answer(token, SEQUENCE)
    await link.fails("not asked")
    assert not CONNECTOR.is_open(link.connection)


class FailingTransport(asyncio.Transport):
    """Its first write fails: it is closing after that, and says so to its protocol in a later turn of the loop."""

    def __init__(self) -> None:
        super().__init__()
        self._is_closing = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._is_closing

    def write(self, data: Any) -> None:
        self._is_closing = True
        asyncio.get_running_loop().call_later(0.01, self._protocol.connection_lost, BrokenPipeError("broken"))

    def abort(self) -> None:
        self._is_closing = True


async def test_a_connection_whose_write_has_failed_is_not_usable_from_then_on() -> None:
    with socket.socket() as sock:
        wire = Wire(FailingTransport(), sock, Codec(), "db1:28015")
        assert wire.is_usable
        task = asyncio.create_task(wire.run_query(Query(START, 1, R.expr(1), {}), False))
        await turns(2)
        assert not wire.is_usable
        assert wire.lost_reason is None, "the transport has not said so yet"
        with pytest.raises(ReqlDriverError, match="db1:28015 was lost: broken"):
            await task
        assert not wire.is_usable
