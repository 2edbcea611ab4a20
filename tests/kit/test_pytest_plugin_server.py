"""The fixture ``rethinkdb_server``, as the user of pytest sees it: without a container."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading

import pytest

from plugin_kit import USES_THE_SERVER

pytest_plugins = ["pytester"]


@contextlib.contextmanager
def server_in_a_thread(answer=b'{"success":true,"server_version":"2.4.4"}\0'):
    """A server that answers only the first message of the login."""
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
def test_a_named_server_that_is_not_rethinkdb_is_a_failure(pytester, run_pytest, bare, monkeypatch, answer):
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
