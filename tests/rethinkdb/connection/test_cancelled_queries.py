"""A query that is cancelled is stopped on the server and disturbs no other."""

from __future__ import annotations

import asyncio
import random

import pytest

from async_repool.connectors.rethinkdb import R, RethinkDBConnection
from async_repool.testing import StandInServer
from connection_kit import cancelled, turns, until
from scripted_server import (
    ATOM,
    CLIENT_ERROR,
    CONTINUE,
    NOREPLY_WAIT,
    PARTIAL,
    RUNTIME_ERROR,
    SEQUENCE,
    SERVER_INFO,
    SERVER_INFO_ANSWER,
    STOP,
    WAIT_COMPLETE,
    Link,
    asyncio_only,
    frame,
    pack,
)

LATE = {
    "stopped in time": [(SEQUENCE,), (SEQUENCE,)],
    "finished before": [(ATOM, "late"), (CLIENT_ERROR, "Token 0 not in stream cache.")],
    "failed before": [(RUNTIME_ERROR, "boom"), (CLIENT_ERROR, "Token 0 not in stream cache.")],
    "a stream": [(PARTIAL, 1, 2), (SEQUENCE,)],
    "a whole sequence": [(SEQUENCE, 1, 2), (CLIENT_ERROR, "Token 0 not in stream cache.")],
    "no JSON": None,
}


@pytest.mark.parametrize("late", LATE)
async def test_a_cancelled_query_is_stopped_and_its_late_answers_are_swallowed(link: Link, late: str) -> None:
    token = await cancelled(link)
    for answer in LATE[late] or [None, None]:
        link.peer.send(frame(token, b"{{{") if answer is None else pack(token, *answer))
        await link.works()
    assert link.connection.is_idle
    link.peer.answer(token, SEQUENCE)
    await link.fails(f"an answer to a query that was not asked \\(token {token}\\)")


async def test_a_query_cancelled_before_its_first_step_is_never_sent(link: Link) -> None:
    task = link.run()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await link.peer.has_nothing_more()
    await link.works()


@asyncio_only
@pytest.mark.parametrize("kind", [ATOM, SEQUENCE, PARTIAL, RUNTIME_ERROR])
async def test_an_answer_may_come_in_the_turn_of_the_cancellation_and_behind_it(link: Link, kind: int) -> None:
    task, token = await link.started()
    # In the next turn the loop runs what was scheduled, cancel(), then what can be read; the task in the turn after.
    link.peer.answer(token, kind, "too late")
    asyncio.get_running_loop().call_soon(task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    await link.expect(token, STOP)
    link.peer.answer(token, CLIENT_ERROR, f"Token {token} not in stream cache.")
    await link.works()
    assert link.connection.is_idle
    link.peer.answer(token, SEQUENCE)
    await link.fails("not asked")


@pytest.mark.parametrize("kind", [ATOM, SEQUENCE, PARTIAL, RUNTIME_ERROR])
async def test_an_answer_may_come_in_the_turn_of_the_cancellation_and_before_it(link: Link, kind: int) -> None:
    victim, victim_token = await link.started()

    async def kill() -> None:
        await R.expr(1).run(link.connection)
        victim.cancel()

    killer = asyncio.create_task(kill())
    killer_token, _ = await link.peer.request()
    # One packet: both are answered when it is read, and the killer's task is the first to run.
    link.peer.send(pack(killer_token, ATOM, 1) + pack(victim_token, kind, "too late"))
    with pytest.raises(asyncio.CancelledError):
        await victim
    await killer
    if kind == PARTIAL:  # its cursor reached nobody
        await link.expect(victim_token, CONTINUE)
        await link.expect(victim_token, STOP)
        link.peer.answer(victim_token, SEQUENCE)
        link.peer.answer(victim_token, SEQUENCE)
    await link.works()
    assert link.connection.is_idle


async def test_server_info_and_noreply_wait_are_not_stopped_but_waited_out(link: Link) -> None:
    for ask, kind, answer in (
        (link.connection.server, SERVER_INFO, SERVER_INFO_ANSWER),
        (link.connection.noreply_wait, NOREPLY_WAIT, WAIT_COMPLETE),
    ):
        task = asyncio.create_task(ask())
        token, query = await link.peer.request()
        assert query == [kind]
        task.cancel()
        await asyncio.wait([task])
        await link.works()
        link.peer.answer(token, answer, {})
        await link.works()
    link.peer.answer(token, answer, {})
    await link.fails("not asked")


async def test_others_do_not_notice_a_cancellation(any_connection: RethinkDBConnection) -> None:
    """Many tasks share a connection; some give up at any moment; the rest get what they asked for."""
    rng = random.Random(1)
    slow = R.range(200).map(lambda x: x * x)

    async def work(number: int) -> None:
        for step in range(20):
            value = number * 1000 + step
            if rng.random() < 0.4:
                task = asyncio.create_task((R.expr(value) if rng.random() < 0.5 else slow).run(any_connection))
                await turns(rng.randrange(8))
                task.cancel()
                await asyncio.wait([task])
            elif rng.random() < 0.2:
                cursor = await slow.run(any_connection, max_batch_rows=20)
                assert await cursor.next() == 0
            else:
                assert await R.expr(value).run(any_connection) == value

    await asyncio.gather(*[work(number) for number in range(40)])
    await any_connection.wait_idle()
    assert any_connection.is_open()
    assert await R.expr(1).run(any_connection) == 1


async def test_a_cancelled_query_stops_on_the_server(server: StandInServer, connection: RethinkDBConnection) -> None:
    task = asyncio.create_task(R.range(50_000_000).map(lambda x: x * x).sum().run(connection))
    await until(lambda: server.running_queries == 1)
    task.cancel()
    await asyncio.wait([task])
    await until(lambda: server.running_queries == 0)
    assert await R.expr(1).run(connection) == 1
