"""What ``stream()`` and ``changes()`` give: rows as they come, and a changefeed that survives its connection.

Here is only what a reader sees. How a connection is found, and what is tried again, stands in ``_shell/queries.py``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

from ._shell.messages import first_line
from ._shell.queries import FeedOpener, OpenFeed, StreamSource
from .connectors import Stream
from .errors import ConnectionLost, PoolException

__all__ = ["Feed", "FeedGap", "StreamContext"]

log = logging.getLogger("async_repool")


class StreamContext:
    """What :meth:`~async_repool.AsyncConnectionPool.stream` returns: opens a stream on entry, stops it on exit.

    For one reader at a time. It may be entered again after its end, which runs the query again.
    """

    __slots__ = ("_is_used", "_name", "_source", "_stream")

    _stream: Stream

    def __init__(self, name: str, source: StreamSource) -> None:
        self._name = name
        self._source = source
        self._is_used = False

    async def __aenter__(self) -> Stream:
        if self._is_used:
            raise PoolException(
                f"{self._name}: a stream() context was entered again while it is in use; call stream() for each"
            )
        self._is_used = True
        try:
            self._stream = await self._source.open()
        except BaseException:
            self._is_used = False
            raise
        return self._stream

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_used = False
        was_cut = self._stream.close()
        self._source.left(was_cut=was_cut, lost=error if isinstance(error, ConnectionLost) else None)

    def __del__(self) -> None:
        if getattr(self, "_is_used", False) and hasattr(self, "_stream"):
            self._source.dropped()


@dataclass(frozen=True, kw_only=True)
class FeedGap:
    """Comes among the changes of a feed that was broken. What changed meanwhile was missed.

    After it come the changes since the feed was opened again. A query with ``include_initial=True`` gets all initial
    values again first. So a reader that discards what it knew at each gap stays in step with the table.
    """

    broke_at: datetime
    """When its connection was lost, in UTC. If the server vanished silently, when that was noticed."""
    resumed_at: datetime
    """When it was open again, in UTC."""
    reason: str
    """The error that ended it, such as ``"ConnectionLost: …"``."""

    @property
    def seconds(self) -> float:
        """How long it was broken."""
        return (self.resumed_at - self.broke_at).total_seconds()


class Feed:
    """A changefeed that survives its connection: an async iterator of changes. A :class:`FeedGap` among them says that
    some were missed.

    Read it with ``async for``, in one task at a time. ``async with feed:`` opens it on entry; else the first read opens
    it. After that, no change is missed, except in a gap. Cancelling a read loses no change: the feed may be read on.

    The feed is stopped on the server at the end of ``async with feed:``, by :meth:`aclose`, and when it is dropped.
    """

    # The frames of a cancelled read may live on in a traceback. They refer to the reader below, and not to this object,
    # so a feed that is dropped is stopped at once.

    __slots__ = ("__weakref__", "_reader")

    def __init__(self, name: str, opener: FeedOpener) -> None:
        self._reader = _Reader(name, opener)

    def __aiter__(self) -> Feed:
        return self

    async def __anext__(self) -> Any:
        """Wait for the next change, without limit. If the feed breaks, wait until it is open again; return the gap."""
        try:
            return await self._reader.next()
        finally:
            del self

    async def aclose(self) -> None:
        """Stop the feed on the server. Does not wait. A task that reads it leaves its loop. May be called twice."""
        self._reader.finish()

    async def __aenter__(self) -> Feed:
        """Open the feed, if it is not open yet."""
        await self._reader.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop it."""
        self._reader.finish()

    def __del__(self) -> None:
        reader = getattr(self, "_reader", None)
        if reader is not None:
            reader.dropped()

    def __repr__(self) -> str:
        return f"<Feed of pool {self._reader.name!r}, {self._reader.status}>"


class _Reader:
    """The work of a feed. It has no task of its own: the task that reads it opens it again. While nobody reads, two
    batches at most wait in the connection.
    """

    def __init__(self, name: str, opener: FeedOpener) -> None:
        self.name = name
        self._opener = opener
        self._open_feed: OpenFeed | None = None
        self._stream: Stream | None = None  # of the open feed; after the pool's end, to be read to its end
        self._broke_at: datetime | None = None  # if it has to be opened again, since when
        self._cause: Exception | None = None  # why
        self._is_reported = False  # it was logged that it cannot be opened again yet
        self._guard: asyncio.Timeout | None = None  # around an opening, so that another task can end it
        self._is_used = False
        self._is_over = False
        self._end: Exception | None = None  # the pool's error, if the pool has ended it; raised once

    @property
    def status(self) -> str:
        """For the feed's repr."""
        return "ended" if self._is_over else "open" if self._stream is not None else "not open"

    async def next(self) -> Any:
        """The next change, or gap."""
        with self._using():
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
                    if not self._broke(error):
                        raise self._named(error) from error.__cause__

    async def begin(self) -> None:
        """Open it, if it is not open yet."""
        try:
            with self._using():
                if self._is_over:
                    raise self._over()
                if self._stream is None and self._broke_at is None:
                    await self._open()
        except StopAsyncIteration:  # which would end a loop around the block
            raise PoolException(f"{self.name}: a feed of changes() was closed; open another") from None

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Allow one task at a time. Any error except a cancellation ends the feed."""
        if self._is_used:
            raise PoolException(f"{self.name}: a feed of changes() is read by two tasks at once; open one for each")
        self._is_used = True
        try:
            yield
        except asyncio.CancelledError:
            raise
        except BaseException:
            self.finish()
            raise
        finally:
            self._is_used = False

    @property
    def _is_ended(self) -> bool:
        """Whether another task, or the pool, has ended it."""
        return self._is_over or self._end is not None

    def _over(self) -> Exception:
        """What ends a read of a feed that has ended: the pool's error, which is raised once, or the end of the loop."""
        end, self._end = self._end, None
        return StopAsyncIteration() if end is None else end

    def _named(self, error: Exception) -> Exception:
        if isinstance(error, ConnectionLost):
            return ConnectionLost(f"{self.name}: the connection of a feed ended, changes may be missed: {error}")
        return error

    async def _open(self) -> FeedGap | None:
        """Open the feed. If it was open before, return the gap."""
        try:
            async with asyncio.timeout(None) as self._guard:
                self._opener.find_runtime().feeds.add(self)
                is_first = self._broke_at is None
                opened = await (self._opener.open() if is_first else self._opener.open_again(self._report))
        except Exception as error:
            if self._is_ended:
                raise self._over() from None
            raise self._named(error) from error.__cause__
        finally:
            self._guard = None
        if self._is_ended or not opened.stream.is_feed:
            opened.stream.close()
            opened.leave()
            if self._is_ended:
                raise self._over()
            raise TypeError("changes() follows a changefeed; this query is none, end it with .changes()")
        self._open_feed, self._stream = opened, opened.stream
        if self._broke_at is None:
            return None
        gap = FeedGap(broke_at=self._broke_at, resumed_at=_utc_now(), reason=first_line(self._cause))
        self._broke_at = self._cause = None
        self._is_reported = False
        log.info("%s: a feed is open again after %.1f s", self.name, gap.seconds)
        return gap

    def _report(self, error: Exception) -> None:
        """Log, once for each gap, that it lasts."""
        if not self._is_reported:
            self._is_reported = True
            log.warning("%s: a feed cannot be opened again yet: %s", self.name, first_line(error))

    def _broke(self, error: Exception) -> bool:
        """It has ended with this error. Returns whether to open it again."""
        assert self._open_feed is not None
        if not self._opener.broke(self._open_feed, error):
            return False
        lost_at = error.lost_at if isinstance(error, ConnectionLost) else None
        seconds = 0.0 if lost_at is None else asyncio.get_running_loop().time() - lost_at  # may be long ago
        self._broke_at, self._cause = _utc_now() - timedelta(seconds=seconds), error
        self._let_go()
        return True

    def end(self, error: Exception) -> None:
        """The pool is being closed. The reader gets this error, after the changes that have come."""
        if not self._is_over:
            self._end = error
            stream = self._stream
            self._stop()
            self._stream = stream

    def finish(self) -> None:
        """Stop it. It is not read any more."""
        self._is_over = True
        self._stop()

    def dropped(self) -> None:
        """The feed was collected, in any thread, perhaps in the middle of anything."""
        if self._open_feed is not None:
            self._open_feed.leave_soon()
            self._open_feed = self._stream = None  # a stream that nobody holds is stopped
        self._is_over = True

    def _stop(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.reschedule(asyncio.get_running_loop().time())  # wakes the task that opens it
        self._let_go()

    def _let_go(self) -> None:
        opened, stream = self._open_feed, self._stream
        self._open_feed = self._stream = None
        if stream is not None:
            stream.close()  # wakes the task that reads it
        if opened is not None:
            opened.leave()


def _utc_now() -> datetime:
    return datetime.now(UTC)
