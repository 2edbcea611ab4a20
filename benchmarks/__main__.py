"""``python -m benchmarks``: what a connection costs, side by side with other pools. See README.rst."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from . import contended, hot_path, long_lines, memory, uncontended
from .released_1_0_1 import RECORDED_CONTENDED_SECONDS, Released, Unavailable
from .report import Goal, Report, Table, microseconds, times
from .rounds import Measure, Rounds, measure_in_rounds
from .subjects import OURS, PSYCOPG, QUEUE, RELEASED, Subject, find_subjects


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    rounds: int
    turn_rounds: int
    """Of the shortest measurements, which need more and closer ones."""
    turns: int
    hand_overs: int
    cancellations: int
    lines: tuple[int, ...]
    """How many wait, ascending."""


FULL = Effort(rounds=7, turn_rounds=35, turns=2_000, hand_overs=10_000, cancellations=10_000, lines=(10, 1_000, 10_000))
QUICK = Effort(rounds=3, turn_rounds=5, turns=1_000, hand_overs=500, cancellations=1_000, lines=(10, 1_000))


class Progress:
    """One line on stderr, written over and over on a terminal."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        line = f"[{time.monotonic() - self._began:5.1f} s] {text}"
        print(f"\r\x1b[K{line}" if self._is_terminal else line, end="" if self._is_terminal else "\n", file=sys.stderr)
        sys.stderr.flush()

    def clear(self) -> None:
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Run:
    """One run: what is measured, how much, and where it is reported."""

    subjects: list[Subject]
    released: Released | None
    effort: Effort
    is_slow: bool
    progress: Progress
    report: Report

    @property
    def ours(self) -> Subject:
        return self.subjects[0]

    def _in_rounds(self, part: str, measures: dict[str, Measure], rounds: int) -> Rounds[str]:
        result = measure_in_rounds(measures, rounds, lambda text: self.progress(f"{part}, {text}"))
        self.report.values[part] = result.values
        return result

    def uncontended(self) -> None:
        turns = self.effort.turns
        measures: dict[str, Measure] = {
            subject.name: partial(uncontended.measure, subject, turns) for subject in self.subjects
        }
        if self.released is not None:
            measures[RELEASED] = partial(self.released.uncontended, turns)
        result = self._in_rounds("uncontended", measures, self.effort.turn_rounds)
        table = Table(
            f"1. async with pool.connect(), an idle connection at hand ({self.effort.turn_rounds} rounds)",
            ("", "one turn", "/ bare queue", f"/ {OURS}", "middle half"),
        )
        for name in measures:
            low, _, high = statistics.quantiles(result.ratios(name, QUEUE), n=4)
            table.rows.append(
                (
                    name,
                    microseconds(result.median(name)),
                    times(result.ratio(name, QUEUE)),
                    times(result.ratio(name, OURS)),
                    f"{low:.2f} - {high:.2f}",
                )
            )
        self.report.tables.append(table)
        self.report.goals += [
            Goal("1. a turn, as a multiple of a bare queue's get and put", 6, result.ratio(OURS, QUEUE)),
            Goal(
                "1. a turn, as a multiple of psycopg_pool's",
                0.4,
                result.ratio(OURS, PSYCOPG) if PSYCOPG in result else None,
            ),
        ]

    def contended(self) -> None:
        measures: dict[str, Measure] = {subject.name: partial(contended.measure, subject) for subject in self.subjects}
        result = self._in_rounds("contended", measures, self.effort.rounds)
        ideal = contended.IDEAL_SECONDS
        table = Table(
            f"2. {contended.WORKERS} workers on {contended.CONNECTIONS} connections, "
            f"{contended.HOLDS} times {contended.HOLD_SECONDS * 1000:g} ms each",
            ("", "all done in", f"/ ideal {ideal:g} s"),
        )
        for name in measures:
            table.rows.append((name, f"{result.median(name):.3f} s", times(result.median(name) / ideal)))
        if self.released is not None and self.is_slow:
            self.progress("contended: async-repool 1.0.1, once, about 49 s")
            seconds = self.released.contended(
                contended.WORKERS, contended.CONNECTIONS, contended.HOLDS, contended.HOLD_SECONDS
            )
            self.report.values["contended"][RELEASED] = [seconds]
            table.rows.append((f"{RELEASED}, measured once", f"{seconds:.3f} s", times(seconds / ideal)))
        else:
            seconds = RECORDED_CONTENDED_SECONDS
            table.rows.append((f"{RELEASED}, recorded (*)", f"{seconds:.0f} s", times(seconds / ideal)))
            table.rows.append(("(*) not of this run; --slow measures it", "", ""))
        self.report.tables.append(table)
        self.report.goals.append(Goal("2. many workers, as a multiple of the ideal", 1.3, result.median(OURS) / ideal))

    def long_lines(self) -> None:
        shortest, *_, longest = self.effort.lines
        for number, part, title, measure, size in (
            ("3", "hand-over", "one hand-over, by how many wait", long_lines.measure_hand_over, self.effort.hand_overs),
            (
                "4",
                "cancel",
                "one of all who wait leaving at once",
                long_lines.measure_cancel,
                self.effort.cancellations,
            ),
        ):
            measures: dict[str, Measure] = {
                f"{subject.name}, {line}": partial(measure, subject, line, size)
                for subject in self.subjects
                for line in self.effort.lines
            }
            result = self._in_rounds(part, measures, min(self.effort.rounds, 5))
            table = Table(
                f"{number}. {title}",
                ("", *(f"{line:,} wait" for line in self.effort.lines), f"{longest:,} / {shortest:,}"),
            )
            for subject in self.subjects:
                keys = [f"{subject.name}, {line}" for line in self.effort.lines]
                table.rows.append(
                    (
                        subject.name,
                        *(microseconds(result.median(key)) for key in keys),
                        times(result.ratio(keys[-1], keys[0])),
                    )
                )
            self.report.tables.append(table)
            name = self.ours.name
            self.report.goals.append(
                Goal(
                    f"{number}. {title}: {longest:,} as a multiple of {shortest:,}",
                    2,
                    result.ratio(f"{name}, {longest}", f"{name}, {shortest}"),
                )
            )

    def memory(self) -> None:
        table = Table(
            "5. memory, with fake connections of some 50 bytes", ("", "open pool of 1", "each idle slot more")
        )
        weights = self.report.values["memory"] = {}
        for subject in self.subjects:
            self.progress(f"memory: {subject.name}")
            weight = memory.weigh(subject)
            weights[subject.name] = asdict(weight)
            table.rows.append((subject.name, f"{weight.pool / 1024:,.1f} KiB", f"{weight.slot:,.0f} bytes"))
        self.report.tables.append(table)

    def profile(self) -> None:
        self.progress("profile")
        seconds, shares = hot_path.profile(self.ours, 10)
        table = Table(f"6. where the {microseconds(seconds)} of a turn go, sampled", ("", "self time", "share"))
        for name, share in shares:
            if share >= 0.01:
                table.rows.append((name, microseconds(share * seconds), f"{share:.0%}"))
        self.report.tables.append(table)
        self.report.values["profile"] = dict(shares)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and return the exit status."""
    options = _parser().parse_args(arguments)
    effort = QUICK if options.quick else FULL
    progress = Progress()
    subjects, missing = find_subjects()
    report = Report(rounds=effort.rounds, not_measured=missing)
    with ExitStack() as stack:
        released = None
        if options.quick or options.no_1_0_1:
            missing[RELEASED] = f"by --{'quick' if options.quick else 'no-1.0.1'}"
        else:
            try:
                released = stack.enter_context(Released(progress))
            except Unavailable as error:
                missing[RELEASED] = str(error)
        run = Run(subjects, released, effort, options.slow, progress, report)
        for part in (run.uncontended, run.contended, run.long_lines, run.memory, *((run.profile,) * options.profile)):
            part()
    progress.clear()
    print(report)
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_dict(), indent=1) + "\n")
    return 1 if options.check and report.has_missed_goals else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds, rough numbers; implies --no-1.0.1")
    parser.add_argument("--no-1.0.1", dest="no_1_0_1", action="store_true", help="install and measure no 1.0.1")
    parser.add_argument("--slow", action="store_true", help="measure the contended 1.0.1 too, which takes 49 s")
    parser.add_argument("--profile", action="store_true", help="also sample where the time of a turn goes (Unix)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value of every round there")
    parser.add_argument("--check", action="store_true", help="exit with status 1 where a goal is missed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
