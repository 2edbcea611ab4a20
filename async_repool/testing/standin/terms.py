"""Terms on data and sequences: numbers, objects, transformations and aggregations.

Terms on databases and tables are in ``table_terms``.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

from .changefeed import Feed
from .compiler import Deferred, check_count, finish, term
from .streams import (
    ARRAY_LIMIT,
    PAUSE,
    SKIP,
    Edge,
    Function,
    Order,
    Rows,
    Single,
    Steps,
    Stream,
    Transform,
    array_too_long,
    as_is,
    bracket,
    collect,
    datum,
    each,
    filtered,
    fold,
    function,
    function_of,
    getter,
    index_function,
    indexed,
    is_true,
    no_object,
    paced,
    plain,
    rows_of,
    sliced,
    through,
    values,
)
from .tables import (
    EmptyError,
    Missing,
    Table,
    expect,
    logic_error,
    merged,
    number,
    option,
    order_key,
    printed,
    type_name,
    unfit,
    unsupported,
    whole,
)
from .wire import QUERY_LOGIC, RUNTIME_ERROR, USER, QueryError


@term("FUNCALL")
def _funcall(called: Any, *args: Any) -> Steps:
    return (yield from function_of(called).steps(*map(datum, args)))


@term("ERROR")
def _error(message: Any = SKIP) -> Any:
    if message is SKIP:
        raise EmptyError(RUNTIME_ERROR, "Empty ERROR term outside a default block.", QUERY_LOGIC)
    raise QueryError(RUNTIME_ERROR, expect(message, "STRING"), USER)


def _add_two(left: Any, right: Any) -> Any:
    name = type_name(left)
    if name in ("STRING", "ARRAY"):
        return left + expect(right, name)
    if name == "PTYPE<TIME>":
        return _moved(left, expect(right, "NUMBER"))
    if name == "NUMBER" and type_name(right) == "PTYPE<TIME>":
        return _moved(right, left)
    return number(expect(left, "NUMBER") + expect(right, "NUMBER"))


def _moved(moment: Any, seconds: float) -> Any:
    return moment | {"epoch_time": number(moment["epoch_time"] + seconds)}


def _sub_two(left: Any, right: Any) -> Any:
    if type_name(left) != "PTYPE<TIME>":
        return number(expect(left, "NUMBER") - expect(right, "NUMBER"))
    if type_name(right) == "PTYPE<TIME>":
        return number(left["epoch_time"] - right["epoch_time"])
    return _moved(left, -expect(right, "NUMBER"))


def _mul_two(left: Any, right: Any) -> Any:
    if type(right) is list:
        left, right = right, left
    if type(left) is not list:
        return number(expect(left, "NUMBER") * expect(right, "NUMBER"))
    if whole(right) < 0:
        raise logic_error("Cannot multiply an ARRAY by a negative number.")
    if len(left) * right > ARRAY_LIMIT:
        raise array_too_long()
    return left * whole(right)


def _div_two(left: Any, right: Any) -> Any:
    expect(left, "NUMBER")
    if expect(right, "NUMBER") == 0:
        raise logic_error("Cannot divide by zero.")
    return number(left / right)


def _arithmetic(name: str, two: Callable[[Any, Any], Any]) -> None:
    def call(first: Any, *others: Any) -> Any:
        return functools.reduce(two, others, datum(first))

    term(name)(call)


_arithmetic("ADD", _add_two)
_arithmetic("SUB", _sub_two)
_arithmetic("MUL", _mul_two)
_arithmetic("DIV", _div_two)


@term("MOD")
def _mod(left: Any, right: Any) -> Any:
    dividend, divisor = whole(left), whole(right)
    if divisor == 0:
        raise logic_error("Cannot take a number modulo 0.")
    return number(math.fmod(dividend, divisor))


term("FLOOR")(lambda value: number(math.floor(expect(value, "NUMBER"))))
term("CEIL")(lambda value: number(math.ceil(expect(value, "NUMBER"))))


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
    return {"$reql_type$": "TIME", "epoch_time": number(round(expect(seconds, "NUMBER"), 3)), "timezone": "+00:00"}


term("NOW")(lambda: _epoch_time(time.time()))


@term("UUID")
def _uuid(*names: Any) -> Any:
    check_count(len(names), 0, 1)
    if names:
        raise unsupported("`UUID` of a string")
    return str(uuid.uuid4())


term("MINVAL")(lambda: Edge("MINVAL"))
term("MAXVAL")(lambda: Edge("MAXVAL"))
term("TYPE_OF", selection=True)(type_name)


@term("JSON")
def _json(text: Any) -> Any:
    try:
        return _from_json(expect(text, "STRING"))
    except ValueError:
        raise logic_error(f'Failed to parse "{text}" as JSON.') from None


def _number(text: str) -> float:
    return number(float(text))


def _no_constant(name: str) -> Any:
    raise ValueError(name)


_from_json = json.JSONDecoder(
    object_pairs_hook=lambda pairs: _object_of(list(map(list, pairs))),
    parse_constant=_no_constant,
    parse_float=_number,
    parse_int=_number,
).decode


@term("COERCE_TO")
def _coerce_to(value: Any, name: Any) -> Steps:
    wanted, found = expect(name, "STRING").upper(), type_name(value)
    is_sequence = type(value) in (list, Stream, Table)
    if wanted == found:
        return value
    if wanted not in ("ARRAY", "STRING", "NUMBER", "BOOL", "OBJECT", "NULL") or found == "PTYPE<BINARY>":
        raise unsupported(f"`COERCE_TO` from {found} to {wanted}")
    if wanted == "BOOL":
        return is_sequence or is_true(value)
    if wanted == "ARRAY" and found == "OBJECT":
        return [[key, value[key]] for key in sorted(value)]
    if wanted == "ARRAY" and is_sequence:
        return (yield from collect(rows_of(value)))
    if wanted == "STRING" and type(value) in (type(None), bool, int, float, list, dict):
        if type(value) is float and "e" in repr(value):
            raise unsupported("`COERCE_TO` of a number this large or this small")
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    if wanted == "NUMBER" and found == "STRING":
        if not _DECIMAL.fullmatch(value):
            raise logic_error(f"Could not coerce `{value}` to NUMBER.")
        return _number(value)
    if wanted == "OBJECT" and is_sequence:
        return _object_of((yield from collect(rows_of(value))))
    raise unfit(value, f"Cannot coerce {found} to {wanted}.")


_DECIMAL: Final = re.compile(r"\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


def _object_of(pairs: list[Any]) -> Any:
    made: dict[str, Any] = {}
    for pair in pairs:
        if len(expect(pair, "ARRAY")) != 2:
            raise logic_error(f"Expected array of size 2, but got size {len(pair)}.")
        if expect(pair[0], "STRING") in made:
            raise logic_error(f'Duplicate key "{pair[0]}" in coerced object.')
        made[pair[0]] = pair[1]
    return made


@term("APPEND")
def _append(array: Any, value: Any) -> Any:
    return [*expect(array, "ARRAY"), datum(value)]


@term("PREPEND")
def _prepend(array: Any, value: Any) -> Any:
    return [datum(value), *expect(array, "ARRAY")]


@term("SET_INSERT")
def _set_insert(array: Any, value: Any) -> Any:
    return list({order_key(item): item for item in [*expect(array, "ARRAY"), value]}.values())


# --- objects ----------------------------------------------------------------------------------------------------------


def _on_rows(value: Any, change: Transform, one: Callable[[Any], Any], keeps_rows: bool = False) -> Steps:
    """Change an object, or each row of a sequence. Most terms on objects do this."""
    if type(value) in (list, Stream, Table, Feed):
        return (yield from through(value, change, keeps_rows=keeps_rows))
    return one(value)


@term("BRACKET", selection=True)
def _bracket_term(value: Any, key: Any) -> Steps:
    key = plain(key)
    if type(key) in (int, float):
        return (yield from _nth(value, key))
    if type(key) is not str:
        message = f"Expected NUMBER or STRING as second argument to `bracket` but found {type_name(key)}."
        raise unfit(key, message)
    return (yield from _on_rows(plain(value), _fields(key), lambda one: bracket(one, key)))


@term("GET_FIELD")
def _get_field(value: Any, key: Any) -> Steps:
    return (yield from _on_rows(value, _fields(key), lambda one: bracket(one, key, "get_field")))


def _fields(key: Any) -> Transform:
    return values(getter(expect(key, "STRING")), SKIP)


def _picked(value: Any, pattern: Any, is_kept: bool) -> Any:
    """The fields of an object that match a pattern of names; the other fields unless ``is_kept``."""
    if type(value) is not dict:
        raise no_object(value, "pluck" if is_kept else "without")
    if type(pattern) is list and is_kept:
        return functools.reduce(merged, [_picked(value, part, True) for part in pattern], {})
    if type(pattern) is list:
        return functools.reduce(lambda left, part: _picked(left, part, False), pattern, value)
    names = pattern if type(pattern) is dict else {pattern: True}
    result = {} if is_kept else dict(value)
    for name, inner in names.items():
        if name not in value:
            continue
        if inner is True:
            if is_kept:
                result[name] = value[name]
            else:
                result.pop(name, None)
            continue
        try:
            # The pattern applies to each item of an array. It does not apply if an item is not an object.
            if type(value[name]) is list:
                result[name] = [_picked(item, inner, is_kept) for item in value[name]]
            else:
                result[name] = _picked(value[name], inner, is_kept)
        except QueryError:
            pass
    return result


def _checked_patterns(patterns: Any) -> list[Any]:
    for pattern in patterns:
        if type(pattern) is list:
            _checked_patterns(pattern)
        elif type_name(pattern) == "OBJECT":
            _checked_patterns([inner for inner in pattern.values() if inner is not True])
        elif type(pattern) is not str:
            raise logic_error(f"Invalid path argument `{printed(datum(pattern))}`.")
    return list(patterns)


def _picker(verb: str, is_kept: bool) -> None:
    def call(value: Any, *patterns: Any) -> Steps:
        _checked_patterns(patterns)

        def one(row: Any) -> Any:
            if type_name(row) != "OBJECT":
                raise no_object(row, verb.lower())
            return _picked(row, list(patterns), is_kept)

        return (yield from _on_rows(value, each(one), one))

    term(verb)(call)


_picker("PLUCK", True)
_picker("WITHOUT", False)


@term("HAS_FIELDS")
def _has_fields(value: Any, *patterns: Any) -> Steps:
    def has(row: Any, pattern: Any) -> bool:
        if type(pattern) is list:
            return all(has(row, part) for part in pattern)
        if type(pattern) is dict:
            return all(has(row, name) and (inner is True or has(row[name], inner)) for name, inner in pattern.items())
        return type(row) is dict and row.get(pattern) is not None

    def has_all(row: Any) -> bool:
        if type_name(row) != "OBJECT":
            raise no_object(row, "has_fields")
        return has(row, list(patterns))

    _checked_patterns(patterns)
    test = Function(has_all)
    return (yield from _on_rows(value, filtered(test), test.call, keeps_rows=True))


@term("MERGE")
def _merge(value: Any, *changes: Deferred) -> Steps:
    def one(row: Any) -> Any:
        if type(row) is not dict:
            raise no_object(row, "merge")
        _object(row, "merge")
        for change in changes:
            row = merged(row, datum(plain(finish(change.steps(row)))))
        return row

    return (yield from _on_rows(value, each(one), one))


def _object(value: Any, verb: str) -> Any:
    if type_name(value) != "OBJECT":
        raise logic_error(f"Cannot call `{verb}` on objects of type `{type_name(value)}`.")
    return value


term("KEYS")(lambda value: sorted(_object(value, "keys")))
term("VALUES")(lambda value: [value[key] for key in sorted(_object(value, "values"))])


# --- sequences: transformations ---------------------------------------------------------------------------------------


@term("RANGE")
def _range(*edges: Any) -> Any:
    check_count(len(edges), 0, 2)
    ends = [whole(edge) for edge in edges]
    return Stream(lambda: paced(range(*ends) if ends else itertools.count()))


@term("MAP")
def _map(source: Any, make: Any, *more: Any) -> Steps:
    if more:
        raise unsupported("`MAP` over several sequences")
    return (yield from through(source, values(function(make))))


@term("FILTER")
def _filter(source: Any, test: Any, *, default: Deferred | None = None) -> Steps:
    return (yield from through(source, filtered(function_of(test), default), keeps_rows=True))


@term("CONCAT_MAP")
def _concat_map(source: Any, mapping: Any) -> Steps:
    make = function(mapping)

    def step(rows: Rows) -> Rows:
        for pair in make.over(rows):
            if pair is PAUSE:
                yield pair
            else:
                yield from rows_of(pair[1])

    return (yield from through(source, step))


@term("SLICE")
def _slice(source: Any, start: Any, end: Any = SKIP, *, left_bound: Any = "closed", right_bound: Any = "open") -> Steps:
    option("left_bound", left_bound, "open", "closed")
    option("right_bound", right_bound, "open", "closed")
    if type_name(source) == "PTYPE<BINARY>":
        raise unsupported("`SLICE` of BINARY")
    # Index -1 is the last row. A closed slice up to -1 has all rows.
    first, last = whole(start), -1 if end is SKIP else whole(end)
    is_closed = end is SKIP or right_bound == "closed"
    if type(source) in (list, str):
        first, last = (index + len(source) if index < 0 else index for index in (first, last))
        return source[max(first + (left_bound == "open"), 0) : max(last + is_closed, 0)]
    if first < 0:
        raise logic_error("Cannot use a negative left index on a stream.")
    if last < 0 and not (is_closed and last == -1):
        raise logic_error(f"Cannot slice to a right index of {last} on a stream.")
    step = sliced(first + (left_bound == "open"), None if last < 0 else last + is_closed)
    return (yield from through(source, step, keeps_rows=True, is_row_by_row=False))


@term("SKIP", refuses="left_bound right_bound")
def _skip(source: Any, count: Any) -> Steps:
    return (yield from _slice(source, count))


@term("LIMIT")
def _limit(source: Any, count: Any) -> Steps:
    if whole(count) < 0:
        raise logic_error(f"LIMIT takes a non-negative argument (got {count})")
    return (yield from through(source, sliced(0, whole(count)), keeps_rows=True, is_row_by_row=False))


@term("UNION")
def _union(*sources: Any, interleave: Any = True) -> Steps:
    if type(interleave) is not bool:
        raise unsupported("`UNION` with an order as `interleave`")

    def rows() -> Rows:
        return itertools.chain.from_iterable(map(rows_of, sources))

    if all(type(source) is list for source in sources):
        return (yield from collect(rows()))
    return Stream(rows)


@term("DISTINCT")
def _distinct(source: Any, *, index: Any = None) -> Steps:
    found: dict[Any, Any] = {}
    rows = rows_of(source)
    if index is not None:
        if type(source) is not Table:
            raise logic_error("Can only perform an indexed distinct on a TABLE.")
        by = index_function(source, index)
        rows = values(by, SKIP)(row for _, row in indexed(source, index))
    for row in rows:
        if row is PAUSE:
            yield row
        else:
            found.setdefault(order_key(row), row)
    result = [found[key] for key in sorted(found)]
    return Stream(lambda: paced(result)) if type(source) is Table else result


term("ASC")(lambda by: Order(by, False))
term("DESC")(lambda by: Order(by, True))


@term("ORDER_BY")
def _order_by(source: Any, *by: Any, index: Any = None) -> Steps:
    if index is None and not by:
        raise logic_error("Must specify something to order by.")
    if index is not None:
        if type(source) is not Table and getattr(source, "index", None) is None:
            raise logic_error("Indexed order_by can only be performed on a TABLE or TABLE_SLICE.")
        order = index if type(index) is Order else Order(index, False)
        table, slice_of = (source, None) if type(source) is Table else (source.table, source.index)
        if slice_of not in (None, order.by):
            raise logic_error(f"Cannot order by index `{order.by}` after calling BETWEEN on index `{slice_of}`.")
        keyed = indexed(table, order.by, (yield from collect(rows_of(source))))
        keyed.sort(key=lambda pair: pair[0], reverse=order.is_descending)
        rows = [row for _, row in keyed]
        if not by:
            return Stream(lambda: paced(rows), table, index=order.by)
    else:
        rows = yield from collect(rows_of(source))
    for order in reversed([one if type(one) is Order else Order(one, False) for one in by]):
        keys: list[Any] = yield from collect(getter(order.by).over(iter(rows), SKIP))
        known = {id(row): order_key(key) for row, key in keys}
        # A row without the key sorts below every value.
        rows = sorted(rows, key=lambda row: known.get(id(row), ("", 0)), reverse=order.is_descending)
    return rows if index is None else Stream(lambda: paced(rows), table)


# --- sequences: aggregation -------------------------------------------------------------------------------------------


def _mapped(source: Any, by: Any) -> Rows:
    """The rows of a sequence, or the values of a field or function. Missing values and ``null`` are left out."""
    rows = rows_of(source) if by is SKIP else values(getter(by), SKIP)(rows_of(source))
    return (row for row in rows if row is not None)


@term("COUNT")
def _count(source: Any, wanted: Any = SKIP) -> Steps:
    if type_name(source) == "PTYPE<BINARY>":
        raise unsupported("`COUNT` of BINARY")
    if wanted is SKIP and type(source) in (Table, str, dict):
        return len(source.documents if type(source) is Table else source)
    rows = rows_of(source) if wanted is SKIP else filtered(_equals(wanted))(rows_of(source))
    return (yield from fold(rows, 0, lambda count, _: count + 1))


def _equals(wanted: Any) -> Function:
    if type(wanted) is Function:
        return wanted
    key = order_key(wanted)
    return Function(lambda row: order_key(row) == key)


@term("SUM", refuses="index")
def _sum(source: Any, by: Any = SKIP) -> Steps:
    rows = _mapped(source, by)
    return number((yield from fold(rows, 0, lambda total, row: total + expect(row, "NUMBER"))))


@term("AVG", refuses="index")
def _avg(source: Any, by: Any = SKIP) -> Steps:
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

    def call(source: Any, by: Any = SKIP, *, index: Any = None) -> Steps:
        if index is not None:
            if by is not SKIP:
                raise logic_error(f"Cannot provide both a function and an index to {name.lower()}.")
            keyed = indexed(expect(source, "TABLE"), index)
            if not keyed:
                raise logic_error(f"`{name.lower()}` found no entries in the specified index.")
            found: tuple[Any, Any] = functools.reduce(lambda one, two: two if is_better(two[0], one[0]) else one, keyed)
            return found[1]
        made = Function(as_is) if by is SKIP else getter(by)
        best = yield from fold(made.over(rows_of(source), SKIP), None, step)
        if best is None:
            raise Missing(_nothing(verb, name.lower()))
        return best[0]

    term(name)(call)


_extreme("MIN", "take the min of", lambda a, b: bool(a < b))
_extreme("MAX", "take the max of", lambda a, b: bool(a > b))


@term("REDUCE", refuses="base")
def _reduce(source: Any, combine: Any) -> Steps:
    combined, total = function(combine), SKIP
    for row in rows_of(source):
        if row is PAUSE:
            yield row
        else:
            total = row if total is SKIP else datum(plain((yield from combined.steps(total, row))))
    if total is SKIP:
        raise Missing("Cannot reduce over an empty stream.")
    return total


@term("CONTAINS")
def _contains(source: Any, *wanted: Any) -> Steps:
    if (yield from _first(rows_of(source))) is SKIP:
        return False
    for one in wanted:
        found = (row for row in values(_equals(one))(rows_of(source)) if row is PAUSE or is_true(row))
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


@term("NTH", selection=True)
def _nth(source: Any, index: Any) -> Steps:
    rows, place = rows_of(plain(source)), whole(plain(index))
    if place < 0:
        found = yield from collect(rows)
        rows, place = iter(found), place + len(found)
    row: Any = (yield from _first(sliced(place, None)(rows))) if place >= 0 else SKIP
    if row is SKIP:
        raise Missing(f"Index out of bounds: {plain(index)}")
    table = source if type(source) is Table else getattr(source, "table", None)
    return row if table is None or type(source) is Single else Single(table, row[table.primary_key])


@term("FOR_EACH")
def _for_each(source: Any, write: Any) -> Steps:
    total: dict[str, Any] = {}
    for pair in function_of(write).over(rows_of(source)):
        if pair is PAUSE:
            yield pair
            continue
        for answer in pair[1] if type(pair[1]) is list else [pair[1]]:
            for name, value in expect(answer, "OBJECT").items():
                total[name] = _both(total[name], value) if name in total else value
    return total


def _both(left: Any, right: Any) -> Any:
    """The sum of two answers to writes, for one field."""
    name = type_name(left)
    if name == "NUMBER":
        return number(left + expect(right, name))
    if name == "ARRAY":
        return left + expect(right, name)
    if name == "STRING":
        return left  # the first error
    raise logic_error(f"FOR_EACH expects one or more basic write queries.  Cannot merge statistics of type {name}.")
