"""Terms on databases, tables, indexes and documents. How data are stored is in ``tables``."""

from __future__ import annotations

from typing import Any

from .changefeed import Feed
from .compiler import Deferred, Session, check_count, term
from .streams import (
    PAUSE,
    Function,
    Single,
    Steps,
    Stream,
    Watch,
    as_is,
    datum,
    filtered,
    function,
    function_of,
    getter,
    indexed,
    paced,
    plain,
    rows_of,
)
from .tables import (
    Outcome,
    Table,
    Unsupported,
    checked_key,
    expect,
    logic_error,
    merged,
    op_failed,
    option,
    order_key,
    storage_key,
    type_name,
    unfit,
    unsupported,
    whole,
)
from .wire import ATOM_FEED, SEQUENCE_FEED, QueryError


@term("DB")
def _db(session: Session, name: Any) -> Any:
    return session.world.database(name)


@term("DB_CREATE")
def _db_create(session: Session, name: Any) -> Any:
    return session.world.create(name)


@term("DB_DROP")
def _db_drop(session: Session, name: Any) -> Any:
    return session.world.drop(name)


@term("DB_LIST")
def _db_list(session: Session) -> Any:
    return sorted({"rethinkdb", *session.world.databases})


def _database(session: Session, args: tuple[Any, ...], names: int) -> tuple[Any, ...]:
    """The database, which is optional, and the other arguments."""
    check_count(len(args), names, names + 1)
    if len(args) == names:
        return (session.database, *args)
    return (expect(args[0], "DB"), *args[1:])


def _check_durability(durability: Any) -> None:
    option("durability", durability, None, "hard", "soft")


@term("TABLE", refuses="use_outdated")
def _table(session: Session, *args: Any, read_mode: Any = None, identifier_format: Any = None) -> Any:
    option("read_mode", read_mode, None, "majority", "single", "outdated")
    option("identifier_format", identifier_format, None, "name", "uuid")
    database, name = _database(session, args, 1)
    return database.table(name)


@term("TABLE_CREATE", refuses="primary_replica_tag nonvoting_replica_tags")
def _table_create(
    session: Session,
    *args: Any,
    primary_key: Any = "id",
    durability: Any = None,
    shards: Any = 1,
    replicas: Any = 1,
) -> Any:
    _check_durability(durability)
    for name, count in (("shards", shards), ("replicas", replicas)):
        if type(count) is bool or count != 1:
            raise unsupported(f"`TABLE_CREATE` with `{name}` other than 1")
    database, name = _database(session, args, 1)
    return database.create(name, expect(primary_key, "STRING"))


@term("TABLE_DROP")
def _table_drop(session: Session, *args: Any) -> Any:
    database, name = _database(session, args, 1)
    return database.drop(name)


@term("TABLE_LIST")
def _table_list(session: Session, *args: Any) -> Any:
    return sorted(_database(session, args, 0)[0].tables)


@term("WAIT")
def _wait(target: Any, *, wait_for: Any = None, timeout: Any = None) -> Any:
    return {"ready": len(expect(target, "DB").tables) if type(target) is not Table else 1}


term("SYNC")(lambda table: {"synced": 1 if expect(table, "TABLE") else 0})


@term("INDEX_CREATE", refuses="multi geo")
def _index_create(table: Any, name: Any, by: Any = PAUSE) -> Any:
    if expect(name, "STRING") in expect(table, "TABLE").indexes or name == table.primary_key:
        raise op_failed(f"Index `{name}` already exists on table `{table.full_name}`.")
    made = getter(name) if by is PAUSE else function(by)
    if not made.is_deterministic:
        raise logic_error("Could not prove function deterministic.  Index functions must be deterministic.")
    table.indexes[name] = made
    return {"created": 1}


@term("INDEX_DROP")
def _index_drop(table: Any, name: Any) -> Any:
    expect(table, "TABLE").index(name)
    del table.indexes[name]
    return {"dropped": 1}


term("INDEX_LIST")(lambda table: sorted(expect(table, "TABLE").indexes))


@term("INDEX_WAIT", "INDEX_STATUS")
def _index_wait(table: Any, *names: str) -> Any:
    expect(table, "TABLE")
    for name in names:
        table.index(name)
    flags = {"geo": False, "multi": False, "outdated": False, "ready": True}
    return [{"index": name, **flags} for name in names or sorted(table.indexes)]


# --- reading and writing documents ------------------------------------------------------------------------------------


@term("GET")
def _get(table: Any, key: Any) -> Any:
    expect(table, "TABLE")
    checked_key(key)
    return Single(table, key)


@term("GET_ALL")
def _get_all(table: Any, *keys: Any, index: Any = None) -> Any:
    expect(table, "TABLE")
    for key in keys:
        if key is None:
            raise unfit(key, "Keys cannot be NULL.")
        checked_key(key, "Primary" if index in (None, table.primary_key) else "Secondary")
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
    index: Any = None,
    left_bound: Any = "closed",
    right_bound: Any = "open",
) -> Any:
    option("left_bound", left_bound, "open", "closed")
    option("right_bound", right_bound, "open", "closed")
    if lower is None or upper is None:
        raise logic_error("Cannot use `null` in BETWEEN, use `r.minval` or `r.maxval` to denote unboundedness.")
    if type(table) is Stream and table.index is not None:
        raise unsupported("`BETWEEN` of a TABLE_SLICE")
    low, high = order_key(lower), order_key(upper)

    def is_inside(key: Any) -> Any:
        left = low < key or (left_bound == "closed" and low == key)
        right = key < high or (right_bound == "closed" and key == high)
        return left and right

    if index not in (None, expect(table, "TABLE").primary_key):
        table.index(index)
    rows = Stream(
        lambda: paced([row for key, row in indexed(table, index) if is_inside(key)]),
        table,
        index=table.primary_key if index is None else index,
    )
    if index in (None, table.primary_key):
        test = Function(lambda row: is_inside(order_key(row[table.primary_key])))
        rows.watch = Watch(table, (filtered(test),))
    return rows


@term("INSERT", refuses="return_vals")
def _insert(
    table: Any,
    documents: Any,
    *,
    conflict: Any = "error",
    return_changes: Any = False,
    durability: Any = None,
    ignore_write_hook: Any = None,
) -> Steps:
    if type(conflict) is Function:
        raise unsupported("`INSERT` with a function as `conflict`")
    option("conflict", conflict, "error", "replace", "update")
    expect(table, "TABLE")
    outcome = _outcome(return_changes, durability, ignore_write_hook)
    for document in iter((documents,)) if type(documents) is dict else rows_of(documents):
        if document is PAUSE:
            yield document
        else:
            table.insert(document, conflict, outcome)
    return outcome.answer()


def _outcome(return_changes: Any, durability: Any, ignore_write_hook: Any) -> Outcome:
    """Check the options of all writes. Write hooks do not exist here, so ``ignore_write_hook`` changes nothing."""
    _check_durability(durability)
    if type(return_changes) is str:
        option("return_changes", return_changes, True, False, "always")
    return Outcome(return_changes)


def _rewrite(verb: str, target: Any, function: Function, outcome: Outcome, non_atomic: Any = True) -> Steps:
    """Replace each document of a selection by the function's value."""
    if type(target) is list:
        raise unsupported(f"`{verb}` of an array, which `order_by` without an index gives too,")
    table = target if type(target) is Table else getattr(target, "table", None)
    if table is None:
        raise unfit(target, f"Expected type SELECTION but found {type_name(target)}.")
    if not (function.is_deterministic or non_atomic):
        raise logic_error("Could not prove argument deterministic.  Maybe you want to use the non_atomic flag?")
    for row in iter((target.value,)) if type(target) is Single else rows_of(target):
        if row is PAUSE:
            yield row
            continue
        old = row and table.get(row[table.primary_key])
        try:
            new = datum(plain((yield from function.steps(old))))
        except Unsupported:
            raise
        except QueryError as error:
            outcome.fail(error.message, old)
        else:
            key = target.key if type(target) is Single else row[table.primary_key]
            table.replace(storage_key(key), old, new, outcome)
    return outcome.answer()


@term("UPDATE", selection=True, refuses="return_vals")
def _update(
    target: Any,
    change: Deferred,
    *,
    return_changes: Any = False,
    durability: Any = None,
    non_atomic: Any = None,
    ignore_write_hook: Any = None,
) -> Steps:
    def updated(old: Any) -> Steps:
        new = None if old is None else datum(plain((yield from change.steps(old))))
        return old if new is None else merged(old, new)

    function = Function(updated, is_slow=True, is_deterministic=change.is_deterministic)
    outcome = _outcome(return_changes, durability, ignore_write_hook)
    return (yield from _rewrite("UPDATE", target, function, outcome, non_atomic))


@term("REPLACE", selection=True, refuses="return_vals")
def _replace(
    target: Any,
    change: Any,
    *,
    return_changes: Any = False,
    durability: Any = None,
    non_atomic: Any = None,
    ignore_write_hook: Any = None,
) -> Steps:
    outcome = _outcome(return_changes, durability, ignore_write_hook)
    made = function_of(plain(change))
    if type(change) is Single:
        made.is_deterministic = False
    return (yield from _rewrite("REPLACE", target, made, outcome, non_atomic))


@term("DELETE", selection=True, refuses="return_vals non_atomic")
def _delete(
    target: Any, *, return_changes: Any = False, durability: Any = None, ignore_write_hook: Any = None
) -> Steps:
    outcome = _outcome(return_changes, durability, ignore_write_hook)
    return (yield from _rewrite("DELETE", target, Function(lambda _: None), outcome))


@term("CHANGES", selection=True, refuses="squash include_states include_offsets include_types")
def _changes(
    target: Any,
    *,
    include_initial: Any = False,
    changefeed_queue_size: Any = 100_000,
) -> Any:
    if whole(changefeed_queue_size) < 1:
        raise logic_error(f"Expected `changefeed_queue_size` to be at least 1 (got {changefeed_queue_size}).")
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
