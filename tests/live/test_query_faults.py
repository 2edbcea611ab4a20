"""Every fault control on every call that runs queries."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import uuid
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import pytest

from async_repool import ConnectFailed, FeedGap, OutcomeUnknown, PoolClosed, PoolTimeout, R
from fault_kit import CONTROLS, LAST_ROW, SILENT, USES, Scene, combine, proxy, stand_in


@contextlib.contextmanager
def may_fail(scene: Scene) -> Iterator[None]:
    with scene.may_fail(ConnectFailed, PoolTimeout, OutcomeUnknown):
        yield


def patience(scene: Scene) -> float:
    return 0.3 if scene.control in SILENT else 5


@contextlib.contextmanager
def unanswered(scene: Scene) -> Iterator[None]:
    """What is asked inside is on its way when things go wrong."""
    faults = scene.place.endpoint.faults
    faults.freeze()
    yield
    scene.begin()
    if scene.control != "freeze":
        faults.thaw()


async def run(scene: Scene, n: int, *, retry: bool = False) -> None:
    with may_fail(scene):
        assert await scene.pool.run(R.expr(n) * 2, timeout=patience(scene), retry=retry) == 2 * n, "a wrong answer"


async def run_queries(scene: Scene) -> None:
    await scene.pool.init_pool()
    with unanswered(scene):
        sent = [asyncio.create_task(run(scene, n)) for n in range(5)]
        await asyncio.sleep(0.01)
    await asyncio.gather(*sent, *(run(scene, n) for n in range(5, 10)))
    await run(scene, 10)


async def repeat_queries(scene: Scene) -> None:
    await scene.pool.init_pool()
    with unanswered(scene):
        sent = [asyncio.create_task(run(scene, n, retry=True)) for n in range(5)]
        await asyncio.sleep(0.01)
    await asyncio.gather(*sent)
    assert not scene.errors or scene.control in SILENT, "it was lost once, and not repeated"


async def be_cancelled_in_queries(scene: Scene) -> None:
    await scene.pool.init_pool()
    with unanswered(scene):
        queries = [asyncio.create_task(scene.pool.run(R.expr(n))) for n in range(4)]
        others = [asyncio.create_task(run(scene, n)) for n in range(3)]
        await asyncio.sleep(0.01)
    for query in queries:
        query.cancel()
    await asyncio.wait(queries)
    assert all(query.cancelled() for query in queries)
    await asyncio.gather(*others)


async def read_a_stream(scene: Scene) -> None:
    await scene.pool.init_pool()
    rows: list[int] = []
    with may_fail(scene), contextlib.suppress(TimeoutError):
        async with scene.pool.stream(R.range(LAST_ROW), max_batch_rows=200) as stream:
            rows += [await anext(stream) for _ in range(100)]
            scene.begin()
            async with asyncio.timeout(patience(scene)):
                async for row in stream:
                    rows.append(row)
    assert rows == list(range(len(rows))), "wrong rows"
    assert len(rows) == LAST_ROW or scene.errors or scene.control in SILENT, "rows are missing, and nobody was told"


async def begin_a_stream(scene: Scene) -> None:
    await scene.pool.init_pool()
    scene.begin()
    with may_fail(scene):
        async with scene.pool.stream(R.range(5), timeout=patience(scene)) as stream:
            assert [row async for row in stream] == list(range(5))


async def follow_changes(scene: Scene) -> None:
    await scene.pool.init_pool()
    name = uuid.uuid4().hex
    table = scene.place.table
    async with scene.pool.changes(table.filter({"scene": name}).changes(), timeout=0.5) as changes:
        scene.begin()
        seen: list[int] = []
        gaps = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience(scene)):
                for n in range(5):
                    with may_fail(scene):
                        write = table.insert({"id": f"{name} {n}", "scene": name, "n": n})
                        await scene.pool.run(write, timeout=patience(scene), retry=True)
                    while n not in seen and not gaps:
                        change = await anext(changes)
                        if isinstance(change, FeedGap):
                            gaps += 1
                        else:
                            seen.append(change["new_val"]["n"])
    assert seen == list(range(len(seen))), "a change is missing, and nobody was told"
    assert len(seen) == 5 or gaps or scene.control in SILENT


async def begin_to_follow(scene: Scene) -> None:
    await scene.pool.init_pool()
    scene.begin()
    with may_fail(scene):
        async with scene.pool.changes(scene.place.table.changes(), timeout=patience(scene)):
            pass


async def close_under_queries(scene: Scene) -> None:
    await scene.pool.init_pool()
    async with scene.pool.changes(scene.place.table.filter({"scene": 0}).changes()) as changes:
        following = asyncio.create_task(anext(changes))
        with unanswered(scene):
            queries = [asyncio.create_task(scene.pool.run(R.expr(n))) for n in range(3)]
            await asyncio.sleep(0.01)
        await scene.pool.close(timeout=0.1)
        with pytest.raises(PoolClosed):
            await following
        for query in queries:
            with contextlib.suppress(OutcomeUnknown):
                await query


QUERY_USES: list[Callable[[Scene], Awaitable[None]]] = [
    run_queries,
    repeat_queries,
    be_cancelled_in_queries,
    read_a_stream,
    begin_a_stream,
    follow_changes,
    begin_to_follow,
    close_under_queries,
]


PROXY_USES = [run_queries, repeat_queries, read_a_stream, follow_changes]


@pytest.mark.parametrize("where", ["on the stand-in", "through the proxy"])
async def test_no_fault_hangs_a_query_gives_a_wrong_answer_or_costs_capacity(
    where: str,
    arguments: dict[str, Any],
    table: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for use in QUERY_USES:
        monkeypatch.setitem(USES, use, {"connect_timeout": 1.0, "acquire_timeout": 5.0})
    at, uses = (stand_in, QUERY_USES) if where == "on the stand-in" else (partial(proxy, arguments, table), PROXY_USES)
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    failures: list[Exception] = []
    scenes = 0
    for two in zip(uses[::2], uses[1::2], strict=True):  # all at once would be slow
        combined = [combine(control, use, at) for use in two for control in CONTROLS]
        outcomes = await asyncio.gather(*combined, return_exceptions=True)
        failures += [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        scenes += len(outcomes)
    if failures:
        raise ExceptionGroup(where, failures)
    with capsys.disabled():
        print(f" [{scenes} combinations of controls and calls]", end="")
    gc.collect()
    assert unhandled == []
