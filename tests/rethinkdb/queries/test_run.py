"""The RethinkDB connector runs a query: its value, a sequence whole, stopped if it is cancelled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from rethinkdb.errors import ReqlDriverError

from async_repool.connectors import QueryConnector, Stream
from async_repool.connectors.rethinkdb import R, RethinkDBConnection, RethinkDBConnector, RethinkDBStream
from async_repool.testing import SampleQueries, check_connector
from connection_kit import turns
from scripted_server import ATOM, CONNECTOR, CONTINUE, ONE, PARTIAL, SEQUENCE, START, STOP, PoolLink, frame, pack

SEQUENCE_FEED, ATOM_FEED, ORDER_BY_LIMIT_FEED, UNIONED_FEED, INCLUDES_STATES = 1, 2, 3, 4, 5


def conforms(connector: RethinkDBConnector, stream: RethinkDBStream) -> tuple[QueryConnector, Stream]:
    return connector, stream  # for the type checker


async def test_it_keeps_the_promises_of_a_query_connector(rethinkdb_server: Any) -> None:
    connector = RethinkDBConnector(**rethinkdb_server.connect_arguments)
    assert isinstance(connector, QueryConnector)
    queries = SampleQueries(
        value=R.expr, rows=R.range, endless=R.range(), slow=R.range(2**40).map(lambda x: x * x).sum()
    )
    await check_connector(connector, queries=queries, connections=3, cancel_points=6)


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
