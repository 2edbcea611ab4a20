"""The fault matrix: whatever fails, and whoever is cancelled meanwhile, nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, PoolException
from async_repool.errors import NotSent
from async_repool.testing.scripted import Behaviour, ScriptedConnector, error, feed, never, ok, slow
from cancellation_kit import Refused, later, lose, survives

pytestmark = pytest.mark.usefixtures("repeatable")


# ---- open, check, close x ok, error, slow, never x a cancel at each await


FAULTS: dict[str, Callable[[], Behaviour]] = {
    "ok": ok,
    "error": lambda: error(OSError("fault")),
    "slow": lambda: slow(1),
    "never": never,
}


def survives_faults(opens: str, checks: str, closes: str) -> int:
    """A pool whose connections have had their time, while these faults are on: cancelled at each step."""
    made: list[ScriptedConnector] = []

    def connector() -> ScriptedConnector:
        made.append(ScriptedConnector(connect_timeout=4))
        return made[-1]

    async def check(connection: Any) -> None:
        await made[-1].check(connection)

    async def use(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
        await asyncio.sleep(2000)
        for verb, fault in ((connector.connects, opens), (connector.checks, checks), (connector.closes, closes)):
            verb.always(FAULTS[fault]())
        with contextlib.suppress(PoolException):
            async with pool.connect(timeout=7) as lease:
                await lease._start("term")

    options: dict[str, Any] = {"pool_size": 2, "min_size": 1, "connection_ttl": 1000}
    return survives(use, connector, close_timeout=3, check_timeout=3, check=check, **options)


def test_the_fault_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    combinations = 0
    for faults in itertools.product(FAULTS, FAULTS, ("ok", "never")):
        try:
            combinations += survives_faults(*faults)
        except BaseException as problem:
            problem.add_note("open: {}, check: {}, close: {}".format(*faults))
            raise
    with capsys.disabled():
        print(f" [{combinations} combinations of faults and cancellations]", end="")
    assert combinations > 500


# ---- the same for queries: open, check, and what becomes of the query


ANSWERS: dict[str, Callable[[], Behaviour]] = {
    "slow": lambda: slow(1, feed(1)),
    "refused": lambda: error(Refused("no such table")),
    "never": never,
    "not sent": lambda: error(NotSent("it had ended")),
    "lost": never,  # until its connection ends
}


async def a_run(pool: AsyncConnectionPool) -> None:
    await pool.run("mine", timeout=5, retry=True)


async def a_stream(pool: AsyncConnectionPool) -> None:
    async with pool.stream("mine", timeout=5) as rows:
        assert await anext(rows) == 1


async def a_feed(pool: AsyncConnectionPool) -> None:
    async with pool.changes("mine", timeout=5) as changes:
        assert await anext(changes) == 1


def a_query_survives_faults(
    call: Callable[[AsyncConnectionPool], Awaitable[None]], opens: str, checks: str, answer: str
) -> int:
    """A query on a pool that has no connection yet, while these faults are on: cancelled at each step."""
    made: list[ScriptedConnector] = []

    def connector() -> ScriptedConnector:
        made.append(ScriptedConnector(connect_timeout=4))
        return made[-1]

    async def check(connection: Any) -> None:
        await made[-1].check(connection)

    async def use(pool: AsyncConnectionPool, connector: ScriptedConnector) -> None:
        connector.connects.always(FAULTS[opens]())
        connector.checks.always(FAULTS[checks]())
        (connector.queries if call is a_run else connector.streams).always(ANSWERS[answer]())
        if answer == "lost":
            later(2.5, lose, connector)
        with contextlib.suppress(PoolException, Refused):
            await call(pool)

    return survives(use, connector, pool_size=1, min_size=0, check_timeout=3, check=check, acquire_timeout=7)


@pytest.mark.parametrize("call", [a_run, a_stream, a_feed], ids=lambda call: call.__name__)
def test_the_fault_matrix_of_queries(
    call: Callable[[AsyncConnectionPool], Awaitable[None]], capsys: pytest.CaptureFixture[str]
) -> None:
    combinations = 0
    before = [("ok", "ok"), ("error", "ok"), ("ok", "never"), ("never", "ok"), ("ok", "error"), ("slow", "ok")]
    if call is a_stream:
        before = before[:3]  # how it comes to its connection is the same as for a query
    for (opens, checks), answer in itertools.product(before, ANSWERS):
        try:
            combinations += a_query_survives_faults(call, opens, checks, answer)
        except BaseException as problem:
            problem.add_note(f"open: {opens}, check: {checks}, answer: {answer}")
            raise
    with capsys.disabled():
        print(f" [{combinations} combinations of faults and cancellations]", end="")
    assert combinations > 200
