"""No silent wrong answers: an unusual query gets RethinkDB's answer, or an error that names what is not supported.

Values and classes of errors are those of RethinkDB 2.4.4.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rethinkdb.errors import (
    ReqlError,
    ReqlNonExistenceError,
    ReqlOpFailedError,
    ReqlQueryLogicError,
    ReqlServerCompileError,
    ReqlUserError,
)

from async_repool.testing import StandInServer
from async_repool.testing.standin.compiler import OPERATIONS
from async_repool.testing.standin.wire import TERM_NUMBERS
from standin_kit import T, connection_with_rows, r, value_of
from wire_client import COMPILE_ERROR, WireClient, query

ROWS = [{"id": 1, "a": 1}, {"id": 2, "a": 2}, {"id": 3}]
NESTED = {"a": 1, "n": {"b": 1, "c": None}, "l": [{"b": 1}, {"c": 2}, 3]}
MIXED = [1, "a", None, True, {}, [], 1.5]
L = r.expr([1, 2, 3])


@pytest.fixture
async def conn() -> AsyncIterator[Any]:
    async with connection_with_rows(ROWS) as conn:
        await T.index_create("a").run(conn)
        yield conn


def _shown(value: Any) -> str:
    return str(value).replace("\n", " ")[:70]


def counts(**what: Any) -> dict[str, Any]:
    return {**dict.fromkeys(("deleted", "errors", "inserted", "replaced", "skipped", "unchanged"), 0), **what}


PREDICATES = [
    (T.filter({"nope": 1}, default=True).count(), 3),
    (T.filter({"a": r.row["id"]})["id"].coerce_to("array"), [1, 2]),
    (T.filter(lambda x: {"a": 1})["id"].coerce_to("array"), [1]),
    (T.filter(r.expr({"a": 1}).merge({}))["id"].coerce_to("array"), [1]),
    (T.filter(lambda x: r.expr({"a": 1}).merge({})).count(), 3),
    (r.expr([{"a": {"b": 1}}, {"a": 5}]).filter({"a": {"b": 1}}, default=True), [{"a": {"b": 1}}]),
    (r.expr([{"a": 5}]).filter({"a": {}}), []),
    (r.expr([1, 2]).filter("text"), [1, 2]),
    (r.expr([{"a": 1}, {"b": 1}]).count(lambda x: {"a": 1}), 1),
    (r.expr([1, None]).count(None), 1),
    (r.expr([]).contains(), False),
]
WRITES = [
    (T.get(1).update(None), counts(unchanged=1)),
    (T.get(1).update(lambda x: None), counts(unchanged=1)),
    (T.get(1).update(5)["errors"], 1),
    (T.update(r.error("per row")).pluck("errors", "first_error"), {"errors": 3, "first_error": "per row"}),
    (T.get(9).update(lambda x: x["nope"]), counts(skipped=1)),
    (T.get(9).replace({"id": 8})["errors"], 1),
    (T.update({"q": r.uuid()}, non_atomic=True)["replaced"], 3),
    (T.update({"q": r.now()})["replaced"], 3),
    (T.get(1).update({"a": 1}, return_changes=True), counts(unchanged=1, changes=[])),
    (T.insert([], return_changes=True), counts()),
    (T.insert([{"id": 7}, 5, {"id": [None]}]).pluck("errors", "inserted"), {"errors": 2, "inserted": 1}),
    (
        T.insert([5, {"id": 1}], return_changes=True)["changes"],
        [{"error": "Expected type OBJECT but found NUMBER.", "new_val": None, "old_val": None}],
    ),
    (T.get(1).update({"id": 2}, return_changes="always")["changes"][0].has_fields("error"), True),
    (T.insert({"id": "x" * 127})["inserted"], 1),
    (T.insert({"id": "x" * 128})["errors"], 1),
    (T.insert({"id": 7, "x": r.maxval})["errors"], 1),
    (T.nth(0).update({"z": 1})["replaced"], 1),
    (T.filter({"a": 1})[0].delete()["deleted"], 1),
    (
        L.for_each(lambda x: [T.insert({"id": x + 9}), T.insert({"id": 1})]).pluck("errors", "inserted"),
        {"errors": 3, "inserted": 3},
    ),
    (r.expr([]).for_each(lambda x: T.insert({})), {}),
]
SLICES = [
    (L[1:], [2, 3]),
    (L[-2:], [2, 3]),
    (L[:-1], [1, 2]),
    (L.slice(1), [2, 3]),
    (L.slice(0, 1, right_bound="closed"), [1, 2]),
    (L.slice(0, 2, left_bound="open"), [2]),
    (L.slice(1, -5), []),
    (L.skip(-1), [3]),
    (r.expr("héllo").slice(1, 3), "él"),
    (T.order_by(index="id")[1:]["id"].coerce_to("array"), [2, 3]),
    (r.range(4).slice(1, 2, right_bound="closed").coerce_to("array"), [1, 2]),
]
INDEXES = [
    (r.table_create("u", shards=1, replicas=1)["tables_created"], 1),
    (T.max(index="id")["id"], 3),
    (T.min(index="a")["id"], 1),
    (T.distinct(index="id"), [1, 2, 3]),
    (T.distinct(index="a"), [1, 2]),
    (T.between(1, 3).order_by(index=r.desc("id"))["id"].coerce_to("array"), [2, 1]),
    (T.between(1, 3).type_of(), "TABLE_SLICE"),
    (T.index_create("b", multi=False), {"created": 1}),
]
VALUES = [
    (r.expr({}).merge(None), None),
    (r.expr([{}, {}]).merge({"u": r.uuid()})["u"].distinct().count(), 2),
    (r.expr({})["a"].default(lambda error: error), "No attribute `a` in object:\n{}"),
    (r.expr(None).default(r.error()), None),
    ((r.expr(None) + 1).default("d"), "d"),
    (r.expr([1, None]).sum(), 1),
    (r.expr([1, None]).avg(), 1),
    (r.expr([None, 1]).min(), None),
    (r.expr({"a": 1, "b": 2}).count(), 2),
    (r.expr([1]) * 2, [1, 1]),
    (r.epoch_time(5) - r.epoch_time(2), 3),
    ((1 + r.epoch_time(1)) == r.epoch_time(2), True),
    ((r.epoch_time(5) - 1) == r.epoch_time(4), True),
    (r.expr(b"\xff") > r.expr(b"a"), True),
    (r.expr(MIXED).order_by(lambda x: x), [[], True, None, 1, 1.5, {}, "a"]),
    (r.expr(2**53 + 1), 2**53),
    (r.json("9007199254740993"), 2**53),
    (r.expr(" 1.5e1").coerce_to("number"), 15),
    (r.expr({"b": 1, "a": 2}).coerce_to("string"), '{"a":2,"b":1}'),
    (L.map(lambda: 1), [1, 1, 1]),
    (r.expr([[1]]).map(lambda x: x.map(lambda y: y + 1)), [[2]]),
    (r.expr(NESTED).pluck({"n": "b"}, {"l": "b"}, {"a": "b"}), {"n": {"b": 1}}),
    (r.expr(NESTED).without({"l": "b"}, {"n": ["c"]}), {**NESTED, "n": {"b": 1}}),
    (r.expr(NESTED).has_fields(["a", "n"], {"n": {"b": True}}), True),
    (r.expr(NESTED).has_fields({"n": ["b", "c"]}), False),
    (r.db_list().contains("rethinkdb"), True),
]


@pytest.mark.parametrize(("term", "expected"), PREDICATES + WRITES + SLICES + INDEXES + VALUES, ids=_shown)
async def test_an_odd_query_has_the_value_that_it_has_on_rethinkdb(term: Any, expected: Any, conn: Any) -> None:
    assert await value_of(term, conn) == expected


async def test_an_update_with_nothing_deletes_nothing(conn: Any) -> None:
    await T.update(None).run(conn)
    assert await value_of(T.order_by("id"), conn) == ROWS


ERRORS = [
    (T.filter(lambda d: d["nope"] == 1, default=r.error()), ReqlNonExistenceError, "No attribute `nope`"),
    (T.filter(lambda d: d["nope"] == 1, default=r.error("mine")), ReqlUserError, "mine"),
    (r.expr({})["a"].default(r.error()), ReqlNonExistenceError, "No attribute `a`"),
    (r.error(), ReqlQueryLogicError, "Empty ERROR term outside a default block"),
    (L.filter({"a": 1}), ReqlQueryLogicError, "Expected type OBJECT but found NUMBER"),
    (T.update({"q": r.uuid()}), ReqlQueryLogicError, "Could not prove argument deterministic"),
    (T.update({"q": T.count()}), ReqlQueryLogicError, "Could not prove argument deterministic"),
    (T.get(1).replace(T.get(2)), ReqlQueryLogicError, "Could not prove argument deterministic"),
    (T.replace(lambda x: x.merge({"q": r.uuid()})), ReqlQueryLogicError, "Could not prove argument deterministic"),
    (T.index_create("u", lambda x: r.uuid()), ReqlQueryLogicError, "Index functions must be deterministic"),
    (T.index_create("u", 1), ReqlQueryLogicError, "Expected type FUNCTION"),
    (T.get(None), ReqlNonExistenceError, "Primary keys must be either"),
    (T.get({"a": 1}), ReqlQueryLogicError, "Primary keys must be either"),
    (T.get([{"a": 1}]), ReqlQueryLogicError, "Array keys can only contain"),
    (T.get("x" * 128), ReqlQueryLogicError, "Primary key too long"),
    (T.get_all(None, index="a"), ReqlNonExistenceError, "Keys cannot be NULL"),
    (T.between(None, 1), ReqlQueryLogicError, "Cannot use `null` in BETWEEN"),
    (T.between(1, 3).order_by(index="a"), ReqlQueryLogicError, "Cannot order by index `a` after"),
    (T.order_by(), ReqlQueryLogicError, "Must specify something to order by"),
    (T.max("a", index="id"), ReqlQueryLogicError, "Cannot provide both a function and an index"),
    (L.limit(1.5), ReqlQueryLogicError, "Number not an integer: 1.5"),
    (L.limit(-1), ReqlQueryLogicError, "LIMIT takes a non-negative argument"),
    (L[1.5], ReqlQueryLogicError, "Number not an integer: 1.5"),
    (r.range(1.5), ReqlQueryLogicError, "Number not an integer: 1.5"),
    (r.expr(1.5) % 2, ReqlQueryLogicError, "Number not an integer: 1.5"),
    (r.row["a"], ReqlServerCompileError, "r.row is not defined in this context"),
    (r.expr([[1]]).map(lambda x: x.map(r.row + 1)), ReqlServerCompileError, "Cannot use r.row in nested queries"),
    (T == 1, ReqlQueryLogicError, "Expected type DATUM but found TABLE"),
    (r.branch(T, 1, 2), ReqlQueryLogicError, "Expected type DATUM but found TABLE"),
    (L.append(T), ReqlQueryLogicError, "Expected type DATUM but found TABLE"),
    (L.map(lambda x: T), ReqlQueryLogicError, "Expected type DATUM but found TABLE"),
    (r.do(T, lambda x: x.count()), ReqlQueryLogicError, "Expected type DATUM but found TABLE"),
    (L.map(1), ReqlQueryLogicError, "Expected type FUNCTION"),
    (L.reduce("a"), ReqlQueryLogicError, "Expected type FUNCTION"),
    (r.expr(None) + 1, ReqlNonExistenceError, "Expected type NUMBER but found NULL"),
    (r.expr(None).count(), ReqlNonExistenceError, "Cannot convert NULL to SEQUENCE"),
    (L.has_fields("a"), ReqlQueryLogicError, "Cannot perform has_fields on a non-object"),
    (r.expr({}).pluck(1), ReqlQueryLogicError, "Invalid path argument `1`"),
    (r.expr({"a": 1}).without({"a": False}), ReqlQueryLogicError, "Invalid path argument `false`"),
    (r.epoch_time(1)["epoch_time"], ReqlQueryLogicError, "PTYPE<TIME>"),
    (r.expr({"a": {"b": 1}}).merge({"a": r.epoch_time(1)}), ReqlQueryLogicError, ""),
    (r.json("NaN"), ReqlQueryLogicError, "Failed to parse"),
    (r.json('{"a":1,"a":2}'), ReqlQueryLogicError, "Duplicate key"),
    (r.expr("1_0").coerce_to("number"), ReqlQueryLogicError, "Could not coerce `1_0` to NUMBER"),
    (r.expr([["a"]]).coerce_to("object"), ReqlQueryLogicError, "Expected array of size 2"),
    (r.expr([["a", 1], ["a", 2]]).coerce_to("object"), ReqlQueryLogicError, 'Duplicate key "a"'),
    (r.expr(1).coerce_to(1), ReqlQueryLogicError, "Expected type STRING but found NUMBER"),
    (T.coerce_to("string"), ReqlQueryLogicError, "Cannot coerce TABLE to STRING"),
    (L.for_each(lambda x: {"a": True}), ReqlQueryLogicError, "FOR_EACH expects"),
    (T.insert({"id": 9}, durability="loose"), ReqlQueryLogicError, "loose"),
    (T.insert({"id": 9}, conflict="merge"), ReqlQueryLogicError, "merge"),
    (T.insert({"id": 9}, return_changes="some"), ReqlQueryLogicError, "some"),
    (r.table("t", read_mode="wrong"), ReqlQueryLogicError, "wrong"),
    (T.between(1, 2, left_bound="ajar"), ReqlQueryLogicError, "ajar"),
    (r.db(None).table("t"), ReqlNonExistenceError, "Expected type STRING but found NULL"),
    (r.table("a b"), ReqlQueryLogicError, "Table name `a b` invalid"),
    (r.db_create("rethinkdb"), ReqlOpFailedError, "Database `rethinkdb` already exists"),
    (T.index_drop(1), ReqlQueryLogicError, "Expected type STRING but found NUMBER"),
]


@pytest.mark.parametrize(("term", "kind", "message"), ERRORS, ids=_shown)
async def test_an_odd_query_is_the_error_that_it_is_on_rethinkdb(
    term: Any, kind: type[ReqlError], message: str, conn: Any
) -> None:
    with pytest.raises(ReqlError) as caught:
        await value_of(term, conn)
    assert type(caught.value) is kind
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("term", "names"),
    [
        (T.index_create("m", multi=True), "`INDEX_CREATE` with `multi`"),
        (T.index_create("g", geo=True), "`INDEX_CREATE` with `geo`"),
        (r.table_create("u", shards=2), "`TABLE_CREATE` with `shards`"),
        (r.table_create("u", replicas={"x": 1}, primary_replica_tag="x"), "`TABLE_CREATE` with `primary_replica_tag`"),
        (T.union(T, interleave="a"), "`UNION` with an order as `interleave`"),
        (r.uuid("name"), "`UUID` of a string"),
        (r.expr(b"ab").count(), "`COUNT` of BINARY"),
        (r.expr(b"ab").slice(1), "`SLICE` of BINARY"),
        (r.expr(b"ab").coerce_to("string"), "`COERCE_TO` from PTYPE<BINARY> to STRING"),
        (r.expr(1e-7).coerce_to("string"), "`COERCE_TO` of a number"),
        (T.order_by("id").limit(1).delete(), "`DELETE` of an array"),
        (T.order_by(index="id").between(1, 2), "`BETWEEN` of a TABLE_SLICE"),
        (r.db("rethinkdb").table("server_status"), "The system database `rethinkdb`"),
        (r.expr({"$reql_type$": "GEOMETRY"}), "The pseudotype `GEOMETRY`"),
        (T.changes(squash=True), "`CHANGES` with `squash`"),
        # Some terms count or catch errors. They must not hide the stand-in server's own errors.
        (T.update(lambda x: {"a": r.expr("a").upcase()}), "`UPCASE`"),
        (r.expr({})["a"].default(r.expr("a").upcase()), "`UPCASE`"),
        (T.filter(lambda x: x["nope"] == 1, default=r.expr("a").upcase()), "`UPCASE`"),
    ],
    ids=_shown,
)
async def test_what_it_does_not_know_is_refused_by_name(term: Any, names: str, conn: Any) -> None:
    with pytest.raises(ReqlQueryLogicError) as caught:
        await value_of(term, conn)
    assert caught.value.message.startswith(names)
    assert "is not supported by the stand-in server" in caught.value.message


async def test_a_global_limit_that_it_does_not_keep_is_refused(conn: Any) -> None:
    with pytest.raises(ReqlQueryLogicError, match="`array_limit` is not supported"):
        await L.run(conn, array_limit=2)


OPTIONS = {
    "SLICE": "left_bound right_bound",
    "SKIP": "left_bound right_bound",
    "REDUCE": "base",
    "FILTER": "default",
    "ORDER_BY": "index",
    "DISTINCT": "index",
    "UNION": "interleave",
    "UPDATE": "durability return_vals return_changes ignore_write_hook non_atomic",
    "DELETE": "durability return_vals return_changes ignore_write_hook non_atomic",
    "REPLACE": "durability return_vals return_changes ignore_write_hook non_atomic",
    "INSERT": "durability conflict return_vals return_changes ignore_write_hook",
    "INDEX_CREATE": "multi geo",
    "GET_ALL": "index",
    "SUM": "index",
    "AVG": "index",
    "MIN": "index",
    "MAX": "index",
    "WAIT": "wait_for timeout",
    "CHANGES": "squash include_states include_offsets include_types include_initial changefeed_queue_size",
    "TABLE": "read_mode use_outdated identifier_format",
    "TABLE_CREATE": "primary_key shards replicas primary_replica_tag nonvoting_replica_tags durability",
    "BETWEEN": "left_bound right_bound index",
}


async def test_no_option_that_rethinkdb_knows_is_called_unrecognized() -> None:
    async with StandInServer() as server, WireClient(server.host, server.port) as wire:
        for name, options in OPTIONS.items():
            number = TERM_NUMBERS[name]
            for option in options.split():
                arguments = [1] * max(OPERATIONS[number].least, 1)
                answer = await wire.ask(1, query([number, arguments, {option: None}]))
                assert answer["t"] != COMPILE_ERROR, f"{name} {option}: {json.dumps(answer)}"
