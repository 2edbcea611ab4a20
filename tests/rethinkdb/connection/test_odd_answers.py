"""What becomes of a connection if the peer breaks the protocol, or goes; and of a query whose answer is odd."""

from __future__ import annotations

import asyncio
import json
import random
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from rethinkdb.ast import ReQLDecoder
from rethinkdb.errors import ReqlDriverError, ReqlRuntimeError

from async_repool.connectors.rethinkdb import R, RethinkDBConnection
from async_repool.testing import StandInServer
from connection_kit import BULK, turns
from scripted_server import ATOM, PARTIAL, SEQUENCE, STOP, Link, frame, pack

TIME = {"$reql_type$": "TIME", "epoch_time": 1500000000.5, "timezone": "+02:00"}


async def test_an_answer_too_deep_for_python_fails_its_own_query_only(link: Link) -> None:
    task, token = await link.started()
    body = b'{"t":1,"r":[' + b"[" * 100_000 + b"]" * 100_000 + b"]}"
    link.peer.send(struct.pack("<QL", token, len(body)) + body)
    with pytest.raises(RecursionError):
        await task
    await link.works()


@pytest.mark.parametrize(
    "decoder",
    [
        lambda options: Decoder(StopIteration()),
        lambda options: json.JSONDecoder(parse_int=str),
        lambda options: Decoder({"t": 1, "r": []}),
    ],
    ids=["StopIteration", "strings", "no value"],
)
async def test_whatever_a_decoder_does_fails_its_own_query_only(connection: RethinkDBConnection, decoder: Any) -> None:
    with pytest.raises((RuntimeError, TypeError, IndexError)):
        await R.expr(1).run(connection, json_decoder=decoder)
    assert await R.expr(2).run(connection) == 2


class Decoder:
    """Raises, or returns, always the same."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    def decode(self, text: str) -> Any:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


BREAKS: dict[str, tuple[Callable[[int], bytes], str, bool]] = {
    "stray token": (lambda token: pack(token + 1000, ATOM, 1), "sent an answer to a query that was not asked", True),
    "stray header": (lambda token: struct.pack("<QL", 12345, 2**30), "was not asked \\(token 12345\\)", True),
    "absurd length": (
        lambda token: struct.pack("<QL", token, 2**31),
        "declared an answer of 2,147,483,648 bytes",
        True,
    ),
    "no JSON": (lambda token: frame(token, b'{"t":1,"r":[oops]}'), "an answer that is not valid JSON: b'{", True),
    "no UTF-8": (lambda token: frame(token, b'{"t":1,"r":["\xff"]}'), "an answer that is not valid JSON", True),
    "deep JSON": (lambda token: frame(token, b"[" * 100_000), "JSON that is no answer", True),
    "no answer": (lambda token: frame(token, b"[]"), "JSON that is no answer", True),
    "no rows": (lambda token: frame(token, b'{"t":1}'), "JSON that is no answer", True),
    "no row": (lambda token: frame(token, b'{"t":1,"r":[]}'), "an answer without a value", True),
    "no type": (lambda token: frame(token, b'{"r":[1]}'), "JSON that is no answer", True),
    "empty": (lambda token: frame(token, b""), "an answer that is not valid JSON", True),
}


@pytest.mark.parametrize("kind", BREAKS)
async def test_a_broken_answer_ends_the_connection_with_one_clear_error(link: Link, kind: str) -> None:
    make, match, has_cause = BREAKS[kind]
    cursor, _ = await link.streaming("row")
    tasks = [(await link.started())[0] for _ in range(3)]
    victim, token = await link.started()
    lost = []
    link.connection.on_lost(lambda: lost.append(True))
    link.peer.send(make(token))
    errors = await asyncio.gather(victim, *tasks, return_exceptions=True)
    assert await cursor.next() == "row"
    with pytest.raises(ReqlDriverError) as caught:
        await cursor.next()
    errors.append(caught.value)
    errors.append(await link.fails(match))
    messages = {str(error) for error in errors}
    assert len(messages) == 1
    message = messages.pop()
    assert message.startswith(f"Connection is closed ({link.connection.endpoint} ")
    assert link.connection.lost_reason is not None
    assert link.connection.lost_reason in message
    for error in errors:
        assert isinstance(error, ReqlDriverError)
        assert isinstance(error, ReqlRuntimeError), "what the driver raises from cursors"
        assert (error.__cause__ is not None) is has_cause
    assert len({id(error) for error in errors}) == len(errors), "each has its own traceback"
    assert lost == [True]
    assert repr(link.connection).startswith("<RethinkDBConnection 127.0.0.1:")
    assert "closed: 127.0.0.1" in repr(link.connection)


async def test_rows_that_were_not_asked_for_end_the_connection(link: Link) -> None:
    cursor, token = await link.idle(1)
    link.peer.answer(token, PARTIAL, 3)
    await link.fails(f"rows that were not asked for \\(token {token}\\)")
    assert cursor.error is not None


@pytest.mark.parametrize(
    ("sent", "match"),
    [
        (b"", "ended the connection\\)"),
        (b"\x00\x00", "ended the connection in the middle of an answer"),
        (pack(0, ATOM, "long")[:-1], "ended the connection in the middle of an answer"),
    ],
)
async def test_an_end_says_whether_it_came_in_the_middle(link: Link, sent: bytes, match: str) -> None:
    task, token = await link.started()
    assert token == 0
    link.peer.send(sent)
    link.peer.end()
    with pytest.raises(ReqlDriverError, match=match):
        await task
    await link.fails(match)


async def test_a_reset_is_told_with_its_cause(link: Link) -> None:
    task, _ = await link.started()
    link.peer.reset()
    with pytest.raises(ReqlDriverError, match=r"was lost: .*reset") as caught:
        await task
    assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_good_answers_before_a_broken_one_count(link: Link) -> None:
    first, first_token = await link.started()
    second, second_token = await link.started()
    link.peer.send(pack(first_token, ATOM, "good") + frame(second_token, b"bad"))
    assert await first == "good"
    with pytest.raises(ReqlDriverError, match="not valid JSON"):
        await second


async def test_answers_may_come_byte_by_byte(link: Link) -> None:
    task, token = await link.started()
    for byte in pack(token, ATOM, "slow"):
        link.peer.send(bytes([byte]))
        await turns(2)
    assert await task == "slow"


async def test_a_large_answer_may_come_between_small_ones(link: Link) -> None:
    (small, small_token), (large, large_token) = await link.started(), await link.started()
    link.peer.send(pack(large_token, ATOM, BULK) + pack(small_token, ATOM, "small"))
    assert await small == "small"
    assert await large == BULK


async def test_answers_come_in_any_order(link: Link) -> None:
    started = [await link.started() for _ in range(20)]
    random.Random(2).shuffle(started)
    for _, token in started:
        link.peer.answer(token, ATOM, token)
    assert [await task for task, _ in started] == [token for _, token in started]


async def test_a_declared_length_takes_no_memory(link: Link) -> None:
    _, token = await link.started()
    tracemalloc.start()
    try:
        link.peer.send(struct.pack("<QL", token, 2**31 - 1) + b"x" * 1000)
        await turns(5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert link.connection.is_open()


class Picky(ReQLDecoder):
    def decode(self, text: str) -> Any:  # type: ignore[override]
        raise LookupError("not to my taste")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"time_format": "sundial"}, ReqlDriverError, 'Unknown time_format run option "sundial"'),
        ({"json_decoder": Picky}, LookupError, "not to my taste"),
        ({}, ReqlDriverError, "Unknown pseudo-type NEW"),
    ],
)
async def test_what_only_the_decoder_dislikes_is_the_querys_affair(
    link: Link, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    row = TIME if "time_format" in options else {"$reql_type$": "NEW"}
    bystander, bystander_token = await link.started()
    task, token = await link.started(**options)
    link.peer.answer(token, ATOM, row)
    with pytest.raises(error, match=match):
        await task
    task, token = await link.started(**options)
    link.peer.answer(token, PARTIAL, row)
    with pytest.raises(error, match=match):
        await task
    await link.expect(token, STOP)  # nobody has the cursor that would have read on
    link.peer.answer(token, SEQUENCE)
    link.peer.answer(bystander_token, ATOM, "undisturbed")
    assert await bystander == "undisturbed"
    await link.works()


@pytest.mark.parametrize("kind", [PARTIAL, SEQUENCE])
async def test_rows_that_only_the_decoder_dislikes_end_the_cursor_alone(link: Link, kind: int) -> None:
    cursor, token = await link.streaming("good")
    link.peer.answer(token, kind, {"$reql_type$": "NEW"})
    assert await cursor.next() == "good"
    with pytest.raises(ReqlDriverError, match="Unknown pseudo-type NEW"):
        await cursor.next()
    assert link.connection.open_cursors == 0
    if kind == PARTIAL:
        await link.expect(token, STOP)
        link.peer.answer(token, SEQUENCE)
    await link.works()


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_whatever_still_runs_is_told_when_the_connection_is_ended(link: Link, end: str) -> None:
    cursor, _ = await link.streaming("row")
    task, _ = await link.started()
    reader = asyncio.create_task(link.connection.server())
    await link.peer.request()
    assert await cursor.next() == "row"
    waiting_for_a_row = asyncio.create_task(cursor.next())
    await turns(2)
    if end == "close":
        await link.connection.close()
    else:
        link.connection.abort()
    for waiter in (task, reader, waiting_for_a_row):
        with pytest.raises(ReqlDriverError, match="Connection is closed"):
            async with asyncio.timeout(5):
                await waiter
    await link.peer.is_left()


async def test_a_frozen_server_hangs_nobody_who_bounds_his_wait(
    server: StandInServer, connection: RethinkDBConnection
) -> None:
    server.faults.freeze()
    for call in (lambda: R.expr(1).run(connection), connection.server, connection.noreply_wait):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await call()
    server.faults.thaw()
    assert await R.expr(2).run(connection) == 2
    assert connection.is_idle
