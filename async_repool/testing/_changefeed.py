"""Changefeeds: what a query that watches a table has still to tell, and how such a feed ends.

What lives here: one feed's queue. What must not: how changes are computed, tokens, batches on the wire.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from ._wire import OP_FAILED, RUNTIME_ERROR, QueryError

View = Callable[[Any], Any]


class Watched(Protocol):
    """What can be watched: a table."""

    feeds: set[Feed]


class Feed:
    """One changefeed. Watches from ``open`` to ``close``; between them ``take`` empties its queue.

    Its queue is bounded: of more than ``queue_size`` waiting changes only the number is kept, as the server does.
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
        """The same feed, each change of which is put through ``after``."""
        feed = Feed(self._table, self.note, self._view, self._initial, self._is_watched, self._queue_size)
        before = self._after
        feed._after = after if before is None else lambda change: (y for x in before(change) for y in after(x))
        return feed

    def open(self, wake: Callable[[], None]) -> None:
        """Watch from now on; ``wake`` is called whenever there is something to take."""
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
        """Called by the table for each write."""
        if self._is_watched is not None and not self._is_watched(key):
            return
        try:
            self._note(self._view(old), self._view(new))
        except QueryError as error:  # the feed's error, not the writer's
            self.error = error
            self._table.feeds.discard(self)
        self._awaken()

    def abort(self) -> None:
        """Called by the table when it is dropped: the feed ends in an error, after what is still queued."""
        self.error = QueryError(RUNTIME_ERROR, "Changefeed aborted (unavailable).", OP_FAILED)
        self._awaken()

    @property
    def is_ready(self) -> bool:
        return bool(self._pending or self._skipped or self.error)

    def take(self, most: int) -> list[Any]:
        """Up to ``most`` queued changes, oldest first."""
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
