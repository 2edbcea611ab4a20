"""async-repool 1.0.1 in a virtual environment and a process of its own: both releases have the same import name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

VERSION = "1.0.1"

RECORDED_CONTENDED_SECONDS = 49.0
"""30 workers on 3 connections, as ``contended.py`` has it: 48.97 to 48.98 s in three runs, CPython 3.11
and two shared cores. Nearly all of it is sleep: a caller who finds the pool full sleeps 0.3 s, then 0.6 s, and so on up
to 10 s, before it tries again."""

WORKER = Path(__file__).with_name("released_1_0_1_worker.py")


class Unavailable(Exception):
    """1.0.1 cannot be measured here."""


class Released:
    """A worker process that measures 1.0.1 on demand, and sleeps in between."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        """Start it, in an environment that is made on first use. Raises :class:`Unavailable`."""
        python = _environment(progress)
        self._process = subprocess.Popen(
            [python, "-I", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def __enter__(self) -> Released:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def uncontended(self, turns: int) -> float:
        """Seconds per turn."""
        return self._ask({"measure": "uncontended", "turns": turns})

    def contended(self, workers: int, connections: int, holds: int, hold_seconds: float) -> float:
        """Seconds until all are done: about 49 where the ideal is 0.25."""
        return self._ask(
            {
                "measure": "contended",
                "workers": workers,
                "connections": connections,
                "holds": holds,
                "hold_seconds": hold_seconds,
            }
        )

    def _ask(self, request: dict[str, object]) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._process.stdout.readline()
        if not answer:
            raise Unavailable(f"its process ended with status {self._process.wait()}")
        return float(json.loads(answer)["seconds"])


def _environment(progress: Callable[[str], None]) -> Path:
    """The Python of an environment that has 1.0.1, made once in the user's cache folder for this version of Python."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "async-repool-benchmarks"
    folder = cache / f"{VERSION}-{sys.implementation.cache_tag}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if _has_1_0_1(python):
        return python
    progress(f"installing async-repool {VERSION} into {folder}")
    _run([sys.executable, "-m", "venv", "--clear", folder])
    _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"async-repool=={VERSION}"])
    if not _has_1_0_1(python):
        raise Unavailable(f"async-repool {VERSION} was installed into {folder}, but cannot be imported there")
    return python


def _has_1_0_1(python: Path) -> bool:
    check = f"import async_repool; assert async_repool.__version__ == {VERSION!r}"
    return python.exists() and subprocess.run([python, "-I", "-c", check], capture_output=True).returncode == 0


def _run(command: list[str | Path]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise Unavailable(f"an environment for it could not be made: {lines[-1]}") from error
