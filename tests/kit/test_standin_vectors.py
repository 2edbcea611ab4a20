"""The stand-in server answers as a real server did: the exchanges recorded in ``data/vectors.jsonl``, and others."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rethinkdb.errors import ReqlError

from async_repool.testing import StandInServer
from paths import DATA
from standin_kit import T, connection_with_rows, r, value_of
from wire_client import WireClient

Answers = list[dict[str, Any]]
LINES = (DATA / "vectors.jsonl").read_text().splitlines()
VECTORS: list[dict[str, Any]] = [json.loads(line) for line in LINES]
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def _replay() -> dict[str, Answers]:
    async with StandInServer() as server, WireClient(server.host, server.port) as wire:
        return {
            vector["name"]: await wire.ask_all(token, vector["query"]) for token, vector in enumerate(VECTORS, start=1)
        }


@pytest.fixture(scope="module")
def replayed() -> dict[str, Answers]:
    """The answers of one new server to all queries, in order, because later ones need earlier ones."""
    return asyncio.run(_replay())


def _mask(value: Any) -> Any:
    """Replace values that differ between runs or machines."""
    if isinstance(value, str):
        return UUID.sub("<uuid>", value)
    if isinstance(value, list):
        return [_mask(item) for item in value]
    if isinstance(value, dict):
        masked = {key: _mask(item) for key, item in value.items()}
        return masked | {key: "<server>" for key in ("primary_replica", "replicas") if key in masked}
    return value


def _comparable(answers: Answers, flags: list[str]) -> Any:
    rows = [_mask(row) for answer in answers for row in answer["r"]]
    if "unordered" in flags:
        rows.sort(key=lambda row: json.dumps(row, sort_keys=True))
    kind = answers[-1]["t"]
    return {"t": kind, "e": answers[-1].get("e"), "r": rows}


@pytest.mark.parametrize(
    "vector", [pytest.param(vector, id=vector["name"]) for vector in VECTORS if vector["level"] == "core"]
)
def test_it_answers_as_rethinkdb_did(vector: dict[str, Any], replayed: dict[str, Answers]) -> None:
    expected = _comparable(vector["responses"], vector["flags"])
    assert _comparable(replayed[vector["name"]], vector["flags"]) == expected


@pytest.mark.parametrize(
    "vector", [pytest.param(vector, id=vector["name"]) for vector in VECTORS if vector["level"] == "extra"]
)
def test_it_answers_as_rethinkdb_did_or_says_that_it_does_not_know_the_term(
    vector: dict[str, Any], replayed: dict[str, Answers]
) -> None:
    answers = replayed[vector["name"]]
    if answers[-1]["t"] != 18:
        assert _comparable(answers, vector["flags"]) == _comparable(vector["responses"], vector["flags"])
        return
    assert answers[-1]["e"] == 3_000_000
    assert re.fullmatch(r"`[A-Z0-9_]+` is not supported by the stand-in server.*", answers[-1]["r"][0])


# --- beyond what was recorded: terms by the official driver, with the values that RethinkDB's documentation gives -----

ROWS = [{"id": 1, "v": 10, "in": {"a": 1, "b": 2}}, {"id": 2, "v": 20}, {"id": 3, "v": 30, "in": {"a": 3}}]


@pytest.fixture
async def conn() -> AsyncIterator[Any]:
    async with connection_with_rows(ROWS) as conn:
        yield conn


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (r.expr(2) != 3, True),
        (r.expr(-7) % 3, -1),
        (r.expr(1e300) * 1.0, 1e300),
        (r.floor(1.5) + r.ceil(1.5), 3),
        (r.expr([1, 2]) < [1, 3], True),
        (r.expr({"a": [1]}) == {"a": [1.0]}, True),
        (r.expr(True) == 1, False),
        (r.expr([1]).prepend(0).append(2).set_insert(2), [0, 1, 2]),
        (r.expr({"b": 1, "a": 2}).values(), [2, 1]),
        (r.expr({"a": 1}).merge(lambda x: {"b": x["a"] + 1}, {"c": 0}), {"a": 1, "b": 2, "c": 0}),
        (r.expr({"a": {"b": 1, "c": 2}, "d": 3}).pluck({"a": ["b"]}), {"a": {"b": 1}}),
        (r.expr({"a": {"b": 1, "c": 2}, "d": 3}).without({"a": "b"}, "d"), {"a": {"c": 2}}),
        (r.expr({"a": [{"b": 1, "c": 2}]}).pluck({"a": "b"}), {"a": [{"b": 1}]}),
        (r.expr({"a": 1}).pluck({"a": "b"}), {}),
        (r.expr({"a": 1}).has_fields("a"), True),
        (r.expr({"a": {"b": None}}).has_fields({"a": "b"}), False),
        (r.expr({"a": {"b": 1}}).has_fields({"a": {"b": True}}), True),
        (r.expr({"a": 1}).get_field("a"), 1),
        (r.expr([{"a": 1}, {}]).get_field("a"), [1]),
        (r.expr({"a": 1}).coerce_to("array"), [["a", 1]]),
        (r.expr([["a", 1]]).coerce_to("object"), {"a": 1}),
        (r.expr("1.5").coerce_to("number"), 1.5),
        (r.expr(0).coerce_to("bool"), True),
        (r.expr("a").coerce_to("string"), "a"),
        (r.json('{"a": [1]}'), {"a": [1]}),
        (r.expr("abc").count(), 3),
        (r.expr([1, 2, 2]).count(2), 2),
        (r.expr([1, 2, 3]).count(lambda x: x > 1), 2),
        (r.expr([1, 2, 3]).contains(1, lambda x: x > 2), True),
        (r.expr([1, 2, 3]).contains(4), False),
        (r.expr([1, 2, 3])[1], 2),
        (r.expr([1, 2, 3]).nth(-1), 3),
        (r.expr([1, 2, 3, 4])[1:3], [2, 3]),
        (r.expr([1, 2, 3, 4]).slice(-2, -1), [3]),
        (r.expr([1, 2, 3]).skip(1), [2, 3]),
        (r.range(3).union([7]), [0, 1, 2, 7]),
        (r.range(1000).nth(700), 700),
        (r.range(1000).is_empty(), False),
        (r.range(1000).filter(lambda x: x > 990).limit(2), [991, 992]),
        (r.range(1000).reduce(lambda a, b: a + b), 499_500),
        (r.range(1000).map(lambda x: x % 3).distinct(), [0, 1, 2]),
        (r.range(2).map(lambda x: r.range(x + 1).sum()), [0, 1]),
        (r.range(2).map(lambda x: r.range(2).map(lambda y: x * 10 + y).coerce_to("array")), [[0, 1], [10, 11]]),
        (r.range(300).concat_map(lambda x: r.branch(x < 299, [], [x])), [299]),
        (r.range(2).map(lambda x: {"n": r.range(x).count()}), [{"n": 0}, {"n": 1}]),
        (r.do(1, lambda x: [x, r.range(2).sum()]), [1, 1]),
        (r.branch(False, 1, r.expr(1) < 2, 2, 3), 2),
        (r.expr(None).default(1), 1),
        (r.expr({})["a"].default(r.range(3).count()), 3),
        (r.expr([{"a": 2}, {"a": 1}, {}]).order_by("a"), [{}, {"a": 1}, {"a": 2}]),
        (r.expr([{"a": 2}, {"a": 1}]).order_by(r.desc(lambda x: x["a"])), [{"a": 2}, {"a": 1}]),
        (r.expr([{"a": 2}, {"a": 1}, {}]).min("a"), {"a": 1}),
        (r.expr([{"a": 2}, {"a": 1}, {}]).max("a"), {"a": 2}),
        (r.expr([{"a": 2}, {"a": 1}, {}]).avg("a"), 1.5),
        (r.expr([{"a": {"b": 1}}, {"a": 1}]).filter({"a": {"b": 1}}), [{"a": {"b": 1}}]),
        (r.expr([{}]).filter(lambda x: x["a"], default=True), [{}]),
        (r.now().type_of(), "PTYPE<TIME>"),
        (r.epoch_time(1) == r.epoch_time(1), True),
        (r.epoch_time(1) + 1 > r.epoch_time(1), True),
        (r.uuid().count(), 36),
        (T.type_of(), "TABLE"),
        (T.filter({}).type_of(), "SELECTION<STREAM>"),
        (T.get(1).type_of(), "SELECTION<OBJECT>"),
        (T.get(9).type_of(), "SELECTION<OBJECT>"),
        (r.db("test").type_of(), "DB"),
        (T.order_by("id")["v"], [10, 20, 30]),
        (T.order_by(index=r.desc("id")).map(lambda x: x["id"]), [3, 2, 1]),
        (T.order_by("v", index="id").map(lambda x: x["id"]), [1, 2, 3]),
        (T.between(r.minval, 2, right_bound="closed").count(), 2),
        (T.between(1, r.maxval, left_bound="open").count(), 2),
        (T.sum("v"), 60),
        (T.has_fields({"in": "b"}).count(), 1),
        (T.get(1).do(lambda x: x["v"]), 10),
        (T.get(2).merge({"x": 1}), {"id": 2, "v": 20, "x": 1}),
        (r.expr([T.get(2), {"a": T.get(2)["v"]}]), [{"id": 2, "v": 20}, {"a": 20}]),
        (r.db("test").wait(), {"ready": 1}),
        (T.get_all(1, 1, 9).count(), 2),
        (T.index_create("v").do(lambda _: T.between(15, 40, index="v").count()), 2),
        (
            T.index_create("in_a", r.row["in"]["a"]).do(lambda _: T.get_all(3, index="in_a")["id"].coerce_to("array")),
            [3],
        ),
        (T.index_create("v").do(lambda _: T.order_by(index=r.desc("v"))["id"].coerce_to("array")), [3, 2, 1]),
        (T.index_create("v").do(lambda _: T.index_status().nth(0)["ready"]), True),
        (T.get(9).replace({"id": 9}).pluck("inserted"), {"inserted": 1}),
        (T.get(1).replace(None).pluck("deleted"), {"deleted": 1}),
        (T.get(1).replace({}).pluck("errors"), {"errors": 1}),
        (T.get(1).replace(1).pluck("errors"), {"errors": 1}),
        (T.update({"v": r.row["nope"]}).pluck("errors", "replaced"), {"errors": 3, "replaced": 0}),
        (T.filter({"v": 20}).limit(1).delete()["deleted"], 1),
        (T.update({"in": {"c": 1}})["replaced"].do(lambda _: T.get(1)["in"]), {"a": 1, "b": 2, "c": 1}),
        (T.insert({"id": None})["errors"], 1),
        (T.insert(r.range(2).map({"id": r.row + 100}))["inserted"], 2),
        (
            T.insert({"id": 1}, return_changes="always")["changes"].without("error"),
            [{"new_val": ROWS[0], "old_val": ROWS[0]}],
        ),
        (T.for_each(lambda x: T.insert({"v": x["v"]}, return_changes=True))["changes"].count(), 3),
        (
            T.index_create("both", [r.row["v"], r.row["id"]]).do(
                lambda _: T.between([10, r.minval], [20, r.maxval], index="both")["id"].coerce_to("array")
            ),
            [1, 2],
        ),
        (r.db("test").table_list(), ["t"]),
        (r.table_drop("t")["tables_dropped"], 1),
    ],
    ids=lambda value: str(value).replace("\n", " ")[:70],
)
async def test_terms_beyond_the_recorded_ones_have_the_documented_value(term: Any, expected: Any, conn: Any) -> None:
    assert await value_of(term, conn) == expected


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (r.expr(5) % 0, "Cannot take a number modulo 0"),
        (r.expr(1e300) * 1e300, "Non-finite number: inf"),
        (r.expr("a") + 1, "Expected type STRING but found NUMBER"),
        (r.expr([1]).nth(3), "Index out of bounds: 3"),
        (r.expr([]).avg(), "Cannot take the average of an empty stream"),
        (r.expr([]).min(), "Cannot take the min of an empty stream"),
        (r.expr([]).reduce(lambda a, b: a), "Cannot reduce over an empty stream"),
        (r.expr("x").coerce_to("number"), "Could not coerce `x` to NUMBER"),
        (r.expr(1).coerce_to("array"), "Cannot coerce NUMBER to ARRAY"),
        (r.expr({}).coerce_to("number"), "Cannot coerce OBJECT to NUMBER"),
        (r.json("{"), 'Failed to parse "{" as JSON'),
        (r.expr(1).pluck("a"), "Cannot perform pluck on a non-object non-sequence `1`"),
        (r.expr([[1]])["a"], "Cannot perform get_field on a non-object non-sequence ARRAY"),
        (r.range(200_000).coerce_to("array"), "Array over size limit `100000`"),
        (r.range(10).slice(-2, -1), "Cannot use a negative left index on a stream"),
        (r.expr([1]).map([2], lambda a, b: a), "`MAP` over several sequences is not supported"),
        (r.do(1, lambda a, b: a), "Expected function with 1 argument but found function with 2 arguments"),
        (r.expr([T]), "Expected type DATUM but found TABLE"),
        (r.expr({"a": T}), "Expected type DATUM but found TABLE"),
        (r.db("test"), "Query result must be of type DATUM, GROUPED_DATA, or STREAM (got DB)"),
        (r.minval, "Query result must be of type DATUM, GROUPED_DATA, or STREAM (got MINVAL)"),
        (r.expr([r.maxval]), "Cannot convert `r.maxval` to JSON"),
        (r.branch(True, 1, 2, 3), "Cannot call `branch` term with an even number of arguments"),
        (r.expr([1]).changes(), "Cannot call `changes` on an eager stream (got ARRAY)"),
        (T.limit(1).changes(), "`CHANGES` on a stream that does not follow from its table row by row is not supported"),
        (T.changes().limit(1), "Skipping and limiting changes of a changefeed is not supported"),
        (T.changes().count(), "Cannot call a terminal"),
        (T.map(r.row["v"]).delete(), "Expected type SELECTION but found STREAM"),
        (T.filter({}).order_by(index="id"), "Indexed order_by can only be performed on a TABLE"),
        (T.insert("a"), "Cannot convert STRING to SEQUENCE"),
        (T.insert({"id": 1}, conflict=lambda key, old, new: new), "`INSERT` with a function as `conflict` is not"),
        (r.table_create("no spaces"), "Table name `no spaces` invalid"),
        (r.db_create(1), "Expected type STRING but found NUMBER"),
        (r.expr(1).coerce_to("string").upcase(), "`UPCASE` is not supported by the stand-in server"),
        (T.get_all(1, index="nope"), "Index `nope` was not found on table `test.t`"),
        (T.index_create("id"), "Index `id` already exists on table `test.t`"),
    ],
    ids=lambda value: str(value).replace("\n", " ")[:70],
)
async def test_what_does_not_fit_is_an_error_that_says_so(term: Any, message: str, conn: Any) -> None:
    with pytest.raises(ReqlError, match=re.escape(message)):
        await value_of(term, conn)
    assert await r.expr(1).run(conn) == 1


async def test_a_profile_is_refused(conn: Any) -> None:
    with pytest.raises(ReqlError, match="`profile` is not supported"):
        await T.run(conn, profile=True)
