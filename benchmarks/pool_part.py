"""The first part: what a connection costs, side by side with other pools. A server is only connected to."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial

from . import contended, hot_path, long_lines, memory, uncontended
from .progress import Progress
from .released_1_0_1 import RECORDED_CONTENDED_SECONDS, Released, Unavailable
from .report import Goal, Report, Table, microseconds, times
from .rounds import Measure, Rounds, measure_in_rounds
from .servers import Server
from .subjects import OURS, PSYCOPG, QUEUE, REAL, RELEASED, Subject, find_subjects, on_server


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
QUICK = Effort(rounds=1, turn_rounds=3, turns=500, hand_overs=300, cancellations=500, lines=(10, 1_000))

PROFILE_SECONDS = 10.0


@dataclass(frozen=True)
class PoolPart:
    """What is measured, how much, and where it is reported."""

    subjects: list[Subject]
    real: Subject
    """Ours, on connections to the server."""
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
            subject.name: partial(uncontended.measure, subject, turns)
            for subject in (self.ours, self.real, *self.subjects[1:])
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
        self.report.sections.append(table)
        for name, kind in ((OURS, "a turn"), (REAL, "a turn on real connections")):
            of_psycopg = result.ratio(name, PSYCOPG) if PSYCOPG in result else None
            self.report.goals += [
                Goal(f"1. {kind}, as a multiple of a bare queue's get and put", 6, result.ratio(name, QUEUE)),
                Goal(f"1. {kind}, as a multiple of psycopg_pool's", 0.4, of_psycopg),
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
        self.report.sections.append(table)
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
            self.report.sections.append(table)
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
        self.report.sections.append(table)

    def profile(self) -> None:
        self.progress("profile of a turn")
        seconds, samples = hot_path.profile_turns(self.real, PROFILE_SECONDS)
        title = f"Where the {microseconds(seconds)} of a turn go, on real connections"
        shares = self.report.values["profile of a turn"] = hot_path.by_function(samples)
        self.report.sections.append(hot_path.table(title, seconds, shares))


def measure_pools(
    report: Report,
    progress: Progress,
    *,
    server: Server,
    is_quick: bool,
    skips_released: bool,
    is_slow: bool,
    has_profile: bool,
) -> None:
    """Measure all, and report it. 1.0.1 is measured where it can be installed."""
    subjects, missing = find_subjects()
    report.not_measured |= missing
    with ExitStack() as stack:
        released = None
        if is_quick or skips_released:
            report.not_measured[RELEASED] = f"by --{'quick' if is_quick else 'no-1.0.1'}"
        else:
            try:
                released = stack.enter_context(Released(progress))
            except Unavailable as error:
                report.not_measured[RELEASED] = str(error)
        part = PoolPart(subjects, on_server(server), released, QUICK if is_quick else FULL, is_slow, progress, report)
        for measure in (part.uncontended, part.contended, part.long_lines, part.memory):
            measure()
        if has_profile:
            part.profile()
