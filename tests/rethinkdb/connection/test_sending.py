"""How queries leave: together, in their order, and not faster than the peer reads."""

from __future__ import annotations

import asyncio
import gc
import struct
import tracemalloc
from typing import Any

import pytest
from rethinkdb.errors import ReqlDriverError

from async_repool.connectors.rethinkdb import R, RethinkDBConnection, RethinkDBConnector, wire
from connection_kit import BULK, blocked, turns
from scripted_server import ATOM, WAIT_COMPLETE, Link, frame


async def test_the_queries_of_one_turn_leave_in_one_piece(link: Link) -> None:
    tasks = [link.run() for _ in range(50)]
    data = await link.peer.reader.read(2**20)
    assert len(data) == 50 * len(frame(0, b"[1,1,{}]"))
    for number in range(50):
        token, size = struct.unpack_from("<QL", data, number * 20)
        assert size == 8
        link.peer.answer(token, ATOM, token)
    assert len(set(await asyncio.gather(*tasks))) == 50


async def test_a_query_waits_while_the_peer_does_not_read(link: Link) -> None:
    await blocked(link)
    tasks = [link.run(R.expr(number)) for number in range(5)]
    noreply = link.run(R.expr("quiet"), noreply=True)
    await turns(10)
    assert link.connection.in_flight == 6
    assert not noreply.done(), "a noreply query, which nobody answers, waits here or nowhere"
    link.peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
    assert (await link.peer.request())[1][1] == BULK
    queries = [await link.peer.request() for _ in range(6)]
    assert [query[1] for _, query in queries] == [0, 1, 2, 3, 4, "quiet"], "first come, first served"
    await noreply
    for token, query in queries[:5]:
        link.peer.answer(token, ATOM, query[1])
    assert await asyncio.gather(*tasks) == [0, 1, 2, 3, 4]


async def test_what_waits_for_the_peer_to_read_can_be_cancelled_and_is_never_sent(link: Link) -> None:
    await blocked(link)
    first, second, third = (
        link.run(R.expr("first")),
        link.run(R.expr("second"), noreply=True),
        link.run(R.expr("third")),
    )
    await turns(5)
    first.cancel()
    second.cancel()
    await asyncio.wait([first, second])
    assert link.connection.in_flight == 1
    link.peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
    await link.peer.request()
    token, query = await link.peer.request()
    assert query[1] == "third"
    link.peer.answer(token, ATOM, 3)
    assert await third == 3
    assert await link.peer.has_nothing_more()


async def test_a_peer_that_does_not_read_costs_no_memory(link: Link) -> None:
    """A caller that gives up after a while, and tries again, and so on."""
    await blocked(link)
    tracemalloc.start()
    try:
        for _ in range(20):
            task = link.run(R.expr("y" * 1_000_000))
            await turns(3)
            task.cancel()
            await asyncio.wait([task])
            del task
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 1_000_000


async def test_what_waits_for_the_peer_to_read_fails_with_the_connection(link: Link) -> None:
    await blocked(link)
    tasks = [link.run(), link.run(noreply=True)]
    await turns(5)
    link.connection.abort()
    for task in tasks:
        with pytest.raises(ReqlDriverError, match="Connection is closed"):
            await task


async def test_noreply_queries_are_counted_until_they_are_waited_for(link: Link) -> None:
    for _ in range(3):
        assert await R.expr(1).run(link.connection, noreply=True) is None
    waits = [asyncio.create_task(link.connection.noreply_wait()) for _ in range(2)]
    tokens = [(await link.peer.request())[0] for _ in range(5)][3:]
    await R.expr(1).run(link.connection, noreply=True)
    assert link.connection.wire.pending_noreply == 4
    for token in tokens:
        link.peer.answer(token, WAIT_COMPLETE)
    await asyncio.gather(*waits)
    assert link.connection.wire.pending_noreply == 1, "the fourth was sent after both waits"


@pytest.mark.parametrize("noreply", [False, True])
async def test_a_query_longer_than_the_server_takes_is_not_sent(
    link: Link, noreply: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server ends the connection over it, which others share.
    monkeypatch.setattr(wire, "MAX_QUERY_BYTES", 100)
    with pytest.raises(ReqlDriverError, match=r"Query size \(\d+\) greater than maximum \(100\)"):
        await R.expr("x" * 100).run(link.connection, noreply=noreply)
    await link.works()


async def test_a_query_that_cannot_be_written_disturbs_nothing(link: Link) -> None:
    with pytest.raises(TypeError):
        await R.expr(object()).run(link.connection)
    assert link.connection.is_idle
    await link.works()


@pytest.mark.parametrize("noreply", [1, "yes", [False], R.expr(False)], ids=str)
async def test_noreply_that_is_not_true_is_answered_as_the_server_does(
    connection: RethinkDBConnection, noreply: Any
) -> None:
    assert await R.expr(7).run(connection, noreply=noreply) == 7
    assert connection.wire.pending_noreply == 0
    assert await R.expr(8).run(connection) == 8


async def test_a_term_that_is_true_is_noreply_too(connection: RethinkDBConnection) -> None:
    assert await R.expr(7).run(connection, noreply=R.expr(True)) is None
    assert connection.wire.pending_noreply == 1
    assert await R.expr(8).run(connection) == 8


async def test_so_many_queries_are_not_sent_that_none_could_be_stopped(link: Link) -> None:
    tasks = [asyncio.create_task(R.expr(n).run(link.connection)) for n in range(1100)]
    tokens = [(await link.peer.request())[0] for _ in range(1000)]
    late = asyncio.create_task(link.peer.request())
    await turns(5)
    assert not late.done(), "the server takes 1,024, and each STOP needs a place"
    link.peer.answer(tokens[0], ATOM, 0)
    token, _ = await late
    assert token not in tokens
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert link.connection.is_open()
    assert not RethinkDBConnector().is_open(link.connection), "the next user should not wait for so many answers"
