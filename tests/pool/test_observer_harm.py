"""Observers that cancel callers or raise from inside the pool cost no connection and harm no other caller."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, ConnectFailed, events
from async_repool.errors import QueryTimeout
from async_repool.testing.scripted import ScriptedConnector, error, never, slow
from pool_kit import acquire_soon, feeding, now, open_pool, opened, read_soon, stop, turn

pytestmark = [pytest.mark.virtual_time, pytest.mark.usefixtures("repeatable")]


class Canceller:
    """An observer that cancels tasks if it is given an event of one type."""

    def __init__(self, kind: type[events.Event]) -> None:
        self.kind = kind
        self.victims: list[asyncio.Task[Any]] = []

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, self.kind):
            for victim in self.victims:
                victim.cancel()


async def test_an_observer_that_cancels_a_waiting_caller_as_its_connection_opens_costs_no_connection() -> None:
    observer = Canceller(events.ConnectionOpened)
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, observer=observer) as pool:
        connector.connects.then(error(OSError("refused")))
        connector.drop(connector.connections[0])
        await turn()
        waiting = await acquire_soon(pool, timeout=60)
        observer.victims.append(waiting)
        await asyncio.sleep(30)
        assert waiting.cancelled()
        assert (pool.stats().leased, pool.stats().idle) == (0, 1)


async def test_an_observer_that_cancels_a_waiting_caller_as_an_outage_begins_delays_no_other_caller() -> None:
    observer = Canceller(events.OutageBegan)
    connector = ScriptedConnector()
    async with open_pool(connector, pool_size=1, min_size=0, observer=observer) as pool:
        connecting = connector.connects.hold()
        first, second = [await acquire_soon(pool, timeout=60) for _ in range(2)]
        observer.victims.append(first)
        began = now()
        connecting.release(error(ConnectFailed("wrong password", is_permanent=True)))
        with pytest.raises(ConnectFailed, match="wrong password"):
            await second
        assert now() == began, "an error that waiting cannot mend is raised at once"
        assert first.cancelled()


async def test_an_observer_that_cancels_a_feed_as_a_connection_is_closed_costs_no_connection() -> None:
    observer = Canceller(events.ConnectionClosed)
    connector = feeding()
    async with open_pool(connector, pool_size=2, max_feed_connections=1, observer=observer) as pool:
        first = await opened(pool, on_gap="raise")
        connector.streams.then(never())
        connector.checks.then(slow(3, error(OSError("dead"))))
        with pytest.raises(QueryTimeout):
            await anext(pool.changes("late", timeout=1))
        other = pool.changes("another")
        observer.victims.append(await read_soon(other))
        await asyncio.sleep(30)
        await stop(first, other)
        stats = pool.stats()
        assert (stats.leased, stats.shared, stats.feeds, stats.idle) == (0, 0, 0, 2)


class Odd(BaseException):
    """No Exception, and none that ends the event loop."""


@pytest.mark.parametrize("kind", [Odd, asyncio.CancelledError])
@pytest.mark.parametrize(
    "event_type", [events.ConnectionOpened, events.CallerServed, events.LeaseReturned, events.ConnectionClosed]
)
async def test_an_observer_that_raises_a_base_exception_costs_no_connection(
    event_type: type[events.Event], kind: type[BaseException]
) -> None:
    is_armed = False

    def observer(event: events.Event) -> None:
        nonlocal is_armed
        if is_armed and isinstance(event, event_type):
            is_armed = False
            raise kind

    connector = ScriptedConnector()
    # An error in a callback has nobody to go to but the loop's handler.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    pool = AsyncConnectionPool(connector, 1, observer=observer)
    await pool.init_pool()
    is_armed = True
    with contextlib.suppress(kind):
        async with pool.connect(timeout=20):
            pass
    with contextlib.suppress(kind, TimeoutError):
        await asyncio.wait_for(pool.drain(), 60)
    assert not is_armed
    async with pool.connect(timeout=60):
        pass
    await pool.close()
    connector.assert_nothing_left()
