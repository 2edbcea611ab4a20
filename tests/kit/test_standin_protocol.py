"""The stand-in server's protocol: queries, tokens, streams, STOP, noreply, and how the server starts and stops."""

from __future__ import annotations

import asyncio
import gc
import struct

import pytest
from rethinkdb.errors import ReqlOpFailedError, ReqlQueryLogicError

from async_repool.testing import StandInServer
from standin_kit import STOPPED, WIRE_T, eventually, insert, r
from wire_client import (
    ADD,
    CHANGES,
    COUNT,
    FUNC,
    GET,
    INSERT,
    MAKE_ARRAY,
    MAP,
    MUL,
    RANGE,
    TABLE_CREATE,
    UPCASE,
    VAR,
    WireClient,
    query,
    squares,
)

# --- queries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("{", 16, "Client is buggy (failed to deserialize query)."),
        (b"\xff", 16, "Client is buggy (failed to deserialize query)."),
        ("[" * 100_000, 16, "Client is buggy (failed to deserialize query)."),
        ("1", 16, "Server could not parse query: Expected a query to be an array, but found NUMBER."),
        ("[]", 16, "Server could not parse query: Expected 1 to 3 elements in the top-level query, but found 0."),
        ("[99]", 16, "Server could not parse query: Unrecognized QueryType: 99."),
        ("[1,[9999,[]]]", 17, "Unrecognized TermType: 9999."),
        ("[1,1,5]", 16, "Server could not parse query: Expected global optargs as an object, but found NUMBER."),
        ('[1,1,{"nope":1}]', 17, "Unrecognized global optional argument `nope`."),
        ("[1]", 16, "Server could not parse query: Expected a term after a START."),
        ("[1,[]]", 17, "Expected a TermType as a NUMBER."),
        ("[2]", 16, "Token 9 not in stream cache."),
        ("[3]", 16, "Token 9 not in stream cache."),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_a_bad_query_gets_an_error_and_the_connection_lives(
    wire: WireClient, text: str, kind: int, message: str
) -> None:
    assert await wire.ask(9, text) == {"t": kind, "r": [message], "b": []}
    assert await wire.run(1) == 1


async def test_a_query_that_declares_too_large_a_size_is_refused_and_its_bytes_are_skipped(wire: WireClient) -> None:
    wire.write(struct.pack("<QL", 1, 134_217_728))
    assert (await wire.receive())[1]["r"] == ["Query size (134217728) greater than maximum (134217727)."]
    for _ in range(128):
        wire.write(bytes(1024 * 1024))
        await wire.drain()
    assert await wire.run(1) == 1


@pytest.mark.parametrize("text", ["[1,[24,5]]", '[1,1,{"db":[14]}]', '[1,1,{"max_batch_rows":"x"}]'])
async def test_a_query_that_it_stumbles_over_is_answered_with_its_own_failure(wire: WireClient, text: str) -> None:
    answer = await wire.ask(9, text)
    assert (answer["t"], answer["e"]) == (18, 1_000_000)
    assert answer["r"][0].startswith("The stand-in server failed: ")
    assert await wire.run(1) == 1


async def test_a_term_it_does_not_know_is_named_in_the_error(wire: WireClient) -> None:
    answer = await wire.ask(1, query([UPCASE, ["abc"]]))
    assert (answer["t"], answer["e"]) == (18, 3_000_000)
    assert answer["r"][0].startswith("`UPCASE` is not supported by the stand-in server")


async def test_a_query_may_arrive_byte_by_byte(wire: WireClient) -> None:
    body = query([ADD, [1, 2]]).encode()
    for byte in struct.pack("<QL", 1, len(body)) + body:
        wire.write(bytes([byte]))
        await asyncio.sleep(0)
    assert (await wire.receive())[1]["r"] == [3]


async def test_many_queries_in_one_piece_are_all_answered(wire: WireClient) -> None:
    for token in range(5000):
        wire.send(token, query([ADD, [token, 1]]))
    answers = dict([await wire.receive() for _ in range(5000)])
    assert all(answers[token]["r"] == [token + 1] for token in range(5000))


async def test_strings_survive_whatever_is_in_them(wire: WireClient) -> None:
    for text in ("h\u00e9llo \u2603 \U0001f600", "\0", "\ud800 alone", '"\\'):
        assert await wire.run(text) == text
        assert await wire.run([MAKE_ARRAY, [text]]) == [text]


async def test_the_default_database_comes_with_the_query(server: StandInServer) -> None:
    conn = await r.connect(server.host, server.port, db="other")
    with pytest.raises(ReqlOpFailedError, match="Database `other` does not exist"):
        await r.table("t").run(conn)
    await r.db_create("other").run(conn)
    await r.table_create("t").run(conn)
    assert await r.db("other").table_list().run(conn) == ["t"]
    await conn.close()


async def test_true_is_not_one_and_missing_is_not_null(wire: WireClient) -> None:
    await wire.run([INSERT, [WIRE_T, [MAKE_ARRAY, [{"id": 1}, {"id": True}, {"id": [MAKE_ARRAY, [1]]}]]]])
    assert await wire.run([COUNT, [WIRE_T]]) == 3
    assert await wire.run([GET, [WIRE_T, True]]) == {"id": True}
    assert await wire.run([GET, [WIRE_T, 1]]) == {"id": 1}
    assert await wire.run([GET, [WIRE_T, 2]]) is None


# --- streams and STOP -------------------------------------------------------------------------------------------------


async def test_a_long_stream_comes_in_batches_and_continues(server: StandInServer, wire: WireClient) -> None:
    answers = await wire.ask_all(1, query([RANGE, [2000]]))
    assert [row for answer in answers for row in answer["r"]] == list(range(2000))
    assert [answer["t"] for answer in answers] == [3] * (len(answers) - 1) + [2]
    assert len(answers) > 2
    assert server.open_streams == 0


async def test_an_endless_stream_costs_nothing_until_it_is_asked_for(server: StandInServer, wire: WireClient) -> None:
    double = [FUNC, [[MAKE_ARRAY, [1]], [MUL, [[VAR, [1]], 2]]]]
    assert (await wire.ask(1, query([MAP, [[RANGE, []], double]], max_batch_rows=3)))["r"] == [0, 2, 4]
    assert (server.open_streams, server.running_queries) == (1, 0)
    assert (await wire.ask(1, "[2]"))["r"] == [6, 8, 10]
    assert await wire.ask(1, "[3]") == STOPPED


async def test_stop_ends_a_stream_with_one_answer(server: StandInServer, wire: WireClient) -> None:
    assert (await wire.ask(1, query([RANGE, [100_000]])))["t"] == 3
    assert server.open_streams == 1
    assert await wire.ask(1, "[3]") == STOPPED
    assert server.open_streams == 0
    assert (await wire.ask(1, "[2]"))["r"] == ["Token 1 not in stream cache."]


async def test_a_token_in_use_cannot_be_started_on(wire: WireClient) -> None:
    await wire.ask(1, query([RANGE, [100_000]]))
    assert await wire.ask(1, "[1,1]") == {"t": 16, "r": ["ERROR: duplicate token 1"], "b": []}
    assert (await wire.ask(1, "[2]"))["t"] == 3


async def test_stop_of_a_running_query_is_answered_twice(server: StandInServer, wire: WireClient) -> None:
    wire.send(100, query(squares(50_000_000)))
    await eventually(lambda: server.running_queries == 1)
    wire.send(100, "[3]")
    assert [await wire.receive(), await wire.receive()] == [(100, STOPPED)] * 2
    assert server.running_queries == 0
    assert await wire.run(1) == 1


async def test_stop_of_a_finished_query_is_an_error(wire: WireClient) -> None:
    wire.send(5, "[1,1]")
    wire.send(5, "[3]")
    assert (await wire.receive())[1]["r"] == [1]
    assert await wire.receive() == (5, {"t": 16, "r": ["Token 5 not in stream cache."], "b": []})


async def test_a_slow_query_does_not_hold_up_the_next(wire: WireClient) -> None:
    wire.send(1, query(squares(20_000)))
    wire.send(2, "[1,1]")
    assert [(await wire.receive())[0], (await wire.receive())[0]] == [2, 1]


async def test_a_slow_query_on_one_connection_does_not_hold_up_another(server: StandInServer, wire: WireClient) -> None:
    wire.send(1, query(squares(50_000_000)))
    async with WireClient(server.host, server.port) as other:
        assert await other.run(1) == 1
    assert server.running_queries == 1


async def test_one_connection_runs_1024_queries_at_once_and_the_others_wait(
    server: StandInServer, wire: WireClient
) -> None:
    before = server.queries_total
    for token in range(1100):
        wire.send(token, query([COUNT, [[RANGE, []]]]))
    await eventually(lambda: server.running_queries == 1024)
    assert server.queries_total - before == 1024


async def test_queries_that_had_to_wait_are_answered_in_the_end(wire: WireClient) -> None:
    for token in range(1100):
        wire.send(token, query([COUNT, [[RANGE, [300]]]]))
    assert sorted([(await wire.receive())[0] for _ in range(1100)]) == list(range(1100))


async def test_a_lost_connection_takes_its_queries_with_it(server: StandInServer) -> None:
    async with WireClient(server.host, server.port) as wire:
        await wire.run([TABLE_CREATE, ["t"]])
        await wire.ask(1, query([RANGE, []]))
        await wire.ask(2, query([CHANGES, [WIRE_T]]))
        wire.send(3, query(squares(50_000_000)))
        await eventually(lambda: server.running_queries == 1)
        assert server.open_streams == 2
    await eventually(lambda: server.connections == 0)
    assert (server.open_streams, server.running_queries) == (0, 0)


# --- noreply, server info ---------------------------------------------------------------------------------------------


async def test_noreply_is_not_answered_not_even_its_error(wire: WireClient) -> None:
    wire.send(1, query(insert(id="quiet"), noreply=True))
    wire.send(2, query([UPCASE, ["a"]], noreply=True))
    wire.send(3, query([RANGE, [5000]], noreply=True))
    wire.send(4, "[4]")
    assert await wire.receive() == (4, {"t": 4, "r": []})
    assert await wire.run([GET, [WIRE_T, "quiet"]]) == {"id": "quiet"}


async def test_noreply_wait_waits_for_this_connections_noreply_queries(server: StandInServer, wire: WireClient) -> None:
    wire.send(1, query(squares(20_000), noreply=True))
    wire.send(2, "[4]")
    wire.send(3, "[1,1]")
    async with WireClient(server.host, server.port) as other:
        assert (await other.ask(1, "[4]"))["t"] == 4
        assert server.running_queries == 1
    assert [(await wire.receive())[0], (await wire.receive())[0]] == [3, 2]
    assert server.running_queries == 0


async def test_server_info_names_the_server(server: StandInServer, wire: WireClient) -> None:
    answer = await wire.ask(2, "[5]")
    assert answer == {"t": 5, "r": [{"id": server.id, "name": "stand_in", "proxy": False}]}


# --- the official driver ----------------------------------------------------------------------------------------------


async def test_the_official_driver_reads_cursors_and_feeds(server: StandInServer) -> None:
    conn = await r.connect(server.host, server.port)
    await r.table_create("t").run(conn)
    await r.table("t").insert([{"id": number} for number in range(1500)]).run(conn)
    cursor = await r.table("t").filter(r.row["id"] < 1200).run(conn)
    assert sorted([row["id"] async for row in cursor]) == list(range(1200))
    feed = await r.table("t").changes()["new_val"]["id"].run(conn)
    await r.table("t").insert({"id": 2000}).run(conn)
    assert await feed.next() == 2000
    await feed.close()
    await eventually(lambda: server.open_streams == 0)
    await r.table("t").insert({"id": 3000}).run(conn, noreply=True)
    await conn.noreply_wait()
    assert await r.table("t").get(3000).run(conn) == {"id": 3000}
    assert (await conn.server())["name"] == "stand_in"
    await conn.close()


async def test_the_official_driver_gets_the_errors_it_knows(server: StandInServer) -> None:
    conn = await r.connect(server.host, server.port)
    with pytest.raises(ReqlQueryLogicError, match="Cannot divide by zero"):
        await (r.expr(1) / 0).run(conn)
    with pytest.raises(ReqlQueryLogicError, match="`UPCASE` is not supported by the stand-in server"):
        await r.expr("a").upcase().run(conn)
    await conn.close()


# --- the server's life ------------------------------------------------------------------------------------------------


async def test_it_counts_connections_and_queries(server: StandInServer) -> None:
    async with WireClient(server.host, server.port) as one, WireClient(server.host, server.port) as two:
        assert server.connections == 2
        await one.run(1)
        await two.run([ADD, [1, 2]])
    await eventually(lambda: server.connections == 0)
    assert (server.connections_total, server.queries_total) == (2, 2)
    assert server.url == f"rethinkdb://127.0.0.1:{server.port}"
    assert repr(server) == f"<StandInServer 127.0.0.1:{server.port}, 0 connections>"


async def test_a_restart_cuts_connections_and_keeps_port_and_data(server: StandInServer, wire: WireClient) -> None:
    await wire.run(insert(id=1))
    port = server.port
    await server.restart()
    with pytest.raises(ConnectionResetError):
        await wire.read_to_end()
    assert server.port == port
    async with WireClient(server.host, port) as again:
        assert await again.run([GET, [WIRE_T, 1]]) == {"id": 1}


async def test_clear_drops_the_data(server: StandInServer, wire: WireClient) -> None:
    server.clear()
    assert (await wire.ask(1, query(WIRE_T)))["r"] == ["Table `test.t` does not exist."]


async def test_a_stopped_server_refuses_connections_and_may_be_started_again() -> None:
    server = StandInServer()
    await server.start()
    await server.stop()
    await server.stop()
    with pytest.raises(ConnectionRefusedError):
        await WireClient(server.host, server.port).connect()
    await server.start()
    async with WireClient(server.host, server.port) as wire:
        assert await wire.run(1) == 1
    await server.stop()


async def test_it_is_started_once_and_a_taken_port_is_an_error(server: StandInServer) -> None:
    with pytest.raises(RuntimeError, match="already started"):
        await server.start()
    with pytest.raises(OSError, match="in use"):
        await StandInServer(port=server.port).start()


async def test_it_may_be_stopped_at_any_moment_of_a_login() -> None:
    for steps in range(12):
        server = StandInServer()
        await server.start()
        client = asyncio.create_task(WireClient(server.host, server.port).__aenter__())
        for _ in range(steps):
            await asyncio.sleep(0)
        await server.stop()
        assert server.connections == 0
        client.cancel()
        await asyncio.wait([client])
        if not client.cancelled() and client.exception() is None:
            client.result().abort()
    await asyncio.sleep(0)
    gc.collect()


async def test_a_client_that_does_not_read_is_not_written_to_without_bound(server: StandInServer) -> None:
    wire = WireClient(server.host, server.port)
    await wire.connect()
    await wire.log_in("admin", "")
    text = query("x" * 100_000)
    sent = 0
    async with asyncio.timeout(30):
        while server.queries_total == sent:  # until the server has stopped reading
            for _ in range(20):
                wire.send(sent, text)
                sent += 1
            for _ in range(20):
                await asyncio.sleep(0)
            if sent > 2000:
                break
    assert server.queries_total < sent
    for _ in range(sent):
        await wire.receive()
    assert server.queries_total == sent
    await wire.close()
