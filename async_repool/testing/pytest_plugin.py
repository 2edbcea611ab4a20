"""The pytest plugin: a server for a test session, and async tests on virtual time.

This module has the fixture ``rethinkdb_server``, all ways to get a server, and the marker ``virtual_time``. The
stand-in server and the virtual clock are elsewhere. pytest imports this module in every session if the library is
installed, and before coverage is measured. So the module imports neither the pool nor the driver, and other parts of
this library only when a test uses them.

The server is the first of these that is available. The report's header names it, and says why the ones before it are
not:

1. ``RETHINKDB_URL``, such as ``rethinkdb://user:password@host:port``. If it cannot be reached, the tests fail;
2. a ``rethinkdb`` program on the ``PATH``, started on free ports with its data in a temporary directory;
3. ``testcontainers``, if it is installed and a Docker engine answers;
4. the stand-in server of this package, a test double, in its own process.
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
_REACH_SECONDS: Final = 5.0  # for a server that should be running
_START_SECONDS: Final = 30.0  # for a server that was just started
_POLL_SECONDS: Final = 0.05
_IMAGE_SECONDS: Final = 120.0  # for Docker, which may have to download the image
_ENGINE_SECONDS: Final = 1.0  # for the Docker engine to answer; the start of every session may take so long
_START_ATTEMPTS: Final = 3  # another program may take the free port first


# ---------------------------------------------------------------------- the server


@dataclass(frozen=True, kw_only=True)
class RethinkDBServer:
    """The server of the fixture ``rethinkdb_server``. Its ``repr`` and :attr:`url` do not show the password."""

    host: str
    port: int
    kind: Literal["url", "binary", "container", "stand-in"]
    """How it was found or started. ``"stand-in"`` is not RethinkDB, but a test double that knows fewer terms."""
    user: str = "admin"
    password: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """``rethinkdb://host:port``."""
        return f"rethinkdb://{_address(self.host, self.port)}"

    @property
    def connect_arguments(self) -> dict[str, Any]:
        """The arguments of ``r.connect()`` and of the pool: host, port, user and password."""
        return {"host": self.host, "port": self.port, "user": self.user, "password": self.password}


class _Unavailable(Exception):
    """This way to get a server does not work. The text says why, in a few words."""


@dataclass(frozen=True)
class _Way:
    name: str
    why_not: Callable[[], str | None]
    """A quick test of why this way does not work. ``None``: it seems to work."""
    serve: Callable[[], AbstractContextManager[RethinkDBServer]]
    """Starts the server. Raises _Unavailable if this way does not work after all."""
    may_fall_back: bool = True


class _Choice:
    """The chosen way, and why the ones before it were rejected."""

    def __init__(self) -> None:
        self.rejected: list[str] = []
        self._ways = iter(_ways())
        self.way = self._next()
        self._rejected_early = len(self.rejected)

    @property
    def rejected_late(self) -> list[str]:
        """The ways that seemed to work but could not be started."""
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
    """Name the server, and say why the other ways do not work. Starts nothing."""
    choice = _choice(config)
    return [f"rethinkdb_server: {choice.way.name}", *(f"  {line}" for line in choice.rejected)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the server that was used instead of the one in the header, if that one could not be started."""
    choice = config.stash.get(_CHOICE, None)
    if choice is not None and choice.rejected_late:
        terminalreporter.section("rethinkdb_server")
        for line in choice.rejected_late:
            terminalreporter.line(line)
        terminalreporter.line(f"used instead: {choice.way.name}")


@pytest.fixture(scope="session")
def rethinkdb_server(request: pytest.FixtureRequest) -> Iterator[RethinkDBServer]:
    """A RethinkDB server for the session, or a stand-in: see ``kind``. All tests of the session share its data.

    The test fails if no server is available, for example if ``RETHINKDB_URL`` names one that cannot be reached.
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
    # The messages repeat neither the URL nor the errors of urlsplit, because both may contain a password.
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _Unavailable("RETHINKDB_URL is not a URL") from None
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
    # A process, not a thread, because it starts and ends as a real server does. Nor can tests that hang, warn or keep
    # the interpreter busy disturb it.
    def command(directory: Path, port: int) -> list[str]:
        # Like `python -m async_repool.testing`, but this also works if the library is not installed.
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
    """Run a program until the end of the block. Yields a function that says why it ended; ``None``: it still runs."""
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
        process.kill()  # it need not save its data, which are deleted
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
    if parts.scheme == "tcp":  # it may speak TLS, so a connection is all that can be tested
        socket.create_connection((parts.hostname or "localhost", parts.port or 2375), _ENGINE_SECONDS).close()
    elif parts.scheme == "unix" and hasattr(socket, "AF_UNIX"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ENGINE_SECONDS)
            connection.connect(parts.path)
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            answer = connection.recv(64)
        if answer.split(b" ")[1:2] != [b"200"]:
            raise OSError("it answered with an error")


@contextmanager
def _serve_container() -> Iterator[RethinkDBServer]:
    container, host, port = _start_container()
    try:
        _wait_ready(host, port, _START_SECONDS, lambda: None)
        yield RethinkDBServer(host=host, port=port, kind="container")
    finally:
        container.stop()


def _start_container() -> tuple[Any, str, int]:
    # testcontainers has no timeout, and a download may take minutes. So it works in a thread.
    outcomes: queue.SimpleQueue[tuple[Any, str, int] | BaseException] = queue.SimpleQueue()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its deprecations do not concern the user's tests
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


# ---------------------------------------------------------------------- waiting for a server


def _wait_ready(host: str, port: int, seconds: float, why_ended: Callable[[], str | None]) -> None:
    """Wait until a RethinkDB server answers. Raises _Unavailable after `seconds`, or as soon as `why_ended` gives a
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
    """Exchange the first message of the login, which needs no password. Raises OSError or ValueError."""
    with socket.create_connection((host, port), max(0.1, seconds)) as connection:
        connection.sendall(b"\xc3\xbd\xc2\x34")
        answer = bytearray()
        while not answer.endswith(b"\0"):
            chunk = connection.recv(1024)
            if not chunk:
                raise ConnectionResetError("it closed the connection")
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
        "timer if nothing is ready. A test that hangs or leaves tasks over fails. Sync tests are not changed.",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Run a marked async test on virtual time, even if another plugin wants to run it."""
    marker = item.get_closest_marker("virtual_time")
    if marker is None or not isinstance(item, pytest.Function):
        return
    if marker.args:
        pytest.fail("virtual_time takes keyword arguments only", pytrace=False)
    owner, attribute = _coroutine_function(item)
    if inspect.iscoroutinefunction(getattr(owner, attribute)):
        _refuse_async_fixtures(item)
        # This replaces runtest() on the item, because the items of pytest-asyncio start a real loop there. All hooks
        # still see the test, but it is not async any more.
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
        # A coroutine that was never awaited warns when it is collected. This must happen in this test, not in a later
        # one. The oldest generation takes long, and objects of this test are not in it.
        gc.collect(1)


def _coroutine_function(item: pytest.Function) -> tuple[Any, str]:
    """The object and the attribute that hold the test function. Under ``@hypothesis.given``, Hypothesis calls it."""
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
                "loop. Use a plain fixture, or an async context manager that the test enters",
                pytrace=False,
            )
