"""The pytest plugin: a server for a test session, and async tests on virtual time.

Here are the fixture ``rethinkdb_server``, with all the ways to come by a server, and the marker ``virtual_time``. What
the server is, and how the clock works, is elsewhere. pytest imports this file in every session where the library is
installed, before coverage is measured: so it imports neither the pool nor the driver, and from this library only what
is needed, late.

The server comes from the first of these that can be had, and the report's header says which, and why none before it:

1. ``RETHINKDB_URL``, as in ``rethinkdb://user:password@host:port``. Asked for, so a failure if it cannot be reached;
2. a ``rethinkdb`` program on the ``PATH``, started on free ports with its data in a temporary directory;
3. ``testcontainers``, where it is installed and a Docker engine answers;
4. the stand-in server of this package, a test double, in a process of its own.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import inspect
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import pytest

__all__ = ["RethinkDBServer"]

_IMAGE: Final = "rethinkdb:2.4.4-bookworm-slim"
_DRIVER_PORT: Final = 28015
_REACH_SECONDS: Final = 5.0  # for a server that should be running already
_START_SECONDS: Final = 30.0  # for one that was just started
_POLL_SECONDS: Final = 0.05
_IMAGE_SECONDS: Final = 120.0  # for Docker, which may have to download
_ENGINE_SECONDS: Final = 1.0  # for the Docker engine to say that it is there; every session's start may take so long
_START_ATTEMPTS: Final = 3  # a free port may be taken by another before the program takes it


# ---------------------------------------------------------------------- the server


@dataclass(frozen=True, kw_only=True)
class RethinkDBServer:
    """The server that the fixture ``rethinkdb_server`` gives. Its ``repr`` and :attr:`url` tell no password."""

    host: str
    port: int
    kind: Literal["url", "binary", "container", "stand-in"]
    """Where it runs from. ``"stand-in"`` is not RethinkDB: a test double that knows fewer terms."""
    user: str = "admin"
    password: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """``rethinkdb://host:port``."""
        return f"rethinkdb://{_address(self.host, self.port)}"

    @property
    def connect_arguments(self) -> dict[str, Any]:
        """What ``r.connect()`` and the pool take: host, port, user and password."""
        return {"host": self.host, "port": self.port, "user": self.user, "password": self.password}


class _Unavailable(Exception):
    """This way to a server is closed. The text says why, in a few words."""


@dataclass(frozen=True)
class _Way:
    name: str
    why_not: Callable[[], str | None]
    """Says from cheap evidence why this way is closed; ``None``: it seems open."""
    serve: Callable[[], AbstractContextManager[RethinkDBServer]]
    """Raises _Unavailable on entering where it was closed after all."""
    may_fall_back: bool = True


class _Choice:
    """The way that was chosen, and why none before it."""

    def __init__(self) -> None:
        self.rejected: list[str] = []
        self._ways = iter(_ways())
        self.way = self._next()
        self._rejected_early = len(self.rejected)

    @property
    def found_out_late(self) -> list[str]:
        """What was rejected only when it was to be started."""
        return self.rejected[self._rejected_early :]

    def _next(self) -> _Way:
        for way in self._ways:
            reason = way.why_not()
            if reason is None:
                return way
            self.rejected.append(f"not {way.name}: {reason}")
        raise _Unavailable("; ".join(self.rejected))

    @contextmanager
    def serve(self) -> Iterator[RethinkDBServer]:
        with ExitStack() as stack:
            yield self._start(stack)

    def _start(self, stack: ExitStack) -> RethinkDBServer:
        while True:
            try:
                return stack.enter_context(self.way.serve())
            except _Unavailable as error:
                if not self.way.may_fall_back:
                    raise
                self.rejected.append(f"not {self.way.name}: {error}")
            self.way = self._next()


_CHOICE = pytest.StashKey[_Choice]()


def _choice(config: pytest.Config) -> _Choice:
    if _CHOICE not in config.stash:
        config.stash[_CHOICE] = _Choice()
    return config.stash[_CHOICE]


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Name the server, and why not a better one. Starts nothing."""
    choice = _choice(config)
    return [f"rethinkdb_server: {choice.way.name}", *(f"  {line}" for line in choice.rejected)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say so where the server in the header could not be had after all."""
    choice = config.stash.get(_CHOICE, None)
    if choice is not None and choice.found_out_late:
        terminalreporter.section("rethinkdb_server")
        for line in choice.found_out_late:
            terminalreporter.line(line)
        terminalreporter.line(f"used instead: {choice.way.name}")


@pytest.fixture(scope="session")
def rethinkdb_server(request: pytest.FixtureRequest) -> Iterator[RethinkDBServer]:
    """A RethinkDB server for the session, or a stand-in: see ``kind``. Its data is shared by all tests of the session.

    Fails the test where none can be had, as when ``RETHINKDB_URL`` names one that cannot be reached.
    """
    try:
        with _choice(request.config).serve() as server:
            yield server
    except _Unavailable as error:
        pytest.fail(f"no server for the tests: {error}", pytrace=False)


# ---------------------------------------------------------------------- 1. RETHINKDB_URL


def _no_url() -> str | None:
    return None if os.environ.get("RETHINKDB_URL") else "it is not set"


def _where_url() -> str:
    try:
        server = _parse_url(os.environ.get("RETHINKDB_URL", ""))
    except _Unavailable:
        return ""
    return f" ({_address(server.host, server.port)})"


@contextmanager
def _serve_url() -> Iterator[RethinkDBServer]:
    server = _parse_url(os.environ["RETHINKDB_URL"])
    try:
        _wait_ready(server.host, server.port, _REACH_SECONDS, lambda: None)
    except _Unavailable as error:
        address = _address(server.host, server.port)
        raise _Unavailable(
            f"RETHINKDB_URL names {address}, {error}. Start it, or unset RETHINKDB_URL to let the tests find another"
        ) from None
    yield server


def _parse_url(url: str) -> RethinkDBServer:
    # Neither the URL nor urlsplit's own errors are repeated: both may hold a password.
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _Unavailable("RETHINKDB_URL is no URL") from None
    if parts.scheme != "rethinkdb" or not host:
        raise _Unavailable("RETHINKDB_URL must look like rethinkdb://[user:password@]host[:port]") from None
    return RethinkDBServer(
        host=host,
        port=_DRIVER_PORT if port is None else port,
        kind="url",
        user=urllib.parse.unquote(parts.username or "admin"),
        password=urllib.parse.unquote(parts.password or ""),
    )


# ---------------------------------------------------------------------- 2. a rethinkdb program, and 4. the stand-in


def _no_binary() -> str | None:
    return None if shutil.which("rethinkdb") else "none on the PATH"


def _serve_binary() -> AbstractContextManager[RethinkDBServer]:
    def command(directory: Path, port: int) -> list[str]:
        program = shutil.which("rethinkdb") or "rethinkdb"
        ports = ["--driver-port", str(port), "--cluster-port", str(_free_port())]
        where = ["--directory", str(directory / "data"), "--bind", "127.0.0.1"]
        return [program, *where, *ports, "--no-http-admin", "--no-update-check"]

    return _serve_program("binary", command)


def _serve_stand_in() -> AbstractContextManager[RethinkDBServer]:
    # A process, not a thread: it shares neither the interpreter's lock nor the event loops, warnings and hangs of the
    # tests, and comes and goes as a real server does.
    def command(directory: Path, port: int) -> list[str]:
        # Like `python -m async_repool.testing`; but it finds the library where this file is, be it installed or not.
        run = "runpy.run_module('async_repool.testing', run_name='__main__')"
        program = f"import runpy, sys; sys.path.append(sys.argv.pop(1)); {run}"
        return [sys.executable, "-c", program, str(Path(__file__).parents[2]), "--port", str(port)]

    return _serve_program("stand-in", command)


@contextmanager
def _serve_program(
    kind: Literal["binary", "stand-in"], command: Callable[[Path, int], list[str]]
) -> Iterator[RethinkDBServer]:
    with tempfile.TemporaryDirectory(prefix="rethinkdb-server-", ignore_cleanup_errors=True) as directory:
        for attempt in range(1, _START_ATTEMPTS + 1):
            port = _free_port()
            with _program(command(Path(directory), port), Path(directory) / "log") as why_ended:
                try:
                    _wait_ready("127.0.0.1", port, _START_SECONDS, why_ended)
                except _Unavailable:
                    if attempt == _START_ATTEMPTS or why_ended() is None:
                        raise
                    continue
                yield RethinkDBServer(host="127.0.0.1", port=port, kind=kind)
                return


@contextmanager
def _program(command: list[str], log: Path) -> Iterator[Callable[[], str | None]]:
    """Run a program until the end of the block. Yields what says why it ended; ``None`` while it runs."""
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        except OSError as error:
            raise _Unavailable(f"it cannot be started: {_one_line(error)}") from None

    def why_ended() -> str | None:
        if process.poll() is None:
            return None
        lines = log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        return f"it ended with status {process.returncode}: {last[:200]}"

    try:
        yield why_ended
    finally:
        process.kill()  # its data is going to be deleted: nothing to save
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# ---------------------------------------------------------------------- 3. testcontainers


def _no_container() -> str | None:
    if importlib.util.find_spec("testcontainers") is None:
        return "the module is not installed"
    return _no_engine()


def _no_engine() -> str | None:
    try:
        _ping_engine(_engine_url())
    except OSError as error:
        return f"no Docker engine answers: {_one_line(error)}"
    return None


def _engine_url() -> str:
    home, runtime = os.path.expanduser("~"), os.environ.get("XDG_RUNTIME_DIR", "/nonexistent")
    paths = ["/var/run/docker.sock", f"{home}/.docker/run/docker.sock", f"{runtime}/docker.sock"]
    found = next((path for path in paths if os.path.exists(path)), paths[0])
    return os.environ.get("DOCKER_HOST") or f"unix://{found}"


def _ping_engine(url: str) -> None:
    """Raise OSError unless the Docker engine answers at once."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "tcp":  # may speak TLS: that something listens has to do
        socket.create_connection((parts.hostname or "localhost", parts.port or 2375), _ENGINE_SECONDS).close()
    elif parts.scheme == "unix" and hasattr(socket, "AF_UNIX"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ENGINE_SECONDS)
            connection.connect(parts.path)
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            answer = connection.recv(64)
        if answer.split(b" ")[1:2] != [b"200"]:
            raise OSError("it is not well")


@contextmanager
def _serve_container() -> Iterator[RethinkDBServer]:
    container, host, port = _start_container()
    try:
        _wait_ready(host, port, _START_SECONDS, lambda: None)
        yield RethinkDBServer(host=host, port=port, kind="container")
    finally:
        container.stop()


def _start_container() -> tuple[Any, str, int]:
    # testcontainers cannot be told how long it may take, and downloading may take minutes: so it works in a thread.
    outcomes: queue.SimpleQueue[tuple[Any, str, int] | BaseException] = queue.SimpleQueue()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it deprecates is not the business of the tests at hand
        from testcontainers.core.container import DockerContainer

    def start() -> None:
        try:
            container = DockerContainer(_IMAGE).with_exposed_ports(_DRIVER_PORT)
            container.with_command("rethinkdb --bind all --no-http-admin --no-update-check")
            try:
                container.start()
                found = (container, container.get_container_host_ip(), int(container.get_exposed_port(_DRIVER_PORT)))
            except BaseException:
                container.stop()
                raise
        except BaseException as error:
            outcomes.put(error)
        else:
            outcomes.put(found)

    def stop_late() -> None:
        outcome = outcomes.get()
        if not isinstance(outcome, BaseException):
            outcome[0].stop()

    threading.Thread(target=start, name="rethinkdb_server: container", daemon=True).start()
    try:
        outcome = outcomes.get(timeout=_IMAGE_SECONDS)
    except queue.Empty:
        threading.Thread(target=stop_late, name="rethinkdb_server: late container", daemon=True).start()
        raise _Unavailable(f"{_IMAGE} could not be had within {_IMAGE_SECONDS:g} s") from None
    if isinstance(outcome, BaseException):
        raise _Unavailable(f"{_IMAGE} could not be started: {_one_line(outcome)}") from outcome
    return outcome


# ---------------------------------------------------------------------- is it there?


def _wait_ready(host: str, port: int, seconds: float, why_ended: Callable[[], str | None]) -> None:
    """Wait until a RethinkDB server answers. Raises _Unavailable after `seconds`, or as soon as `why_ended` has a
    reason.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            _greet(host, port, deadline - time.monotonic())
        except (OSError, ValueError) as error:
            if (ended := why_ended()) is not None:
                raise _Unavailable(ended) from None
            if time.monotonic() >= deadline:
                raise _Unavailable(f"it did not answer within {seconds:g} s: {_one_line(error)}") from None
            time.sleep(_POLL_SECONDS)
        else:
            return


def _greet(host: str, port: int, seconds: float) -> None:
    """Exchange the first message of the handshake, which needs no password. Raises OSError or ValueError."""
    with socket.create_connection((host, port), max(0.1, seconds)) as connection:
        connection.sendall(b"\xc3\xbd\xc2\x34")
        answer = bytearray()
        while not answer.endswith(b"\0"):
            chunk = connection.recv(1024)
            if not chunk:
                raise ConnectionResetError("it ended the connection")
            answer += chunk
            if len(answer) > 4096:
                raise ValueError("it does not speak RethinkDB's protocol")
    said = json.loads(answer[:-1])
    if not isinstance(said, dict) or said.get("success") is not True:
        raise ValueError("it does not speak RethinkDB's protocol")


def _one_line(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _ways() -> tuple[_Way, ...]:
    return (
        _Way(f"RETHINKDB_URL{_where_url()}", _no_url, _serve_url, may_fall_back=False),
        _Way("a rethinkdb program", _no_binary, _serve_binary),
        _Way(f"testcontainers ({_IMAGE})", _no_container, _serve_container),
        _Way("the stand-in server (a test double)", lambda: None, _serve_stand_in),
    )


# ---------------------------------------------------------------------- @pytest.mark.virtual_time


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "virtual_time(start=0.0, max_steps=500_000): run the async test on an event loop whose clock jumps to the next "
        "timer when nothing is ready. A test that hangs or leaves tasks behind fails. Does nothing to other tests.",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Have a marked test run on virtual time, whatever other plugin has made it its own for being async."""
    marker = item.get_closest_marker("virtual_time")
    if marker is None or not isinstance(item, pytest.Function):
        return
    if marker.args:
        pytest.fail("virtual_time takes keyword arguments only", pytrace=False)
    owner, attribute = _coroutine_function(item)
    if inspect.iscoroutinefunction(getattr(owner, attribute)):
        _refuse_async_fixtures(item)
        # On the item itself: pytest-asyncio's own class of items overrides runtest() to start a real loop. Its hooks
        # and those of others still see the test, but as one that is not async any more.
        item.runtest = functools.partial(_run_on_virtual_time, item, dict(marker.kwargs))  # type: ignore[method-assign]


def _run_on_virtual_time(item: pytest.Function, options: dict[str, Any]) -> None:
    __tracebackhide__ = True
    from async_repool.testing import virtual_clock

    owner, attribute = _coroutine_function(item)
    coroutine_function = getattr(owner, attribute)

    @functools.wraps(coroutine_function)
    def on_virtual_time(*arguments: Any, **named: Any) -> None:
        __tracebackhide__ = True
        virtual_clock.run(coroutine_function(*arguments, **named), **options)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, attribute, on_virtual_time)
            pytest.Function.runtest(item)
    finally:
        # Coroutines that nobody awaited warn when they are collected: in this test, not in some later one. The oldest
        # generation is left out, it takes long and what the test made is not there.
        gc.collect(1)


def _coroutine_function(item: pytest.Function) -> tuple[Any, str]:
    """Where the function is that pytest calls; under ``@hypothesis.given``, the one that Hypothesis calls."""
    hypothesis_handle = getattr(item.obj, "hypothesis", None)
    if hasattr(hypothesis_handle, "inner_test"):
        return hypothesis_handle, "inner_test"
    return item, "obj"


def _refuse_async_fixtures(item: pytest.Function) -> None:
    known: dict[str, Any] = item._fixtureinfo.name2fixturedefs
    for name in inspect.signature(item.obj).parameters:
        function = known[name][-1].func if known.get(name) else None
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            pytest.fail(
                f"{item.name} runs on virtual time, but its fixture {name!r} is async and would run on another event "
                "loop. Make it a plain fixture, or an async context manager that the test enters",
                pytrace=False,
            )
