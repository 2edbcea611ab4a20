"""The stand-in server as a program: ``python -m async_repool.testing``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator

import pytest

from async_repool.testing import StandInServer
from async_repool.testing.__main__ import main, serve
from wire_client import WireClient

LINE = re.compile(r"stand-in server \(a test double, not RethinkDB\) listening on 127\.0\.0\.1:(\d+)\n")


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        "-m",
        "async_repool.testing",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@contextlib.asynccontextmanager
async def program(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """The running program and the port that it says it listens on."""
    process = await start("--port", "0", *arguments)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            line = LINE.fullmatch((await process.stdout.readline()).decode())
        assert line
        yield process, int(line[1])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_serves_until_a_signal_and_then_ends_in_peace(number: signal.Signals) -> None:
    async with program() as (process, port), WireClient("127.0.0.1", port) as wire:
        assert await wire.run(1) == 1
        process.send_signal(number)
        async with asyncio.timeout(30):
            out, err = await process.communicate()
        assert (process.returncode, out, err) == (0, b"", b"")


async def test_users_are_given_with_their_passwords_and_admin_stays() -> None:
    async with program("--user", "ana:se:cret", "--user", "bob:") as (_, port):
        for user, password in (("ana", "se:cret"), ("bob", ""), ("admin", "")):
            async with WireClient("127.0.0.1", port, user, password) as wire:
                assert await wire.run(1) == 1


async def test_a_taken_port_is_an_error_that_names_it() -> None:
    async with StandInServer() as server:
        process = await start("--port", str(server.port))
        async with asyncio.timeout(30):
            out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert err.decode() == f"cannot listen on 127.0.0.1:{server.port}: Address already in use\n"


async def test_serve_ends_at_a_signal_and_takes_its_handlers_back(capsys: pytest.CaptureFixture[str]) -> None:
    server = StandInServer()
    serving = asyncio.create_task(serve(server))
    async with asyncio.timeout(30):
        while not LINE.fullmatch(capsys.readouterr().out):  # noqa: ASYNC110  (it polls the output)
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        await serving
    assert not asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


def test_main_returns_1_if_the_port_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port), "--user", "ana:secret"]) == 1
    assert capsys.readouterr() == ("", f"cannot listen on 127.0.0.1:{port}: Address already in use\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--user", "s3cret"], "argument --user: expected NAME:PASSWORD"),
        (["--port", "70000"], "argument --port: expected a port from 0 to 65535, not '70000'"),
    ],
)
async def test_bad_arguments_are_named_but_never_a_password(arguments: list[str], complaint: str) -> None:
    process = await start(*arguments)
    async with asyncio.timeout(30):
        _, err = await process.communicate()
    assert process.returncode == 2
    assert complaint in err.decode()
    assert "s3cret" not in err.decode()
