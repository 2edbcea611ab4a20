"""What the installed pytest plugin costs a session: it imports only what the tests use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

PLUGIN = ["async_repool", "async_repool._lazy", "async_repool.testing", "async_repool.testing.pytest_plugin"]
LOADED = 'sorted(name for name in sys.modules if name.split(".")[0] in ("async_repool", "rethinkdb", "testcontainers"))'


def test_the_plugin_itself_loads_nothing_of_the_library_but_what_is_used():
    program = f"import sys, async_repool.testing.pytest_plugin; print(*{LOADED})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    assert done.stdout.split() == PLUGIN


@pytest.mark.parametrize(
    ("test", "also_loaded"),
    [
        pytest.param("def test_it():", [], id="a test that uses nothing"),
        pytest.param("def test_it(rethinkdb_server):", [], id="a test with a server"),
        pytest.param(
            "@pytest.mark.virtual_time\nasync def test_it():",
            ["async_repool.testing.virtual_clock"],
            id="a test on virtual time",
        ),
    ],
)
def test_a_session_imports_only_what_its_tests_use(pytester, run_pytest, bare, test, also_loaded):
    pytester.makepyfile(f"import sys, pytest\n{test}\n    assert {LOADED} == {sorted([*PLUGIN, *also_loaded])}")
    run_pytest(in_process=False).assert_outcomes(passed=1)
