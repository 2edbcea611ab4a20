"""The short ways to write queries and to read answers give what the driver's give: byte for byte, value for value."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rethinkdb import RethinkDB
from rethinkdb.ast import ReQLDecoder, ReQLEncoder
from rethinkdb.asyncio_net.net_asyncio import Connection
from rethinkdb.net import Query, Response

from async_repool.connectors.rethinkdb import R
from async_repool.connectors.rethinkdb.codec import Codec
from paths import DATA

START = 1
LINES = (DATA / "vectors.jsonl").read_text().splitlines()
VECTORS: list[dict[str, Any]] = [json.loads(line) for line in LINES]


OURS = Codec()


def drivers(**codecs: Any) -> Connection:
    """The driver's connection with these classes, not opened."""
    return Connection("localhost", 28015, None, None, "admin", None, 20, {}, 10, **codecs)


def outcome(work: Callable[[], Any]) -> Any:
    """What it returns; or raises, as something to be compared."""
    try:
        return work()
    except Exception as error:
        return type(error), re.sub(" at 0x[0-9a-f]+", "", str(error))


def query(term: Any, options: dict[str, Any], token: int = 7) -> Query:
    return Query(START, token, term, dict(options))  # takes the codecs out of them


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal in all that can be seen: types, signs of zero, which NaN is, the order of keys."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        for our_item, their_item in zip(ours.items(), theirs.items(), strict=True):
            assert_same(our_item, their_item)
    elif isinstance(ours, list | tuple):
        for our_row, their_row in zip(ours, theirs, strict=True):
            assert_same(our_row, their_row)
    elif isinstance(ours, float):
        assert math.isnan(ours) if math.isnan(theirs) else ours.hex() == theirs.hex()
    else:
        assert ours == theirs
        assert str(ours) == str(theirs)


# --- queries ---


def assert_written_the_same(term: Any, options: dict[str, Any], **codecs: Any) -> None:
    asked, expected = query(term, options), query(term, options)
    encoder, ours = drivers(**codecs)._get_json_encoder(expected), Codec(**codecs)
    assert outcome(lambda: ours.encode(asked)) == outcome(lambda: expected.serialize(encoder))


@pytest.mark.parametrize("options", [{}, {"db": R.db("d"), "profile": True, "time_format": "raw"}, {"a": [1]}], ids=str)
def test_the_recorded_queries_are_written_as_the_driver_writes_them(options: dict[str, Any]) -> None:
    for vector in VECTORS:
        assert_written_the_same(eval(vector["reql"], {"r": RethinkDB()}), options)


TEXT = st.text(max_size=8) | st.sampled_from(["é☃😀", '"\\\n\0', "\u2028", "\ud800", "$reql_type$", "</script>"])
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**53 + 1, 2**64, -(2**70), -0.0, 1e22, 5e-324, 10**400])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT
PLAIN = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12
)
VALUES = st.recursive(
    SCALARS | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4) | st.builds(R.expr, inner),
    max_leaves=12,
)
TERMS = st.builds(R.expr, VALUES) | st.builds(lambda a, b: R.table(a).get(b) + 1, TEXT, VALUES)


class Text(str):
    pass


class Number(int):
    def __repr__(self) -> str:
        return "a number"


OPTION_NAMES = st.sampled_from(["db", "profile", "noreply", "array_limit", "read_mode", "time_format", "x"])
OPTIONS = st.dictionaries(
    OPTION_NAMES,
    VALUES | st.builds(Text, TEXT) | st.builds(Number) | st.tuples(SCALARS) | st.just(object()),
    max_size=3,
)


@settings(max_examples=150, deadline=None)
@given(TERMS)
def test_any_term_is_written_as_the_driver_writes_it(term: Any) -> None:
    assert_written_the_same(term, {})


@settings(max_examples=200, deadline=None)
@given(OPTIONS)
def test_any_options_are_written_as_the_driver_writes_them(options: dict[str, Any]) -> None:
    assert_written_the_same(R.table("t").get(1), options)


@pytest.mark.parametrize(
    "value",
    [
        *(
            None,
            True,
            1,
            -0.0,
            1e300,
            "é",
            "",
            b"",
            [],
            {},
            (),
            [1],
            {"a": [1]},
            {"a": b"\0"},
            {1: 2},
            object(),
            math.nan,
        ),
        *(R.expr(1), R.db("d"), [R.expr(1)], {"a": R.expr([1])}, 2**70, Text("a"), Number(1), {"a": {"b": Number(1)}}),
    ],
    ids=str,
)
def test_each_kind_of_option_is_written_as_the_driver_writes_it(value: Any) -> None:
    assert_written_the_same(R.expr(1), {"x": value})


class Counting(ReQLEncoder):
    """The driver's way, and a mark of its own."""

    def encode(self, value: Any) -> str:
        return super().encode(value) + " " * 3


@settings(deadline=None)
@given(TERMS, OPTIONS)
def test_an_encoder_of_ones_own_writes_the_query(term: Any, options: dict[str, Any]) -> None:
    assert_written_the_same(term, options | {"json_encoder": Counting})
    assert_written_the_same(term, options, json_encoder=Counting)
    assert_written_the_same(term, options | {"json_encoder": ReQLEncoder}, json_encoder=Counting)


def test_the_encoder_of_the_option_wins() -> None:
    frame = OURS.encode(query(R.expr(1), {"json_encoder": Counting}))
    assert frame[12:] == b"[1,1,{}]   "
    frame = Codec(json_encoder=Counting).encode(query(R.expr(1), {"json_encoder": ReQLEncoder}))
    assert frame[12:] == b"[1,1,{}]"


# --- answers ---

FORMATS = [
    *({}, {"time_format": "native", "group_format": "native", "binary_format": "native"}),
    *({"time_format": "raw"}, {"group_format": "raw"}, {"binary_format": "raw"}),
    {"time_format": "raw", "group_format": "raw", "binary_format": "raw"},
    *({"time_format": "sundial"}, {"group_format": None}, {"binary_format": 1}, {"db": "d"}),
]


def assert_read_the_same(body: bytes, options: dict[str, Any], **codecs: Any) -> None:
    asked = query(R.expr(1), options)
    decoder, ours = drivers(**codecs)._get_json_decoder(asked), Codec(**codecs)
    theirs = outcome(lambda: Response(asked.token, body, decoder))
    for text in (body, bytearray(body)):
        answer = outcome(lambda text=text: ours.decode(asked, text))  # type: ignore[misc]
        if isinstance(theirs, Response):
            assert isinstance(answer, Response), answer
            for name in vars(theirs):  # ours has some more
                assert_same(getattr(answer, name), getattr(theirs, name))
        else:
            assert answer[0] is theirs[0]
            if not issubclass(theirs[0], ValueError):  # of broken JSON, which nobody sees
                assert answer == theirs


def spellings(answer: dict[str, Any]) -> list[bytes]:
    """The same answer as servers may spell it."""
    compact = json.dumps(answer, separators=(",", ":"), ensure_ascii=False).encode()
    return [
        compact,
        json.dumps(answer).encode(),
        b" \n" + compact + b"\t\r ",
        compact.replace(b"$reql_type$", b"$reql\\u005ftype$"),
        compact.replace(b"reql_type", b"\\u0072\\u0065ql_type"),
        compact.replace(b"$", b"\\u0024"),
    ]


@pytest.mark.parametrize("options", FORMATS, ids=str)
def test_the_recorded_answers_are_read_as_the_driver_reads_them(options: dict[str, Any]) -> None:
    for vector in VECTORS:
        for answer in vector["responses"]:
            for body in spellings(answer):
                assert_read_the_same(body, options)


def test_the_recorded_answers_have_what_matters() -> None:
    """The short way, and each reason not to take it."""
    text = "\n".join(LINES)
    for needed in ("TIME", "GROUPED_DATA", "BINARY"):
        assert f'"$reql_type$": "{needed}"' in text
    assert any("$reql_type$" not in line for line in LINES)


PSEUDO = st.one_of(
    st.builds(
        lambda time, zone: {"$reql_type$": "TIME", "epoch_time": time, "timezone": zone},
        st.floats(0, 2e9) | st.integers(-(10**9), 2 * 10**9) | NUMBERS,
        st.sampled_from(["+00:00", "-07:30", "+14:00", "nowhere", ""]),
    ),
    st.builds(lambda data: {"$reql_type$": "BINARY", "data": data}, st.sampled_from(["", "AAFhYmM=", "?", "AA"])),
    st.builds(
        lambda pairs: {"$reql_type$": "GROUPED_DATA", "data": pairs}, st.lists(st.tuples(PLAIN, PLAIN), max_size=3)
    ),
    st.builds(lambda kind: {"$reql_type$": kind}, st.sampled_from(["GEOMETRY", "TIME", "BINARY", "NEW", "", None, 1])),
)
DOCUMENTS = st.recursive(
    SCALARS | PSEUDO,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
TOKENS = st.sampled_from(
    [
        *(
            '"$reql_type$":"TIME",',
            '"\\u0024reql_type$":"TIME",',
            '"\\u0024reql_type\\u0024":"TIME",',
            '"$reql\\u005Ftype$":"BINARY","data":"AA==",',
        ),
        *('"a":1,"a":2.0,', '"\\\\u0024":1,', '"\\/\\b":"\\ud83d\\ude00\\ud800",', '"x":[NaN,-Infinity,Infinity],'),
        *('"x":-0,', '"x":[1E400,-0.0,0e0,1e-400,1.0,1e2],', '"x":123456789012345678901234567890,', '"":[[],{}],'),
        *(' "y" : [ 1 ,\t2 ] ,', '"\x7f":1,', '"\x01":1,', '"x":01,', '"x":,', "}{", "é", '"epoch_time":5,'),
        *('"$reql_type$":null,', '"$reql_type$":"GROUPED_DATA","data":[[[1,{"k":2}],3]],', '"t":2,', '"r":[1],', "]"),
    ]
)
ANSWERS = st.builds(
    lambda kind, rows, more: {"t": kind, "r": rows} | more,
    st.sampled_from([1, 2, 3, 4, 5, 16, 17, 18, 99]),
    st.lists(DOCUMENTS, max_size=3),
    st.fixed_dictionaries(
        {},
        optional={"p": DOCUMENTS, "b": PLAIN, "e": NUMBERS, "n": st.lists(st.integers(1, 5), max_size=2), "q": PLAIN},
    ),
)


@settings(max_examples=200, deadline=None)
@given(ANSWERS, st.sampled_from(FORMATS), st.booleans())
def test_any_answer_is_read_as_the_driver_reads_it(answer: Any, options: dict[str, Any], is_ascii: bool) -> None:
    text = json.dumps(answer, separators=(",", ":"), ensure_ascii=is_ascii)
    assert_read_the_same(text.encode("utf-8", "surrogatepass"), options)


@settings(max_examples=300, deadline=None)
@given(st.lists(TOKENS, max_size=4), st.sampled_from(FORMATS))
def test_any_text_is_read_as_the_driver_reads_it(parts: list[str], options: dict[str, Any]) -> None:
    """Duplicate keys, escapes, what is not quite JSON."""
    inside = "".join(parts)
    for text in (
        f'{{"t":1,"r":[{{{inside}"z":0}}]}}',
        f'{{{inside}"t":1,"r":[1]}}',
        f'{{"t":1,"r":[1]}}{inside}',
        f'{inside}{{"t":1,"r":[1]}}',
    ):
        assert_read_the_same(text.encode("utf-8", "surrogatepass"), options)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"1", b'"t"', b"null", b'{"t":1}', b'{"r":[1]}', b'{"t":1,"r":[1]} 2', b'{"t":1,"r":[1]}}'),
        *(
            b'\xef\xbb\xbf{"t":1,"r":[1]}',
            b'{"t":1,"r":["\xff"]}',
            b'{"t":1,"r":["\xed\xa0\x80"]}',
            b'{"t":1,"r":[1]}\0',
        ),
        *(b'{"t":1,"r":[%s]}' % (b"9" * 5000), b'{"t":1,"r":' + b"[" * 100_000, b'\x0b{"t":1,"r":[1]}'),
    ],
    ids=lambda body: str(body[:30]),
)
def test_what_is_no_answer_is_refused_as_the_driver_refuses_it(body: bytes) -> None:
    assert_read_the_same(body, {})


class Shouting(ReQLDecoder):
    """The driver's way, and a mark of its own."""

    def decode(self, text: str) -> Any:  # type: ignore[override]
        return super().decode(text) | {"p": "!"}


@settings(deadline=None)
@given(ANSWERS, st.sampled_from(FORMATS))
def test_a_decoder_of_ones_own_reads_the_answer(answer: Any, options: dict[str, Any]) -> None:
    body = json.dumps(answer).encode()
    assert_read_the_same(body, options | {"json_decoder": Shouting})
    assert_read_the_same(body, options, json_decoder=Shouting)
    assert_read_the_same(body, options | {"json_decoder": lambda options: json.JSONDecoder(parse_float=str)})


def test_the_decoder_of_the_option_wins() -> None:
    body = b'{"t":1,"r":[1]}'
    assert OURS.decode(query(R.expr(1), {"json_decoder": Shouting}), body).profile == "!"
    loud = Codec(json_decoder=Shouting)
    assert loud.decode(query(R.expr(1), {}), body).profile == "!"
    assert loud.decode(query(R.expr(1), {"json_decoder": ReQLDecoder}), body).profile is None


def test_an_answers_notes_are_read_too() -> None:
    for body in (b'{"t":3,"r":[],"n":[1,5]}', b'{"t":3,"r":[{"$reql_type$":"GEOMETRY"}],"n":[1,5]}'):
        assert OURS.decode(query(R.expr(1), {}), body).notes == [1, 5]
    assert OURS.decode(query(R.expr(1), {}), b'{"t":1,"r":[{"n":[1]}]}').notes is None
