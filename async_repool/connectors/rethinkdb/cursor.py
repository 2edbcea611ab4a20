"""What users read rows from: the cursor, as the driver has it; and the stream, as the pool has it.

How rows travel is not known here. A cursor asks its wire for the next batch, and the wire feeds it what comes.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from rethinkdb.asyncio_net import net_asyncio
from rethinkdb.errors import ReqlCursorEmpty, ReqlTimeoutError

from .codec import FEED_NOTES, AnswerType
from .transient import ConnectionClosed


class CursorWire(Protocol):
    """What a cursor needs of its wire. The driver's cursor has its connection under the same name, ``conn``."""

    def is_open(self) -> bool: ...
    def add_stream(self, cursor: AsyncioCursor, token: int, owed: int, /) -> OpenStream: ...
    def continue_stream(self, stream: OpenStream, /) -> None: ...
    def stop_stream(self, token: int, /) -> None: ...


@dataclass(slots=True, eq=False)
class OpenStream:
    """A cursor with rows to come, as its wire knows it: weakly, so that its user can drop it."""

    cursor: weakref.ref[AsyncioCursor]
    token: int
    owed: int  # frames to come; 1 while a CONTINUE is unanswered
    # The cursor, once for each task that waits for its rows. The only other reference to such a task may be in a future
    # of this very cursor; without this the garbage collector would take both.
    readers: list[AsyncioCursor] = field(default_factory=list)


class AsyncioCursor(net_asyncio.AsyncioCursor):  # type: ignore[misc]
    """The driver's cursor. It is stopped on the server when its user drops it, because its connection holds it weakly.

    It reads ahead: it asks for a batch while the one before is read, and for no more than that, also of a changefeed.
    Several tasks may read it. If a wait for rows is cancelled, no row is lost. It outlives the lease that it was opened
    on, but not the connection.

    It has the driver's name too: existing code compares ``result.__class__.__name__ == "AsyncioCursor"``.
    """

    def __init__(self, wire: CursorWire, query: Any, first: Any, owed: int) -> None:
        self.conn = wire
        self.query = query
        self.is_feed = not FEED_NOTES.isdisjoint(first.notes or ())
        self.items: deque[Any] = deque()
        self.error: Exception | None = None  # what is raised after the items; ReqlCursorEmpty if all went well
        self.threshold = 1  # rows; with fewer than this the next batch is asked for
        self._changed = asyncio.Event()  # pulses when rows or the end have come
        self._stream: OpenStream | None = None
        if first.type == AnswerType.SUCCESS_PARTIAL:
            self._stream = wire.add_stream(self, query.token, owed)
        self.extend(first)

    @property
    def outstanding_requests(self) -> int:
        """Frames that the server owes to this cursor."""
        return 0 if self._stream is None else self._stream.owed

    async def fetch_next(self, wait: bool | float = True) -> bool:
        """Wait, for up to ``wait`` seconds, until there is a row, an error or the end. Returns false at the end."""
        await self._wait_rows(self._wait_to_timeout(wait))
        return bool(self.items) or not isinstance(self.error, ReqlCursorEmpty)

    async def next_row(self, timeout: float | None) -> Any:
        """Wait up to ``timeout`` seconds for the next row (None: for ever)."""
        if not self.items:
            await self._wait_rows(timeout)
            if not self.items:
                assert self.error is not None
                raise self.error.with_traceback(None)  # it may be raised again and again
        # Nothing waits from here on, so a row that is taken is also returned.
        row = self.items.popleft()
        self.maybe_fetch_batch()
        return row

    _get_next = next_row  # what the driver's next() and `async for` call

    async def _wait_rows(self, timeout: float | None) -> None:
        stream = self._stream
        if self.items or self.error is not None or stream is None:
            return
        stream.readers.append(self)
        try:
            async with asyncio.timeout(timeout):
                while not self.items and self.error is None:
                    await self._changed.wait()
        except TimeoutError:
            if not self.items and self.error is None:
                raise ReqlTimeoutError() from None
        finally:
            stream.readers.pop()

    async def read_all(self) -> list[Any]:
        """Wait for the rows that are left, and return them as a list.

        Raises TypeError if it is a changefeed that has not ended. If cancelled, the stream is stopped on the server.
        """
        rows: list[Any] = []
        try:
            if self.is_feed and self.error is None:
                raise TypeError("the query is a changefeed, which run() would read for ever: use changes() or stream()")
            while self.items or self.error is None:
                await self._wait_rows(None)
                rows += self.items
                self.items.clear()
                self.maybe_fetch_batch()
        except BaseException:
            self.close_nowait()
            raise
        if not isinstance(self.error, ReqlCursorEmpty):
            await self.next_row(None)  # raises it
        return rows

    async def close(self) -> None:
        """Stop the stream on the server. Does not wait. Rows that have come can still be read."""
        self.close_nowait()

    aclose = close  # for contextlib.aclosing()

    def __exit__(self, *_: object) -> None:
        self.close_nowait()

    def close_nowait(self) -> bool:
        """The same, at once. Returns false if the stream had ended before."""
        if self.error is not None:
            return False
        self.lose(self._empty_error())
        self.conn.stop_stream(self.query.token)
        return True

    def maybe_fetch_batch(self) -> None:
        """For the wire too: ask for the next batch, if it is time."""
        stream = self._stream
        if self.error is None and stream is not None and not stream.owed and len(self.items) < self.threshold:
            self.conn.continue_stream(stream)

    def extend(self, answer: Any) -> None:
        """For the wire: a batch has come."""
        if answer.type == AnswerType.SUCCESS_PARTIAL:
            self.maybe_fetch_batch()  # before the rows are counted: one batch ahead
            self.threshold = max(1, len(answer.data))
            self.items.extend(answer.data)
        elif answer.type == AnswerType.SUCCESS_SEQUENCE:
            self.items.extend(answer.data)
            self.error = self._empty_error()
        else:
            self.error = answer.make_error(self.query)
        self._wake()

    def lose(self, error: Exception) -> None:
        """For the wire: nothing more will come, and this is why."""
        if self.error is None:
            self.error = error
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed.clear()


class RethinkDBStream:
    """A :class:`~async_repool.connectors.Stream`. If a user drops it, its cursor goes too, and stops on the server."""

    __slots__ = ("__weakref__", "_cursor", "_rows")

    def __init__(self, value: AsyncioCursor | list[Any]) -> None:
        self._cursor = None if isinstance(value, list) else value
        self._rows: deque[Any] = deque(value if isinstance(value, list) else ())

    @property
    def is_feed(self) -> bool:
        """Whether it is a changefeed."""
        return self._cursor is not None and self._cursor.is_feed

    def __aiter__(self) -> RethinkDBStream:
        return self

    async def __anext__(self) -> Any:
        if self._cursor is None:
            if not self._rows:
                raise StopAsyncIteration
            return self._rows.popleft()
        try:
            return await self._cursor.next_row(None)
        except ReqlCursorEmpty:
            raise StopAsyncIteration from None
        except ConnectionClosed as error:
            raise error.for_pool() from error

    def close(self) -> bool:
        """Stop it on the server, at once. Rows that have come can still be read. Returns false if it had ended."""
        return self._cursor is not None and self._cursor.close_nowait()
