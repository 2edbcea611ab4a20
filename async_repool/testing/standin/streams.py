"""Lazy sequences, and the other values of a query that are not data.

This module has streams, selections, functions, and the building blocks of all terms on sequences. Single terms are
elsewhere, and so is the compiler.

All work that may take long is a generator. It yields ``PAUSE`` after some rows, so that its caller can run something
else or stop it. A stream yields rows and ``PAUSE``. Nothing here waits, and nothing runs before somebody reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from .changefeed import Feed
from .tables import (
    Database,
    EmptyError,
    Missing,
    Table,
    checked_key,
    expect,
    logic_error,
    order_key,
    printed,
    type_name,
    unfit,
    unsupported,
)
from .wire import RESOURCE_LIMIT, RUNTIME_ERROR, QueryError

PAUSE: Final = object()
SKIP: Final = object()  # leave out a row if something is missing; also: there is no row
_RAISE: Final = object()
_STRIDE: Final = 256  # rows between two ``PAUSE``
ARRAY_LIMIT: Final = 100_000

Rows = Iterator[Any]
Steps = Generator[Any, None, Any]
Transform = Callable[[Rows], Rows]


class Stream:
    """A lazy sequence. ``table`` is set if its rows are rows of that table, so that they can be written.

    ``index`` is set if the rows are a slice of that index, or in its order, and nothing else has changed them.
    """

    __slots__ = ("index", "rows", "table", "watch")

    def __init__(
        self,
        rows: Callable[[], Rows],
        table: Table | None = None,
        watch: Watch | None = None,
        index: str | None = None,
    ) -> None:
        self.rows = rows
        self.table = table
        self.watch = watch
        self.index = index

    @property
    def type_name(self) -> str:
        if self.index is not None:
            return "TABLE_SLICE"
        return "STREAM" if self.table is None else "SELECTION<STREAM>"


@dataclass(frozen=True, slots=True)
class Watch:
    """How the rows of a stream are made, one by one, from the rows of its table. A changefeed needs this."""

    table: Table
    steps: tuple[Transform, ...] = ()

    def view(self, row: Any) -> Any:
        rows: Rows = iter(() if row is None else (row,))
        for step in self.steps:
            rows = step(rows)
        return next((row for row in rows if row is not PAUSE), None)


@dataclass(frozen=True, slots=True)
class Single:
    """The place of one document in a table, whether or not the document exists: the value of ``get``."""

    table: Table
    key: Any
    type_name: ClassVar[str] = "SELECTION<OBJECT>"

    @property
    def value(self) -> Any:
        return self.table.get(self.key)


@dataclass(frozen=True, slots=True)
class Order:
    """``r.asc()`` or ``r.desc()``."""

    by: Any
    is_descending: bool
    type_name: str = "ORDER"


@dataclass(frozen=True, slots=True)
class Edge:
    """``r.minval`` or ``r.maxval``."""

    type_name: str


class Function:
    """A ReQL function. A call of a slow function returns steps, a call of a quick function returns its value.

    A function that returns a literal object is a pattern: ``filter`` compares each row with the object.
    """

    __slots__ = ("call", "is_deterministic", "is_pattern", "is_slow")
    type_name = "FUNCTION"

    def __init__(
        self,
        call: Callable[..., Any],
        is_slow: bool = False,
        is_pattern: bool = False,
        is_deterministic: bool = True,
    ) -> None:
        self.call = call
        self.is_slow = is_slow
        self.is_pattern = is_pattern
        self.is_deterministic = is_deterministic

    def steps(self, *args: Any) -> Steps:
        """The steps of a call, of a quick function too."""
        if self.is_slow:
            return (yield from self.call(*args))
        return self.call(*args)

    def over(self, rows: Rows, missing: Any = _RAISE) -> Rows:
        """Pairs of row and value. If a field does not exist, ``missing`` is the value; ``SKIP`` leaves out the row."""
        for row in rows:
            if row is PAUSE:
                yield row
                continue
            try:
                value = (yield from self.call(row)) if self.is_slow else self.call(row)
            except Missing:
                if missing is _RAISE:
                    raise
                if missing is SKIP:
                    continue
                value = missing
            yield row, plain(value)


def plain(value: Any) -> Any:
    """The document if the value is a ``Single``, else the value."""
    return value.value if type(value) is Single else value


def function_of(value: Any) -> Function:
    """A function as it is; data as a function that always returns it."""
    if type(value) is Function:
        return value
    data = datum(value)
    return Function(lambda *_: data, is_pattern=True)


def getter(value: Any) -> Function:
    """A function as it is; the name of a field as a function that gets the field."""
    return value if type(value) is Function else Function(lambda row: bracket(row, value, "get_field"))


def function(value: Any) -> Function:
    """The value, which must be a function."""
    if type(value) is not Function:
        raise unfit(value, f"Expected type FUNCTION but found {type_name(value)}.")
    return value


def datum(value: Any) -> Any:
    """The value, which must be data."""
    if type(value) in (Table, Stream, Database, Function, Feed, Order):
        raise logic_error(f"Expected type DATUM but found {type_name(value)}.")
    return value


# --- sequences --------------------------------------------------------------------------------------------------------


def paced(items: Iterable[Any]) -> Rows:
    """The items, with a ``PAUSE`` after some of them."""
    for number, item in enumerate(items, 1):
        yield item
        if not number % _STRIDE:
            yield PAUSE


def rows_of(value: Any) -> Rows:
    """The rows of a value, which must be a sequence."""
    if type(value) is list:
        return paced(value)
    if type(value) is Stream:
        return value.rows()
    if type(value) is Table:
        return paced(list(value.documents.values()))
    if type(value) is Feed:
        raise logic_error(
            "Cannot call a terminal (`reduce`, `count`, etc.) on an infinite stream (such as a changefeed)."
        )
    raise unfit(value, f"Cannot convert {type_name(value)} to SEQUENCE")


def collect(rows: Rows) -> Steps:
    """All rows as an array."""
    result: list[Any] = []
    for row in rows:
        if row is PAUSE:
            yield row
        elif len(result) >= ARRAY_LIMIT:
            raise array_too_long()
        else:
            result.append(row)
    return result


def array_too_long() -> QueryError:
    """The error for an array beyond the limit."""
    return QueryError(RUNTIME_ERROR, f"Array over size limit `{ARRAY_LIMIT}`.", RESOURCE_LIMIT)


def fold(rows: Rows, start: Any, step: Callable[[Any, Any], Any]) -> Steps:
    """The value that ``step`` makes of all rows, from left to right."""
    for row in rows:
        if row is PAUSE:
            yield row
        else:
            start = step(start, row)
    return start


def through(source: Any, step: Transform, *, keeps_rows: bool = False, is_row_by_row: bool = True) -> Steps:
    """``source`` passed through ``step``: an array now, a stream when it is read, a feed at each change."""
    if type(source) is Feed:
        if not is_row_by_row:
            raise unsupported("Skipping and limiting changes of a changefeed")
        return source.then(lambda change: [row for row in step(iter((change,))) if row is not PAUSE])
    if type(source) is list:
        return (yield from collect(step(rows_of(source))))
    if type(source) not in (Stream, Table):
        rows_of(source)  # raises the error for what is not a sequence
    watch = Watch(source) if type(source) is Table else getattr(source, "watch", None)
    table = source if type(source) is Table else getattr(source, "table", None)
    if watch is not None:
        watch = Watch(watch.table, (*watch.steps, step)) if is_row_by_row else None
    return Stream(lambda: step(rows_of(source)), table if keeps_rows else None, watch)


def values(make: Function, missing: Any = _RAISE) -> Transform:
    """The transform that replaces each row by the function's value."""
    return lambda rows: (pair if pair is PAUSE else datum(pair[1]) for pair in make.over(rows, missing))


def filtered(test: Function, default: Function | None = None) -> Transform:
    """The transform that keeps the rows for which ``test`` is true. ``default`` decides if a field does not exist."""

    def keeps(row: Any) -> Steps:
        try:
            value = plain((yield from test.call(row)) if test.is_slow else test.call(row))
            return _matches(row, value) if test.is_pattern and type(value) is dict else is_true(value)
        except Missing as missing:
            if default is None:
                return False
            try:
                return is_true(plain((yield from default.steps())))
            except EmptyError:
                raise missing from None

    def step(rows: Rows) -> Rows:
        for row in rows:
            if row is PAUSE or (yield from keeps(row)):
                yield row

    return step


def _matches(value: Any, pattern: dict[str, Any]) -> bool:
    for name in sorted(pattern):
        wanted, found = pattern[name], field(expect(value, "OBJECT"), name, "filter")
        if type(wanted) is dict and type(found) is dict:
            if not _matches(found, wanted):
                return False
        elif order_key(wanted) != order_key(found):
            return False
    return True


def each(change: Callable[[Any], Any]) -> Transform:
    """The transform that changes each row."""
    return lambda rows: (row if row is PAUSE else change(row) for row in rows)


def sliced(start: int, end: int | None) -> Transform:
    """The transform that keeps the rows from ``start`` to ``end``."""

    def step(rows: Rows) -> Rows:
        left, skip = (math.inf if end is None else end - start), start
        while left > 0:
            row = next(rows, SKIP)
            if row is SKIP:
                return
            if row is PAUSE:
                yield row
            elif skip > 0:
                skip -= 1
            else:
                left -= 1
                yield row

    return step


def field(value: Any, name: Any, verb: str) -> Any:
    """A field of a value, which must be an object."""
    if type(value) is dict and "$reql_type$" not in value:
        if expect(name, "STRING") not in value:
            raise Missing(f"No attribute `{name}` in object:\n{printed(value)}")
        return value[name]
    raise no_object(value, verb)


def no_object(value: Any, verb: str) -> QueryError:
    """The error for a value that is not an object."""
    shown = type_name(value) if type(value) in (list, dict) else f"`{printed(value)}`"
    return unfit(value, f"Cannot perform {verb} on a non-object non-sequence {shown}.")


def bracket(value: Any, key: Any, verb: str = "bracket") -> Any:
    """A field of one object. For sequences see the term ``BRACKET``."""
    return field(plain(value), key, verb)


def is_true(value: Any) -> bool:
    """Whether a value counts as true: all data do but ``false`` and ``null``."""
    return datum(value) is not None and value is not False


def as_is(value: Any) -> Any:
    """The value."""
    return value


def index_function(table: Table, name: Any) -> Function:
    """The function from a document to its key in an index. ``None`` means the primary key."""
    if name is None or name == table.primary_key:
        return getter(table.primary_key)
    made: Function = table.index(name)
    return made


def indexed(table: Table, name: Any, rows: Iterable[Any] | None = None) -> list[tuple[Any, Any]]:
    """Pairs of a comparable key and a document, for each document in the index."""
    documents = list(table.documents.values() if rows is None else rows)
    pairs = (pair for pair in index_function(table, name).over(iter(documents), SKIP) if pair is not PAUSE)
    return [(order_key(key), row) for row, key in pairs if _is_key(key)]


def _is_key(value: Any) -> bool:
    try:
        checked_key(value, "Secondary")
    except QueryError:
        return False
    return True
