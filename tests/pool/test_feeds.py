"""Changefeeds: opened, refused, read, and read on after a cancellation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from async_repool import AsyncConnectionPool, ConnectFailed, FeedGap
from async_repool.errors import ConnectionLost, NotSent, QueryTimeout
from async_repool.feeds import Feed
from async_repool.testing.scripted import ScriptedConnection, ScriptedConnector, error, feed, never, ok, slow
from async_repool.testing.virtual_clock import cancel_at_every_step
from pool_kit import (
    anything,
    drop_all,
    feeding,
    is_whole,
    newest,
    now,
    open_pool,
    opened,
    read_soon,
    reading,
    stop,
    turn,
)

pytestmark = [pytest.mark.virtual_time, pytest.mark.usefixtures("repeatable")]


# ---- changes as they come


async def test_changes_come_as_the_server_sends_them() -> None:
    connector = feeding()
    async with open_pool(connector) as pool:
        changes = pool.changes("a feed", include_initial=True)
        async with reading(changes) as items:
            assert newest(connector).query == ("a feed", {"include_initial": True})
            newest(connector).send(1, 2)
            await asyncio.sleep(1000)
            newest(connector).send(3)
            await turn()
            assert list(items) == [1, 2, 3]
        await changes.aclose()


async def test_own_options_are_not_passed_on() -> None:
    connector = feeding()
    async with open_pool(connector) as pool:
        await opened(pool, timeout=5, on_gap="raise", db="heroes")
        assert newest(connector).query == ("a feed", {"db": "heroes"})


async def test_nothing_is_opened_before_the_first_read() -> None:
    connector = feeding()
    async with open_pool(connector) as pool:
        pool.changes("a feed")
        await turn()
        assert connector.opened_streams == []


async def test_entering_its_block_opens_a_feed_so_that_no_change_after_that_is_missed() -> None:
    connector = feeding()
    async with open_pool(connector) as pool:
        async with pool.changes("a feed") as changes:
            newest(connector).send(1)
            assert await anext(changes) == 1
        assert (newest(connector).is_closed, len(connector.opened_streams)) == (True, 1)


async def test_a_feed_that_ends_by_itself_is_over() -> None:
    connector = feeding()
    async with open_pool(connector) as pool:
        changes = await opened(pool)
        newest(connector).send(1)
        newest(connector).end()
        assert [change async for change in changes] == [1]
        assert [change async for change in changes] == []
        assert len(connector.opened_streams) == 1
        assert await is_whole(pool)


# ---- refused


async def test_a_feed_that_the_server_refuses_raises_its_error_and_leaves_nothing() -> None:
    connector = ScriptedConnector()
    refused = PermissionError("no read permission")
    connector.streams.always(error(refused))
    async with open_pool(connector, pool_size=1) as pool:
        changes = pool.changes("a feed")
        with pytest.raises(PermissionError) as caught:
            await anext(changes)
        assert caught.value is refused
        assert [change async for change in changes] == [], "it is over"
        assert connector.streams.started_total == 1
        assert await is_whole(pool)


@pytest.mark.parametrize("value", [[1, 2], 5], ids=str)
async def test_what_is_no_changefeed_is_refused_and_leaves_nothing(value: Any) -> None:
    connector = ScriptedConnector()
    connector.streams.always(ok(value))
    async with open_pool(connector, pool_size=1) as pool:
        with pytest.raises(TypeError):
            await anext(pool.changes("a query"))
        connector.streams.always(ok())  # a sequence with rows to come
        with pytest.raises(TypeError, match=r"this query is none, end it with .changes\(\)"):
            await anext(pool.changes("a query"))
        assert connector.open_streams == []
        assert await is_whole(pool)


async def test_an_error_that_is_transient_is_raised_by_the_first_opening() -> None:
    connector = ScriptedConnector()
    connector.passing_errors = (LookupError,)
    connector.streams.always(error(LookupError("not ready")))
    async with open_pool(connector) as pool:
        with pytest.raises(LookupError):
            await anext(pool.changes("a feed"))


@pytest.mark.parametrize(("timeout", "seconds"), [(3, 3), (None, 8)])
async def test_a_first_opening_without_an_answer_is_bounded(timeout: float | None, seconds: float) -> None:
    connector = ScriptedConnector()
    connector.streams.always(never())
    async with open_pool(connector, connect_timeout=8) as pool:
        with pytest.raises(QueryTimeout, match=f"main: a feed had no answer from scripted:28015 within {seconds} s"):
            await anext(pool.changes("a feed", timeout=timeout))
        assert now() == pytest.approx(seconds)
        assert connector.streams.cancelled_total == 1
        assert await is_whole(pool)


async def test_a_first_opening_whose_connection_is_lost_raises() -> None:
    connector = ScriptedConnector()
    connector.streams.always(never())
    async with open_pool(connector, pool_size=1) as pool:
        task = await read_soon(pool.changes("a feed"))
        connector.drop(connector.connections[0])
        with pytest.raises(ConnectionLost):
            await task
        assert await is_whole(pool)


async def test_a_feed_that_could_not_be_sent_is_opened_elsewhere() -> None:
    connector = feeding()
    connector.streams.then(error(NotSent("ended")), error(NotSent("ended")))
    async with open_pool(connector, pool_size=2) as pool:
        changes = await opened(pool)
        assert pool.stats().changefeeds == 1
        await stop(changes)


async def test_a_feed_that_nobody_takes_is_given_up_as_a_query_is() -> None:
    connector = ScriptedConnector()
    connector.streams.always(error(NotSent("broken pipe")))
    async with open_pool(connector, pool_size=2) as pool:
        with pytest.raises(ConnectFailed, match="main: a feed was never sent: .*scripted:28015.*broken pipe"):
            await anext(pool.changes("a feed"))
        assert connector.streams.started_total == 5
        assert await is_whole(pool)


@pytest.mark.parametrize("timeout", ["1", -1, 0, float("nan"), True])
def test_a_bad_timeout_is_refused(timeout: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="timeout must be"):
        AsyncConnectionPool(ScriptedConnector()).changes("a feed", timeout=timeout)


@pytest.mark.parametrize("on_gap", ["ignore", None, True])
def test_on_gap_is_tell_or_raise(on_gap: Any) -> None:
    with pytest.raises(ValueError, match=f"on_gap must be 'tell' or 'raise', not {on_gap!r}"):
        AsyncConnectionPool(ScriptedConnector()).changes("a feed", on_gap=on_gap)


# ---- cancelled


async def test_a_reader_that_is_cancelled_may_read_on_and_misses_nothing() -> None:
    connector = feeding()
    async with open_pool(connector) as pool:
        changes = await opened(pool)
        for number in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await anext(changes)
            newest(connector).send(number)
            assert await anext(changes) == number
        assert len(connector.opened_streams) == 1
        await stop(changes)


class Breaking(ScriptedConnector):
    """Its first feed breaks after a while, the first attempt at another fails, and the next one is well."""

    is_refused = False

    async def open_stream(self, connection: ScriptedConnection, query: Any, options: dict[str, Any], /) -> Any:
        is_first = not self.opened_streams
        if not is_first and not self.is_refused:
            self.is_refused = True
            raise ConnectionLost("once more")
        self.streams.then(slow(1, feed(0, 1) if is_first else feed(2)))
        stream = await super().open_stream(connection, query, options)
        if is_first:
            asyncio.get_running_loop().call_later(1, drop_all, self)
        return stream


@pytest.mark.parametrize("options", [{"pool_size": 1}, {"pool_size": 2, "min_size": 0}], ids=str)
def test_a_reader_that_is_cancelled_at_any_moment_loses_no_change_and_no_gap(options: dict[str, Any]) -> None:
    made: list[tuple[AsyncConnectionPool, Breaking, Feed, list[Any]]] = []

    async def scenario() -> None:
        connector = Breaking()
        pool = AsyncConnectionPool(connector, name="main", **options)
        items: list[Any] = []
        made.append((pool, connector, pool.changes("a feed"), items))
        await pool.init_pool()
        while len(items) < 4:
            items.append(await anext(made[-1][2]))

    async def after() -> None:
        if not made:
            return  # cancelled before its first step
        pool, connector, changes, items = made[-1]
        await asyncio.sleep(3)
        await pool.init_pool()
        while len(items) < 4:
            items.append(await anext(changes))
        assert items == [0, 1, anything(FeedGap), 2]
        await stop(changes)
        assert connector.open_streams == []
        assert await is_whole(pool)
        await pool.close()
        connector.assert_nothing_left()

    assert cancel_at_every_step(scenario, after=after) > 20
