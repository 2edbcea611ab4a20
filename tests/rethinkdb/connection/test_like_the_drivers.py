"""The RethinkDB connection is the driver's for its users: what they write, read, see and call."""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import Any

import pytest
from rethinkdb import RethinkDB
from rethinkdb.ast import ReQLDecoder, ReQLEncoder
from rethinkdb.errors import ReqlDriverError, ReqlNonExistenceError, ReqlOpFailedError, ReqlServerCompileError

from async_repool.connectors.rethinkdb import R, RethinkDBConnection, RethinkDBConnector
from async_repool.testing import StandInServer
from connection_kit import until
from scripted_server import (
    ATOM,
    CLIENT_ERROR,
    COMPILE_ERROR,
    PARTIAL,
    RUNTIME_ERROR,
    SEQUENCE,
    SERVER_INFO_ANSWER,
    START,
    WAIT_COMPLETE,
    Link,
    ScriptedServer,
    frame,
)

plain_r = RethinkDB()
plain_r.set_loop_type("asyncio")


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


# --- names and texts that existing code compares ---


async def test_a_cursor_has_the_name_of_the_drivers(link: Link) -> None:
    task, token = await link.started()
    link.peer.answer(token, SEQUENCE, 1)
    assert (await task).__class__.__name__ == "AsyncioCursor"


async def outcomes_of_a_loss(connection: Any, peer: Any) -> list[Any]:
    """The errors of a query, a cursor, and a later query on a connection that the peer ends."""
    streaming = asyncio.create_task(plain_r.expr(1).run(connection))
    token, _ = await peer.request()
    peer.answer(token, PARTIAL, 1)
    cursor = await streaming
    assert await cursor.next() == 1
    waiting = asyncio.gather(plain_r.expr(2).run(connection), cursor.next(), return_exceptions=True)
    await asyncio.sleep(0.01)
    peer.end()
    in_flight = await waiting
    try:
        return [*in_flight, await plain_r.expr(3).run(connection)]
    except ReqlDriverError as error:
        return [*in_flight, error]


async def test_the_errors_of_a_lost_connection_have_the_names_of_the_drivers(link: Link) -> None:
    async with ScriptedServer().running() as other:
        drivers = await plain_r.connect(other.host, other.port)
        expected = await outcomes_of_a_loss(drivers, await other.peer())
        ours = await outcomes_of_a_loss(link.connection, link.peer)
        await drivers.close(noreply_wait=False)
    assert [type(error).__name__ for error in ours] == [type(error).__name__ for error in expected]
    assert [type(error).__name__ for error in ours] == ["ReqlDriverError", "ReqlRuntimeError", "ReqlDriverError"]
    assert [repr(error).split()[0] for error in ours] == [repr(error).split()[0] for error in expected]


async def test_a_query_on_a_closed_connection_has_the_message_of_the_drivers(link: Link) -> None:
    async with ScriptedServer().running() as other:
        drivers = await plain_r.connect(other.host, other.port)
        expected = (await outcomes_of_a_loss(drivers, await other.peer()))[-1]
        ours = (await outcomes_of_a_loss(link.connection, link.peer))[-1]
        await drivers.close(noreply_wait=False)
    assert ours.message == expected.message == "Connection is closed."
    assert "ended the connection" in str(ours), "a person who reads it is told why"


async def test_setting_the_loop_type_once_more_leaves_our_connections_in_place(server: StandInServer) -> None:
    R.set_loop_type("asyncio")
    async with await R.connect(server.host, server.port) as connection:
        assert isinstance(connection, RethinkDBConnection)
