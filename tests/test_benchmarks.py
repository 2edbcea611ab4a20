"""The benchmarks run, and print what they promise. What they measure is not tested: machines are noisy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], dict[str, object]]:
    """One quick run, as its process and what it wrote as JSON."""
    file = tmp_path_factory.mktemp("benchmarks") / "run.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--json", str(file)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=120)
    return process, json.loads(file.read_text()) if file.exists() else {}


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
    assert len(result["values"]["contended"]["async-repool"]) == result["rounds"]
    assert all(value > 0 for value in result["values"]["contended"]["async-repool"])
