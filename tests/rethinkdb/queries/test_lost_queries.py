"""What the RethinkDB connector raises if a query goes wrong, or its connection ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from rethinkdb.errors import ReqlDriverError, ReqlNonExistenceError, ReqlOpFailedError, ReqlRuntimeError

from async_repool.connectors.rethinkdb import R, RethinkDBConnection, RethinkDBStream, wire
from async_repool.errors import ConnectionLost, NotSent
from connection_kit import BULK, turns
from scripted_server import (
    ATOM,
    CONNECTOR,
    CONTINUE,
    ONE,
    PARTIAL,
    RUNTIME_ERROR,
    START,
    PoolLink,
    asyncio_only,
    frame,
    linked,
    pack,
)


async def opened(link: PoolLink, *rows: Any, **more: Any) -> tuple[RethinkDBStream, int]:
    """A stream with a first batch, and its token. The next batch has been asked for."""
    task = link.open()
    token, _ = await link.peer.request()
    link.peer.answer(token, PARTIAL, *rows, **more)
    await link.expect(token, CONTINUE)
    return await task, token


async def test_the_servers_errors_are_the_drivers(connection: RethinkDBConnection) -> None:
    for call in (CONNECTOR.run, CONNECTOR.open_stream):
        with pytest.raises(ReqlNonExistenceError, match="No attribute `b` in object"):
            await call(connection, R.expr({"a": 1})["b"], {})
        with pytest.raises(ReqlOpFailedError, match="does not exist"):
            await call(connection, R.db("surely_missing").table("t"), {})
    assert connection.is_idle


async def test_an_error_behind_some_rows_is_the_drivers(link: PoolLink) -> None:
    task, token = await link.started()
    link.peer.answer(token, PARTIAL, 1)
    await link.expect(token, CONTINUE)
    link.peer.answer(token, RUNTIME_ERROR, "boom", e=4100000, b=[])
    with pytest.raises(ReqlOpFailedError, match="boom"):
        await task
    stream, token = await opened(link, 1)
    link.peer.answer(token, RUNTIME_ERROR, "boom", e=4100000, b=[])
    assert await anext(stream) == 1
    for _ in range(2):
        with pytest.raises(ReqlOpFailedError, match="boom"):
            await anext(stream)
    assert stream.close() is False
    await link.works()


async def test_what_cannot_be_sent_is_told_as_the_driver_tells_it(
    link: PoolLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        await link.run(R.expr(object()))
    with pytest.raises(ValueError, match="not JSON compliant"):
        await link.run(R.expr(float("nan")))
    monkeypatch.setattr(wire, "MAX_QUERY_BYTES", 100)
    with pytest.raises(ReqlDriverError, match="greater than maximum"):
        await link.run(R.expr("x" * 100))
    assert await link.peer.has_nothing_more()
    assert link.connection.is_idle


ENDS: dict[str, tuple[Callable[[PoolLink], Any], str]] = {
    "aborted": (lambda link: link.connection.abort(), r"Connection is closed \(aborted\)"),
    "closed": (lambda link: link.connection.close(), "Connection is closed"),
    "ended": (lambda link: link.peer.end(), "ended the connection"),
    "reset": (lambda link: link.peer.reset(), "was lost: .*reset"),
    "stray token": (lambda link: link.peer.send(pack(12345, ATOM, 1)), "an answer to a query that was not asked"),
    "no JSON": (lambda link: link.peer.send(frame(0, b"oops")), "an answer that is not valid JSON"),
    "no frame": (lambda link: link.peer.send(b"\xff" * 12), "declared an answer of"),
}


@pytest.mark.parametrize("how", ENDS)
async def test_what_was_sent_is_lost_with_its_connection(link: PoolLink, how: str) -> None:
    """The pool must know it; whoever uses the driver's own ``run`` sees what the driver raises."""
    end, match = ENDS[how]
    first, token = await link.started()
    assert token == 0
    others = [first, (await link.started())[0]]
    whole, whole_token = await link.started()
    link.peer.answer(whole_token, PARTIAL, 1)
    await link.expect(whole_token, CONTINUE)
    stream, _ = await opened(link, "row")
    plain = asyncio.create_task(ONE.run(link.connection))
    await link.peer.request()
    if (wait := end(link)) is not None:
        await wait
    errors: list[Exception] = []
    for task in (*others, whole):
        with pytest.raises(ConnectionLost, match=match) as lost:
            await task
        errors.append(lost.value)
    assert await anext(stream) == "row"
    for _ in range(2):
        with pytest.raises(ConnectionLost, match=match) as lost:
            await anext(stream)
        errors.append(lost.value)
    with pytest.raises(ReqlDriverError, match=match) as told:
        await plain
    assert isinstance(told.value, ReqlRuntimeError)
    for error in errors:
        assert str(error) == str(told.value)
        assert isinstance(error.__cause__, type(told.value))
    with pytest.raises(NotSent, match=match) as unsent:
        await link.run()
    assert type(unsent.value.__cause__) is type(told.value)
    with pytest.raises(NotSent, match=match):
        await link.open()


@pytest.mark.parametrize("how", ["aborted", "closed", "reset"])
async def test_what_waited_for_the_peer_to_read_was_never_sent(link: PoolLink, how: str) -> None:
    sent, _ = await link.started()
    link.peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    half_sent = link.run(R.expr(BULK))
    await turns(3)
    waiting = [link.run(), link.run(noreply=True), link.open()]
    plain = asyncio.create_task(ONE.run(link.connection))
    await turns(3)
    if how == "closed":
        closing = asyncio.create_task(link.connection.close())  # waits for the bulk to leave
        await turns(3)
        closing.cancel()
    else:
        ENDS[how][0](link)
    for task in waiting:
        with pytest.raises(NotSent, match="Connection is closed"):
            await task
    for task in (sent, half_sent):
        with pytest.raises(ConnectionLost):
            await task
    with pytest.raises(ReqlDriverError, match="Connection is closed"):
        await plain


async def test_what_was_to_leave_at_the_end_of_the_turn_was_never_sent(link: PoolLink) -> None:
    sent, _ = await link.started()
    task, plain = link.run(), asyncio.create_task(ONE.run(link.connection))
    await asyncio.sleep(0)  # both are to be written when this turn of the loop ends
    assert link.connection.in_flight == 3
    link.connection.abort()
    with pytest.raises(NotSent, match="aborted"):
        await task
    with pytest.raises(ConnectionLost, match="aborted"):
        await sent
    with pytest.raises(ReqlDriverError, match="aborted"):
        await plain
    await link.peer.is_left()


async def test_what_a_polite_close_still_writes_was_sent(link: PoolLink) -> None:
    task = link.run()
    await asyncio.sleep(0)
    await link.connection.close()
    with pytest.raises(ConnectionLost, match="Connection is closed"):
        await task
    assert (await link.peer.request())[1] == [START, 1, {}]


@asyncio_only
@pytest.mark.parametrize("how", ["no frame", "reset"])
async def test_what_meets_the_end_in_one_turn_was_never_sent(how: str) -> None:
    """The task writes its query, the end is read, and the end of the turn, when it should leave, comes after that."""
    for count in range(1, 4):  # turns; a socket is reset in the first
        async with linked(PoolLink) as link:
            ENDS[how][0](link)
            await turns(count - (how != "reset"))
            with pytest.raises(NotSent):
                await link.run()


@pytest.mark.parametrize("how", ["ended", "stray token", "aborted", "closed"])
async def test_the_error_of_a_lost_connection_says_when_it_was_lost(link: PoolLink, how: str) -> None:
    loop = asyncio.get_running_loop()
    task, _ = await link.started()
    stream, _ = await opened(link, "row")
    before = loop.time()
    if (wait := ENDS[how][0](link)) is not None:
        await wait
    with pytest.raises(ConnectionLost) as lost:
        await task
    after = loop.time()
    assert lost.value.lost_at is not None
    assert before <= lost.value.lost_at <= after
    await asyncio.sleep(0.01)
    assert await anext(stream) == "row"
    with pytest.raises(ConnectionLost) as lost_later:
        await anext(stream)
    assert lost_later.value.lost_at == lost.value.lost_at, "not when somebody noticed"
