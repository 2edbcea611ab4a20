"""The RethinkDB connection: the driver's for its users, and safe to cancel, to share and to drop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import json
import os
import random
import struct
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from rethinkdb import RethinkDB
from rethinkdb.ast import ReQLDecoder, ReQLEncoder
from rethinkdb.asyncio_net.net_asyncio import AsyncioCursor
from rethinkdb.errors import (
    ReqlCursorEmpty,
    ReqlDriverError,
    ReqlNonExistenceError,
    ReqlOpFailedError,
    ReqlRuntimeError,
    ReqlServerCompileError,
    ReqlTimeoutError,
)

from async_repool.connectors import rethinkdb as module
from async_repool.connectors.rethinkdb import R, RethinkDBConnection, RethinkDBConnector, RethinkDBCursor
from async_repool.testing import StandInServer
from scripted_server import (
    ATOM,
    CLIENT_ERROR,
    COMPILE_ERROR,
    CONTINUE,
    NOREPLY_WAIT,
    PARTIAL,
    RUNTIME_ERROR,
    SEQUENCE,
    SERVER_INFO,
    SERVER_INFO_ANSWER,
    START,
    STOP,
    WAIT_COMPLETE,
    Link,
    ScriptedServer,
    asyncio_only,
    frame,
    linked,
    pack,
)

plain_r = RethinkDB()
plain_r.set_loop_type("asyncio")


@pytest.fixture
async def link() -> AsyncIterator[Link]:
    async with linked(Link) as link:
        yield link


@pytest.fixture
async def server() -> AsyncIterator[StandInServer]:
    async with StandInServer() as server:
        yield server


@pytest.fixture
async def connection(server: StandInServer) -> AsyncIterator[RethinkDBConnection]:
    """A connection to the stand-in server, whose insides tests may look at."""
    async with await R.connect(server.host, server.port) as connection:
        yield connection


@pytest.fixture
async def any_connection(server: StandInServer) -> AsyncIterator[RethinkDBConnection]:
    """A connection to any server: a real one where the environment names it."""
    connector = RethinkDBConnector(url=os.environ.get("RETHINKDB_URL") or server.url)
    async with await connector.connect() as connection:
        yield connection


@pytest.fixture
async def table(any_connection: RethinkDBConnection) -> AsyncIterator[Any]:
    """A table of 2,500 rows."""
    name = f"async_repool_{random.randrange(10**9)}"
    await R.db_create(name).run(any_connection)
    await R.db(name).table_create("rows").run(any_connection)
    table = R.db(name).table("rows")
    for start in range(0, 2500, 500):
        await table.insert([{"id": i, "text": f"row {i}"} for i in range(start, start + 500)]).run(any_connection)
    yield table
    await R.db_drop(name).run(any_connection)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_so():  # noqa: ASYNC110 - what the server holds has no event
            await asyncio.sleep(0)


# --- like the driver's ---


async def test_run_returns_a_coroutine(link: Link) -> None:
    coroutine = R.expr(1).run(link.connection)
    assert inspect.iscoroutine(coroutine)
    task = asyncio.create_task(coroutine)
    token, query = await link.peer.request()
    assert query == [START, 1, {}]
    link.peer.answer(token, ATOM, "one")
    assert await task == "one"


class UpperCase(ReQLEncoder):
    def encode(self, obj: Any) -> str:
        return super().encode(obj).upper()


QUERIES: list[tuple[Any, dict[str, Any]]] = [
    (lambda r: r.expr(1), {}),
    (lambda r: r.expr({"a": [1, None, True, "héllo ☃ 😀\x00"]}), {}),
    (lambda r: r.table("t").filter(lambda row: row["a"] > 1), {"db": "other"}),
    (lambda r: r.table("t").get(1), {"read_mode": "outdated", "array_limit": 7, "profile": False}),
    (lambda r: r.table("t"), {"max_batch_rows": r_value} if (r_value := plain_r.expr(1) + 1) is not None else {}),
    (lambda r: r.expr(1), {"nested": [1, {"a": [2]}], "x": None, "f": 1.5}),
    (lambda r: r.binary(b"\x00\xff"), {"data": b"\x00"}),
    (lambda r: r.expr("a"), {"json_encoder": UpperCase}),
    (lambda r: r.now(), {"time_format": "raw", "group_format": "raw", "binary_format": "raw"}),
]


@pytest.mark.parametrize("number", range(len(QUERIES)))
async def test_queries_are_written_as_the_driver_writes_them(link: Link, number: int) -> None:
    make, options = QUERIES[number]
    async with ScriptedServer().running() as other:
        for db in (None, "app"):
            theirs = await plain_r.connect(other.host, other.port, db=db)
            link.connection.use(db)
            theirs_peer = await other.peer()
            tasks = [link.run(make(R), **options), asyncio.create_task(make(plain_r).run(theirs, **options))]
            token, ours_bytes = await link.peer.raw_request()
            theirs_token, theirs_bytes = await theirs_peer.raw_request()
            # A function's variables are numbered through the process.
            assert len(ours_bytes) == len(theirs_bytes)
            if b"[69," not in ours_bytes:
                assert ours_bytes == theirs_bytes
            link.peer.answer(token, ATOM, None)
            theirs_peer.answer(theirs_token, ATOM, None)
            await asyncio.gather(*tasks)
            await theirs.close(noreply_wait=False)


TIME = {"$reql_type$": "TIME", "epoch_time": 1500000000.5, "timezone": "+02:00"}
GROUPED = {"$reql_type$": "GROUPED_DATA", "data": [[{"k": [1]}, 2], [[1, 2], TIME]]}
BINARY = {"$reql_type$": "BINARY", "data": "AAFhYmM="}
ANSWERS = [
    {"t": ATOM, "r": [1]},
    {"t": ATOM, "r": [None]},
    {"t": ATOM, "r": [{"a": {"b": ["ü☃😀", 1.5, -1e300, 12345678901234567890]}}]},
    {"t": ATOM, "r": [[TIME, GROUPED, BINARY, {"$reql_type$": "GEOMETRY", "type": "Point"}]]},
    {"t": ATOM, "r": [5], "p": [{"description": "Evaluating."}]},
    {"t": WAIT_COMPLETE, "r": []},
    {"t": SERVER_INFO_ANSWER, "r": [{"id": "x"}]},
    {"t": CLIENT_ERROR, "r": ["bad"], "b": []},
    {"t": COMPILE_ERROR, "r": ["bad"], "b": [0]},
    *({"t": RUNTIME_ERROR, "e": e * 100_000, "r": ["bad"], "b": []} for e in (10, 20, 30, 31, 41, 42, 50, 60, 99)),
    {"t": 77, "r": []},
]


@pytest.mark.parametrize(
    "options",
    [{}, {"time_format": "raw"}, {"group_format": "raw"}, {"binary_format": "raw"}, {"json_decoder": json.JSONDecoder}],
)
async def test_answers_are_read_as_the_driver_reads_them(link: Link, options: dict[str, Any]) -> None:
    options = dict(options)
    if "json_decoder" in options:
        options["json_decoder"] = lambda format_options=None: json.JSONDecoder()
    async with ScriptedServer().running() as other:
        theirs = await plain_r.connect(other.host, other.port)
        theirs_peer = await other.peer()
        for answer in ANSWERS:
            bodies = [json.dumps(answer).encode(), json.dumps(answer, ensure_ascii=False).encode()]
            bodies.append(bodies[1].replace(b"$reql_type$", b"\\u0024re\\u0071l_type$"))
            for body in bodies:
                tasks = [link.run(**options), asyncio.create_task(plain_r.expr(1).run(theirs, **options))]
                for peer in (link.peer, theirs_peer):
                    token, _ = await peer.request()
                    peer.send(frame(token, body))
                ours, expected = await asyncio.gather(*tasks, return_exceptions=True)
                assert type(ours) is type(expected)
                if isinstance(ours, Exception):
                    assert str(ours) == str(expected)
                else:
                    assert ours == expected
        await theirs.close(noreply_wait=False)


async def test_answers_decode_with_the_connections_own_classes() -> None:
    class Loud(ReQLDecoder):
        def decode(self, text: str) -> Any:  # type: ignore[override]
            answer = super().decode(text)
            return answer | {"r": [f"{row}!" for row in answer["r"]]} if "t" in answer else answer

    async with ScriptedServer().running() as server:
        connector = RethinkDBConnector(host=server.host, port=server.port, json_decoder=Loud, json_encoder=UpperCase)
        # The log-in uses them too, as in the driver; the scripted server has to bear with upper case.
        connector = RethinkDBConnector(host=server.host, port=server.port, json_decoder=Loud)
        link = Link(await connector.connect(), await server.peer())
        task, token = await link.started()
        link.peer.answer(token, ATOM, "a")
        assert await task == "a!"
        task, token = await link.started(json_decoder=lambda options: json.JSONDecoder())
        link.peer.answer(token, ATOM, "b")
        assert await task == "b"
        link.connection.abort()


async def test_profile_wraps_values_and_cursors(link: Link) -> None:
    task, token = await link.started(profile=True)
    link.peer.answer(token, ATOM, 1, p=["fast"])
    assert await task == {"value": 1, "profile": ["fast"]}
    task, token = await link.started(profile=True)
    link.peer.answer(token, SEQUENCE, 1, 2, p=["slow"])
    result = await task
    assert result["profile"] == ["slow"]
    assert [row async for row in result["value"]] == [1, 2]


async def test_the_servers_errors_are_the_drivers(any_connection: RethinkDBConnection) -> None:
    with pytest.raises(ReqlNonExistenceError, match="No attribute `b` in object"):
        await R.expr({"a": 1})["b"].run(any_connection)
    with pytest.raises(ReqlOpFailedError, match="does not exist"):
        await R.db("surely_missing").table("t").run(any_connection)
    assert await R.expr(2).run(any_connection) == 2


async def test_a_compile_error_quotes_the_query(link: Link) -> None:
    task, token = await link.started(R.expr(1) + 2)
    link.peer.answer(token, COMPILE_ERROR, "Not so.", b=[])
    with pytest.raises(ReqlServerCompileError) as caught:
        await task
    assert str(caught.value) == "Not so in:\n(r.expr(1) + r.expr(2))\n^^^^^^^^^^^^^^^^^^^^^^^"


async def test_the_drivers_other_methods_work(any_connection: RethinkDBConnection) -> None:
    connection = any_connection
    assert set(await connection.server()) == {"id", "name", "proxy"}
    assert await connection.noreply_wait() is None
    connection.use("elsewhere")
    assert connection.db == "elsewhere"
    connection.check_open()
    assert connection.repl() is connection
    assert await R.expr(1).run() == 1
    assert connection.client_address()
    assert connection.client_port()


async def test_use_names_the_database_of_queries(link: Link) -> None:
    link.connection.use("app")
    link.run(R.table("t")).add_done_callback(lambda task: task.cancelled() or task.exception())
    _, query = await link.peer.request()
    assert query == [START, [15, ["t"]], {"db": [14, ["app"]]}]


async def test_closed_is_closed(server: StandInServer) -> None:
    connection = await R.connect(server.host, server.port)
    await connection.close()
    await connection.close()
    assert not connection.is_open()
    assert connection.client_port() is None
    assert connection.client_address() is None
    assert repr(connection) == f"<RethinkDBConnection 127.0.0.1:{server.port} closed>"
    for use in (connection.check_open, connection.server, lambda: R.expr(1).run(connection)):
        with pytest.raises(ReqlDriverError, match="Connection is closed"):
            use()


async def test_reconnect_gives_a_fresh_connection(server: StandInServer) -> None:
    connection = await R.connect(server.host, server.port)
    port = connection.client_port()
    cursor = await R.range(1_000_000).run(connection)
    assert await connection.reconnect() is connection
    assert connection.client_port() != port
    assert await R.expr(1).run(connection) == 1
    assert cursor.error is not None
    assert connection.is_idle
    server.faults.refuse()
    with pytest.raises(ReqlDriverError, match="Could not connect"):
        await connection.reconnect(timeout=1)
    assert not connection.is_open()


async def test_two_reconnects_at_once_leave_one_socket(server: StandInServer) -> None:
    connection = await R.connect(server.host, server.port)
    await asyncio.gather(connection.reconnect(), connection.reconnect())
    assert await R.expr(1).run(connection) == 1
    await until(lambda: len(server.open_connections) == 1)
    await connection.close()


async def test_its_state_can_be_read_off(link: Link) -> None:
    connection = link.connection
    assert connection.is_idle
    task, token = await link.started()
    assert (connection.in_flight, connection.is_idle) == (1, False)
    assert repr(connection).endswith(" 1 in flight, 0 cursors>")
    link.peer.answer(token, PARTIAL, 1)
    cursor = await task
    assert (connection.in_flight, connection.open_cursors, connection.is_idle) == (0, 1, False)
    link.peer.answer(token, SEQUENCE, 2)
    assert [row async for row in cursor] == [1, 2]
    assert (connection.open_cursors, connection.is_idle) == (0, True)


# --- writing ---


async def test_the_queries_of_one_turn_leave_in_one_piece(link: Link) -> None:
    tasks = [link.run() for _ in range(50)]
    data = await link.peer.reader.read(2**20)
    assert len(data) == 50 * len(frame(0, b"[1,1,{}]"))
    for number in range(50):
        token, size = struct.unpack_from("<QL", data, number * 20)
        assert size == 8
        link.peer.answer(token, ATOM, token)
    assert len(set(await asyncio.gather(*tasks))) == 50


BULK = "x" * 16_000_000  # more than the sockets between us take in


async def blocked(link: Link) -> None:
    """Leave the connection with a peer that does not read."""
    link.peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await R.expr(BULK).run(link.connection, noreply=True)


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
    assert link.connection.pending_noreply == 4
    for token in tokens:
        link.peer.answer(token, WAIT_COMPLETE)
    await asyncio.gather(*waits)
    assert link.connection.pending_noreply == 1, "the fourth was sent after both waits"


@pytest.mark.parametrize("noreply", [False, True])
async def test_a_query_longer_than_the_server_takes_is_not_sent(
    link: Link, noreply: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server ends the connection over it, which others share.
    monkeypatch.setattr(module, "MAX_QUERY_BYTES", 100)
    with pytest.raises(ReqlDriverError, match=r"Query size \(\d+\) greater than maximum \(100\)"):
        await R.expr("x" * 100).run(link.connection, noreply=noreply)
    await link.works()


async def test_a_query_that_cannot_be_written_disturbs_nothing(link: Link) -> None:
    with pytest.raises(TypeError):
        await R.expr(object()).run(link.connection)
    assert link.connection.is_idle
    await link.works()


# --- cancelled queries ---


async def cancelled(link: Link) -> int:
    """The token of a query that was cancelled while it ran."""
    task, token = await link.started()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert link.connection.is_idle
    await link.expect(token, STOP)
    return token


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


# --- cursors ---


async def test_a_cursor_gives_every_row_in_order(table: Any, any_connection: RethinkDBConnection) -> None:
    cursor = await table.order_by(index="id").run(any_connection)
    assert isinstance(cursor, AsyncioCursor)
    assert [row["id"] async for row in cursor] == list(range(2500))
    assert any_connection.open_cursors == 0
    with pytest.raises(ReqlCursorEmpty):
        await cursor.next()
    assert not await cursor.fetch_next()


async def test_an_answer_in_one_piece_is_a_cursor_without_a_stream(link: Link) -> None:
    task, token = await link.started()
    link.peer.answer(token, SEQUENCE, 1, 2)
    cursor = await task
    assert link.connection.open_cursors == 0
    assert [await cursor.next(), await cursor.next()] == [1, 2]
    assert [row async for row in cursor] == []
    await cursor.close()
    assert await link.peer.has_nothing_more()


async def test_a_cursor_reads_ahead_one_batch_and_no_more(link: Link) -> None:
    cursor, token = await link.streaming("a", "b")
    link.peer.answer(token, PARTIAL, "c", "d")
    await link.works()
    assert list(cursor.items) == ["a", "b", "c", "d"]
    assert cursor.outstanding_requests == 0
    assert [await cursor.next() for _ in range(2)] == ["a", "b"]
    assert await link.peer.has_nothing_more(), "a whole batch is still to be read"
    assert await cursor.next() == "c"
    await link.expect(token, CONTINUE)
    assert await link.peer.has_nothing_more(), "one at a time"
    link.peer.answer(token, SEQUENCE, "e")
    assert [row async for row in cursor] == ["d", "e"]


async def test_a_changefeed_is_asked_again_after_an_empty_batch(link: Link) -> None:
    feed, token = await link.streaming()
    row = asyncio.create_task(feed.next())
    for number in range(3):
        link.peer.answer(token, PARTIAL, number)
        await link.expect(token, CONTINUE)
        assert await row == number
        row = asyncio.create_task(feed.next())
    link.peer.answer(token, RUNTIME_ERROR, "Changefeed aborted (unavailable).", e=4100000, b=[])
    with pytest.raises(ReqlOpFailedError, match="Changefeed aborted"):
        await row
    assert link.connection.open_cursors == 0


async def test_rows_come_before_the_error_behind_them(link: Link) -> None:
    cursor, token = await link.streaming(1)
    link.peer.answer(token, RUNTIME_ERROR, "boom", b=[])
    assert await cursor.next() == 1
    with pytest.raises(ReqlRuntimeError, match="boom"):
        await anext(cursor)
    assert await cursor.fetch_next(), "as in the driver: there is something to be had, if only an error"
    with pytest.raises(ReqlRuntimeError, match="boom"):
        await cursor.next()


async def test_waiting_for_a_row_can_be_bounded(link: Link) -> None:
    cursor, token = await link.streaming(1)
    assert await cursor.next(wait=False) == 1
    for wait in (False, 0, 0.01):
        with pytest.raises(ReqlTimeoutError):
            await cursor.next(wait=wait)
        with pytest.raises(TimeoutError):
            await cursor.fetch_next(wait=wait)
    with pytest.raises(ReqlDriverError, match="Invalid wait timeout"):
        await cursor.next(wait="long")
    link.peer.answer(token, PARTIAL, 2)
    assert await cursor.fetch_next(wait=5)
    assert await cursor.next(wait=False) == 2


async def test_polling_lets_rows_come_in(link: Link) -> None:
    cursor, token = await link.streaming()
    link.peer.answer(token, PARTIAL, 1)
    for _ in range(100):
        with contextlib.suppress(ReqlTimeoutError):
            assert await cursor.next(wait=False) == 1
            break
    else:
        pytest.fail("polled 100 times")


async def test_a_cursor_looks_like_the_drivers(link: Link) -> None:
    cursor, _ = await link.streaming(*range(12))
    assert str(cursor) == (
        "async_repool.connectors.rethinkdb.RethinkDBCursor (streaming): [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...]"
    )
    await cursor.close()
    assert "(done streaming)" in str(cursor)
    assert repr(cursor).startswith("<async_repool.connectors.rethinkdb.RethinkDBCursor object at 0x")
    assert cursor.conn.is_open()


async def test_cancelled_while_it_waits_a_cursor_loses_nothing(link: Link) -> None:
    cursor, token = await link.streaming(1)
    got: list[int] = []

    async def read() -> None:
        async for row in cursor:
            got.append(row)

    for number in range(2, 6):
        reader = asyncio.create_task(read())
        await turns(3)
        # The row and the cancellation in one turn of the loop.
        link.peer.answer(token, PARTIAL, number)
        asyncio.get_running_loop().call_soon(reader.cancel)
        await asyncio.wait([reader])
        await link.expect(token, CONTINUE)
    link.peer.answer(token, SEQUENCE)
    await read()
    assert got == [1, 2, 3, 4, 5]


async def test_two_tasks_may_read_one_cursor(link: Link) -> None:
    cursor, token = await link.streaming()
    got: list[int] = []

    async def read() -> None:
        async for row in cursor:
            got.append(row)
            await asyncio.sleep(0)

    readers = [asyncio.create_task(read()) for _ in range(3)]
    await turns(3)
    for batch in ([1], [2, 3, 4, 5], [6]):
        link.peer.answer(token, PARTIAL, *batch)
        await link.expect(token, CONTINUE)
    link.peer.answer(token, SEQUENCE, 7)
    await asyncio.gather(*readers)
    assert sorted(got) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("end", ["close", "aclose", "aclosing", "with", "drop", "break"])
async def test_a_cursor_that_waits_for_rows_is_stopped(link: Link, end: str) -> None:
    cursor: RethinkDBCursor | None
    cursor, token = await link.streaming(1, 2)
    assert link.connection.open_cursors == 1
    if end == "aclosing":
        async with contextlib.aclosing(cursor):
            pass
    elif end == "with":
        with cursor:
            pass
    elif end == "drop":
        cursor = None
    elif end == "break":
        async for _ in cursor:
            break
        cursor = None
    else:
        await getattr(cursor, end)()
    await link.expect(token, STOP)
    assert link.connection.open_cursors == 0
    # Its CONTINUE and its STOP are answered, and that is all.
    link.peer.answer(token, PARTIAL, 3, 4)
    link.peer.answer(token, SEQUENCE)
    await link.works()
    if cursor is not None:
        assert [row async for row in cursor] == [1, 2], "what had come can be read, as in the driver"
    link.peer.answer(token, SEQUENCE)
    await link.fails("not asked")


@pytest.mark.parametrize("end", ["close", "drop"])
async def test_a_cursor_that_waits_for_nothing_owes_one_answer(link: Link, end: str) -> None:
    cursor: RethinkDBCursor | None
    cursor, token = await link.idle(1, 2)
    if end == "close":
        await cursor.close()
        await cursor.close()
    cursor = None
    await link.expect(token, STOP)
    link.peer.answer(token, SEQUENCE)
    await link.works()
    link.peer.answer(token, SEQUENCE)
    await link.fails("not asked")


async def test_a_cursor_that_has_ended_is_not_stopped(link: Link) -> None:
    cursor, token = await link.streaming(1)
    link.peer.answer(token, SEQUENCE, 2)
    assert [row async for row in cursor] == [1, 2]
    await cursor.close()
    del cursor
    gc.collect()
    assert await link.peer.has_nothing_more()


async def test_rows_for_a_dropped_cursor_may_come_before_its_stop_is_sent(link: Link) -> None:
    cursor, token = await link.streaming(1)
    link.peer.answer(token, PARTIAL, 2)
    del cursor  # the rows can be read in the turn in which the STOP is prepared
    await link.expect(token, STOP)
    link.peer.answer(token, SEQUENCE)
    await link.works()
    assert link.connection.is_idle
    link.peer.answer(token, SEQUENCE)
    await link.fails("not asked")


async def test_a_cursor_may_be_collected_in_another_thread(link: Link) -> None:
    holder = [await link.streaming(1)]
    token = holder[0][1]
    thread = threading.Thread(target=holder.clear)
    thread.start()
    thread.join()
    await link.expect(token, STOP)
    link.peer.answer(token, SEQUENCE)
    link.peer.answer(token, SEQUENCE)
    await link.works()


async def test_a_cursor_in_a_cycle_is_stopped_when_it_is_collected(link: Link) -> None:
    cursor, token = await link.streaming(1)
    knot: list[Any] = [cursor]
    knot.append(knot)
    del cursor, knot
    assert link.connection.open_cursors == 1
    gc.collect()
    await link.expect(token, STOP)


def test_a_cursor_may_be_collected_after_its_loop_has_ended() -> None:
    kept = []

    async def main() -> None:
        async with StandInServer() as server:
            connection = await R.connect(server.host, server.port)
            kept.append((connection, await R.range(1_000_000).run(connection)))
            connection.abort()
            await asyncio.sleep(0)

    asyncio.run(main())
    kept.clear()
    gc.collect()  # whatever it raises is an error, as all that cannot be raised


async def test_a_task_that_nobody_holds_reads_its_feed_all_the_same(link: Link) -> None:
    # Only the cursor's own future refers to it, and the connection holds cursors weakly.
    got: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def watch() -> None:
        async for row in await R.expr(1).run(link.connection):
            got.set_result(row)

    asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(watch()) and None)
    token, _ = await link.peer.request()
    link.peer.answer(token, PARTIAL)
    await link.expect(token, CONTINUE)
    await turns(3)
    gc.collect()
    link.peer.answer(token, PARTIAL, "change")
    assert await got == "change"
    await link.expect(token, CONTINUE)
    link.peer.answer(token, SEQUENCE)
    await link.works()


async def test_an_answer_too_deep_for_python_fails_its_own_query_only(link: Link) -> None:
    task, token = await link.started()
    body = b'{"t":1,"r":[' + b"[" * 100_000 + b"]" * 100_000 + b"]}"
    link.peer.send(struct.pack("<QL", token, len(body)) + body)
    with pytest.raises(RecursionError):
        await task
    await link.works()


@pytest.mark.parametrize("noreply", [1, "yes", [False], R.expr(False)], ids=str)
async def test_noreply_that_is_not_true_is_answered_as_the_server_does(
    connection: RethinkDBConnection, noreply: Any
) -> None:
    assert await R.expr(7).run(connection, noreply=noreply) == 7
    assert connection.pending_noreply == 0
    assert await R.expr(8).run(connection) == 8


async def test_a_term_that_is_true_is_noreply_too(connection: RethinkDBConnection) -> None:
    assert await R.expr(7).run(connection, noreply=R.expr(True)) is None
    assert connection.pending_noreply == 1
    assert await R.expr(8).run(connection) == 8


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


async def test_a_stream_whose_first_rows_a_cancelled_task_never_took_is_stopped_though_its_error_is_kept(
    link: Link,
) -> None:
    task, token = await link.started()
    link.peer.answer(token, PARTIAL, 1)
    while not link.connection.open_cursors:  # noqa: ASYNC110 (it must be seen in the very turn before the task's own)
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as kept:
        await task
    await turns(3)
    assert link.connection.open_cursors == 0
    assert kept.value.__traceback__ is not None


async def test_a_stream_whose_first_rows_a_cancelled_task_never_took_is_stopped_though_its_cursor_is_kept(
    link: Link,
) -> None:
    task, token = await link.started()
    link.peer.answer(token, PARTIAL, "kept")
    while not link.connection.open_cursors:  # noqa: ASYNC110 (it must be seen in the very turn before the task's own)
        await asyncio.sleep(0)
    cursors = [thing for thing in gc.get_objects() if type(thing) is RethinkDBCursor]
    (kept,) = [cursor for cursor in cursors if "kept" in cursor.items]  # or its collection would stop it
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert link.connection.open_cursors == 0
    await link.expect(token, CONTINUE)
    await link.expect(token, STOP)
    assert list(kept.items) == ["kept"]


async def test_abandoned_cursors_leave_nothing_on_the_server(
    server: StandInServer, connection: RethinkDBConnection
) -> None:
    cursors = [await R.range(1_000_000).run(connection) for _ in range(500)]
    assert server.open_streams == 500
    cursors.clear()
    await until(lambda: server.open_streams == 0)
    assert connection.is_idle
    assert await R.expr(1).run(connection) == 1


async def test_abandoned_cursors_leave_nothing_in_memory(link: Link) -> None:
    streams: set[int] = set()

    async def serve_endless_rows() -> None:
        while True:
            token, (kind, *_) = await link.peer.request()
            if kind == STOP:
                streams.remove(token)
                link.peer.answer(token, SEQUENCE)
            else:
                streams.add(token)
                link.peer.answer(token, PARTIAL, *range(100))

    async def abandon(count: int) -> None:
        for _ in range(count):
            cursor = await R.expr(1).run(link.connection)
            assert await cursor.next() == 0
            del cursor
        await until(lambda: not streams and link.connection.is_idle)

    server = asyncio.create_task(serve_endless_rows())
    tracemalloc.start()
    try:
        await abandon(20)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        await abandon(500)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        server.cancel()
    assert after - before < 50_000, "500 cursors leave less than 100 bytes each"


async def test_the_end_of_the_last_cursor_can_be_waited_for(link: Link) -> None:
    await link.connection.wait_idle()
    first, first_token = await link.streaming(1)
    second, second_token = await link.streaming(1)
    wait = asyncio.create_task(link.connection.wait_idle())
    link.peer.answer(first_token, SEQUENCE)
    await link.works()
    assert not wait.done()
    await second.close()
    await wait
    await link.expect(second_token, STOP)
    assert await first.next() == 1


async def test_a_reconnect_ends_all_cursors(connection: RethinkDBConnection) -> None:
    first = await R.range(1_000_000).run(connection)
    waits = asyncio.gather(connection.wait_idle(), connection.wait_idle())
    await turns(3)
    await connection.reconnect()
    second = await R.range(1_000_000).run(connection)
    async with asyncio.timeout(5):
        await waits
    assert first.error is not None
    assert second.error is None
    assert connection.open_cursors == 1


async def test_a_query_is_waited_for_where_idleness_is(link: Link) -> None:
    task, token = await link.started()
    wait = asyncio.create_task(link.connection.wait_idle())
    await turns(3)
    assert not wait.done()
    link.peer.answer(token, ATOM, 1)
    await task
    await wait


# --- when the peer breaks the protocol, or goes ---


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


# --- on uvloop ---


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
