"""The stand-in server's changefeeds."""

from __future__ import annotations

import pytest

from async_repool.testing import StandInServer
from standin_kit import STOPPED, WIRE_T, insert
from wire_client import (
    BRACKET,
    CHANGES,
    DELETE,
    FILTER,
    FUNC,
    GET,
    INSERT,
    LT,
    MAKE_ARRAY,
    MAP,
    MUL,
    TABLE_DROP,
    UPDATE,
    VAR,
    WireClient,
    query,
)


async def test_a_feed_delivers_each_change_and_stops_with_two_answers(server: StandInServer, wire: WireClient) -> None:
    async with WireClient(server.host, server.port) as writer:
        assert await wire.ask(7, query([CHANGES, [WIRE_T]])) == {"t": 3, "r": [], "n": [1]}
        wire.send(7, "[2]")
        await writer.run(insert(id=1, v=1))
        assert (await wire.receive())[1]["r"] == [{"new_val": {"id": 1, "v": 1}, "old_val": None}]
        await writer.run([UPDATE, [[GET, [WIRE_T, 1]], {"v": 2}]])
        await writer.run([DELETE, [[GET, [WIRE_T, 1]]]])
        assert (await wire.ask(7, "[2]"))["r"] == [
            {"new_val": {"id": 1, "v": 2}, "old_val": {"id": 1, "v": 1}},
            {"new_val": None, "old_val": {"id": 1, "v": 2}},
        ]
        wire.send(7, "[2]")
        wire.send(7, "[3]")
        assert [await wire.receive(), await wire.receive()] == [(7, STOPPED)] * 2
        assert server.open_streams == 0


async def test_an_idle_feed_is_an_open_stream_but_no_running_query(server: StandInServer, wire: WireClient) -> None:
    await wire.ask(7, query([CHANGES, [WIRE_T]]))
    wire.send(7, "[2]")
    await wire.run(1)
    assert (server.open_streams, server.running_queries) == (1, 0)


async def test_a_point_feed_with_initial_sends_the_value_first(wire: WireClient) -> None:
    await wire.run(insert(id="p", v=1))
    answer = await wire.ask(2, query([CHANGES, [[GET, [WIRE_T, "p"]]], {"include_initial": True}]))
    assert answer == {"t": 3, "r": [{"new_val": {"id": "p", "v": 1}}], "n": [2]}
    wire.send(2, "[2]")
    await wire.ask(3, query(insert(id="other")))
    await wire.ask(4, query([DELETE, [[GET, [WIRE_T, "p"]]]]))
    assert (await wire.receive())[1]["r"] == [{"new_val": None, "old_val": {"id": "p", "v": 1}}]


async def test_a_feed_on_a_filter_reports_what_enters_and_leaves_it(wire: WireClient) -> None:
    is_small = [FUNC, [[MAKE_ARRAY, [1]], [LT, [[BRACKET, [[VAR, [1]], "v"]], 5]]]]
    await wire.run(insert(id=1, v=1))
    feed = query([CHANGES, [[FILTER, [WIRE_T, is_small]]], {"include_initial": True}])
    assert (await wire.ask(7, feed))["r"] == [{"new_val": {"id": 1, "v": 1}}]
    await wire.run(insert(id=2, v=9))
    await wire.run([UPDATE, [[GET, [WIRE_T, 2]], {"v": 2}]])
    await wire.run([UPDATE, [[GET, [WIRE_T, 1]], {"v": 8}]])
    assert (await wire.ask(7, "[2]"))["r"] == [
        {"new_val": {"id": 2, "v": 2}, "old_val": None},
        {"new_val": None, "old_val": {"id": 1, "v": 1}},
    ]


async def test_a_feed_ends_in_an_error_when_its_table_is_dropped(server: StandInServer, wire: WireClient) -> None:
    await wire.ask(7, query([CHANGES, [WIRE_T]]))
    wire.send(7, "[2]")
    wire.send(8, query([TABLE_DROP, ["t"]]))
    answers = dict([await wire.receive(), await wire.receive()])
    assert answers[8]["t"] == 1
    assert answers[7] == {"t": 18, "e": 4_100_000, "r": ["Changefeed aborted (unavailable)."], "b": []}
    assert server.open_streams == 0


async def test_a_feed_that_nobody_reads_skips_changes_and_says_so(wire: WireClient) -> None:
    await wire.ask(7, query([CHANGES, [WIRE_T], {"changefeed_queue_size": 2}]))
    await wire.run([INSERT, [WIRE_T, [MAKE_ARRAY, [{"id": number} for number in range(5)]]]])
    assert len((await wire.ask(7, "[2]"))["r"]) == 2
    assert (await wire.ask(7, "[2]"))["r"] == [{"error": "Changefeed cache over array size limit, skipped 3 elements."}]


async def test_a_feed_whose_function_fails_ends_in_that_error_and_the_writer_does_not(wire: WireClient) -> None:
    field = [FUNC, [[MAKE_ARRAY, [1]], [MUL, [[BRACKET, [[VAR, [1]], "v"]], 2]]]]
    await wire.run(insert(id=1, v=1))
    feed = query([CHANGES, [[MAP, [WIRE_T, field]]], {"include_initial": True}])
    assert (await wire.ask(7, feed))["r"] == [{"new_val": 2}]
    await wire.run(insert(id=2, v="two"))
    assert (await wire.ask(7, "[2]"))["r"] == ["Expected type NUMBER but found STRING."]
    assert (await wire.ask(8, feed))["r"] == ["Expected type NUMBER but found STRING."]
    assert (await wire.ask(7, "[2]"))["r"] == ["Token 7 not in stream cache."]


@pytest.mark.parametrize("option", ["squash", "include_states", "include_types", "include_offsets"])
async def test_options_of_feeds_that_it_does_not_know_are_refused(wire: WireClient, option: str) -> None:
    answer = await wire.ask(7, query([CHANGES, [WIRE_T], {option: True}]))
    assert answer["r"][0].startswith(f"`CHANGES` with `{option}` is not supported")
