"""A small ReQL evaluator: it answers the terms that tests of a client need, as RethinkDB answers them.

This module takes a query from its terms to its answers. Single terms are elsewhere, and so is the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from . import table_terms, terms  # noqa: F401  (they register their operations)
from .changefeed import Feed
from .compiler import Compiler, Session, compile_error, finish, run
from .streams import ARRAY_LIMIT, PAUSE, Edge, Function, Order, Steps, Stream, plain, rows_of
from .tables import Database, Table, World, logic_error, type_name, unsupported
from .wire import ATOM, PARTIAL, SEQUENCE


def answers(session: Session, source: Any, batch_rows: int) -> Steps:
    """The answers to a query, one by one: ``PAUSE``, a pair of response type and rows, or a ``Feed``.

    Raises ``QueryError`` if the answer is an error.
    """
    value = plain((yield from run(Compiler(session).compile(source), {})))
    if type(value) is Feed:
        yield value
        return
    if type(value) not in (Stream, Table):
        if type(value) in (Database, Function, Order, Edge):
            kinds = "DATUM, GROUPED_DATA, or STREAM"
            raise logic_error(f"Query result must be of type {kinds} (got {type_name(value)}).")
        yield ATOM, [value]
        return
    batch: list[Any] = []
    for row in rows_of(value):
        if row is PAUSE:
            yield row
            continue
        batch.append(row)
        if len(batch) >= batch_rows:
            yield PARTIAL, batch
            batch = []
    yield SEQUENCE, batch


def query_session(world: World, options: Mapping[str, Any]) -> tuple[Session, dict[str, Any]]:
    """The session of a query, and the query's global options by name."""
    compiler = Compiler(Session(world))
    given: dict[str, Any] = {}
    for name, source in options.items():
        if name not in _GLOBAL_OPTIONS:
            raise compile_error(f"Unrecognized global optional argument `{name}`.")
        # Only the name of the database is needed here. It may not exist before the query uses it.
        given[name] = (
            source[1][0] if name == "db" and type(source) is list else finish(run(compiler.compile(source), {}))
        )
    if given.get("profile"):
        raise unsupported("`profile`")
    if given.get("array_limit", ARRAY_LIMIT) != ARRAY_LIMIT:
        raise unsupported("`array_limit`")
    return Session(world, given.get("db", "test")), given


_GLOBAL_OPTIONS: Final = frozenset(
    """
    read_mode profile durability array_limit noreply db min_batch_rows max_batch_rows max_batch_bytes max_batch_seconds
    first_batch_scaledown_factor binary_format time_format group_format geometry_format user
    """.split()  # noqa: SIM905
)
