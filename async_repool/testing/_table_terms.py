"""Terms on databases, tables, indexes and documents.

What lives here: what each does, in terms of the tables. What must not: how data are stored and written.
"""

from __future__ import annotations

from typing import Any

from ._changefeed import Feed
from ._compiler import Session, check_count, term
from ._streams import (
    PAUSE,
    Function,
    Single,
    Steps,
    Stream,
    Watch,
    as_is,
    filtered,
    function_of,
    indexed,
    paced,
    plain,
    rows_of,
)
from ._tables import (
    Database,
    Outcome,
    Table,
    expect,
    logic_error,
    merged,
    op_failed,
    order_key,
    storage_key,
    type_name,
    unsupported,
)
from ._wire import ATOM_FEED, SEQUENCE_FEED, QueryError


@term("DB")
def _db(session: Session, name: str) -> Any:
    return session.world.database(name)


@term("DB_CREATE")
def _db_create(session: Session, name: Any) -> Any:
    return session.world.create(name)


@term("DB_DROP")
def _db_drop(session: Session, name: Any) -> Any:
    return session.world.drop(name)


@term("DB_LIST")
def _db_list(session: Session) -> Any:
    return sorted(session.world.databases)


def _database(session: Session, args: tuple[Any, ...], names: int) -> tuple[Any, ...]:
    """The database, which may be left out, and the arguments after it."""
    check_count(len(args), names, names + 1)
    return args if len(args) > names else (session.database, *args)


@term("TABLE")
def _table(session: Session, *args: Any, read_mode: Any = None, identifier_format: Any = None) -> Any:
    database, name = _database(session, args, 1)
    return database.table(name)


@term("TABLE_CREATE")
def _table_create(session: Session, *args: Any, primary_key: str = "id", durability: Any = None) -> Any:
    database, name = _database(session, args, 1)
    return database.create(name, primary_key)


@term("TABLE_DROP")
def _table_drop(session: Session, *args: Any) -> Any:
    database, name = _database(session, args, 1)
    return database.drop(name)


@term("TABLE_LIST")
def _table_list(session: Session, *args: Any) -> Any:
    return sorted(_database(session, args, 0)[0].tables)


@term("WAIT")
def _wait(target: Any, *, wait_for: Any = None, timeout: Any = None) -> Any:
    return {"ready": len(target.tables) if type(target) is Database else 1}


term("SYNC")(lambda table: {"synced": 1 if expect(table, "TABLE") else 0})


@term("INDEX_CREATE")
def _index_create(table: Any, name: str, function: Any = None) -> Any:
    if name in expect(table, "TABLE").indexes or name == table.primary_key:
        raise op_failed(f"Index `{name}` already exists on table `{table.full_name}`.")
    table.indexes[name] = function_of(name if function is None else function)
    return {"created": 1}


@term("INDEX_DROP")
def _index_drop(table: Any, name: str) -> Any:
    expect(table, "TABLE").index(name)
    del table.indexes[name]
    return {"dropped": 1}


term("INDEX_LIST")(lambda table: sorted(expect(table, "TABLE").indexes))


@term("INDEX_WAIT", "INDEX_STATUS")
def _index_wait(table: Any, *names: str) -> Any:
    for name in names:
        expect(table, "TABLE").index(name)
    flags = {"geo": False, "multi": False, "outdated": False, "ready": True}
    return [{"index": name, **flags} for name in names or sorted(table.indexes)]


# --- reading and writing documents ------------------------------------------------------------------------------------


@term("GET")
def _get(table: Any, key: Any) -> Any:
    return Single(expect(table, "TABLE"), key)


@term("GET_ALL")
def _get_all(table: Any, *keys: Any, index: str | None = None) -> Any:
    expect(table, "TABLE")
    if index in (None, table.primary_key):
        wanted = {storage_key(key) for key in keys}
        watch = Watch(table, (filtered(Function(lambda row: storage_key(row[table.primary_key]) in wanted)),))
        return Stream(lambda: paced([row for key in keys if (row := table.get(key)) is not None]), table, watch)
    table.index(index)
    ordered = [order_key(key) for key in keys]
    return Stream(lambda: paced([row for key in ordered for at, row in indexed(table, index) if at == key]), table)


@term("BETWEEN")
def _between(
    table: Any,
    lower: Any,
    upper: Any,
    *,
    index: str | None = None,
    left_bound: str = "closed",
    right_bound: str = "open",
) -> Any:
    low, high = order_key(lower), order_key(upper)

    def is_inside(key: Any) -> bool:
        left = low < key or (left_bound == "closed" and low == key)
        right = key < high or (right_bound == "closed" and key == high)
        return left and right

    if index not in (None, expect(table, "TABLE").primary_key):
        table.index(index)
    rows = Stream(lambda: paced([row for key, row in indexed(table, index) if is_inside(key)]), table)
    if index in (None, table.primary_key):
        test = Function(lambda row: is_inside(order_key(row[table.primary_key])))
        rows.watch = Watch(table, (filtered(test),))
    return rows


@term("INSERT")
def _insert(
    table: Any,
    documents: Any,
    *,
    conflict: Any = "error",
    return_changes: Any = False,
    durability: Any = None,
    ignore_write_hook: Any = None,
) -> Steps:
    if conflict not in ("error", "replace", "update"):
        raise unsupported("`INSERT` with this `conflict`")
    outcome = Outcome(return_changes)
    for document in iter((documents,)) if type(documents) is dict else rows_of(documents):
        if document is PAUSE:
            yield document
        else:
            expect(table, "TABLE").insert(document, conflict, outcome)
    return outcome.answer()


def _rewrite(target: Any, function: Function, return_changes: Any) -> Steps:
    """Put what the function makes of each document of a selection in its place."""
    table = target if type(target) is Table else getattr(target, "table", None)
    if table is None:
        raise logic_error(f"Expected type SELECTION but found {type_name(target)}.")
    outcome = Outcome(return_changes)
    for row in iter((target.value,)) if type(target) is Single else rows_of(target):
        if row is PAUSE:
            yield row
            continue
        old = row and table.get(row[table.primary_key])
        try:
            new = plain((yield from function.steps(old)))
        except QueryError as error:
            outcome.fail(error.message, old)
        else:
            table.replace(old, new, outcome)
    return outcome.answer()


@term("UPDATE", selection=True)
def _update(
    target: Any,
    change: Any,
    *,
    return_changes: Any = False,
    durability: Any = None,
    non_atomic: Any = None,
    ignore_write_hook: Any = None,
) -> Steps:
    make = function_of(change)

    def updated(old: Any) -> Steps:
        return None if old is None else merged(old, plain((yield from make.steps(old))))

    return (yield from _rewrite(target, Function(updated, is_slow=True), return_changes))


@term("REPLACE", selection=True)
def _replace(
    target: Any,
    change: Any,
    *,
    return_changes: Any = False,
    durability: Any = None,
    non_atomic: Any = None,
    ignore_write_hook: Any = None,
) -> Steps:
    return (yield from _rewrite(target, function_of(change), return_changes))


@term("DELETE", selection=True)
def _delete(
    target: Any, *, return_changes: Any = False, durability: Any = None, ignore_write_hook: Any = None
) -> Steps:
    return (yield from _rewrite(target, Function(lambda _: None), return_changes))


@term("CHANGES", selection=True)
def _changes(
    target: Any,
    *,
    include_initial: Any = False,
    changefeed_queue_size: Any = 100_000,
    squash: Any = False,
    include_states: Any = False,
    include_offsets: Any = False,
    include_types: Any = False,
) -> Any:
    refused = {
        "squash": squash,
        "include_states": include_states,
        "include_offsets": include_offsets,
        "include_types": include_types,
    }
    for name, value in refused.items():
        if value:
            raise unsupported(f"`CHANGES` with `{name}`")
    if type(target) is Single:
        key = storage_key(target.key)
        document = (lambda: [target.value]) if include_initial else None
        return Feed(
            target.table, ATOM_FEED, as_is, document, lambda changed: bool(changed == key), changefeed_queue_size
        )
    watch = Watch(target) if type(target) is Table else getattr(target, "watch", None)
    if watch is None:
        if type(target) is Stream:
            raise unsupported("`CHANGES` on a stream that does not follow from its table row by row")
        raise logic_error(f"Cannot call `changes` on an eager stream (got {type_name(target)}).")
    rows = (lambda: [row for row in rows_of(target) if row is not PAUSE]) if include_initial else None
    return Feed(watch.table, SEQUENCE_FEED, watch.view, rows, None, changefeed_queue_size)
