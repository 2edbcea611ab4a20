"""The RethinkDB connector as the pool uses it for queries: run, streams, and what went wrong."""

from __future__ import annotations

import asyncio
import gc
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from rethinkdb.errors import (
    ReqlDriverError,
    ReqlInternalError,
    ReqlNonExistenceError,
    ReqlOpFailedError,
    ReqlOpIndeterminateError,
    ReqlPermissionError,
    ReqlQueryLogicError,
    ReqlRuntimeError,
    ReqlServerCompileError,
)

from async_repool.connectors import QueryConnector, Stream
from async_repool.connectors import rethinkdb as module
from async_repool.connectors.rethinkdb import R, RethinkDBConnection, RethinkDBConnector, RethinkDBStream
from async_repool.errors import ConnectionLost, NotSent
from async_repool.testing import SampleQueries, check_connector
from scripted_server import (
    ATOM,
    CONNECTOR,
    CONTINUE,
    ONE,
    PARTIAL,
    RUNTIME_ERROR,
    SEQUENCE,
    START,
    STOP,
    PoolLink,
    asyncio_only,
    frame,
    linked,
    pack,
)

SEQUENCE_FEED, ATOM_FEED, ORDER_BY_LIMIT_FEED, UNIONED_FEED, INCLUDES_STATES = 1, 2, 3, 4, 5


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


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def conforms(connector: RethinkDBConnector, stream: RethinkDBStream) -> tuple[QueryConnector, Stream]:
    return connector, stream  # for the type checker


async def test_it_keeps_the_promises_of_a_query_connector(rethinkdb_server: Any) -> None:
    connector = RethinkDBConnector(**rethinkdb_server.connect_arguments)
    assert isinstance(connector, QueryConnector)
    queries = SampleQueries(
        value=R.expr, rows=R.range, endless=R.range(), slow=R.range(2**40).map(lambda x: x * x).sum()
    )
    await check_connector(connector, queries=queries, connections=3, cancel_points=6)


# --- run ---


@pytest.mark.parametrize(
    ("query", "value"),
    [
        (R.expr(1), 1),
        (R.expr(None), None),
        (R.expr("a"), "a"),
        (R.expr([1, [2]]), [1, [2]]),
        (R.expr({"a": [1]}), {"a": [1]}),
        (R.binary(b"\0\xff"), b"\0\xff"),
        (R.range(0), []),
        (R.range(5), [0, 1, 2, 3, 4]),
    ],
    ids=str,
)
async def test_run_returns_the_value(connection: RethinkDBConnection, query: Any, value: Any) -> None:
    assert await CONNECTOR.run(connection, query, {}) == value


async def test_run_returns_a_sequence_whole_and_in_order(connection: RethinkDBConnection, table: Any) -> None:
    query = table.order_by(index="id")
    rows = await CONNECTOR.run(connection, query, {"max_batch_rows": 90})
    assert [row["id"] for row in rows] == list(range(1000))
    assert rows == await CONNECTOR.run(connection, query.coerce_to("array"), {})
    assert connection.is_idle


async def test_run_asks_for_each_batch_as_soon_as_the_one_before_has_come(link: PoolLink) -> None:
    task, token = await link.started()
    for batch in ([1, 2], [3], [4, 5]):
        link.peer.answer(token, PARTIAL, *batch)
        await link.expect(token, CONTINUE)
    link.peer.answer(token, SEQUENCE, 6)
    assert await task == [1, 2, 3, 4, 5, 6]
    assert link.connection.is_idle
    assert await link.peer.has_nothing_more()


async def test_run_asks_for_more_when_it_has_taken_what_came_meanwhile(link: PoolLink) -> None:
    task, token = await link.started()
    link.peer.send(pack(token, PARTIAL, 1) + pack(token, PARTIAL, 2))  # the second before the first is taken
    await link.expect(token, CONTINUE)
    await link.expect(token, CONTINUE)
    link.peer.answer(token, SEQUENCE, 3)
    assert await task == [1, 2, 3]


async def test_what_is_grouped_stays_so(link: PoolLink) -> None:
    task, token = await link.started()
    link.peer.answer(token, ATOM, {"$reql_type$": "GROUPED_DATA", "data": [["a", [1, 2]], ["b", []]]})
    assert await task == {"a": [1, 2], "b": []}


async def test_run_with_a_profile_has_the_rows_as_a_list_too(link: PoolLink) -> None:
    task, token = await link.started(profile=True)
    link.peer.answer(token, PARTIAL, 1, p=["slow"])
    await link.expect(token, CONTINUE)
    link.peer.answer(token, SEQUENCE, 2)
    assert await task == {"value": [1, 2], "profile": ["slow"]}
    task, token = await link.started(profile=True)
    link.peer.answer(token, ATOM, {"value": 3}, p=["fast"])
    assert await task == {"value": {"value": 3}, "profile": ["fast"]}


async def test_run_passes_the_drivers_options_on_and_leaves_them_as_they_are(link: PoolLink) -> None:
    options = {"db": "other", "time_format": "raw", "json_decoder": lambda options: json.JSONDecoder()}
    task = asyncio.create_task(CONNECTOR.run(link.connection, R.table("t").get(1), options))
    token, query = await link.peer.request()
    assert query == [START, [16, [[15, ["t"]], 1]], {"db": [14, ["other"]], "time_format": "raw"}]
    time = {"$reql_type$": "TIME", "epoch_time": 1, "timezone": "+00:00"}
    link.peer.answer(token, ATOM, time)
    assert await task == time
    assert options.keys() == {"db", "time_format", "json_decoder"}
    assert options["db"] == "other"


async def test_a_noreply_query_has_no_value(link: PoolLink) -> None:
    assert await link.run(noreply=True) is None
    assert (await link.peer.request())[1] == [START, 1, {"noreply": True}]


@pytest.mark.parametrize("query", ["r.expr(1)", 1, None, {"a": 1}, R.expr])
@pytest.mark.parametrize("call", [PoolLink.run, PoolLink.open])
async def test_what_is_no_query_is_refused(link: PoolLink, call: Callable[..., Any], query: Any) -> None:
    with pytest.raises(TypeError, match=f"query must be a ReQL query .*, not {type(query).__name__}"):
        await call(link, query)
    await link.works()


@pytest.mark.parametrize("notes", [[SEQUENCE_FEED], [ATOM_FEED], [ORDER_BY_LIMIT_FEED], [5, UNIONED_FEED]], ids=str)
@pytest.mark.parametrize("options", [{}, {"profile": True}], ids=str)
async def test_run_stops_a_changefeed_and_says_what_to_use(
    link: PoolLink, notes: list[int], options: dict[str, Any]
) -> None:
    task, token = await link.started(**options)
    link.peer.answer(token, PARTIAL, n=notes, **({"p": []} if options else {}))
    with pytest.raises(TypeError, match=r"a changefeed, which run\(\) would read for ever: use changes\(\)"):
        await task
    await link.expect(token, CONTINUE)
    await link.expect(token, STOP)
    link.peer.answer(token, PARTIAL, "a change")
    link.peer.answer(token, SEQUENCE)
    await link.works()
    assert link.connection.is_idle


@pytest.mark.parametrize("notes", [[], None, [INCLUDES_STATES]], ids=str)
async def test_run_reads_what_is_no_changefeed(link: PoolLink, notes: Any) -> None:
    task, token = await link.started()
    link.peer.answer(token, PARTIAL, 1, n=notes)
    await link.expect(token, CONTINUE)
    link.peer.answer(token, SEQUENCE, 2, n=notes)
    assert await task == [1, 2]


async def test_run_reads_a_changefeed_that_has_ended_already(link: PoolLink) -> None:
    """As after ``.changes().limit(0)``."""
    task, token = await link.started()
    link.peer.answer(token, SEQUENCE, "one", n=[SEQUENCE_FEED])
    assert await task == ["one"]


async def test_run_refuses_each_kind_of_changefeed(connection: RethinkDBConnection, table: Any) -> None:
    for feed in (table.changes(), table.get(1).changes(), table.changes(include_initial=True)):
        with pytest.raises(TypeError, match="changefeed"):
            await CONNECTOR.run(connection, feed, {})
    assert connection.is_idle
    assert await CONNECTOR.run(connection, ONE, {}) == 1


# --- cancelled ---


async def test_a_cancelled_run_is_stopped_on_the_server(link: PoolLink) -> None:
    task, token = await link.started()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await link.expect(token, STOP)
    link.peer.answer(token, PARTIAL, 1)
    link.peer.answer(token, SEQUENCE)
    await link.works()


@pytest.mark.parametrize("batches", [1, 2])
async def test_a_run_that_is_cancelled_between_batches_is_stopped_on_the_server(link: PoolLink, batches: int) -> None:
    bystander, bystander_token = await link.started()
    task, token = await link.started()
    for _ in range(batches):
        link.peer.answer(token, PARTIAL, 1, 2)
        await link.expect(token, CONTINUE)
    await turns(5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as kept:  # with its frames, and the cursor in them
        await task
    await link.expect(token, STOP)
    link.peer.answer(token, PARTIAL, 3)
    link.peer.answer(token, SEQUENCE)
    link.peer.answer(bystander_token, ATOM, "undisturbed")
    assert await bystander == "undisturbed"
    await link.works()
    assert link.connection.is_idle
    assert kept.value is not None


async def test_a_batch_may_come_in_the_turn_of_the_cancellation(link: PoolLink) -> None:
    for count in range(6):
        task, token = await link.started()
        link.peer.answer(token, PARTIAL, 1)
        await link.expect(token, CONTINUE)
        await turns(3)
        link.peer.answer(token, PARTIAL, 2)
        await turns(count)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        kinds = []
        while STOP not in kinds:
            answered, (kind, *_) = await link.peer.request()
            assert answered == token
            kinds.append(kind)
        for _ in kinds:
            link.peer.answer(token, SEQUENCE)
        await link.works()
        assert link.connection.is_idle


@pytest.mark.parametrize("late", [[(ATOM, "late")], [(PARTIAL, 1), (SEQUENCE,)]])
async def test_the_opening_of_a_stream_can_be_cancelled(link: PoolLink, late: list[Any]) -> None:
    task = link.open()
    token, _ = await link.peer.request()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await link.expect(token, STOP)
    for answer in (*late, (SEQUENCE,))[:2]:
        link.peer.answer(token, *answer)
    await link.works()
    assert link.connection.is_idle


# --- long batches ---

ROW = "x" * 20_000


def long_batch(token: int, *rows: Any) -> bytes:
    """As the server writes it."""
    body = json.dumps({"t": PARTIAL, "r": [ROW, *rows], "n": []}, separators=(",", ":"))
    return frame(token, body.encode())


async def test_after_a_long_batch_the_next_is_asked_for_once(link: PoolLink) -> None:
    task, token = await link.started()
    for _ in range(3):
        link.peer.send(long_batch(token))
        await link.expect(token, CONTINUE)
    link.peer.answer(token, SEQUENCE, "end")
    assert await task == [ROW, ROW, ROW, "end"]
    await link.works()


async def test_after_a_long_batch_nothing_is_asked_for_while_enough_is_there(link: PoolLink) -> None:
    task = link.open()
    token, _ = await link.peer.request()
    link.peer.send(long_batch(token, 1))
    await link.expect(token, CONTINUE)
    rows = await task
    link.peer.send(long_batch(token, 2))
    await link.works()  # and no other CONTINUE before it
    assert [await anext(rows) for _ in range(2)] == [ROW, 1]
    assert await link.peer.has_nothing_more()
    assert await anext(rows) == ROW
    await link.expect(token, CONTINUE)


@pytest.mark.parametrize("good", [0, 1])
async def test_the_next_batch_is_asked_for_before_a_long_one_is_decoded(link: PoolLink, good: int) -> None:
    """It is seen where decoding fails: the batch was asked for all the same."""
    task, token = await link.started()
    for _ in range(good):
        link.peer.send(long_batch(token))
        await link.expect(token, CONTINUE)
    link.peer.send(long_batch(token, {"$reql_type$": "NEW"}))
    with pytest.raises(ReqlDriverError, match="Unknown pseudo-type NEW"):
        await task
    await link.expect(token, CONTINUE)
    await link.expect(token, STOP)
    link.peer.send(long_batch(token))
    link.peer.answer(token, SEQUENCE)
    await link.works()
    assert link.connection.is_idle


# --- streams ---


async def opened(link: PoolLink, *rows: Any, **more: Any) -> tuple[RethinkDBStream, int]:
    """A stream with a first batch, and its token. The next batch has been asked for."""
    task = link.open()
    token, _ = await link.peer.request()
    link.peer.answer(token, PARTIAL, *rows, **more)
    await link.expect(token, CONTINUE)
    return await task, token


async def test_a_stream_gives_every_row_in_order(connection: RethinkDBConnection, table: Any) -> None:
    query = table.order_by(index="id")["id"]
    stream = await CONNECTOR.open_stream(connection, query, {"max_batch_rows": 90})
    assert not stream.is_feed
    assert [row async for row in stream] == list(range(1000))
    assert connection.is_idle
    assert stream.close() is False


async def test_a_list_is_a_stream_too(connection: RethinkDBConnection) -> None:
    stream = await CONNECTOR.open_stream(connection, R.expr([1, [2], 3]), {})
    assert not stream.is_feed
    assert aiter(stream) is stream
    assert [row async for row in stream] == [1, [2], 3]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert stream.close() is False


async def test_a_changefeed_is_a_stream_that_says_so(connection: RethinkDBConnection, table: Any) -> None:
    stream = await CONNECTOR.open_stream(connection, table.changes(), {})
    assert stream.is_feed
    await CONNECTOR.run(connection, table.insert({"id": "new"}), {})
    async with asyncio.timeout(5):
        assert await anext(stream) == {"old_val": None, "new_val": {"id": "new"}}
    assert stream.close() is True
    assert stream.close() is False
    assert connection.is_idle


@pytest.mark.parametrize("notes", [[SEQUENCE_FEED], [ATOM_FEED], [ORDER_BY_LIMIT_FEED], [UNIONED_FEED]], ids=str)
async def test_the_servers_notes_tell_a_changefeed(link: PoolLink, notes: list[int]) -> None:
    feed, _ = await opened(link, n=notes)
    assert feed.is_feed
    stream, _ = await opened(link, 1, n=[])
    assert not stream.is_feed


@pytest.mark.parametrize(
    ("value", "name"), [(1, "int"), ("abc", "str"), ({"a": [1]}, "dict"), (None, "NoneType"), (b"rows", "RqlBinary")]
)
async def test_what_is_no_sequence_is_no_stream(connection: RethinkDBConnection, value: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"the value of the query is no sequence of rows but {name}"):
        await CONNECTOR.open_stream(connection, R.expr(value), {})
    assert connection.is_idle


@pytest.mark.parametrize("option", ["noreply", "profile"])
async def test_options_that_have_no_place_in_a_stream_are_refused_before_anything_is_sent(
    link: PoolLink, option: str
) -> None:
    with pytest.raises(TypeError, match=f"a stream of rows has no place for {option}"):
        await link.open(**{option: True})
    assert await link.peer.has_nothing_more()
    task = link.open(**{option: False})
    token, _ = await link.peer.request()
    link.peer.answer(token, SEQUENCE, 1)
    assert await anext(await task) == 1


@pytest.mark.parametrize("end", ["close", "drop", "collect"])
async def test_a_stream_is_stopped_on_the_server(link: PoolLink, end: str) -> None:
    stream: RethinkDBStream | None
    stream, token = await opened(link, 1, 2)
    if end == "close":
        assert stream.close() is True
        assert stream.close() is False
        assert [row async for row in stream] == [1, 2], "rows that have come can still be read"
    elif end == "collect":
        knot: list[Any] = [stream]
        knot.append(knot)
        stream = knot = None  # type: ignore[assignment]
        assert link.connection.open_cursors == 1
        gc.collect()
    stream = None
    await link.expect(token, STOP)
    link.peer.answer(token, PARTIAL, 3)
    link.peer.answer(token, SEQUENCE)
    await link.works()
    assert link.connection.is_idle


async def test_close_wakes_who_waits_for_a_row(link: PoolLink) -> None:
    stream, token = await opened(link)
    reader = asyncio.create_task(anext(stream, "no more"))
    await turns(3)
    stream.close()
    assert await reader == "no more"
    await link.expect(token, STOP)


async def test_a_task_that_nobody_holds_reads_its_stream_all_the_same(link: PoolLink) -> None:
    got: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def watch() -> None:
        async for row in await CONNECTOR.open_stream(link.connection, ONE, {}):
            got.set_result(row)

    asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(watch()) and None)
    token, _ = await link.peer.request()
    link.peer.answer(token, PARTIAL)
    await link.expect(token, CONTINUE)
    await turns(3)
    gc.collect()
    link.peer.answer(token, PARTIAL, "change")
    assert await got == "change"


async def test_a_cancelled_read_loses_no_row(link: PoolLink) -> None:
    stream, token = await opened(link, 1)
    got: list[int] = []

    async def read() -> None:
        async for row in stream:
            got.append(row)

    for number in range(2, 6):
        reader = asyncio.create_task(read())
        await turns(3)
        link.peer.answer(token, PARTIAL, number)
        asyncio.get_running_loop().call_soon(reader.cancel)
        await asyncio.wait([reader])
        await link.expect(token, CONTINUE)
    link.peer.answer(token, SEQUENCE)
    await read()
    assert got == [1, 2, 3, 4, 5]


# --- what went wrong ---


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
    monkeypatch.setattr(module, "MAX_QUERY_BYTES", 100)
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
        assert type(error.__cause__) is type(told.value)
    with pytest.raises(NotSent, match=match) as unsent:
        await link.run()
    assert type(unsent.value.__cause__) is type(told.value)
    with pytest.raises(NotSent, match=match):
        await link.open()


BULK = "x" * 16_000_000  # more than the sockets between us take in


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


# --- what may pass ---

PASSING = [
    "Changefeed aborted (unavailable).",
    'cannot subscribe to table `db.t`: primary replica for shard ["", +inf) not available',
    'Cannot perform read: primary replica for shard ["", Sa) not available',
    "Cannot perform read: lost contact with primary replica",
    "Cannot perform read: The primary replica isn't connected to a quorum of replicas. The read was not performed, you "
    'can do an outdated read using `read_mode="outdated"`.',
    "Cannot perform write: The primary replica lost contact with the secondary replicas. The write may or may not have "
    "been performed.",
    "cannot subscribe to table `t`: no replica is available",
    "Unable to retrieve the start stamps.  Did you just reshard?",
    "Unable to retrieve start stamp.  (Did you just reshard?)",
    "Feed aborted before initial values were read.",
    "Subscription destroyed (shutting down?).",
    "Query terminated by an unknown cause.",
    "Index `v` on table `db.t` was accessed before its construction was finished.",
    "The server(s) hosting table `db.t` are currently unreachable. The table was not reconfigured.",
]
LASTING = [
    "Table `db.t` does not exist.",
    "Database `unavailable` does not exist.",
    "Index `v` was not found on table `db.t`.",
    "Index `no replica is available` was not found on table `db.t`.",
    "The secondary index `v` was replaced by a different one.",
    "There is no table with the given name / UUID.",
    "Table `db.t` is ambiguous; there are multiple tables with that name.",
    "Query terminated by the `rethinkdb.jobs` table.",
    "Timed out while waiting for tables.",
    "A write hook function must not turn a deletion into a replace/insert.",
]


@pytest.mark.parametrize("kind", [ReqlOpFailedError, ReqlOpIndeterminateError])
def test_what_a_server_says_that_restarts_or_moves_data_may_pass(kind: type[Exception]) -> None:
    assert [text for text in PASSING if CONNECTOR.may_pass(kind(text)) is not True] == []
    assert [text for text in LASTING if CONNECTOR.may_pass(kind(text)) is not False] == []


@pytest.mark.parametrize(
    "kind",
    [
        *(ReqlQueryLogicError, ReqlNonExistenceError, ReqlPermissionError, ReqlServerCompileError, ReqlInternalError),
        *(ReqlDriverError, ReqlRuntimeError, ConnectionLost, NotSent, TypeError, asyncio.CancelledError),
    ],
)
def test_no_other_error_may_pass(kind: type[BaseException]) -> None:
    assert [text for text in PASSING if CONNECTOR.may_pass(kind(text)) is not False] == []


async def test_a_feed_on_a_table_that_is_dropped_may_pass_but_its_reopening_may_not(
    connection: RethinkDBConnection, table: Any
) -> None:
    stream = await CONNECTOR.open_stream(connection, table.changes(), {})
    db = table._args[0]
    await CONNECTOR.run(connection, db.table_drop("rows"), {})
    async with asyncio.timeout(5):
        with pytest.raises(ReqlOpFailedError, match="Changefeed aborted") as ended:
            await anext(stream)
    assert CONNECTOR.may_pass(ended.value)
    with pytest.raises(ReqlOpFailedError, match="does not exist") as refused:
        await CONNECTOR.open_stream(connection, table.changes(), {})
    assert not CONNECTOR.may_pass(refused.value)


async def test_a_feed_on_a_table_that_is_moved_may_pass_and_its_reopening_works(
    connection: RethinkDBConnection, table: Any, rethinkdb_server: Any
) -> None:
    if rethinkdb_server.kind == "stand-in":
        pytest.skip("the stand-in server moves nothing")
    stream = await CONNECTOR.open_stream(connection, table.changes(), {})
    await CONNECTOR.run(connection, table.reconfigure(shards=2, replicas=1), {})
    async with asyncio.timeout(10):
        with pytest.raises(ReqlOpFailedError, match="Changefeed aborted") as ended:
            await anext(stream)
        assert CONNECTOR.may_pass(ended.value)
        while True:
            [outcome] = await asyncio.gather(
                CONNECTOR.open_stream(connection, table.changes(), {}), return_exceptions=True
            )
            if not isinstance(outcome, BaseException):
                break
            assert CONNECTOR.may_pass(outcome)
            await asyncio.sleep(0.02)
