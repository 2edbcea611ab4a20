"""Every fault control of the test kit on every public call: bounded time, a clear error, no wrong answer, no loss."""

from __future__ import annotations

import asyncio
import gc
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from rethinkdb import RethinkDB

from async_repool import R
from fault_kit import CONTROLS, USES, Scene, combine, proxy, stand_in


@pytest.fixture(scope="module")
def table(rethinkdb_server: Any) -> Iterator[Any]:
    """A table of the session's server, for this file only."""
    r = RethinkDB()
    db = "repool_" + uuid.uuid4().hex
    with r.connect(**rethinkdb_server.connect_arguments) as conn:
        r.db_create(db).run(conn)
        r.db(db).table_create("t").run(conn)
        r.db(db).table("t").wait().run(conn)
        yield R.db(db).table("t")
        r.db_drop(db).run(conn)


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Iterator[list[Scene]]:
    """All combinations of this file, told at its end."""
    scenes: list[Scene] = []
    yield scenes
    failed = sum(bool(scene.errors) for scene in scenes)
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f" [{len(scenes)} combinations of controls and calls, {failed} with an error for a user]", end="")


@pytest.mark.parametrize("where", ["on the stand-in", "through the proxy"])
@pytest.mark.parametrize("control", CONTROLS)
async def test_no_fault_hangs_a_call_gives_a_wrong_answer_or_costs_capacity(
    control: str, where: str, rethinkdb_server: Any, table: Any, tally: list[Scene]
) -> None:
    at = stand_in if where == "on the stand-in" else partial(proxy, rethinkdb_server.connect_arguments, table)
    tasks = asyncio.all_tasks()
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    outcomes = await asyncio.gather(*(combine(control, use, at) for use in USES), return_exceptions=True)
    failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if failures:
        raise ExceptionGroup(f"{control} {where}", failures)
    tally += [outcome for outcome in outcomes if isinstance(outcome, Scene)]
    assert asyncio.all_tasks() == tasks, "tasks are left"
    del outcomes
    gc.collect()
    assert unhandled == []
