"""Queries, streams and feeds on shared connections: the one place that says what is tried again.

- A query that was never sent is sent elsewhere, at once, up to MOST_ATTEMPTS times.
- A query that was sent is repeated only if the caller said ``retry=True``.
- A feed that was open before is opened again, after growing pauses, until it is open or the server refuses it for good.

The core finds the connection. What a reader sees is in ``feeds.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import random
from typing import Any, Final, Literal, TypeAlias

from .. import events
from .._core.backoff import LONGEST_DELAY, Backoff
from .._core.slots import FEED, QUERY, Slot
from ..connectors import QueryConnector, Stream
from ..errors import (
    ConnectFailed,
    ConnectionLost,
    FeedLaneFull,
    NotSent,
    PoolException,
    PoolTimeout,
    QueryTimeout,
    TooManyWaiters,
)
from . import messages
from .runtime import Runtime

MOST_ATTEMPTS: Final = 5
"""How often one query is tried, if trying again is safe, before the last error is raised."""

Send: TypeAlias = Callable[[Any, Any, dict[str, Any]], Awaitable[Any]]
FindRuntime: TypeAlias = Callable[[str], Runtime]


async def run(
    runtime: Runtime, send: Send, query: Any, timeout: float | None, retry: bool, options: dict[str, Any]
) -> tuple[Any, int, float]:
    """Send a query. Returns its value, the number of its connection, and when it was sent, for the caller to count it.

    ``timeout`` is in seconds, and covers the wait in line and every attempt. A query that fails is counted here.
    """
    journal, time = runtime.journal, runtime.time
    deadline = None if timeout is None else time() + timeout
    lost: ConnectionLost | None = None  # the error of the last attempt that was sent
    number, began = 0, 0.0
    for attempt in count(1):
        try:
            slot = runtime.query_nowait() or await runtime.wait(QUERY, _time_to_wait(runtime, deadline))
        except PoolException as error:
            if lost is None:
                raise
            journal.tell(events.QueryLost(runtime.name, number, time() - began, lost))
            raise _lost(runtime, lost, retry) from error  # an earlier attempt was sent
        number, began = slot.number, time()
        try:
            if deadline is None:
                return await send(slot.connection, query, options), number, began
            async with asyncio.timeout_at(deadline) as limit:
                return await send(slot.connection, query, options), number, began
        except (NotSent, ConnectionLost) as error:
            if isinstance(error, ConnectionLost):
                lost = error
            if attempt < MOST_ATTEMPTS and (retry or isinstance(error, NotSent)):
                continue
            if lost is None:
                text = messages.never_sent("a query", attempt, journal.endpoint, error)
                raise ConnectFailed(f"{runtime.name}: {text}") from error
            journal.tell(events.QueryLost(runtime.name, number, time() - began, lost))
            raise _lost(runtime, lost, retry) from (error.__cause__ if error is lost else error)
        except asyncio.CancelledError:
            journal.tell(events.QueryStopped(runtime.name, number, time() - began, None))
            raise
        except BaseException as error:
            if timeout is None or not (isinstance(error, TimeoutError) and limit.expired()):
                journal.query_done(number, time() - began, error)
                raise
            text = messages.no_answer("a query", journal.endpoint, timeout)
            timed_out = QueryTimeout(f"{runtime.name}: {text}")
            journal.tell(events.QueryStopped(runtime.name, number, time() - began, timed_out))
            runtime.doubt(slot)
            raise timed_out from None
        finally:
            runtime.release(slot)
    raise AssertionError  # the loop has no other end


class StreamSource:
    """Opens a stream of ``stream()``, and counts how it ended. For one reader at a time."""

    def __init__(
        self,
        find_runtime: FindRuntime,
        connector: QueryConnector,
        query: Any,
        timeout: float | None,
        retry: bool,
        options: dict[str, Any],
    ) -> None:
        self._find_runtime = find_runtime
        self._connector = connector
        self._arguments = (query, timeout, retry, options)

    async def open(self) -> Stream:
        """Wait for its first rows."""
        self._runtime = runtime = self._find_runtime("stream()")
        stream: Stream
        stream, self._number, self._began = await run(runtime, self._connector.open_stream, *self._arguments)
        return stream

    def dropped(self) -> None:
        """It was collected before its end. Called in any thread."""
        if not (self._runtime.is_inherited or self._runtime.loop.is_closed()):
            self._runtime.loop.call_soon_threadsafe(partial(self.left, was_cut=True, lost=None))

    def left(self, *, was_cut: bool, lost: ConnectionLost | None) -> None:
        """Its reader has left it. ``was_cut``: it was stopped before its end."""
        journal, seconds = self._runtime.journal, self._runtime.time() - self._began
        if lost is not None:
            journal.tell(events.QueryLost(self._runtime.name, self._number, seconds, lost))
        elif was_cut:
            journal.tell(events.QueryStopped(self._runtime.name, self._number, seconds, None))
        else:
            journal.query_done(self._number, seconds)


@dataclass(slots=True)
class OpenFeed:
    """A feed that is open on a connection of the lane."""

    runtime: Runtime
    slot: Slot
    stream: Stream
    opened_at: float  # in the loop's time

    def leave(self) -> None:
        """Give its place back."""
        self.runtime.release(self.slot)

    def leave_soon(self) -> None:
        """The same, from any thread."""
        if not (self.runtime.is_inherited or self.runtime.loop.is_closed()):
            self.runtime.loop.call_soon_threadsafe(self.leave)


class FeedOpener:
    """Opens one feed, and opens it again after it broke. Holds the feed's back-off."""

    def __init__(
        self,
        find_runtime: FindRuntime,
        connector: QueryConnector,
        query: Any,
        timeout: float | None,
        on_gap: Literal["tell", "raise"],
        options: dict[str, Any],
    ) -> None:
        self._find_runtime = find_runtime
        self._connector = connector
        self._query = query
        self._timeout = timeout
        self._options = options
        self._survives = on_gap == "tell"
        self._backoff = Backoff(random)

    def find_runtime(self) -> Runtime:
        """The runtime of the pool now. Raises if the pool is not open."""
        return self._find_runtime("changes()")

    def broke(self, feed: OpenFeed, error: Exception) -> bool:
        """An open feed has ended with this error. Returns whether to open it again."""
        if not self._survives or not (isinstance(error, ConnectionLost) or self._connector.is_transient(error)):
            return False
        now = feed.runtime.time()
        if now - feed.opened_at > LONGEST_DELAY:
            self._backoff.reset()  # the server was well in between
        self._backoff.failed(now)
        return True

    async def open(self) -> OpenFeed:
        """Open it for the first time. It may take ``timeout`` seconds once it has a connection."""
        for attempt in count(1):
            runtime = self.find_runtime()
            try:
                return await self._open_once(runtime)
            except NotSent as error:
                if attempt >= MOST_ATTEMPTS:
                    text = messages.never_sent("a feed", attempt, runtime.journal.endpoint, error)
                    raise ConnectFailed(f"{runtime.name}: {text}") from error
        raise AssertionError  # the loop has no other end

    async def open_again(self, report: Callable[[Exception], None]) -> OpenFeed:
        """Try to open it until it is open. ``report`` is called with each failure. Raises the first error that does not
        pass by itself.
        """
        while True:
            runtime = self.find_runtime()
            await asyncio.sleep(self._backoff.retry_at - runtime.time())
            try:
                return await self._open_once(runtime)
            except Exception as error:
                if not self._may_be_opened_yet(error):
                    raise
                report(error)
                self._backoff.failed(runtime.time())

    def _may_be_opened_yet(self, error: Exception) -> bool:
        if isinstance(error, ConnectFailed):
            return not error.is_permanent
        passing = (ConnectionLost, FeedLaneFull, NotSent, PoolTimeout, QueryTimeout, TooManyWaiters)
        return isinstance(error, passing) or self._connector.is_transient(error)

    async def _open_once(self, runtime: Runtime) -> OpenFeed:
        timeout = runtime.worker.connect_timeout() if self._timeout is None else self._timeout
        slot = await runtime.wait(FEED, runtime.config.acquire_timeout)
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                stream = await self._connector.open_stream(slot.connection, self._query, self._options)
        except BaseException as error:
            is_late = isinstance(error, TimeoutError) and limit.expired()
            if is_late:
                runtime.doubt(slot)
            runtime.release(slot)
            if is_late:
                text = messages.no_answer("a feed", runtime.journal.endpoint, timeout)
                raise QueryTimeout(f"{runtime.name}: {text}") from None
            raise
        runtime.step_aside(slot)
        return OpenFeed(runtime, slot, stream, runtime.time())


def _time_to_wait(runtime: Runtime, deadline: float | None) -> float | None:
    """Seconds that a query may wait in line."""
    longest = runtime.config.acquire_timeout
    if deadline is None:
        return longest
    left = max(0.0, deadline - runtime.time())
    return left if longest is None else min(left, longest)


def _lost(runtime: Runtime, error: ConnectionLost, was_retried: bool) -> ConnectionLost:
    return ConnectionLost(f"{runtime.name}: {messages.lost(error, was_retried=was_retried)}")
