"""What ``stream()`` and ``changes()`` give: rows as they come, and a changefeed that survives its connection.

How a place on a connection is had, and what is tried again for a query, is the pool's affair; here is only what a
reader sees. It knows nothing of the ledger's rules, and of the driver nothing at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import random
from types import TracebackType
from typing import Any, Literal, Protocol
from weakref import WeakSet

from ._backoff import LONGEST_DELAY, Backoff
from ._ledger import Slot
from .connectors import QueryConnector, Stream
from .errors import (
    ConnectFailed,
    ConnectionLost,
    FeedLaneFull,
    PoolException,
    PoolTimeout,
    QueryTimeout,
    TooManyWaiters,
)

__all__ = ["Feed", "FeedGap", "StreamContext"]

log = logging.getLogger("async_repool")


class Owner(Protocol):
    """What a stream or feed knows of its pool."""

    _feeds: WeakSet[Feed]
    """Those that are to be told when the pool is closed."""

    @property
    def name(self) -> str:
        """The pool's name."""

    async def _open_stream(self, query: Any, timeout: float | None, retry: bool, options: dict[str, Any]) -> Stream:
        """A stream on a shared connection."""

    def _stream_left(self, *, was_cut: bool, was_lost: bool) -> None:
        """A stream is not read any more."""

    async def _open_feed(self, query: Any, timeout: float, options: dict[str, Any]) -> tuple[Slot, Stream]:
        """A feed on a connection of the lane."""

    def _leave_feed(self, slot: Slot) -> None:
        """A feed has ended."""

    def _feed_collected(self, slot: Slot) -> None:
        """A feed was collected. Called in any thread."""


class StreamContext:
    """What :meth:`~async_repool.AsyncConnectionPool.stream` returns: opens a stream on entry, stops it on exit.

    For one reader at a time; it may be used again after that, which runs the query again.
    """

    __slots__ = ("_is_used", "_options", "_pool", "_query", "_retry", "_stream", "_timeout")

    _stream: Stream

    def __init__(self, pool: Owner, query: Any, timeout: float | None, retry: bool, options: dict[str, Any]) -> None:
        self._pool = pool
        self._query = query
        self._timeout = timeout
        self._retry = retry
        self._options = options
        self._is_used = False

    async def __aenter__(self) -> Stream:
        if self._is_used:
            raise PoolException(
                f"{self._pool.name}: a stream() context was entered again while it is in use; call stream() for each"
            )
        self._is_used = True
        try:
            self._stream = await self._pool._open_stream(self._query, self._timeout, self._retry, self._options)
        except BaseException:
            self._is_used = False
            raise
        return self._stream

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_used = False
        self._pool._stream_left(was_cut=self._stream.close(), was_lost=isinstance(error, ConnectionLost))


@dataclass(frozen=True, kw_only=True)
class FeedGap:
    """Comes among the changes of a feed that was broken: whatever changed meanwhile was missed.

    After it come the changes since the feed was opened again; of a query with ``include_initial=True`` all initial
    values first, so that whoever forgets what it knew at a gap is in step with the table again.
    """

    broke_at: datetime
    """When its connection was lost, in UTC; where the server vanished without a word, when that was noticed."""
    resumed_at: datetime
    """When it was open again, in UTC."""
    reason: str
    """What ended it, as in ``"ConnectionLost: …"``."""

    @property
    def seconds(self) -> float:
        """How long it was broken."""
        return (self.resumed_at - self.broke_at).total_seconds()


class Feed:
    """A changefeed that survives: an async iterator of changes, and of a :class:`FeedGap` wherever some were missed.

    Read it with ``async for``, in one task at a time. It is opened by the first read, or by ``async with feed:``, from
    where on no change is missed. Cancelling a read loses no change; it may be read on. It is stopped on the server by
    :meth:`aclose`, at the end of ``async with feed:``, and when it is dropped.
    """

    # One feed is not worth a task: it is opened again by whoever reads it. Where nobody reads, what the server sends
    # waits in the connection, one batch at most.

    def __init__(
        self,
        pool: Owner,
        connector: QueryConnector,
        query: Any,
        timeout: float,
        on_gap: Literal["tell", "raise"],
        options: dict[str, Any],
    ) -> None:
        self._pool = pool
        self._connector = connector
        self._query = query
        self._timeout = timeout
        self._survives = on_gap == "tell"
        self._options = options
        self._slot: Slot | None = None  # the one that carries it, while it is open
        self._stream: Stream | None = None
        self._opened_at = 0.0  # in the loop's time
        self._broke_at: datetime | None = None  # since when it has to be opened again
        self._cause: BaseException | None = None  # why
        self._backoff = Backoff(random)
        self._was_told_of = False  # that it cannot be opened again yet
        self._guard: asyncio.Timeout | None = None  # around an opening, so that another task can end it
        self._is_used = False
        self._is_over = False
        self._end: Exception | None = None  # what its reader is told once, if it was ended by the pool

    def __aiter__(self) -> Feed:
        return self

    async def __anext__(self) -> Any:
        """Wait for the next change, as long as it takes, or for the feed to be open again."""
        with self._using():
            return await self._next()

    async def aclose(self) -> None:
        """Stop the feed on the server. Does not wait. A task that reads it sees its end. May be called twice."""
        self._finish()

    async def __aenter__(self) -> Feed:
        """Open the feed, if it is not open yet."""
        try:
            with self._using():
                if self._is_over:
                    raise self._over()
                if self._stream is None and self._broke_at is None:
                    await self._open()
        except StopAsyncIteration:  # which would end a loop around the block
            raise PoolException(f"{self._pool.name}: a feed of changes() was closed; open another") from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop it."""
        self._finish()

    @contextmanager
    def _using(self) -> Iterator[None]:
        """One task at a time; and whatever ends its use, other than being cancelled, ends the feed."""
        if self._is_used:
            raise PoolException(
                f"{self._pool.name}: a feed of changes() is read by two tasks at once; open one for each"
            )
        self._is_used = True
        try:
            yield
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._finish()
            raise
        finally:
            self._is_used = False

    async def _next(self) -> Any:
        while True:
            if self._is_over or (self._stream is None and self._end is not None):
                raise self._over()
            if self._stream is None and (gap := await self._open()) is not None:
                return gap
            assert self._stream is not None
            try:
                return await self._stream.__anext__()
            except StopAsyncIteration:
                raise self._over() from None
            except Exception as error:
                if self._is_ended:
                    raise self._over() from error
                if not self._may_survive(error):
                    raise self._named(error) from error.__cause__
                self._broke(error)

    @property
    def _is_ended(self) -> bool:
        """Whether another task, or the pool, has ended it."""
        return self._is_over or self._end is not None

    def _over(self) -> Exception:
        """What ends a read of a feed that has ended: by the pool, which is told once, or in any other way."""
        end, self._end = self._end, None
        return StopAsyncIteration() if end is None else end

    def _named(self, error: Exception) -> Exception:
        if isinstance(error, ConnectionLost):
            return ConnectionLost(f"{self._pool.name}: the connection of a feed ended, changes may be missed: {error}")
        return error

    async def _open(self) -> FeedGap | None:
        """Open the feed; if it was open before, as often as it takes, and tell of the gap."""
        self._pool._feeds.add(self)
        try:
            async with asyncio.timeout(None) as self._guard:
                return await self._open_at_last()
        except Exception as error:
            if self._is_ended:
                raise self._over() from None
            raise self._named(error) from error.__cause__
        finally:
            self._guard = None

    async def _open_at_last(self) -> FeedGap | None:
        while True:
            if self._broke_at is not None:
                await asyncio.sleep(self._backoff.retry_at - asyncio.get_running_loop().time())
            try:
                slot, stream = await self._pool._open_feed(self._query, self._timeout, self._options)
            except Exception as error:
                if self._is_ended or self._broke_at is None or not self._may_be_opened_yet(error):
                    raise
                self._tell(error)
                self._backoff.failed(asyncio.get_running_loop().time())
                continue
            if self._is_ended or not stream.is_feed:
                stream.close()
                self._pool._leave_feed(slot)
                raise TypeError("changes() follows a changefeed; this query is none, end it with .changes()")
            self._slot, self._stream = slot, stream
            self._opened_at = asyncio.get_running_loop().time()
            if self._broke_at is None:
                return None
            gap = FeedGap(broke_at=self._broke_at, resumed_at=_utc_now(), reason=_describe(self._cause))
            self._broke_at = self._cause = None
            self._was_told_of = False
            log.info("%s: a feed is open again after %.1f s", self._pool.name, gap.seconds)
            return gap

    def _tell(self, error: Exception) -> None:
        """Log, once for each gap, that it lasts."""
        if not self._was_told_of:
            self._was_told_of = True
            log.warning("%s: a feed cannot be opened again yet: %s", self._pool.name, _describe(error))

    def _may_survive(self, error: Exception) -> bool:
        """Whether a feed that ended so is opened again."""
        return self._survives and (isinstance(error, ConnectionLost) or self._connector.may_pass(error))

    def _may_be_opened_yet(self, error: Exception) -> bool:
        """Whether opening it again, which failed so, is tried once more."""
        if isinstance(error, ConnectFailed):
            return not error.is_permanent
        passing = (ConnectionLost, PoolTimeout, QueryTimeout, TooManyWaiters, FeedLaneFull)
        return isinstance(error, passing) or self._connector.may_pass(error)

    def _broke(self, error: Exception) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._opened_at > LONGEST_DELAY:
            self._backoff.succeeded()  # it was well in between
        self._backoff.failed(now)
        since = 0.0  # seconds that it was broken before anybody read on
        if self._slot is not None and self._slot.ended_at is not None:
            since = now - self._slot.ended_at
        self._broke_at, self._cause = _utc_now() - timedelta(seconds=since), error
        self._let_go()

    def _pool_closed(self, error: Exception) -> None:
        """For the pool: it is being closed, and this is what the reader is told after the changes that have come."""
        if not self._is_over:
            self._end = error
            stream = self._stream
            self._stop()
            self._stream = stream

    def _finish(self) -> None:
        self._is_over = True
        self._stop()

    def _stop(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.reschedule(asyncio.get_running_loop().time())  # wakes the task that opens it
        self._let_go()

    def _let_go(self) -> None:
        slot, stream = self._slot, self._stream
        self._slot = self._stream = None
        if stream is not None:
            stream.close()  # wakes the task that reads it
        if slot is not None:
            self._pool._leave_feed(slot)

    def __del__(self) -> None:
        if getattr(self, "_slot", None) is not None:
            assert self._slot is not None
            self._pool._feed_collected(self._slot)  # its stream is collected too

    def __repr__(self) -> str:
        status = "ended" if self._is_over else "open" if self._stream is not None else "not open"
        return f"<Feed of pool {self._pool.name!r}, {status}>"


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _describe(error: BaseException | None) -> str:
    # Its first line: what an error of the driver says after that is the query, which may hold a user's data.
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0].removesuffix(' in:')}"
