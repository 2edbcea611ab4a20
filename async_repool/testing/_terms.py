"""Terms on data and sequences: numbers, objects, transformations, aggregations.

What lives here: what each does, and the errors of what does not fit. What must not: terms on databases and tables.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import time
import uuid
from collections.abc import Callable
from typing import Any

from ._changefeed import Feed
from ._compiler import check_count, finish, term
from ._streams import (
    PAUSE,
    SKIP,
    Edge,
    Function,
    Order,
    Rows,
    Steps,
    Stream,
    Transform,
    as_is,
    bracket,
    collect,
    datum,
    each,
    filtered,
    fold,
    function_of,
    indexed,
    is_true,
    paced,
    plain,
    rows_of,
    sliced,
    through,
    values,
)
from ._tables import Missing, Outcome, Table, expect, logic_error, merged, order_key, printed, type_name, unsupported
from ._wire import RUNTIME_ERROR, USER, QueryError


@term("FUNCALL", selection=True)
def _funcall(function: Any, *args: Any) -> Steps:
    return (yield from function_of(function).steps(*args))


@term("ERROR")
def _error(message: str = "Empty ERROR term outside a default block.") -> Any:
    raise QueryError(RUNTIME_ERROR, message, USER)


def number(value: float) -> float:
    """A number as the server would print it: whole where it is whole, and never infinite."""
    if type(value) is int and -(2**53) <= value <= 2**53:
        return value
    value = float(value)
    if not math.isfinite(value):
        raise logic_error(f"Non-finite number: {value}")
    return int(value) if value.is_integer() and abs(value) <= 2**53 else value


def _add_two(left: Any, right: Any) -> Any:
    name = type_name(left)
    if name in ("STRING", "ARRAY"):
        return left + expect(right, name)
    if name == "PTYPE<TIME>":
        return left | {"epoch_time": left["epoch_time"] + expect(right, "NUMBER")}
    return number(expect(left, "NUMBER") + expect(right, "NUMBER"))


def _divided(left: float, right: float) -> float:
    if right == 0:
        raise logic_error("Cannot divide by zero.")
    return left / right


def _arithmetic(name: str, two: Callable[[Any, Any], Any]) -> None:
    def checked(left: Any, right: Any) -> Any:
        return number(two(expect(left, "NUMBER"), expect(right, "NUMBER")))

    def call(first: Any, *others: Any) -> Any:
        return functools.reduce(checked, others, first)

    term(name)(call)


_arithmetic("SUB", lambda a, b: a - b)
_arithmetic("MUL", lambda a, b: a * b)
_arithmetic("DIV", _divided)


@term("ADD")
def _add(first: Any, *others: Any) -> Any:
    return functools.reduce(_add_two, others, first)


@term("MOD")
def _mod(left: Any, right: Any) -> Any:
    if expect(right, "NUMBER") == 0:
        raise logic_error("Cannot take a number modulo 0.")
    return number(math.fmod(expect(left, "NUMBER"), right))


term("FLOOR")(lambda value: math.floor(expect(value, "NUMBER")))
term("CEIL")(lambda value: math.ceil(expect(value, "NUMBER")))


def _comparison(name: str, holds: Callable[[Any, Any], bool]) -> None:
    def call(first: Any, second: Any, *others: Any) -> bool:
        keys = [order_key(value) for value in (first, second, *others)]
        return all(holds(left, right) for left, right in itertools.pairwise(keys))

    term(name)(call)


_comparison("EQ", lambda a, b: bool(a == b))
_comparison("LT", lambda a, b: bool(a < b))
_comparison("LE", lambda a, b: bool(a <= b))
_comparison("GT", lambda a, b: bool(a > b))
_comparison("GE", lambda a, b: bool(a >= b))


@term("NE")
def _ne(first: Any, second: Any, *others: Any) -> bool:
    keys = [order_key(value) for value in (first, second, *others)]
    return not all(left == right for left, right in itertools.pairwise(keys))


@term("NOT")
def _not(value: Any) -> bool:
    return not is_true(value)


# --- values -----------------------------------------------------------------------------------------------------------


@term("EPOCH_TIME")
def _epoch_time(seconds: Any) -> Any:
    return {"$reql_type$": "TIME", "epoch_time": expect(seconds, "NUMBER"), "timezone": "+00:00"}


term("NOW")(lambda: _epoch_time(round(time.time(), 3)))
term("UUID")(lambda: str(uuid.uuid4()))
term("MINVAL")(lambda: Edge("MINVAL"))
term("MAXVAL")(lambda: Edge("MAXVAL"))
term("TYPE_OF", selection=True)(type_name)


@term("JSON")
def _json(text: Any) -> Any:
    try:
        return json.loads(expect(text, "STRING"))
    except ValueError:
        raise logic_error(f'Failed to parse "{text}" as JSON.') from None


@term("COERCE_TO")
def _coerce_to(value: Any, name: str) -> Steps:
    wanted = name.upper()
    if wanted == type_name(value):
        return value
    if wanted == "ARRAY" and type_name(value) == "OBJECT":
        return [[key, value[key]] for key in sorted(value)]
    if wanted == "ARRAY":
        return (yield from collect(rows_of(value)))
    if wanted == "STRING":
        return json.dumps(datum(value), ensure_ascii=False, separators=(",", ":"))
    if wanted == "NUMBER" and type(value) is str:
        try:
            return number(float(value))
        except ValueError:
            raise logic_error(f"Could not coerce `{value}` to NUMBER.") from None
    if wanted == "BOOL":
        return is_true(value)
    if wanted == "OBJECT":
        return dict((yield from collect(rows_of(value))))
    raise logic_error(f"Cannot coerce {type_name(value)} to {wanted}.")


@term("APPEND")
def _append(array: Any, value: Any) -> Any:
    return [*expect(array, "ARRAY"), value]


@term("PREPEND")
def _prepend(array: Any, value: Any) -> Any:
    return [value, *expect(array, "ARRAY")]


@term("SET_INSERT")
def _set_insert(array: Any, value: Any) -> Any:
    return list({order_key(item): item for item in [*expect(array, "ARRAY"), value]}.values())


# --- objects ----------------------------------------------------------------------------------------------------------


def _on_rows(value: Any, change: Transform, one: Callable[[Any], Any], keeps_rows: bool = False) -> Steps:
    """What most terms on objects do: the same to an object as to each row of a sequence."""
    if type(value) in (list, Stream, Table, Feed):
        return (yield from through(value, change, keeps_rows=keeps_rows))
    return one(value)


@term("BRACKET")
def _bracket_term(value: Any, key: Any) -> Steps:
    if type(key) in (int, float):
        return (yield from _nth(value, key))
    return (yield from _on_rows(value, values(expect(key, "STRING"), SKIP), lambda one: bracket(one, key)))


@term("GET_FIELD")
def _get_field(value: Any, key: Any) -> Steps:
    one = functools.partial(bracket, key=key, verb="get_field")
    return (yield from _on_rows(value, values(expect(key, "STRING"), SKIP), one))


def _picked(value: Any, pattern: Any, is_kept: bool) -> Any:
    """The parts of an object that a pattern of names names, or the others."""
    if type(pattern) is list:
        parts = [_picked(value, part, True) for part in pattern]
        if is_kept:
            return functools.reduce(merged, parts, {})
        return functools.reduce(lambda left, part: _picked(left, part, False), pattern, value)
    if type(value) is list:
        return [_picked(item, pattern, is_kept) for item in value]
    if type(value) is not dict:
        return value
    names = pattern if type(pattern) is dict else {pattern: True}
    result = {} if is_kept else dict(value)
    for name, inner in names.items():
        if name not in value:
            continue
        if inner is not True:
            result[name] = _picked(value[name], inner, is_kept)
        elif is_kept:
            result[name] = value[name]
        else:
            del result[name]
    return result


def _picker(verb: str, is_kept: bool) -> None:
    def call(value: Any, *patterns: Any) -> Steps:
        def one(row: Any) -> Any:
            if type_name(row) != "OBJECT":
                raise logic_error(f"Cannot perform {verb.lower()} on a non-object non-sequence `{printed(row)}`.")
            return _picked(row, list(patterns), is_kept)

        return (yield from _on_rows(value, each(one), one))

    term(verb)(call)


_picker("PLUCK", True)
_picker("WITHOUT", False)


@term("HAS_FIELDS")
def _has_fields(value: Any, *patterns: Any) -> Steps:
    def has(row: Any, pattern: Any) -> bool:
        if type(pattern) is dict:
            return all(has(row, name) and (inner is True or has(row[name], inner)) for name, inner in pattern.items())
        return type(row) is dict and row.get(pattern) is not None

    test = Function(lambda row: all(has(row, pattern) for pattern in patterns))
    return (yield from _on_rows(value, filtered(test), test.call, keeps_rows=True))


@term("MERGE")
def _merge(value: Any, *changes: Any) -> Steps:
    def one(row: Any) -> Any:
        for change in changes:
            row = merged(expect(row, "OBJECT"), plain(finish(function_of(change).steps(row))))
        return row

    return (yield from _on_rows(value, each(one), one))


term("KEYS")(lambda value: sorted(expect(value, "OBJECT")))
term("VALUES")(lambda value: [value[key] for key in sorted(expect(value, "OBJECT"))])


# --- sequences: transformations ---------------------------------------------------------------------------------------


@term("RANGE")
def _range(*edges: Any) -> Any:
    check_count(len(edges), 0, 2)
    ends = [int(expect(edge, "NUMBER")) for edge in edges]
    return Stream(lambda: paced(range(*ends) if ends else itertools.count()))


@term("MAP")
def _map(source: Any, function: Any, *more: Any) -> Steps:
    if more:
        raise unsupported("`MAP` over several sequences")
    return (yield from through(source, values(function)))


@term("FILTER")
def _filter(source: Any, test: Any, *, default: Any = False) -> Steps:
    if type(test) is dict:
        wanted = test
        test = Function(lambda row: all(_matches(row.get(name, SKIP), inner) for name, inner in wanted.items()))
    return (yield from through(source, filtered(test, default), keeps_rows=True))


def _matches(value: Any, wanted: Any) -> bool:
    if value is SKIP:
        return False
    if type(wanted) is dict and type(value) is dict:
        return all(_matches(value.get(name, SKIP), inner) for name, inner in wanted.items())
    return order_key(value) == order_key(wanted)


@term("CONCAT_MAP")
def _concat_map(source: Any, function: Any) -> Steps:
    make = function_of(function)

    def step(rows: Rows) -> Rows:
        for pair in make.over(rows):
            if pair is PAUSE:
                yield pair
            else:
                yield from rows_of(pair[1])

    return (yield from through(source, step))


def _slice(source: Any, start: int, end: int | None) -> Steps:
    if start < 0 or (end is not None and end < 0):
        if type(source) is list:
            return source[start:end]
        raise unsupported("A negative index into a stream")
    return (yield from through(source, sliced(start, end), keeps_rows=True, is_row_by_row=False))


@term("SLICE")
def _slice_term(source: Any, start: Any, end: Any = None) -> Steps:
    return (yield from _slice(source, expect(start, "NUMBER"), end))


@term("SKIP")
def _skip(source: Any, count: Any) -> Steps:
    return (yield from _slice(source, expect(count, "NUMBER"), None))


@term("LIMIT")
def _limit(source: Any, count: Any) -> Steps:
    return (yield from _slice(source, 0, expect(count, "NUMBER")))


@term("UNION")
def _union(*sources: Any) -> Steps:
    def rows() -> Rows:
        return itertools.chain.from_iterable(map(rows_of, sources))

    if all(type(source) is list for source in sources):
        return (yield from collect(rows()))
    return Stream(rows)


@term("DISTINCT")
def _distinct(source: Any) -> Steps:
    found: dict[Any, Any] = {}
    for row in rows_of(source):
        if row is PAUSE:
            yield row
        else:
            found.setdefault(order_key(row), row)
    return [found[key] for key in sorted(found)]


term("ASC")(lambda by: Order(by, False))
term("DESC")(lambda by: Order(by, True))


@term("ORDER_BY")
def _order_by(source: Any, *by: Any, index: Any = None) -> Steps:
    if index is not None:
        if type(source) is not Table:
            raise logic_error("Indexed order_by can only be performed on a TABLE or TABLE_SLICE.")
        order = index if type(index) is Order else Order(index, False)
        keyed = sorted(indexed(source, order.by), key=lambda pair: pair[0], reverse=order.is_descending)
        rows = [row for _, row in keyed]
        if not by:
            return Stream(lambda: paced(rows), source)
    else:
        rows = yield from collect(rows_of(source))
    for order in reversed([one if type(one) is Order else Order(one, False) for one in by]):
        keys: list[Any] = yield from collect(function_of(order.by).over(iter(rows), SKIP))
        known = {id(row): order_key(key) for row, key in keys}
        # Where the key is missing the row sorts below every value.
        rows = sorted(rows, key=lambda row: known.get(id(row), ("", 0)), reverse=order.is_descending)
    return rows


# --- sequences: aggregation -------------------------------------------------------------------------------------------


def _mapped(source: Any, by: Any) -> Rows:
    """The rows of a sequence, or a field's or function's values where they are there."""
    return rows_of(source) if by is None else values(by, SKIP)(rows_of(source))


@term("COUNT")
def _count(source: Any, wanted: Any = None) -> Steps:
    if wanted is None and type(source) is Table:
        return len(source.documents)
    if wanted is None and type(source) is str:
        return len(source)
    rows = rows_of(source) if wanted is None else filtered(_equals(wanted))(rows_of(source))
    return (yield from fold(rows, 0, lambda count, _: count + 1))


def _equals(wanted: Any) -> Function:
    if type(wanted) is Function:
        return wanted
    key = order_key(wanted)
    return Function(lambda row: order_key(row) == key)


@term("SUM")
def _sum(source: Any, by: Any = None) -> Steps:
    rows = _mapped(source, by)
    return number((yield from fold(rows, 0, lambda total, row: total + expect(row, "NUMBER"))))


@term("AVG")
def _avg(source: Any, by: Any = None) -> Steps:
    def step(sofar: tuple[float, int], row: Any) -> tuple[float, int]:
        return sofar[0] + expect(row, "NUMBER"), sofar[1] + 1

    total, count = yield from fold(_mapped(source, by), (0, 0), step)
    if not count:
        raise Missing(_nothing("take the average of", "avg"))
    return number(total / count)


def _nothing(verb: str, name: str) -> str:
    hint = f"If you passed `{name}` a field name, it may be that no elements of the stream had that field."
    return f"Cannot {verb} an empty stream.  ({hint})"


def _extreme(name: str, verb: str, is_better: Callable[[Any, Any], bool]) -> None:
    def step(best: Any, pair: Any) -> Any:
        return pair if best is None or is_better(order_key(pair[1]), order_key(best[1])) else best

    def call(source: Any, by: Any = None) -> Steps:
        function = Function(as_is) if by is None else function_of(by)
        best = yield from fold(function.over(rows_of(source), SKIP), None, step)
        if best is None:
            raise Missing(_nothing(verb, name.lower()))
        return best[0]

    term(name)(call)


_extreme("MIN", "take the min of", lambda a, b: bool(a < b))
_extreme("MAX", "take the max of", lambda a, b: bool(a > b))


@term("REDUCE")
def _reduce(source: Any, function: Any) -> Steps:
    total = SKIP
    for row in rows_of(source):
        if row is PAUSE:
            yield row
        else:
            total = row if total is SKIP else plain((yield from function_of(function).steps(total, row)))
    if total is SKIP:
        raise Missing("Cannot reduce over an empty stream.")
    return total


@term("CONTAINS")
def _contains(source: Any, *wanted: Any) -> Steps:
    for one in wanted:
        found = filtered(_equals(one))(rows_of(source))
        if (yield from _first(found)) is SKIP:
            return False
    return True


@term("IS_EMPTY")
def _is_empty(source: Any) -> Steps:
    return (yield from _first(rows_of(source))) is SKIP


def _first(rows: Rows) -> Steps:
    for row in rows:
        if row is not PAUSE:
            return row
        yield row
    return SKIP


@term("NTH")
def _nth(source: Any, index: Any) -> Steps:
    if expect(index, "NUMBER") < 0:
        source = yield from collect(rows_of(source))
        index += len(source)
    row = (yield from _first(sliced(int(index), None)(rows_of(source)))) if index >= 0 else SKIP
    if row is SKIP:
        raise Missing(f"Index out of bounds: {index}")
    return row


@term("FOR_EACH")
def _for_each(source: Any, function: Any) -> Steps:
    outcome = Outcome(False)
    for pair in function_of(function).over(rows_of(source)):
        if pair is PAUSE:
            yield pair
        else:
            outcome.include(expect(pair[1], "OBJECT"))
    return outcome.answer()
