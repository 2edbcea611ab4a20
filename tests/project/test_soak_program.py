"""The soak in real time runs, judges itself, and prints what it promises. How it runs for long is tried by hand."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any
from urllib.parse import quote

import pytest

from paths import ROOT


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "dev", "-W", "error", "-m", "benchmarks.soak", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=60)


@pytest.mark.parametrize("server", ["the stand-in", "by url"])
def test_a_second_of_soak_finds_nothing_wrong_hung_or_leaked(server: str, rethinkdb_server: Any) -> None:
    who = f"{quote(rethinkdb_server.user, safe='')}:{quote(rethinkdb_server.password, safe='')}"
    url = f"rethinkdb://{who}@{rethinkdb_server.url.removeprefix('rethinkdb://')}"
    process = run("--seconds", "1", *(("--url", url) if server == "by url" else ()))
    assert process.returncode == 0, process.stdout + process.stderr
    told = dict(re.findall(r"^(\w+) +(.+)$", process.stdout, re.MULTILINE))
    assert int(told["answered"].split(";")[0].replace(",", "")) >= 5, "each connection of five answers at the end"
    assert (told["wrong"], told["hung"], told["leaked"]) == ("0", "0", "0")
    assert {"cancelled", "failed", "faults", "files", "tasks", "memory", "leases", "longest"} <= told.keys()
    assert f"\n[{'#' * 30}] " in process.stderr  # perhaps with asyncio's complaints of a slow machine behind it


def test_a_soak_of_no_time_is_refused() -> None:
    process = run("--seconds", "0")
    assert (process.returncode, process.stdout) == (2, "")
    assert "--seconds must be more than 0" in process.stderr
