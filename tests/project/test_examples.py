"""The examples, run as programs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from async_repool.testing import StandInServer
from paths import ROOT

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "RETHINKDB_URL"}


def run_quickstart(*arguments: str, **environment: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples/quickstart.py"), *arguments],
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return finished.stdout


def url_with_password(server: Any) -> str:
    return f"rethinkdb://{server.user}:{server.password}@{server.host}:{server.port}"


def assert_it_did_its_work(output: str) -> None:
    assert "loaded 100 heroes" in output
    assert "200 users asked at once, 100 heroes answered" in output
    assert "the changefeed saw rookie 0, rookie 1, rookie 2, rookie 3, rookie 4" in output
    assert re.search(
        r"<AsyncConnectionPool 'quickstart' open 0/3 leased, 0 waiting>: 210 queries, 200 leases on 4 connections",
        output,
    )


def test_the_quick_start_runs_without_a_server_and_says_so() -> None:
    output = run_quickstart()
    assert "running on the stand-in server" in output
    assert_it_did_its_work(output)


@pytest.mark.parametrize("how", ["arguments", "environment"])
def test_the_quick_start_runs_on_a_server_that_is_named(rethinkdb_server: Any, how: str) -> None:
    if how == "arguments":
        output = run_quickstart("--host", rethinkdb_server.host, "--port", str(rethinkdb_server.port))
    else:
        output = run_quickstart(RETHINKDB_URL=url_with_password(rethinkdb_server))
    assert "stand-in" not in output
    assert_it_did_its_work(output)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def ask(url: str, data: Any = None) -> tuple[int, Any]:
    body = None if data is None else json.dumps(data).encode()
    try:
        with urllib.request.urlopen(url, body, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode()
        return error.code, json.loads(text) if text.startswith("{") else text


@contextmanager
def running_app(database_url: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port = free_port()
    program = [sys.executable, "-W", "error", str(ROOT / "examples/aiohttp_app.py"), "--port", str(port)]
    environment = {**ENVIRONMENT, "RETHINKDB_URL": database_url}
    with subprocess.Popen(program, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as app:
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(600):
                try:
                    ask(url + "/health")
                    break
                except (urllib.error.URLError, ConnectionError):
                    assert app.poll() is None, app.communicate()
                    time.sleep(0.05)
            yield app, url
        finally:
            app.kill()


def test_the_aiohttp_app_answers_every_request_in_flight_before_it_ends_at_sigterm() -> None:
    pytest.importorskip("aiohttp")
    with slow_server() as (server, set_delay), running_app(server) as (app, url):
        with asking_at_once(url, 30) as answers:  # the pool grows
            assert all(answer.startswith(b"HTTP/1.1 404 Not Found") for answer in answers)
        set_delay(2)
        with asking_at_once(url, 30) as answers:
            # This gives up after a second beside the others, and tells how many are under way.
            assert ask(url + "/health")[1]["queries"] >= 30
            app.send_signal(signal.SIGTERM)
            for answer in answers:
                assert answer.startswith(b"HTTP/1.1 404 Not Found"), answer
        _, errors = app.communicate(timeout=30)
        assert app.returncode == 0
        assert "Traceback" not in errors


@contextmanager
def asking_at_once(url: str, times: int) -> Iterator[Iterator[bytes]]:
    """Send so many requests, each on a connection of its own; then read the answers."""
    host, port = url.removeprefix("http://").split(":")

    def read(client: socket.socket) -> bytes:
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
        return answer

    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection((host, int(port)), 30)) for _ in range(times)]
        for client in clients:
            client.sendall(b"GET /heroes/nobody HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        yield (read(client) for client in clients)


@contextmanager
def slow_server() -> Iterator[tuple[str, Callable[[float], None]]]:
    """The url of a stand-in server in a thread of its own, and what sets the delay of its answers."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = StandInServer()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
        yield (
            f"rethinkdb://admin@{server.host}:{server.port}",
            lambda seconds: loop.call_soon_threadsafe(setattr, server.faults, "delay", seconds),  # type: ignore[func-returns-value]
        )
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_the_aiohttp_app_serves_json_from_the_pool_and_ends_at_sigterm(rethinkdb_server: Any) -> None:
    pytest.importorskip("aiohttp")
    with running_app(url_with_password(rethinkdb_server)) as (app, url):
        status, health = ask(url + "/health")
        assert (status, health["problem"]) == (200, None)
        assert health["size"] >= 2
        status, added = ask(url + "/heroes", {"name": "Ana"})
        assert status == 201
        assert ask(f"{url}/heroes/{added['id']}") == (200, {"id": added["id"], "name": "Ana"})
        assert {"id": added["id"], "name": "Ana"} in ask(url + "/heroes")[1]
        assert ask(url + "/heroes/nobody")[0] == 404
        status, problem = ask(url + "/heroes", added | {"name": "another Ana"})
        assert status == 409
        assert "Duplicate primary key" in problem
        for no_hero in ("Ana", [{"name": "Ana"}]):
            assert ask(url + "/heroes", no_hero) == (400, "send a hero as a JSON object")
        app.send_signal(signal.SIGTERM)
        _, errors = app.communicate(timeout=30)
        assert app.returncode == 0
        assert "Traceback" not in errors
