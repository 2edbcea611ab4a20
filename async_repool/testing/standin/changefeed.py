"""Changefeeds: the changes of a table that a client has not read yet, and how a feed ends.

This module has the queue of one feed. It does not know tokens or batches on the wire.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from .wire import OP_FAILED, RUNTIME_ERROR, QueryError

View = Callable[[Any], Any]


class Watched(Protocol):
    """What a feed needs of a table."""

    feeds: set[Feed]


class Feed:
    """One changefeed. It watches its table from ``open`` to ``close``, and ``take`` returns the queued changes.

    If the queue is full, a feed only counts further changes, as RethinkDB does.
    """

    type_name = "STREAM"

    def __init__(
        self,
        table: Watched,
        note: int,
        view: View,
        initial: Callable[[], Iterable[Any]] | None = None,
        is_watched: Callable[[Any], bool] | None = None,
        queue_size: int = 100_000,
    ) -> None:
        self.note = note
        self.error: QueryError | None = None
        self._table = table
        self._view = view
        self._initial = initial
        self._is_watched = is_watched
        self._queue_size = queue_size
        self._pending: deque[Any] = deque()
        self._skipped = 0
        self._wake: Callable[[], None] | None = None
        self._after: Callable[[Any], Iterable[Any]] | None = None

    def then(self, after: Callable[[Any], Iterable[Any]]) -> Feed:
        """The same feed, with each change passed through ``after``."""
        feed = Feed(self._table, self.note, self._view, self._initial, self._is_watched, self._queue_size)
        before = self._after
        feed._after = after if before is None else lambda change: (y for x in before(change) for y in after(x))
        return feed

    def open(self, wake: Callable[[], None]) -> None:
        """Start to watch. The feed calls ``wake`` when it has something to take."""
        self._wake = wake
        self._table.feeds.add(self)
        if self._initial is not None:
            for row in self._initial():
                self._put({"new_val": row})

    def close(self) -> None:
        self._table.feeds.discard(self)
        self._wake = None
        self._pending.clear()

    def changed(self, key: Any, old: Any, new: Any) -> None:
        """The table calls this for each write."""
        if self._is_watched is not None and not self._is_watched(key):
            return
        try:
            self._note(self._view(old), self._view(new))
        except QueryError as error:  # an error of the feed, not of the write
            self.error = error
            self._table.feeds.discard(self)
        self._awaken()

    def abort(self) -> None:
        """The table calls this when it is dropped: the feed ends with an error, after the queued changes."""
        self.error = QueryError(RUNTIME_ERROR, "Changefeed aborted (unavailable).", OP_FAILED)
        self._awaken()

    @property
    def is_ready(self) -> bool:
        return bool(self._pending or self._skipped or self.error)

    def take(self, most: int) -> list[Any]:
        """Remove and return up to ``most`` queued changes, oldest first."""
        if self._skipped and not self._pending:
            message = f"Changefeed cache over array size limit, skipped {self._skipped} elements."
            self._pending.append({"error": message})
            self._skipped = 0
        return [self._pending.popleft() for _ in range(min(most, len(self._pending)))]

    def _note(self, old: Any, new: Any) -> None:
        if old == new:
            return
        if len(self._pending) >= self._queue_size:
            self._skipped += 1
        else:
            self._put({"new_val": new, "old_val": old})

    def _put(self, change: Any) -> None:
        self._pending.extend([change] if self._after is None else self._after(change))

    def _awaken(self) -> None:
        if self._wake is not None and self.is_ready:
            self._wake()
