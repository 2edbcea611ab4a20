"""The second part: queries on a server, beside the bare driver."""

from __future__ import annotations

import asyncio
import gc
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial

from . import chart, crowd, data, hot_path, memory, queries, servers
from .progress import Progress
from .queries import DOZING_FLOOR, DRIVER, FLOOR, LEASE, RUN, Cost, LoopFactory
from .report import Goal, Report, Table, machine, microseconds, times
from .rounds import Measure, Rounds, measure_in_rounds
from .servers import Server


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    rounds: int
    crowd_rounds: int
    queries: int
    """Of each of 64 tasks that share connections; others in proportion."""
    many: int
    """Rows of the largest result."""
    at_once: tuple[int, int]
    feeds: int
    profile_seconds: float


FULL = Effort(
    rounds=25, crowd_rounds=9, queries=60, many=10_000, at_once=(1_000, 10_000), feeds=1_000, profile_seconds=10
)
QUICK = Effort(rounds=2, crowd_rounds=2, queries=1, many=300, at_once=(100, 500), feeds=50, profile_seconds=1)

TASKS = 64
CONNECTIONS = 3


@dataclass
class QueryPart:
    """What is measured, how much, on which server, and where it is reported."""

    effort: Effort
    server: Server
    database: str
    progress: Progress
    report: Report
    panels: list[chart.Panel] = field(default_factory=list)

    def all_at_work(self) -> None:
        """Many tasks on few connections: the sides, the floors, and the same on uvloop where it is installed."""
        load = queries.ones(TASKS, self.effort.queries, CONNECTIONS)
        sides: dict[str, tuple[str, LoopFactory | None]] = {
            side: (side, None) for side in (RUN, DRIVER, LEASE, FLOOR, DOZING_FLOOR)
        }
        if new_uvloop := self._uvloop():
            sides |= {f"{side}, uvloop": (side, new_uvloop) for side in (RUN, DRIVER, FLOOR)}
        result, cpu = self._in_rounds(
            load.title,
            {name: partial(queries.measure, side, load, self.server, loop) for name, (side, loop) in sides.items()},
            self.effort.rounds,
        )
        table = Table(
            f"6. {load.title} on {CONNECTIONS} connections ({self.effort.rounds} rounds)",
            ("", "queries / s", "each", "client's CPU", "times as fast as the driver", "middle half"),
        )
        panel = chart.Panel(f"{load.title} on {CONNECTIONS} connections", "thousand queries a second")
        cpu_panel = chart.Panel("The same: processor time of the client", "microseconds for each query; less is better")
        for name in sides:
            speeds = result.ratios(DRIVER, name)
            table.rows.append(
                (
                    name,
                    f"{1 / result.median(name):,.0f}",
                    microseconds(result.median(name)),
                    microseconds(cpu.median(name)),
                    times(statistics.median(speeds)),
                    middle_half(speeds),
                )
            )
            panel.bars.append(_bar(name, [1 / seconds / 1000 for seconds in result.values[name]], name.startswith(RUN)))
            cpu_panel.bars.append(_bar(name, [seconds * 1e6 for seconds in cpu.values[name]], name.startswith(RUN)))
        self.report.sections.append(table)
        self.panels += [panel, cpu_panel]
        self.report.goals += [
            Goal(
                f"6. run, {TASKS} tasks, times as fast as the bare driver", 1.2, result.ratio(DRIVER, RUN), "at least"
            ),
            Goal(f"6. run, {TASKS} tasks, times as fast as a lease per query", 3, result.ratio(LEASE, RUN), "at least"),
        ]

    def side_by_side(self) -> None:
        """Ours and the driver, load by load."""
        size, name = self.effort.queries, self.database
        alone = queries.ones(1, 20 * size, 1)
        loads = [
            (RUN, alone, 0.95),
            (LEASE, alone, 0.95),
            (RUN, data.point_reads(name, self.effort.many, TASKS, size), 1.0),
            (RUN, data.few_rows(name, TASKS // 4, max(1, size // 2)), 1.0),
            (RUN, data.few_dated_rows(name, TASKS // 4, max(1, size // 2)), 1.0),
            (RUN, data.many_rows(name, self.effort.many, CONNECTIONS, max(1, size // 30)), 1.0),
            (RUN, data.large_documents(name, TASKS // 4, max(1, size // 12)), 1.0),
        ]
        table = Table(
            f"7. ours beside the bare driver, on as many connections ({self.effort.rounds} rounds)",
            ("", "ours", "the driver", "times as fast", "middle half", "the driver's CPU / ours"),
        )
        panel = chart.Panel(
            "Other work, as many connections each", "speed as a multiple of the bare driver's", 2, has_line_at_one=True
        )
        for side, load, goal in loads:
            title = f"{load.title}, {side}" if side == LEASE else load.title
            measures = {key: partial(queries.measure, key, load, self.server) for key in (side, DRIVER)}
            result, cpu = self._in_rounds(title, measures, self.effort.rounds)
            speeds = result.ratios(DRIVER, side)
            table.rows.append(
                (
                    title,
                    microseconds(result.median(side)),
                    microseconds(result.median(DRIVER)),
                    times(statistics.median(speeds)),
                    middle_half(speeds),
                    times(cpu.ratio(DRIVER, side)),
                )
            )
            panel.bars.append(_bar(title, speeds, is_ours=True))
            self.report.goals.append(
                Goal(f"7. {title}: times as fast as the bare driver", goal, statistics.median(speeds), "at least")
            )
        self.report.sections.append(table)
        self.panels.append(panel)

    def at_once(self) -> None:
        """So many queries at once that most stand in line."""
        few, many = self.effort.at_once
        title = f"{many:,} at once on {CONNECTIONS} connections"
        measures = {
            f"{side}, {count:,}": partial(crowd.measure_at_once, side, count, many, self.server)
            for side in (RUN, DRIVER)
            for count in (few, many)
        }
        result, _ = self._in_rounds(title, measures, self.effort.crowd_rounds)
        table = Table(
            f"8. r.expr(n), {few:,} and {many:,} at once on {CONNECTIONS} connections, every answer looked at "
            f"({self.effort.crowd_rounds} rounds)",
            ("", f"time each, {few:,}", f"{many:,}", "ratio", f"memory each, {few:,}", f"{many:,}", "ratio"),
        )
        weights = self.report.values[f"{title}, memory"] = {}
        for side in (RUN, DRIVER):
            keys = [f"{side}, {count:,}" for count in (few, many)]
            for key, count in zip(keys, (few, many), strict=True):
                self.progress(f"{title}, memory: {key}")
                weights[key] = crowd.weigh_at_once(side, count, self.server)
            growth = result.ratio(keys[1], keys[0])
            memory_growth = weights[keys[1]] / weights[keys[0]]
            table.rows.append(
                (
                    side,
                    *(microseconds(result.median(key)) for key in keys),
                    times(growth),
                    *(f"{weights[key]:,.0f} bytes" for key in keys),
                    times(memory_growth),
                )
            )
            if side == RUN:
                self.report.goals += [
                    Goal(f"8. {many:,} run at once, time of each as a multiple of {few:,}", 1.25, growth),
                    Goal(f"8. {many:,} run at once, memory of each as a multiple of {few:,}", 1.25, memory_growth),
                ]
        self.report.sections.append(table)

    def beside_feeds(self) -> None:
        """Queries on a pool that has many feeds open."""
        feeds, rounds = self.effort.feeds, self.effort.crowd_rounds
        table = Table(
            f"9. run() on a pool with {feeds:,} open feeds ({rounds} rounds)",
            ("", "without feeds", "beside them", "ratio", "middle half"),
        )
        deliveries: list[float] = []
        for load in (
            queries.ones(1, 20 * self.effort.queries, CONNECTIONS),
            queries.ones(TASKS, self.effort.queries, CONNECTIONS),
        ):
            title = f"{load.title} beside {feeds:,} feeds"
            measures = {
                name: partial(crowd.measure_beside, count, load, self.database, self.server, deliveries)
                for name, count in (("without", 0), ("beside", feeds))
            }
            result, _ = self._in_rounds(title, measures, rounds)
            ratios = result.ratios("beside", "without")
            table.rows.append(
                (
                    load.title,
                    microseconds(result.median("without")),
                    microseconds(result.median("beside")),
                    times(statistics.median(ratios)),
                    middle_half(ratios),
                )
            )
            self.report.goals.append(
                Goal(f"9. {load.title}, beside {feeds:,} feeds / without", 1.2, statistics.median(ratios))
            )
        self.report.sections.append(table)
        self.report.sections.append(
            f"One change reached the tasks of all {feeds:,} feeds in {statistics.median(deliveries) * 1000:.0f} ms."
        )
        self.report.values[f"one change to {feeds:,} feeds"] = deliveries

    def memory(self) -> None:
        self.progress("memory of connections")
        weight = memory.weigh_on(self.server)
        self.report.values["memory on a server"] = asdict(weight)
        self.report.sections.append(
            Table(
                "10. memory that Python allocates, open and idle",
                ("", "bytes"),
                [
                    ("one of our connections", f"{weight.connection:,.0f}"),
                    ("one of the driver's", f"{weight.driver_connection:,.0f}"),
                    (f"a pool of {memory.POOL_SIZE}, connections included", f"{weight.pool:,.0f}"),
                ],
            )
        )
        ratio = weight.connection / weight.driver_connection
        self.report.goals.append(Goal("10. memory of a connection, as a multiple of the driver's", 1.0, ratio))

    def profile(self) -> None:
        self.progress("profile of a query")
        load = queries.ones(TASKS, self.effort.queries, CONNECTIONS)
        seconds, samples = hot_path.profile_queries(load, self.server, self.effort.profile_seconds)
        layers, functions = hot_path.by_layer(samples), hot_path.by_function(samples)
        self.report.values["profile of a query"] = {"seconds": seconds, "layers": layers, "functions": functions}
        self.report.sections += [
            hot_path.table(
                f"Where the {microseconds(seconds)} of processor time of a pool.run() go, {load.title}", seconds, layers
            ),
            hot_path.table("The same, by function", seconds, functions),
        ]

    def _in_rounds(
        self, part: str, measures: Mapping[str, Callable[[], Cost]], rounds: int
    ) -> tuple[Rounds[str], Rounds[str]]:
        """The time of each, and this process's processor time."""
        cpu: Rounds[str] = Rounds({name: [] for name in measures})

        def timed(name: str) -> float:
            cost = measures[name]()
            cpu.values[name].append(cost.cpu_seconds)
            return cost.seconds

        timers: dict[str, Measure] = {name: partial(timed, name) for name in measures}
        result = measure_in_rounds(timers, rounds, lambda text: self.progress(f"{part}, {text}"))
        self.report.values[part] = result.values
        self.report.values[f"{part}, client's CPU"] = cpu.values
        return result, cpu

    def _uvloop(self) -> LoopFactory | None:
        try:
            import uvloop
        except ImportError:
            self.report.not_measured["uvloop"] = "it is not installed"
            return None
        new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
        return new_loop


def measure_queries(
    report: Report, progress: Progress, *, server: Server, note: str, is_quick: bool, has_profile: bool
) -> str:
    """Measure all, and report it. Returns the chart."""
    effort = QUICK if is_quick else FULL
    gc.collect()
    gc.freeze()  # modules and their like, which every collection would look at
    meaning = note if server.is_real else servers.STAND_IN_MEANING
    about = f"{server.name}. {meaning}" if meaning else server.name
    report.server = {"name": server.name, "is_real": server.is_real, "note": note}
    report.sections.append(f"Queries on: {about}")
    progress("filling the database")
    with data.database(server, effort.many) as database:
        part = QueryPart(effort, server, database, progress, report)
        for measure in (part.all_at_work, part.side_by_side, part.at_once, part.beside_feeds, part.memory):
            measure()
        if has_profile:
            part.profile()
        progress("dropping the database")
    notes = [
        about,
        f"{machine()}. Medians of {effort.rounds} interleaved rounds; the lines span the middle half of them.",
        "The floor only writes prepared queries and counts answers.",
    ]
    return chart.draw("async-repool beside the bare driver", part.panels, notes)


def middle_half(values: list[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low:.2f} - {high:.2f}"


def _bar(name: str, values: list[float], is_ours: bool) -> chart.Bar:
    low, middle, high = statistics.quantiles(values, n=4)
    return chart.Bar(name, middle, low, high, is_ours)
