"""Fixtures that several files of this folder use."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from importlib.metadata import entry_points

import pytest

from async_repool.testing import StandInServer
from wire_client import TABLE_CREATE, WireClient


@pytest.fixture
def run_pytest(pytester, monkeypatch):
    """Runs pytest with the plugin on the files of `pytester`. Warnings are errors."""
    is_installed = any(entry.name == "async_repool" for entry in entry_points(group="pytest11"))
    plugin = [] if is_installed else ["-p", "async_repool.testing.pytest_plugin"]
    pytester.makeini(
        """
        [pytest]
        asyncio_mode = auto
        asyncio_default_fixture_loop_scope = function
        filterwarnings = error
        """
    )

    def run(*arguments, in_process=True):
        unneeded = [
            argument
            for name in ("cacheprovider", "hypothesispytest", "pytest_cov")
            for argument in ("-p", f"no:{name}")
        ]
        runner = pytester.runpytest_inprocess if in_process else pytester.runpytest_subprocess
        return runner(*plugin, *unneeded, *arguments)

    return run


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without a server: no URL, no program, no Docker engine."""
    monkeypatch.delenv("RETHINKDB_URL", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-engine.sock")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # for programs started here
    return tmp_path


@pytest.fixture
async def server() -> AsyncIterator[StandInServer]:
    async with StandInServer() as server:
        yield server
    assert (server.connections, server.open_streams, server.running_queries) == (0, 0, 0)


@pytest.fixture
async def wire(server: StandInServer) -> AsyncIterator[WireClient]:
    async with WireClient(server.host, server.port) as wire:
        await wire.run([TABLE_CREATE, ["t"]])
        yield wire
