"""The fixture ``rethinkdb_server``, as the user of pytest sees it: in a container."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import types

import pytest

from plugin_kit import USES_THE_SERVER

pytest_plugins = ["pytester"]

# A module that takes the place of testcontainers.
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
def imported_testcontainers(monkeypatch):
    """The session has imported testcontainers already, as its own `rethinkdb_server` does on a machine with Docker."""
    for name in ("testcontainers", "testcontainers.core", "testcontainers.core.container"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


@pytest.fixture
def docker(pytester, bare, monkeypatch):
    """Makes a Docker engine and a module `testcontainers` that starts a container in the given way."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "testcontainers":
            monkeypatch.delitem(sys.modules, name)  # or the inner session would use it instead of the module made here
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


def test_a_container_is_started_if_docker_answers_and_stopped_at_the_end(pytester, run_pytest, docker):
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


def test_a_testcontainers_that_is_imported_already_does_not_matter(
    pytester, run_pytest, imported_testcontainers, docker
):
    docker("pass")
    pytester.makepyfile(USES_THE_SERVER)
    result = run_pytest("-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*kind: container *"])
    assert sys.modules.get("testcontainers.core.container") is None


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
