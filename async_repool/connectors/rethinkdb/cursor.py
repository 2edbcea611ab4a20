"""What users read rows from: the cursor, as the driver has it; and the stream, as the pool has it.

How rows travel is not known here. A cursor asks its wire for the next batch, and the wire feeds it what comes.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from rethinkdb.asyncio_net import net_asyncio
from rethinkdb.errors import ReqlCursorEmpty, ReqlTimeoutError

from .codec import AnswerType
from .errors import ConnectionClosed

__all__ = ["AsyncioCursor", "CursorWire", "OpenStream", "RethinkDBStream"]


class CursorWire(Protocol):
    """What a cursor needs of the connection that it reads from."""

    def is_open(self) -> bool:
        """Whether the connection is open. For users: the driver's cursor has its connection too."""

    def add_stream(self, cursor: AsyncioCursor, token: int, owed: int, /) -> OpenStream:
        """Take note of a cursor with rows to come. ``owed``: frames that the server already owes to it."""

    def continue_stream(self, stream: OpenStream, /) -> None:
        """Ask the server for the next batch."""

    def stop_stream(self, token: int, /) -> None:
        """End a stream on the server and forget it. Does nothing if it has ended."""


class OpenStream:
    """A cursor with rows to come, as its connection knows it: weakly, so that its user can drop it."""

    __slots__ = ("_held", "_readers", "cursor", "owed", "token")

    def __init__(self, cursor: AsyncioCursor, token: int, owed: int, collected: Callable[[Any], None]) -> None:
        self.cursor = weakref.ref(cursor, collected)
        self.token = token
        self.owed = owed  # frames to come; 1 while a CONTINUE is unanswered
        self._held: AsyncioCursor | None = None
        self._readers = 0

    # While a task waits for rows, the connection holds the cursor. The only other reference to that task may be in a
    # future of this very cursor; without this the garbage collector would take both.
    def hold(self, cursor: AsyncioCursor) -> None:
        self._held = cursor
        self._readers += 1

    def release(self) -> None:
        self._readers -= 1
        if not self._readers:
            self._held = None


class AsyncioCursor(net_asyncio.AsyncioCursor):  # type: ignore[misc]
    """The driver's cursor. It is stopped on the server when its user drops it, because its connection holds it weakly.

    It reads ahead: it asks for a batch while the one before is read, and for no more than that, also of a changefeed.
    Several tasks may read it. It outlives the lease that it was opened on, but not the connection.

    It has the driver's name too: existing code compares ``result.__class__.__name__ == "AsyncioCursor"``.
    """

    def __init__(self, wire: CursorWire, query: Any, first: Any, owed: int) -> None:
        self.conn = wire
        self.query = query
        self.is_feed: bool = first.is_feed
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

    def __aiter__(self) -> AsyncioCursor:
        return self

    async def __anext__(self) -> Any:
        """Wait for the next row, for any time. If cancelled, no row is lost."""
        try:
            return await self.next_row(None)
        except ReqlCursorEmpty:
            raise StopAsyncIteration from None

    async def fetch_next(self, wait: bool | float = True) -> bool:
        """Wait until there is a row, an error or the end. Returns true unless it is the end.

        ``wait`` is whether to wait, or for how many seconds; :class:`ReqlTimeoutError` after that. If cancelled, no row
        is lost.
        """
        await self._wait_rows(self._wait_to_timeout(wait))
        return bool(self.items) or not isinstance(self.error, ReqlCursorEmpty)

    async def next_row(self, timeout: float | None) -> Any:
        """Wait up to ``timeout`` seconds for the next row (None: for any time). If cancelled, no row is lost."""
        if not self.items:
            await self._wait_rows(timeout)
            if not self.items:
                assert self.error is not None
                raise self.error.with_traceback(None)  # it may be raised again and again
        # Nothing waits from here on, so a row that was taken is a row that is returned.
        row = self.items.popleft()
        self.maybe_fetch_batch()
        return row

    _get_next = next_row  # what the driver's next() calls

    async def _wait_rows(self, timeout: float | None) -> None:
        stream = self._stream
        if self.items or self.error is not None or stream is None:
            return
        stream.hold(self)
        try:
            async with asyncio.timeout(timeout):
                while not self.items and self.error is None:
                    await self._changed.wait()
        except TimeoutError:
            if not self.items and self.error is None:
                raise ReqlTimeoutError() from None
        finally:
            stream.release()

    async def read_all(self) -> list[Any]:
        """Wait for the rows that are left, and return them as a list.

        Raises TypeError, and stops the stream, if it is a changefeed that has not ended. If cancelled, the stream is
        stopped on the server.
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
            assert self.error is not None
            raise self.error.with_traceback(None)
        return rows

    async def close(self) -> None:
        """Stop the stream on the server. Does not wait. Rows that have come can still be read."""
        self.close_nowait()

    async def aclose(self) -> None:
        """The same, for :func:`contextlib.aclosing`."""
        self.close_nowait()

    def __exit__(self, *_: object) -> None:
        self.close_nowait()

    def close_nowait(self) -> bool:
        """The same, at once. Returns false if the stream had ended before."""
        if self.error is not None:
            return False
        self.lose(self._empty_error())
        self.conn.stop_stream(self.query.token)
        return True

    # --- for the connection ---

    def maybe_fetch_batch(self) -> None:
        """Ask for the next batch, if it is time."""
        stream = self._stream
        if self.error is None and stream is not None and not stream.owed and len(self.items) < self.threshold:
            self.conn.continue_stream(stream)

    def extend(self, answer: Any) -> None:
        """A batch has come."""
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
        """Nothing more will come, and this is why."""
        if self.error is None:
            self.error = error
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed.clear()


class RethinkDBStream:
    """The rows of one query as they come: a :class:`~async_repool.connectors.Stream`.

    It holds its cursor and nothing else. If a user drops it, the cursor goes too and is stopped on the server.
    """

    __slots__ = ("__weakref__", "_cursor", "_rows")

    def __init__(self, value: AsyncioCursor | list[Any]) -> None:
        self._cursor = None if isinstance(value, list) else value
        self._rows: deque[Any] = deque(value) if isinstance(value, list) else value.items

    @property
    def is_feed(self) -> bool:
        """Whether it is a changefeed."""
        return self._cursor is not None and self._cursor.is_feed

    def __aiter__(self) -> RethinkDBStream:
        return self

    async def __anext__(self) -> Any:
        """Wait for the next row, for any time. If cancelled, no row is lost.

        Raises :class:`~async_repool.errors.ConnectionLost` if the connection ended before the last row.
        """
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
