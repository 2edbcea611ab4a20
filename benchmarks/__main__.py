"""``python -m benchmarks``: what a connection costs, and a query, beside other pools, the driver and a former version.

See README.rst.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent

from . import servers
from .former import measure_former
from .pool_part import measure_pools
from .progress import Progress
from .query_part import measure_queries
from .report import Report

README = Path(__file__).with_name("README.rst")
CHART = Path(__file__).with_name("queries.svg")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.publish and options.only is None:
        parser.error("--publish needs --only, to know which tables to replace")
    if options.only == "former" and options.former is None:
        parser.error("--only former needs --former PATH, the version to compare with")
    progress = Progress()
    try:
        report = _measure(options, progress)
    except KeyboardInterrupt:
        progress.clear()
        print("interrupted; nothing is left on the server", file=sys.stderr)
        return 130
    progress.clear()
    print(report)
    if options.publish:
        _publish(options.only, str(report))
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
    return 1 if options.check and report.has_missed_goals else 0


def _measure(options: argparse.Namespace, progress: Progress) -> Report:
    report = Report()
    with servers.running(options.url) as server:
        if options.only in (None, "pools"):
            measure_pools(
                report,
                progress,
                server=server,
                is_quick=options.quick,
                skips_released=options.no_1_0_1,
                is_slow=options.slow,
                has_profile=options.profile,
            )
        if options.only in (None, "queries"):
            chart = measure_queries(
                report,
                progress,
                server=server,
                note=options.note,
                is_quick=options.quick,
                has_profile=options.profile,
            )
            for file in filter(None, (options.svg, CHART if options.publish else None)):
                file.write_text(chart, encoding="utf-8")
        if options.former is not None and options.only in (None, "former"):
            measure_former(report, progress, former=options.former, server=server, is_quick=options.quick)
    return report


def _publish(part: str, text: str) -> None:
    """Put the tables of a run in place of those in the README."""
    begin, end = f".. begin: {part}\n", f".. end: {part}\n"
    before, _, rest = README.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    README.write_text(f"{before}{begin}\n::\n\n{indent(text, '    ')}\n\n{end}{after}", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=("pools", "queries", "former"), help="one of the parts")
    parser.add_argument("--quick", action="store_true", help="a few seconds, rough numbers; implies --no-1.0.1")
    parser.add_argument("--profile", action="store_true", help="also sample where the time goes (Unix)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value of every round there")
    parser.add_argument("--check", action="store_true", help="exit with status 1 where a goal is missed")
    parser.add_argument(
        "--publish",
        action="store_true",
        help="put the tables of --only into benchmarks/README.rst, the chart beside it",
    )
    parser.add_argument(
        "--former",
        type=Path,
        metavar="PATH",
        help="a checkout of another version: also measure this one beside it, row by row",
    )
    parser.add_argument(
        "--url",
        default=os.environ.get("RETHINKDB_URL") or None,
        help="rethinkdb://user:password@host:port of a real server (default: RETHINKDB_URL, else the stand-in)",
    )
    pools = parser.add_argument_group("pools")
    pools.add_argument("--no-1.0.1", dest="no_1_0_1", action="store_true", help="install and measure no 1.0.1")
    pools.add_argument("--slow", action="store_true", help="measure the contended 1.0.1 too, which takes 49 s")
    queries = parser.add_argument_group("queries")
    queries.add_argument("--note", default="", metavar="TEXT", help="what else is to be known of the server")
    queries.add_argument("--svg", type=Path, metavar="FILE", help="draw the chart there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
