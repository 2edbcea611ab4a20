"""The third part: this version beside a former one, row by row, in one run.

Each version has a process of its own, which sleeps while the other is measured.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from . import data, former_worker
from .former_worker import Effort
from .progress import Progress
from .report import Goal, Report, Table, microseconds, times
from .rounds import measure_in_rounds
from .servers import Server

HERE = Path(__file__).parent.parent

MOST = 1.03
"""Goal: how much slower a row may be than it was."""

FULL = Effort(rounds=24, turns=4_000, queries=30, rows=10_000, waiters=10_000, longest=10_000)
QUICK = Effort(rounds=2, turns=200, queries=1, rows=300, waiters=500, longest=500)


class Version:
    """A worker process that measures one version."""

    def __init__(self, folder: Path, server: Server, database: str, effort: Effort) -> None:
        worker = [sys.executable, former_worker.__file__, str(folder.resolve()), database]
        # A session of its own: Ctrl-C is for us, who have yet to clean up on the server.
        self._process = subprocess.Popen(
            worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.rows: list[str] = self._ask({"server": server.arguments, "effort": asdict(effort)})

    def __enter__(self) -> Version:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def measure(self, row: str) -> float:
        """Seconds of each."""
        return float(self._ask(row)["seconds"])

    def _ask(self, request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"the worker that measures a version ended with status {self._process.wait()}")
        return json.loads(answer)


def measure_former(report: Report, progress: Progress, *, former: Path, server: Server, is_quick: bool) -> None:
    """Measure each row with both versions in each round, one right after the other, and report it."""
    effort = QUICK if is_quick else FULL
    progress("this version beside the former: filling the database")
    with data.database(server, effort.rows) as database, ExitStack() as stack:
        now, then = (stack.enter_context(Version(folder, server, database, effort)) for folder in (HERE, former))
        measures = {
            (row, name): partial(version.measure, row)
            for row in now.rows
            for name, version in (("now", now), ("former", then))
        }
        result = measure_in_rounds(measures, effort.rounds, lambda text: progress(f"former, {text}"))
    table = Table(
        f"11. this version beside the former ({effort.rounds} rounds)",
        ("", "now", "former", "now / former", "middle half"),
    )
    values = report.values["beside the former version"] = {}
    for row in now.rows:
        key, to = (row, "now"), (row, "former")
        low, ratio, high = statistics.quantiles(result.ratios(key, to), n=4)
        table.rows.append(
            (
                row,
                microseconds(result.median(key)),
                microseconds(result.median(to)),
                times(ratio),
                f"{low:.2f} - {high:.2f}",
            )
        )
        values[row] = {name: result.values[row, name] for name in ("now", "former")}
        report.goals.append(Goal(f"11. {row}: now / former", MOST, ratio))
    report.sections.append(table)
