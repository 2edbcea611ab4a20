"""Measures one version of async-repool, in a process of its own: all versions have the same import name.

Run by ``former.py`` with the folder of a checkout and the server. The package is imported from there; what measures it
is from here, and the same for every version. One JSON object per line on stdin says what to measure, one per line on
stdout answers.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

Row: TypeAlias = Callable[[], float]
"""Measures something once: seconds of each."""

HERE = str(Path(__file__).parent.parent)
CONNECTIONS = 3


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    rounds: int
    turns: int
    queries: int
    """Of each of 64 tasks; others in proportion."""
    rows: int
    """Of the largest result."""
    waiters: int
    """Hand-overs, and callers who leave."""
    longest: int
    """The longer line; the other is of 10."""


def import_from(folder: str) -> None:
    """Import the package of this checkout, whatever is installed; and everything else from here."""
    sys.path.insert(0, folder)
    import async_repool

    found = Path(async_repool.__file__).resolve()
    if not found.is_relative_to(Path(folder).resolve()):
        raise SystemExit(f"{folder} has no async_repool: it was imported from {found}")
    sys.path[0] = HERE


def rows(server: Any, database: str, effort: Effort) -> dict[str, Row]:
    """What is measured, in the order of the table."""
    from benchmarks import data, long_lines, queries, subjects, uncontended

    fake, real = subjects.find_subjects()[0][0], subjects.on_server(server)
    turns, size, lines = effort.turns, effort.queries, (10, effort.longest)
    loads = [
        ("run(), 1 task", queries.RUN, queries.ones(1, 20 * size, 1)),
        ("run(), 64 tasks", queries.RUN, queries.ones(64, size, CONNECTIONS)),
        ("run(), point reads", queries.RUN, data.point_reads(database, effort.rows, 64, size)),
        ("run(), 100 rows", queries.RUN, data.few_rows(database, 16, max(1, size // 2))),
        (f"run(), {effort.rows:,} rows", queries.RUN, data.many_rows(database, effort.rows, 3, size // 30 or 1)),
        ("a lease per query, 1 task", queries.LEASE, queries.ones(1, 20 * size, 1)),
        ("a lease per query, 64 tasks", queries.LEASE, queries.ones(64, size, CONNECTIONS)),
    ]

    def query(side: str, load: queries.Load) -> float:
        return queries.measure(side, load, server).seconds

    hand_over, leave = long_lines.measure_hand_over, long_lines.measure_cancel
    return {
        "connect(), fake connections": partial(uncontended.measure, fake, turns),
        "connect(), real connections": partial(uncontended.measure, real, turns),
        "acquire() and release(), fake": partial(uncontended.measure_acquire, turns),
        "acquire() and release(), real": partial(uncontended.measure_acquire, turns, server),
        **{title: partial(query, side, load) for title, side, load in loads},
        **{f"hand-over, {line:,} wait": partial(hand_over, fake, line, effort.waiters) for line in lines},
        **{f"leaving, {line:,} wait": partial(leave, fake, line, effort.waiters) for line in lines},
    }


def main() -> None:
    folder, database = sys.argv[1:]
    import_from(folder)
    from benchmarks.servers import Server

    first = json.loads(sys.stdin.readline())
    measures = rows(Server(first["server"], "", is_real=True), database, Effort(**first["effort"]))
    gc.collect()
    gc.freeze()
    print(json.dumps(list(measures)), flush=True)
    for line in sys.stdin:
        gc.collect()
        print(json.dumps({"seconds": measures[json.loads(line)]()}), flush=True)


if __name__ == "__main__":
    main()
