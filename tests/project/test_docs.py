"""The Python code of README.rst and of the pages in docs/, run on the stand-in server as it stands.

The code blocks of one page are run from top to bottom and share their names, like the cells of a notebook. ``pool`` is
an open pool on a server with a table of heroes. Functions named ``test_…`` are run as tests. Whatever connects to port
28015 reaches the stand-in server.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import textwrap
import threading
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any, NamedTuple

import pytest

from async_repool import AsyncConnectionPool, R
from async_repool.testing import StandInServer, virtual_clock
from paths import ROOT

PAGES = [ROOT / "README.rst", *sorted((ROOT / "docs").glob("*.rst"))]
PAGES_WITH_CODE = [page for page in PAGES if "code:: python" in page.read_text(encoding="utf-8")]
DEFAULT_PORT = 28015
HEROES = [{"id": number, "name": f"hero {number}", "power": number % 10} for number in range(100)]


class Block(NamedTuple):
    line: int
    text: str

    def compiled(self, page: Path) -> CodeType:
        """Code that may await at its top level; tracebacks show its lines in the page."""
        source = "\n" * (self.line - 1) + self.text
        code: CodeType = compile(source, page.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        return code


def code_blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if re.fullmatch(r"\.\. code:: python", line):
            end = next((n for n in range(number + 1, len(lines)) if re.match(r"\S", lines[n])), len(lines))
            yield Block(number + 2, textwrap.dedent("\n".join(lines[number + 1 : end])))


@pytest.fixture
def server() -> Iterator[StandInServer]:
    """A stand-in server in a thread of its own: a page may run an event loop of its own too."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = StandInServer()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def default_port_is(server: StandInServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who connects to RethinkDB's port reaches the server of the test."""
    connect = BaseSelectorEventLoop.sock_connect

    async def redirected(loop: Any, sock: Any, address: Any) -> None:
        if address[1] == DEFAULT_PORT:
            if ":" in address[0]:
                raise ConnectionRefusedError("the stand-in server listens on IPv4 only")
            address = (server.host, server.port)
        await connect(loop, sock, address)

    monkeypatch.setattr(BaseSelectorEventLoop, "sock_connect", redirected)


async def open_pool() -> AsyncConnectionPool:
    pool = AsyncConnectionPool({"host": "localhost", "port": DEFAULT_PORT, "db": "test"}, name="main")
    await pool.init_pool()
    if "test" not in await pool.run(R.db_list()):
        await pool.run(R.db_create("test"))
    await pool.run(R.table_create("heroes"))
    await pool.run(R.table("heroes").insert(HEROES))
    return pool


def run_page(page: Path, runner: asyncio.Runner, names: dict[str, Any]) -> None:
    for block in code_blocks(page):
        code = block.compiled(page)
        if "asyncio.run(" in block.text:  # it is a program
            exec(code, names)
        else:
            runner.run(asyncio.wait_for(run_in_loop(code, names), 10))


async def run_in_loop(code: CodeType, names: dict[str, Any]) -> None:
    running = eval(code, names)
    if inspect.isawaitable(running):
        await running


async def ask_app(app: Any) -> None:
    """Start a web application, ask it for a hero, and let it end."""
    from aiohttp.test_utils import TestClient, TestServer

    async with TestClient(TestServer(app)) as client, client.get("/heroes/7") as response:
        assert await response.json() == HEROES[7]


def run_test(test: Any, runner: asyncio.Runner, server: StandInServer) -> None:
    if any(mark.name == "virtual_time" for mark in getattr(test, "pytestmark", [])):
        virtual_clock.run(test())
        return
    arguments = {"host": "localhost", "port": DEFAULT_PORT, "db": "test"}
    fixtures = {"rethinkdb_server": SimpleNamespace(connect_arguments=arguments)}
    runner.run(test(**{name: fixtures[name] for name in inspect.signature(test).parameters}))


@pytest.mark.usefixtures("default_port_is")
@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=lambda page: page.name)
def test_the_code_of_a_page_runs_as_it_stands(
    page: Path, server: StandInServer, capsys: pytest.CaptureFixture[str]
) -> None:
    if "import web" in page.read_text(encoding="utf-8"):
        pytest.importorskip("aiohttp")
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        pool = runner.run(open_pool())
        names: dict[str, Any] = {"__name__": page.stem, "pool": pool}
        try:
            run_page(page, runner, names)
            for test in [value for name, value in names.items() if name.startswith("test_")]:
                run_test(test, runner, server)
            if "app" in names:
                runner.run(ask_app(names["app"]))
        finally:
            runner.run(pool.close(timeout=0))


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/index.rst").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.rst"):
        assert page.stem == "index" or page.name in index


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_has_a_target_that_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = dict(re.findall(r"^\.\. _([^:]+): (\S+)$", text, re.MULTILINE))
    used = set(re.findall(r"`([^`<>]+)`_", text.replace("``", "\0")))
    assert {" ".join(name.split()) for name in used} == set(targets)
    for target in targets.values():
        here = target.removeprefix("https://gitlab.com/AnjiProject/async-repool/-/blob/master/")
        if here != target:
            assert (ROOT / here).exists(), here
        elif not target.startswith("https://"):
            assert (page.parent / target).exists(), target
