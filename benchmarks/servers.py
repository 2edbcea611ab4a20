"""The server that queries are measured on: a real one by its url, else the package's stand-in in a process of its own.

Here is no measuring. Run as a program, this file is that process.
"""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from rethinkdb import RethinkDB

from async_repool.testing import StandInServer

STAND_IN = "the package's stand-in server, in a process of its own"

STAND_IN_MEANING = (
    "A test double in Python, slower than RethinkDB: where all wait for it, ratios of time come near 1, and those of "
    "the client's CPU say more. Name a real server with --url."
)

START_SECONDS = 20.0

r = RethinkDB()
"""The driver as it comes, set to asyncio: what it connects is its own connection, not ours."""
r.set_loop_type("asyncio")


@dataclass(frozen=True)
class Server:
    """One that answers, and what it is."""

    arguments: dict[str, Any] = field(repr=False)
    """Of ``r.connect()``."""
    name: str
    is_real: bool


@contextmanager
def running(url: str | None) -> Iterator[Server]:
    """The server of ``url``; without one, a stand-in that ends with this context, or with this process."""
    if url is not None:
        arguments = arguments_of(url)
        yield Server(arguments, asyncio.run(_name(arguments)), is_real=True)
        return
    # A session of its own: Ctrl-C is for us, who have yet to clean up on it.
    process = subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline()
        if not port:
            raise RuntimeError("the stand-in server did not start")
        yield Server({"host": "127.0.0.1", "port": int(port)}, STAND_IN, is_real=False)
    finally:
        process.communicate()  # the end of its input is its end


def arguments_of(url: str) -> dict[str, Any]:
    """The arguments of ``r.connect()`` that a url stands for. Ends the program where it is none."""
    parts = urlsplit(url)
    if parts.scheme != "rethinkdb" or not parts.hostname:
        raise SystemExit("--url must look like rethinkdb://user:password@host:port")
    given = {"user": parts.username, "password": parts.password}
    named = {name: unquote(value) for name, value in given.items() if value}
    return {"host": parts.hostname, "port": parts.port or 28015, **named}


async def _name(arguments: dict[str, Any]) -> str:
    """The server's own word for what it is: "RethinkDB 2.4.4". Ends the program where none answers."""
    try:
        async with asyncio.timeout(START_SECONDS):
            conn = await r.connect(**arguments)
            try:
                versions = await r.db("rethinkdb").table("server_status")["process"]["version"].run(conn)
                version = await anext(versions)
            except r.ReqlRuntimeError:
                return "a server that does not tell its version"
            finally:
                await conn.close(noreply_wait=False)
    except (r.ReqlError, TimeoutError) as error:
        raise SystemExit(f"the server of --url cannot be used: {error or 'no answer'}") from None
    found = re.match(r"rethinkdb (\S+)", str(version))
    return f"RethinkDB {found[1] if found else version}"


# ---------------------------------------------------------------------- the process of the stand-in


async def _serve() -> None:
    async with StandInServer() as server:
        print(server.port, flush=True)
        # A thread, as asyncio reads no standard input on Windows.
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def wait_for_the_end() -> None:
            sys.stdin.read()
            loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=wait_for_the_end, daemon=True).start()
        await ended.wait()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_serve())
