"""What queries on a server ask for: a database of this run's own, filled, and the loads that read it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .queries import Load
from .servers import Server, r

FEW = 100
DOCUMENTS = 8
DOCUMENT_ITEMS = 1_120
"""Of some 90 bytes each: 100 kB."""


@contextmanager
def database(server: Server, many: int) -> Iterator[str]:
    """A database with tables of 1, 100 and ``many`` rows, and one of large documents. It is dropped whatever happens,
    Ctrl-C included.
    """
    name = "benchmarks_" + uuid.uuid4().hex
    try:
        asyncio.run(_fill(server, name, many))
        yield name
    finally:
        asyncio.run(_drop(server, name))


async def _fill(server: Server, name: str, many: int) -> None:
    contents = {
        "one": [_row(0)],
        "few": [_row(n) for n in range(FEW)],
        "few_dated": [_row(n) | {"at": r.epoch_time(1_500_000_000 + n)} for n in range(FEW)],
        "many": [_row(n) for n in range(many)],
        "large": [{"id": n, "items": [_row(item) for item in range(DOCUMENT_ITEMS)]} for n in range(DOCUMENTS)],
    }
    conn = await r.connect(**server.arguments)
    try:
        await r.db_create(name).run(conn)
        for table_name, rows in contents.items():
            await r.db(name).table_create(table_name).run(conn)
            table = r.db(name).table(table_name)
            await table.wait().run(conn)
            step = 4 if table_name == "large" else 1000
            for start in range(0, len(rows), step):
                done = await table.insert(rows[start : start + step], durability="soft").run(conn)
                assert done["inserted"] == len(rows[start : start + step]), done
    finally:
        await conn.close()


async def _drop(server: Server, name: str) -> None:
    conn = await r.connect(**server.arguments)
    try:
        with suppress(r.ReqlOpFailedError):  # it was not made yet
            await r.db_drop(name).run(conn)
    finally:
        await conn.close()


def _row(n: int) -> dict[str, Any]:
    return {"id": n, "name": f"row number {n}", "score": n * 1.5, "tags": ["red", "green"], "is_active": n % 2 == 0}


# ---------------------------------------------------------------------- the loads


def point_reads(name: str, many: int, tasks: int, queries: int) -> Load:
    table = r.db(name).table("many")
    return Load(
        "point reads", tasks, queries, 3, lambda n: table.get(n % many), lambda n, row: bool(row == _row(n % many))
    )


def few_rows(name: str, tasks: int, queries: int) -> Load:
    return _whole_table(f"{FEW} rows", name, "few", FEW, tasks, queries)


def few_dated_rows(name: str, tasks: int, queries: int) -> Load:
    return _whole_table(f"{FEW} rows with a time each", name, "few_dated", FEW, tasks, queries)


def many_rows(name: str, many: int, tasks: int, queries: int) -> Load:
    return _whole_table(f"{many:,} rows", name, "many", many, tasks, queries)


def _whole_table(title: str, name: str, table_name: str, count: int, tasks: int, queries: int) -> Load:
    table = r.db(name).table(table_name)

    def is_right(_: int, rows: Any) -> bool:
        return [row["name"] for row in sorted(rows, key=lambda row: row["id"])] == [
            _row(n)["name"] for n in range(count)
        ]

    return Load(title, tasks, queries, 3, lambda _: table, is_right, is_sequence=True)


def large_documents(name: str, tasks: int, queries: int) -> Load:
    table = r.db(name).table("large")
    items = [_row(n) for n in range(DOCUMENT_ITEMS)]
    return Load(
        "documents of 100 kB",
        tasks,
        queries,
        3,
        lambda n: table.get(n % DOCUMENTS),
        lambda n, document: bool(document == {"id": n % DOCUMENTS, "items": items}),
    )
