"""What tests of the conformance suite share: a connector with sample queries, and lists of broken connectors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from async_repool.testing.conformance import ConformanceError, SampleQueries, check_connector
from async_repool.testing.scripted import ScriptedConnector, never, ok

AnyConnector = TypeVar("AnyConnector", bound=type[ScriptedConnector])


class AnsweringConnector(ScriptedConnector):
    """A scripted connector that knows the sample queries. Rows of a stream come in batches, one each 0.1 s."""

    async def run(self, connection, query, options, /):
        if connection.is_open():
            kind, number = query
            self.queries.then({"value": ok(number), "rows": ok([*range(number)]), "slow": never()}[kind])
        return await super().run(connection, query, options)

    async def open_stream(self, connection, query, options, /):
        kind, number = query
        if connection.is_open():
            self.streams.then(ok(number) if kind == "value" else ok())
        reader = await super().open_stream(connection, query, options)
        if kind == "rows":
            loop, stream = asyncio.get_running_loop(), self.opened_streams[-1]
            for first in range(0, number, 100):
                loop.call_later(first / 1000, stream.send, *range(first, min(first + 100, number)))
            loop.call_later(number / 1000, stream.end)
        return reader


QUERIES = SampleQueries(
    value=lambda number: ("value", number),
    rows=lambda number: ("rows", number),
    endless=("endless", 0),
    slow=("slow", 0),
)


class BrokenPromises:
    """A list of connectors that break one promise each, as parameters of a test. Use it as a decorator."""

    def __init__(self) -> None:
        self.cases: list[Any] = []

    def __call__(self, report: str) -> Callable[[AnyConnector], AnyConnector]:
        """Register a connector, and the beginning of what the suite must report."""

        def register(connector_class: AnyConnector) -> AnyConnector:
            self.cases.append(pytest.param(report, connector_class, id=connector_class.__name__))
            return connector_class

        return register


async def assert_reported(report: str, connector: ScriptedConnector, queries: SampleQueries | None = None) -> None:
    """The suite fails for this connector, and one of its problems begins with `report`."""
    with pytest.raises(ConformanceError, match=f"- {re.escape(report)}") as caught:
        await check_connector(connector, queries=queries, seconds=20)
    assert any(problem.startswith(report) for problem in caught.value.problems)
    # The suite has ended everything that it ran. What the connector itself left over ends here.
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
