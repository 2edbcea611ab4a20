"""The pytest plugin: tests on virtual time, and the server of a session, as pytest's user sees them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture
def run_pytest(pytester, monkeypatch):
    """Runs pytest on files in a directory of its own, with the plugin, warnings being errors."""
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

    def run(*arguments):
        unneeded = [
            argument
            for name in ("cacheprovider", "hypothesispytest", "pytest_cov")
            for argument in ("-p", f"no:{name}")
        ]
        return pytester.runpytest_inprocess(*plugin, *unneeded, *arguments)

    return run


# Virtual time.


def test_a_marked_test_runs_on_virtual_time(pytester, run_pytest):
    pytester.makepyfile(
        """
        import asyncio, pytest

        @pytest.mark.virtual_time
        async def test_a_month():
            await asyncio.sleep(30 * 86_400)
            assert asyncio.get_running_loop().time() == 30 * 86_400

        async def test_real_time():
            assert asyncio.get_running_loop().time() != 0
            assert type(asyncio.get_running_loop()).__name__ != "VirtualClockLoop"
        """
    )
    run_pytest().assert_outcomes(passed=2)


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_a_marked_test_runs_once_whatever_the_mode_of_pytest_asyncio(pytester, run_pytest, mode):
    pytester.makepyfile(
        """
        import pytest

        runs = []

        @pytest.mark.virtual_time
        async def test_runs():
            runs.append("run")

        def test_ran_once():
            assert runs == ["run"]
        """
    )
    run_pytest("--asyncio-mode", mode).assert_outcomes(passed=2)


def test_a_marked_test_needs_no_other_plugin(pytester, run_pytest):
    pytester.makeini("[pytest]\nfilterwarnings = error")
    pytester.makepyfile(
        """
        import asyncio, pytest

        @pytest.mark.virtual_time
        async def test_a_day():
            await asyncio.sleep(86_400)
        """
    )
    run_pytest("-p", "no:asyncio").assert_outcomes(passed=1)


def test_the_marker_may_stand_on_classes_and_modules_or_be_added_late(pytester, run_pytest):
    pytester.makeconftest(
        """
        def pytest_collection_modifyitems(items):
            for item in items:
                if item.name == "test_late":
                    item.add_marker("virtual_time")
        """
    )
    virtual = "assert type(asyncio.get_running_loop()).__name__ == 'VirtualClockLoop'"
    pytester.makepyfile(
        test_module=f"""
        import asyncio, pytest

        pytestmark = pytest.mark.virtual_time

        async def test_plain():
            {virtual}

        def test_sync():
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
        """,
        test_class=f"""
        import asyncio, pytest

        @pytest.mark.virtual_time
        class TestAll:
            async def test_method(self):
                {virtual}

            @staticmethod
            async def test_static():
                {virtual}
        """,
        test_late=f"""
        import asyncio

        async def test_late():
            {virtual}
        """,
    )
    run_pytest().assert_outcomes(passed=5)


def test_a_marked_test_takes_parameters_and_plain_fixtures(pytester, run_pytest):
    pytester.makepyfile(
        """
        import asyncio, pytest

        ended = []

        @pytest.fixture
        def delay():
            yield 3600
            ended.append("fixture")

        @pytest.mark.virtual_time
        @pytest.mark.parametrize("times", [1, 2])
        async def test_wait(times, delay, tmp_path):
            await asyncio.sleep(times * delay)
            assert asyncio.get_running_loop().time() == times * 3600
            assert tmp_path.is_dir()

        def test_fixtures_ended():
            assert ended == ["fixture", "fixture"]
        """
    )
    run_pytest().assert_outcomes(passed=3)


def test_a_marked_test_works_with_hypothesis(pytester, run_pytest):
    pytest.importorskip("hypothesis")
    pytester.makepyfile(
        """
        import asyncio, pytest
        from hypothesis import given, settings, strategies as st

        seen = []

        @pytest.mark.virtual_time
        @settings(max_examples=10, database=None)
        @given(seconds=st.integers(1, 1000))
        async def test_wait(seconds):
            await asyncio.sleep(seconds)
            assert asyncio.get_running_loop().time() == seconds
            seen.append(seconds)

        def test_examples():
            assert len(seen) == 10

        @pytest.mark.virtual_time
        @settings(max_examples=100, database=None)
        @given(seconds=st.integers(1, 1000))
        async def test_fails(seconds):
            await asyncio.sleep(seconds)
            assert seconds < 500
        """
    )
    result = run_pytest()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*seconds=500*"])


def test_the_marker_sets_the_clock_and_the_limit(pytester, run_pytest):
    pytester.makepyfile(
        """
        import asyncio, pytest

        @pytest.mark.virtual_time(start=1000.0)
        async def test_start():
            assert asyncio.get_running_loop().time() == 1000.0

        @pytest.mark.virtual_time(max_steps=50)
        async def test_limit():
            for _ in range(100):
                await asyncio.sleep(1)

        @pytest.mark.virtual_time(1000.0)
        async def test_wrong():
            pass
        """
    )
    result = run_pytest()
    result.assert_outcomes(passed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*DeadlockError: no end after 5? steps*"])
    result.stdout.fnmatch_lines(["*virtual_time takes keyword arguments only*"])


def test_a_marked_test_that_hangs_fails_and_tells_where(pytester, run_pytest):
    pytester.makepyfile(
        """
        import asyncio, pytest

        @pytest.mark.virtual_time
        async def test_hang():
            await asyncio.Event().wait()
        """
    )
    result = run_pytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*DeadlockError: nothing will ever happen*", "*test_hang*Event.wait*"])


def test_a_marked_test_that_leaves_tasks_behind_fails_and_names_them(pytester, run_pytest):
    pytester.makepyfile(
        """
        import asyncio, pytest

        @pytest.mark.virtual_time
        async def test_forget():
            test_forget.task = asyncio.create_task(asyncio.sleep(60), name="the forgotten one")
        """
    )
    result = run_pytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*LeftoverError: 1 task is left over", "*the forgotten one: *"])


def test_a_marked_test_that_does_not_await_a_coroutine_fails(pytester, run_pytest):
    pytester.makepyfile(
        """
        import asyncio, pytest

        @pytest.mark.virtual_time
        async def test_forget():
            asyncio.sleep(1)

        @pytest.mark.virtual_time
        async def test_forget_in_a_cycle():
            cycle = [asyncio.sleep(1)]
            cycle.append(cycle)

        @pytest.mark.virtual_time
        async def test_other():
            pass
        """
    )
    result = run_pytest()
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(["*'sleep' was never awaited*"])


def test_failures_skips_and_expected_failures_are_what_they_always_are(pytester, run_pytest):
    pytester.makepyfile(
        """
        import asyncio, pytest

        pytestmark = pytest.mark.virtual_time

        async def test_fails():
            await asyncio.sleep(1)
            left, right = 1, 2
            assert left == right

        async def test_skips():
            pytest.skip("not today")

        @pytest.mark.xfail(strict=True)
        async def test_expected():
            assert False
        """
    )
    result = run_pytest()
    result.assert_outcomes(failed=1, skipped=1, xfailed=1)
    result.stdout.fnmatch_lines(["E       assert 1 == 2"])


def test_an_async_fixture_is_refused_since_it_would_run_on_another_loop(pytester, run_pytest):
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        async def connection():
            return object()

        @pytest.mark.virtual_time
        async def test_it(connection):
            pass
        """
    )
    result = run_pytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*its fixture 'connection' is async*"])


def test_the_marker_is_registered(pytester, run_pytest):
    result = run_pytest("--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.virtual_time(start=0.0, max_steps=500_000): *"])


# The server of the session.


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine on which there is no server to be had: no URL, no program, no Docker engine."""
    monkeypatch.delenv("RETHINKDB_URL", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-engine.sock")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # for the programs that stand for servers
    return tmp_path


USES_THE_SERVER = """
    import socket

    def test_it(rethinkdb_server):
        print("kind:", rethinkdb_server.kind, rethinkdb_server)
        with socket.create_connection((rethinkdb_server.host, rethinkdb_server.port), 5) as connection:
            connection.sendall(bytes.fromhex("c3bdc234"))
            assert b'"success"' in connection.recv(1000)
"""


@contextlib.contextmanager
def server_in_a_thread(answer=b'{"success":true,"server_version":"2.4.4"}\0'):
    """A server that knows no more than how to greet."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4)
                    connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def make_program(directory, script):
    program = directory / "rethinkdb"
    program.write_text(f"#!{sys.executable}\n{script}")
    program.chmod(0o755)
    return program


def test_without_anything_better_the_stand_in_serves(pytester, run_pytest, bare):
    pytester.makepyfile(USES_THE_SERVER)
    result = run_pytest("-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "rethinkdb_server: the stand-in server (a test double)",
            "  not RETHINKDB_URL: it is not set",
            "  not a rethinkdb program: none on the PATH",
            "  not testcontainers (rethinkdb:2.4.4-bookworm-slim): *",
            "*kind: stand-in *",
        ]
    )


def test_an_empty_url_is_as_none(pytester, run_pytest, bare, monkeypatch):
    monkeypatch.setenv("RETHINKDB_URL", "")
    pytester.makepyfile(USES_THE_SERVER)
    result = run_pytest("-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["  not RETHINKDB_URL: it is not set", "*kind: stand-in *"])


def test_the_stand_in_ends_with_the_session(pytester, run_pytest, bare):
    pytester.makepyfile(
        """
        from pathlib import Path

        def test_it(rethinkdb_server):
            Path("port").write_text(str(rethinkdb_server.port))
        """
    )
    run_pytest().assert_outcomes(passed=1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int((pytester.path / "port").read_text())), 5)


def test_one_server_is_shared_by_all_tests_of_the_session(pytester, run_pytest, bare):
    pytester.makepyfile(
        """
        ports = []

        def test_one(rethinkdb_server):
            ports.append(rethinkdb_server.port)

        async def test_other(rethinkdb_server):
            ports.append(rethinkdb_server.port)

        def test_same():
            assert len(ports) == 2
            assert len(set(ports)) == 1
        """
    )
    run_pytest().assert_outcomes(passed=3)


def test_nothing_is_started_for_a_session_that_does_not_ask(pytester, run_pytest, bare):
    make_program(bare, "open('started', 'w')")
    pytester.makepyfile("def test_other(): pass")
    result = run_pytest()
    result.stdout.fnmatch_lines(["rethinkdb_server: a rethinkdb program"])
    assert not (pytester.path / "started").exists()


def test_the_server_that_is_named_is_taken_and_its_password_is_shown_nowhere(pytester, run_pytest, bare, monkeypatch):
    pytester.makepyfile(
        """
        def test_it(rethinkdb_server):
            assert rethinkdb_server.kind == "url"
            assert rethinkdb_server.user == "alice"
            assert rethinkdb_server.password == "s3cr3t/word"
            assert rethinkdb_server.connect_arguments == {
                "host": "127.0.0.1", "port": rethinkdb_server.port, "user": "alice", "password": "s3cr3t/word"
            }
            print(rethinkdb_server, rethinkdb_server.url)

        def test_fails(rethinkdb_server):
            assert not rethinkdb_server
        """
    )
    with server_in_a_thread() as port:
        monkeypatch.setenv("RETHINKDB_URL", f"rethinkdb://alice:s3cr3t%2Fword@127.0.0.1:{port}")
        result = run_pytest("-s", "-l", "-k", "test_it")
        result.assert_outcomes(passed=1, deselected=1)
        result.stdout.fnmatch_lines(
            [f"rethinkdb_server: RETHINKDB_URL (127.0.0.1:{port})", f"*rethinkdb://127.0.0.1:{port}*"]
        )
        failed = run_pytest("-l", "-k", "test_fails")
    failed.assert_outcomes(failed=1, deselected=1)
    assert "s3cr3t" not in result.stdout.str() + failed.stdout.str()


def test_a_server_that_is_named_but_cannot_be_reached_is_a_failure(pytester, run_pytest, bare, monkeypatch):
    pytester.makepyfile(USES_THE_SERVER)
    monkeypatch.setattr("async_repool.testing.pytest_plugin._REACH_SECONDS", 0.1)
    with server_in_a_thread() as port:
        pass
    monkeypatch.setenv("RETHINKDB_URL", f"rethinkdb://alice:s3cr3t@127.0.0.1:{port}")
    result = run_pytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*RETHINKDB_URL names 127.0.0.1:{port}, *refused*Start it, or unset RETHINKDB_URL*"])
    assert "s3cr3t" not in result.stdout.str()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n\0", b'{"hello": 1}\0', b"", b"x" * 5000])
def test_what_is_named_but_is_no_rethinkdb_is_a_failure(pytester, run_pytest, bare, monkeypatch, answer):
    pytester.makepyfile(USES_THE_SERVER)
    monkeypatch.setattr("async_repool.testing.pytest_plugin._REACH_SECONDS", 0.1)
    with server_in_a_thread(answer) as port:
        monkeypatch.setenv("RETHINKDB_URL", f"rethinkdb://127.0.0.1:{port}")
        result = run_pytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*RETHINKDB_URL names *"])


@pytest.mark.parametrize("url", ["127.0.0.1:28015", "http://alice:s3cr3t@db", "rethinkdb://alice:s3cr3t@db:port"])
def test_a_url_that_is_wrong_is_a_failure_that_does_not_repeat_it(pytester, run_pytest, bare, monkeypatch, url):
    pytester.makepyfile(USES_THE_SERVER)
    monkeypatch.setenv("RETHINKDB_URL", url)
    result = run_pytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["rethinkdb_server: RETHINKDB_URL", "*no server for the tests: RETHINKDB_URL *"])
    assert "s3cr3t" not in result.stdout.str()


def test_a_program_on_the_path_is_started_on_free_ports_and_killed_at_the_end(pytester, run_pytest, bare):
    make_program(
        bare,
        """
import os, sys
given = sys.argv[1:]
assert given[given.index("--bind") + 1] == "127.0.0.1"
assert given[given.index("--driver-port") + 1] != given[given.index("--cluster-port") + 1]
assert "--no-http-admin" in given and "--no-update-check" in given
assert not os.path.exists(given[given.index("--directory") + 1])
port = given[given.index("--driver-port") + 1]
open("port", "w").write(port)
os.execv(sys.executable, [sys.executable, "-m", "async_repool.testing", "--port", port])
""",
    )
    pytester.makepyfile(USES_THE_SERVER)
    result = run_pytest("-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["rethinkdb_server: a rethinkdb program", "*kind: binary *"])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int((pytester.path / "port").read_text())), 5)


def test_a_program_that_does_not_start_is_passed_over_and_the_summary_says_so(pytester, run_pytest, bare):
    make_program(bare, "raise SystemExit('error: no room on the disk')")
    pytester.makepyfile(USES_THE_SERVER)
    result = run_pytest("-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "rethinkdb_server: a rethinkdb program",
            "*kind: stand-in *",
            "*= rethinkdb_server =*",
            "not a rethinkdb program: it ended with status 1: error: no room on the disk",
            "not testcontainers *",
            "used instead: the stand-in server (a test double)",
        ]
    )


# A Docker engine, and the module that drives it, as far as the plugin sees them.

TESTCONTAINERS = """
    import os, socket, subprocess, sys, time

    class DockerContainer:
        def __init__(self, image):
            assert image == "rethinkdb:2.4.4-bookworm-slim"

        def with_exposed_ports(self, port):
            assert port == 28015
            return self

        def with_command(self, command):
            assert command.startswith("rethinkdb --bind all")
            return self

        def start(self):
            {start}
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
            command = [sys.executable, "-m", "async_repool.testing", "--port", str(self.port)]
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

        def get_container_host_ip(self):
            return "127.0.0.1"

        def get_exposed_port(self, port):
            return str(self.port)

        def stop(self):
            open({stopped!r}, "w").close()
            if hasattr(self, "process"):
                self.process.kill()
                self.process.wait()
"""


@pytest.fixture
def docker(pytester, bare, monkeypatch):
    """Makes a Docker engine and a module `testcontainers` that starts a container in the given way."""
    path = bare / "engine.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nOK")

    thread = threading.Thread(target=serve)
    thread.start()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    pytester.syspathinsert()

    def make(start):
        package = pytester.mkpydir("testcontainers")
        pytester.mkpydir("testcontainers/core")
        source = pytester.makepyfile(
            container=TESTCONTAINERS.format(start=start, stopped=str(pytester.path / "stopped"))
        )
        source.rename(package / "core" / "container.py")

    yield make
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_a_container_is_started_where_docker_answers_and_stopped_at_the_end(pytester, run_pytest, docker):
    docker("pass")
    pytester.makepyfile(USES_THE_SERVER)
    result = run_pytest("-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "rethinkdb_server: testcontainers (rethinkdb:2.4.4-bookworm-slim)",
            "  not a rethinkdb program: none on the PATH",
            "*kind: container *",
        ]
    )
    assert (pytester.path / "stopped").exists()


def test_an_image_that_cannot_be_had_is_passed_over_and_the_summary_says_so(pytester, run_pytest, docker):
    docker("raise OSError('pull access denied')")
    pytester.makepyfile(USES_THE_SERVER)
    result = run_pytest("-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "rethinkdb_server: testcontainers (rethinkdb:2.4.4-bookworm-slim)",
            "*kind: stand-in *",
            "not testcontainers (*): *could not be started: pull access denied",
            "used instead: the stand-in server (a test double)",
        ]
    )


def test_an_image_that_takes_too_long_is_passed_over_and_its_late_container_stopped(
    pytester, run_pytest, docker, monkeypatch
):
    monkeypatch.setattr("async_repool.testing.pytest_plugin._IMAGE_SECONDS", 0.05)
    docker("time.sleep(0.3)")
    pytester.makepyfile(USES_THE_SERVER)
    result = run_pytest("-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*kind: stand-in *", "not testcontainers (*): *could not be had within 0.05 s"])
    for thread in threading.enumerate():
        if thread.name.startswith("rethinkdb_server: "):
            thread.join()
    assert (pytester.path / "stopped").exists()


def test_an_engine_that_does_not_answer_is_passed_over(pytester, run_pytest, docker, monkeypatch, bare):
    docker("pass")
    monkeypatch.setattr("async_repool.testing.pytest_plugin._ENGINE_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(bare / "frozen.sock"))
        frozen.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{bare}/frozen.sock")
        pytester.makepyfile("def test_other(): pass")
        result = run_pytest()
    result.stdout.fnmatch_lines(
        [
            "rethinkdb_server: the stand-in server (a test double)",
            "  not testcontainers (*): no Docker engine answers: *",
        ]
    )


# What it costs to have it installed.


def test_the_plugin_itself_loads_nothing_of_the_library_but_what_is_used():
    # The packages around it are bare here: what they load is their own affair.
    program = """
import importlib.util, sys, types
root, = importlib.util.find_spec("async_repool").submodule_search_locations
for name, path in ("async_repool", root), ("async_repool.testing", root + "/testing"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
import async_repool.testing.pytest_plugin
watched = ("async_repool", "rethinkdb", "testcontainers")
print(*sorted(name for name in sys.modules if name.partition(".")[0] in watched))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    assert done.stdout.split() == ["async_repool", "async_repool.testing", "async_repool.testing.pytest_plugin"]
