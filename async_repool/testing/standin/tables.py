"""Databases, tables and documents in memory, and the answers to writes.

This module has the data, their keys and order, and the errors of creating, dropping and writing. It does not know terms
or streams. A stored document is never changed: a write replaces it by another one. So a reader may keep it.
"""

from __future__ import annotations

import base64
import json
import math
import re
import uuid
from collections.abc import Iterable
from typing import Any

from .changefeed import Feed
from .wire import NON_EXISTENCE, OP_FAILED, QUERY_LOGIC, RUNTIME_ERROR, QueryError

Document = dict[str, Any]


class Missing(QueryError):
    """Something does not exist. The term ``default`` catches this error."""

    def __init__(self, message: str) -> None:
        super().__init__(RUNTIME_ERROR, message, NON_EXISTENCE)


def logic_error(message: str) -> QueryError:
    """The error for a query that makes no sense."""
    return QueryError(RUNTIME_ERROR, message, QUERY_LOGIC)


class Unsupported(QueryError):
    """The stand-in server does not know RethinkDB's answer. No term catches this error: the client must get it."""


class EmptyError(QueryError):
    """``r.error()`` without a message. Inside of ``default``, it raises the original error again."""


def op_failed(message: str) -> QueryError:
    """The error for an operation that failed."""
    return QueryError(RUNTIME_ERROR, message, OP_FAILED)


def unsupported(what: str) -> QueryError:
    """The error for everything that the stand-in server does not support."""
    message = f"{what} is not supported by the stand-in server, which is a test double."
    return Unsupported(RUNTIME_ERROR, message, QUERY_LOGIC)


_TYPE_NAMES = {
    type(None): "NULL",
    bool: "BOOL",
    int: "NUMBER",
    float: "NUMBER",
    str: "STRING",
    list: "ARRAY",
    dict: "OBJECT",
}


def type_name(value: Any) -> str:
    """The name of a value's type, as in RethinkDB's error messages."""
    if type(value) is dict and "$reql_type$" in value:
        return f"PTYPE<{value['$reql_type$']}>"
    return _TYPE_NAMES.get(type(value)) or str(value.type_name)


def unfit(value: Any, message: str) -> QueryError:
    """The error for a value of the wrong type. The term ``default`` catches it if the value is ``null``."""
    return Missing(message) if value is None else logic_error(message)


def expect(value: Any, *names: str) -> Any:
    """The value, which must be of one of these types."""
    if type_name(value) not in names:
        raise unfit(value, f"Expected type {names[0]} but found {type_name(value)}.")
    return value


def whole(value: Any) -> int:
    """The value, which must be an integer."""
    if not math.isfinite(expect(value, "NUMBER")) or int(value) != value:
        raise logic_error(f"Number not an integer: {value}")
    return int(value)


def number(value: float) -> float:
    """A number as RethinkDB prints it: without a fraction if that is 0, and never infinite."""
    if type(value) is int and -(2**53) <= value <= 2**53:
        return value
    value = float(value)
    if not math.isfinite(value):
        raise logic_error(f"Non-finite number: {value}")
    return int(value) if value.is_integer() and abs(value) <= 2**53 else value


def option(name: str, value: Any, *known: Any) -> None:
    """Check an option that must be one of these values."""
    if value not in known:
        raise logic_error(f"Invalid `{name}` value `{value}` (options are {', '.join(f'`{one}`' for one in known)}).")


_EDGES = {"MINVAL": "", "MAXVAL": "~"}  # below and above the names of all types


def order_key(value: Any) -> tuple[str, Any]:
    """A key that sorts and compares as RethinkDB does: first by type, so ``true`` is not 1."""
    name = type_name(value)
    if name == "ARRAY":
        return name, tuple(map(order_key, value))
    if name == "PTYPE<TIME>":
        return name, value["epoch_time"]
    if name == "PTYPE<BINARY>":
        return name, base64.b64decode(value["data"])
    if name in _EDGES:
        return _EDGES[name], 0
    if type(value) is dict:
        return name, tuple((key, order_key(value[key])) for key in sorted(value))
    if type(value) not in _TYPE_NAMES:
        raise logic_error(f"Expected type DATUM but found {name}.")
    return name, 0 if value is None else value


def storage_key(value: Any) -> Any:
    """The key of a document in the table's dictionary. Strings and numbers are their own keys, for fast look-ups."""
    return value if type(value) in (str, int, float) else order_key(value)


def checked_key(value: Any, kind: str = "Primary") -> Any:
    """The ``storage_key`` of a value. Raises the error for a value that cannot be a key."""
    name = type_name(value)
    if name in ("NULL", "OBJECT"):
        allowed = f"{kind} keys must be either a number, string, bool, pseudotype or array"
        raise unfit(value, f"{allowed} (got type {name}):\n{printed(value)}")
    if name == "STRING" and "\0" in value:
        raise logic_error("A key contains a NULL byte.")
    if name == "STRING" and kind == "Primary" and len(value.encode("utf-8", "surrogatepass")) > 127:
        raise logic_error(f"Primary key too long (max 127 characters): {printed(value)}")
    if name == "ARRAY":
        for item in value:
            if type_name(item) in ("NULL", "OBJECT"):
                allowed = "Array keys can only contain numbers, strings, bools,  pseudotypes, or arrays"
                raise unfit(item, f"{allowed} (got {printed(item)} of type {type_name(item)}).")
            checked_key(item, kind)
    return storage_key(value)


def printed(value: Any, depth: int = 0) -> str:
    """A value as RethinkDB prints it in error messages."""
    if type(value) in (dict, list) and value:
        indent = "\n" + "\t" * (depth + 1)
        if type(value) is list:
            return "[" + ",".join(indent + printed(item, depth + 1) for item in value) + indent[:-1] + "]"
        fields = (f"{indent}{json.dumps(key)}:\t{printed(value[key], depth + 1)}" for key in sorted(value))
        return "{" + ",".join(fields) + indent[:-1] + "}"
    return json.dumps(value, ensure_ascii=False) if type(value) in _TYPE_NAMES else type_name(value)


def _has_edge(value: Any) -> bool:
    if type(value) in (list, dict):
        return any(map(_has_edge, value.values() if type(value) is dict else value))
    return type(value) not in _TYPE_NAMES


def merged(left: Any, right: Any) -> Any:
    """The value of ``left.merge(right)``."""
    if type(left) is not dict or type(right) is not dict or not left:
        return right
    if "$reql_type$" in left or "$reql_type$" in right:
        if type_name(left) != type_name(right) and "PTYPE<BINARY>" not in (type_name(left), type_name(right)):
            raise logic_error(f"Cannot merge objects of type `{type_name(left)}` and `{type_name(right)}`.")
        return right
    return left | {key: merged(left.get(key), value) for key, value in right.items()}


class Outcome:
    """Counts the results of a write, and makes the object that answers it."""

    def __init__(self, return_changes: Any) -> None:
        self._counts = dict.fromkeys(("deleted", "errors", "inserted", "replaced", "skipped", "unchanged"), 0)
        self._extra: Document = {}
        self._return_changes = return_changes

    def add(self, what: str, old: Any = None, new: Any = None) -> None:
        self._counts[what] += 1
        self._note({"new_val": new, "old_val": old}, what in ("deleted", "inserted", "replaced"))

    def fail(self, message: str, old: Any = None, *, is_change: bool = False) -> None:
        """Count an error. It is listed among the changes if ``return_changes`` is ``always``, or if ``is_change``."""
        self._counts["errors"] += 1
        self._extra.setdefault("first_error", message)
        self._note({"error": message, "new_val": old, "old_val": old}, is_change)

    def _note(self, change: Document, is_change: bool) -> None:
        if self._return_changes:
            changes = self._extra.setdefault("changes", [])
            if is_change or self._return_changes == "always":
                changes.append(change)

    def generated(self, key: str) -> None:
        self._extra.setdefault("generated_keys", []).append(key)

    def answer(self) -> Document:
        return {**self._counts, **self._extra}


class Table:
    """The documents, the secondary indexes and the changefeeds of one table."""

    type_name = "TABLE"

    def __init__(self, database: str, name: str, primary_key: str) -> None:
        self.name = name
        self.full_name = f"{database}.{name}"
        self.primary_key = primary_key
        self.documents: dict[Any, Document] = {}
        self.indexes: dict[str, Any] = {}
        self.feeds: set[Feed] = set()
        self.config = {
            "db": database,
            "durability": "hard",
            "id": str(uuid.uuid4()),
            "indexes": [],
            "name": name,
            "primary_key": primary_key,
            "shards": [{"nonvoting_replicas": [], "primary_replica": "stand_in", "replicas": ["stand_in"]}],
            "write_acks": "majority",
            "write_hook": None,
        }

    def get(self, key: Any) -> Document | None:
        return self.documents.get(storage_key(key))

    def index(self, name: Any) -> Any:
        if expect(name, "STRING") not in self.indexes:
            raise op_failed(f"Index `{name}` was not found on table `{self.full_name}`.")
        return self.indexes[name]

    def insert(self, document: Any, conflict: str, outcome: Outcome) -> None:
        if type(document) is not dict:
            outcome.fail(f"Expected type OBJECT but found {type_name(document)}.", is_change=True)
            return
        if _has_edge(document):
            outcome.fail("`r.minval` and `r.maxval` cannot be written to disk.", is_change=True)
            return
        if self.primary_key not in document:
            document = document | {self.primary_key: str(uuid.uuid4())}
            outcome.generated(document[self.primary_key])
        try:
            key = self._key_of(document)
        except QueryError as error:
            outcome.fail(error.message, is_change=True)
            return
        old = self.documents.get(key)
        if old is None:
            self._put(key, None, document)
            outcome.add("inserted", None, document)
        elif conflict == "error":
            outcome.fail(f"Duplicate primary key `{self.primary_key}`:\n{printed(old)}\n{printed(document)}", old)
        else:
            try:
                new = merged(old, document) if conflict == "update" else document
            except QueryError as error:
                outcome.fail(error.message, old)
                return
            self.replace(key, old, new, outcome)

    def replace(self, key: Any, old: Document | None, new: Any, outcome: Outcome) -> None:
        """Replace ``old`` at ``key`` by ``new``. Without an ``old`` it is an insert, without a ``new`` a delete."""
        if old is None and new is None:
            outcome.add("skipped")
            return
        if new is None:
            assert old is not None
            self._put(key, old, None)
            outcome.add("deleted", old, None)
            return
        try:
            self._check(key, old, new)
        except QueryError as error:
            outcome.fail(error.message, old)
            return
        if old is None:
            self.insert(new, "error", outcome)
        elif order_key(old) == order_key(new):
            outcome.add("unchanged", old, old)
        else:
            self._put(key, old, new)
            outcome.add("replaced", old, new)

    def _check(self, key: Any, old: Document | None, new: Any) -> None:
        if type_name(new) != "OBJECT":
            raise logic_error(f"Inserted value must be an OBJECT (got {type_name(new)}):\n{printed(new)}")
        if self.primary_key not in new:
            raise logic_error(f"Inserted object must have primary key `{self.primary_key}`:\n{printed(new)}")
        if _has_edge(new):
            raise logic_error("`r.minval` and `r.maxval` cannot be written to disk.")
        if key != self._key_of(new):
            change = f"`{printed(old)}` -> `{printed(new)}`" if old else f"null -> {printed(new)}"
            raise logic_error(f"Primary key `{self.primary_key}` cannot be changed ({change})" + "." * bool(old))

    def _key_of(self, document: Document) -> Any:
        return checked_key(document[self.primary_key])

    def _put(self, key: Any, old: Document | None, new: Document | None) -> None:
        if new is None:
            del self.documents[key]
        else:
            self.documents[key] = new
        for feed in list(self.feeds):
            feed.changed(key, old, new)


class Database:
    """The tables of one database."""

    type_name = "DB"

    def __init__(self, name: str) -> None:
        self.name = name
        self.tables: dict[str, Table] = {}
        self.config = {"id": str(uuid.uuid4()), "name": name}

    def table(self, name: Any) -> Table:
        _check_name("Table", name)
        if name not in self.tables:
            raise op_failed(f"Table `{self.name}.{name}` does not exist.")
        return self.tables[name]

    def create(self, name: str, primary_key: str) -> Document:
        _check_name("Table", name)
        if name in self.tables:
            raise op_failed(f"Table `{self.name}.{name}` already exists.")
        table = self.tables[name] = Table(self.name, name, primary_key)
        return {"config_changes": [{"new_val": table.config, "old_val": None}], "tables_created": 1}

    def drop(self, name: str) -> Document:
        table = self.table(name)
        del self.tables[name]
        _abort_feeds([table])
        return {"config_changes": [{"new_val": None, "old_val": table.config}], "tables_dropped": 1}


class World:
    """All databases of one server. At first there is only an empty database ``test``, as in a new RethinkDB."""

    def __init__(self) -> None:
        self.databases = {"test": Database("test")}

    def database(self, name: Any) -> Database:
        _check_name("Database", name)
        if name == "rethinkdb":
            raise unsupported("The system database `rethinkdb`")
        if name not in self.databases:
            raise op_failed(f"Database `{name}` does not exist.")
        return self.databases[name]

    def create(self, name: str) -> Document:
        _check_name("Database", name)
        if name in ("rethinkdb", *self.databases):
            raise op_failed(f"Database `{name}` already exists.")
        database = self.databases[name] = Database(name)
        return {"config_changes": [{"new_val": database.config, "old_val": None}], "dbs_created": 1}

    def drop(self, name: str) -> Document:
        database = self.database(name)
        del self.databases[name]
        _abort_feeds(database.tables.values())
        return {
            "config_changes": [{"new_val": None, "old_val": database.config}],
            "dbs_dropped": 1,
            "tables_dropped": len(database.tables),
        }


def _abort_feeds(tables: Iterable[Table]) -> None:
    for table in tables:
        for feed in list(table.feeds):
            feed.abort()


def _check_name(what: str, name: Any) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", expect(name, "STRING")):
        raise logic_error(f"{what} name `{name}` invalid (Use A-Z, a-z, 0-9, _ and - only).")
