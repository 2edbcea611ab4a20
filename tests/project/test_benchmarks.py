"""The benchmarks run, and print what they promise. What they measure is not tested: machines are noisy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import pytest
import rethinkdb

from paths import ROOT

SVG = "{http://www.w3.org/2000/svg}"

Run = tuple[subprocess.CompletedProcess[str], dict[str, Any]]


def quick(part: str, file: Path, *more: str) -> Run:
    """One quick run, as its process and what it wrote as JSON. Queries are run on the stand-in."""
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", part, "--json", str(file), *more]
    environment = {name: value for name, value in os.environ.items() if name != "RETHINKDB_URL"}
    process = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    return process, json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


# ---- pools


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return quick("pools", tmp_path_factory.mktemp("benchmarks") / "run.json")


def test_a_quick_run_ends_well(run):
    process, _ = run
    assert process.returncode == 0, process.stderr


def test_it_prints_a_table_for_each_part_and_the_goals(run):
    table = run[0].stdout
    for part in ("1. async with", "2. 30 workers", "3. one hand-over", "4. one of all who wait", "5. memory", "Goals"):
        assert f"\n{part}" in table


def test_the_recorded_number_of_1_0_1_is_marked_as_such(run):
    assert "async-repool 1.0.1, recorded (*)" in run[0].stdout


def test_whatever_was_not_measured_is_said_so(run):
    process, result = run
    assert "async-repool 1.0.1" in result["not_measured"]
    for name, why in result["not_measured"].items():
        assert f"{name}: not measured, {why}" in process.stdout


def test_the_json_has_every_value_of_every_round(run):
    _, result = run
    contended = result["values"]["contended"]
    assert len(contended["async-repool"]) == len(contended["bare asyncio.Queue"]) == 1
    assert all(value > 0 for value in contended["async-repool"])


def test_a_turn_is_measured_on_real_connections_too(run):
    _, result = run
    turns = result["values"]["uncontended"]
    assert len(turns["async-repool, real connections"]) == len(turns["async-repool"])
    goals = [goal["text"] for goal in result["goals"]]
    assert "1. a turn on real connections, as a multiple of a bare queue's get and put" in goals


# ---- a former version


def test_this_version_is_measured_beside_another_in_the_same_rounds(tmp_path):
    process, result = quick("former", tmp_path / "run.json", "--former", str(ROOT))
    assert process.returncode == 0, process.stderr
    assert "\n11. this version beside the former" in process.stdout
    rows = result["values"]["beside the former version"]
    for row in ("connect(), real connections", "run(), 64 tasks", "hand-over, 10 wait", "leaving, 500 wait"):
        assert {version: len(seconds) for version, seconds in rows[row].items()} == {"now": 2, "former": 2}
    assert len(result["goals"]) == len(rows)


def test_a_folder_without_another_version_is_refused(tmp_path):
    process, _ = quick("former", tmp_path / "run.json", "--former", str(tmp_path))
    assert process.returncode != 0
    assert "has no async_repool" in process.stderr


def test_the_part_about_a_former_version_needs_one(tmp_path):
    process, _ = quick("former", tmp_path / "run.json")
    assert process.returncode == 2
    assert "--only former needs --former PATH" in process.stderr


# ---- queries


@pytest.fixture
def connection(rethinkdb_server: Any) -> Iterator[Any]:
    connection = rethinkdb.RethinkDB().connect(**rethinkdb_server.connect_arguments)
    yield connection
    connection.close()


def databases(connection: Any) -> list[str]:
    return [name for name in rethinkdb.r.db_list().run(connection) if name.startswith("benchmarks_")]


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmarks") / "queries.svg"


@pytest.fixture(scope="module")
def queries(chart: Path) -> Run:
    return quick("queries", chart.with_suffix(".json"), "--svg", str(chart))


def test_a_quick_run_of_queries_ends_well_and_prints_its_tables(queries):
    process, _ = queries
    assert process.returncode == 0, process.stderr
    for part in ("6. r.expr(1)", "7. ours beside", "8. r.expr(n)", "9. run() on a pool", "10. memory", "Goals"):
        assert f"\n{part}" in process.stdout


def test_it_says_what_the_queries_were_run_on(queries, chart):
    process, result = queries
    assert not result["server"]["is_real"]
    assert result["server"]["name"] in process.stdout
    assert result["server"]["name"] in chart.read_text(encoding="utf-8")


def test_each_side_is_measured_as_often_as_the_other(queries):
    _, result = queries
    at_work = result["values"]["r.expr(1), 64 tasks"]
    assert {"pool.run()", "bare driver", "a lease per query", "floor"} <= at_work.keys()
    assert {len(seconds) for seconds in at_work.values()} == {2}
    assert min(map(min, at_work.values())) > 0


def test_each_goal_of_queries_is_judged(queries):
    _, result = queries
    assert {goal["text"].split(".")[0] for goal in result["goals"]} == {"6", "7", "8", "9", "10"}
    assert all(goal["is_met"] in (True, False) for goal in result["goals"])


def test_the_chart_has_a_bar_for_each_row_on_axes_that_begin_at_zero(queries, chart):
    _, result = queries
    root = ElementTree.parse(chart).getroot()
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts.count("0") == 3
    bars = list(root.iter(f"{SVG}rect"))
    assert len({bar.get("x") for bar in bars}) == 1
    assert len(bars) == 2 * len(result["values"]["r.expr(1), 64 tasks"]) + 7
    for name in (*result["values"]["r.expr(1), 64 tasks"], "point reads", "100 rows", "documents of 100 kB"):
        assert name in texts


# A shell that ignores SIGINT, as after `nohup` or for `&` in a script, passes that on to its children.
OBEY_SIGINT = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_an_interrupted_run_leaves_no_database(rethinkdb_server: Any, connection: Any) -> None:
    who = f"{quote(rethinkdb_server.user, safe='')}:{quote(rethinkdb_server.password, safe='')}"
    url = f"rethinkdb://{who}@{rethinkdb_server.url.removeprefix('rethinkdb://')}"
    command = [sys.executable, "-c", OBEY_SIGINT, "--quick", "--only", "queries", "--url", url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        progress = []
        for line in process.stderr:
            progress.append(line)
            if "round 1/" in line:
                assert databases(connection)
                process.send_signal(signal.SIGINT)
                break
        output, rest = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, ""), (progress, rest)
    assert "nothing is left on the server" in rest
    assert not databases(connection)
