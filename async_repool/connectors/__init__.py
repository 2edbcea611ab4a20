"""The protocols of a connector: how the pool opens, checks, closes and aborts one kind of connection.

Each of the three protocols adds to the one before. The connector for RethinkDB is in ``rethinkdb/``, beside this file.
Test a connector of your own with ``async_repool.testing.check_connector``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

__all__ = ["Connector", "QueryConnector", "Stream", "StreamingConnector"]

F = TypeVar("F", bound=Callable[..., bool])


def never_raises(is_open: F) -> F:
    """Mark an ``is_open`` that cannot raise: the pool calls it directly. Any other is called through a guard, twice for
    each lease, which costs 3 % of the lease.
    """
    is_open.never_raises = True  # type: ignore[attr-defined]
    return is_open


@runtime_checkable
class Connector(Protocol):
    """Opens connections that are leased to one user at a time.

    A connection is any object: the pool only hands it back to the connector that opened it. The pool calls all methods
    from the event loop that it was opened in. It bounds every wait: a method may wait for ever if the peer is frozen.

    A connector may have one more attribute, ``lease_type: type[Lease]``: the class of the leases of its connections.
    Without it, ``acquire()`` and ``connect()`` give a plain :class:`~async_repool.Lease`.
    """

    @property
    def endpoint(self) -> str:
        """Where connections go, such as ``"db1:28015"``, for errors and logs. Never a password."""

    @property
    def connect_timeout(self) -> float:
        """Seconds that one :meth:`connect` may take, unless the pool has a ``connect_timeout`` of its own."""

    async def connect(self) -> Any:
        """Open a connection, ready for queries.

        Raises any exception if that fails. A :class:`~async_repool.ConnectFailed` with ``is_permanent`` says that
        trying again cannot help. If cancelled at any await, it leaves no socket and no task.
        """

    def is_open(self, connection: Any, /) -> bool:
        """Whether the connection is usable, as far as is known without asking the peer. Called for each lease, so it
        must be fast.
        """

    def on_lost(self, connection: Any, callback: Callable[[], None], /) -> None:
        """Call ``callback`` once, from the event loop, when the connection is found to be lost.

        Not after :meth:`close` or :meth:`abort`. A connector that cannot find out does nothing here.
        """

    async def check(self, connection: Any, /) -> None:
        """Ask the peer for a sign of life. Raises if none comes. If cancelled, the connection remains usable."""

    async def close(self, connection: Any, /) -> None:
        """Close politely: let writes that are under way finish, then end the connection.

        If cancelled, it can be followed by :meth:`abort`, which then releases everything. May be called twice.
        """

    def abort(self, connection: Any, /) -> None:
        """End the connection now, without waiting, and release its socket. Never raises. May be called twice."""


@runtime_checkable
class StreamingConnector(Connector, Protocol):
    """A connector whose connections may still be read from after their lease, by cursors or changefeeds.

    The pool leases such a connection to others meanwhile. To close it, the pool waits for its readers, with a timeout.
    """

    def has_streams(self, connection: Any, /) -> bool:
        """Whether anybody still reads from it: an open cursor, a changefeed. Must be fast."""

    async def wait_streams(self, connection: Any, /) -> None:
        """Wait until :meth:`has_streams` is false: each stream has ended, or the connection is lost."""


@runtime_checkable
class QueryConnector(StreamingConnector, Protocol):
    """A connector that also runs queries, many at a time on one connection, for ``run()``, ``stream()``, ``changes()``.

    :meth:`run` and :meth:`open_stream` raise :class:`~async_repool.errors.NotSent` if the connection had ended before
    the query was sent. They raise :class:`~async_repool.errors.ConnectionLost` if it ended after that and before the
    answer came. If the peer refuses or fails the query, they raise its error as it is. If cancelled, the query is
    stopped, and no other query on that connection notices.
    """

    async def run(self, connection: Any, query: Any, options: dict[str, Any], /) -> Any:
        """Run a query and return its value. A sequence is returned whole, as a list."""

    async def open_stream(self, connection: Any, query: Any, options: dict[str, Any], /) -> Stream:
        """Run a query, and return when its first rows are there. Raises ``TypeError`` if its value is no sequence."""

    def is_transient(self, error: BaseException, /) -> bool:
        """Whether the cause passes by itself, such as a restart: then a feed may be opened again."""


class Stream(Protocol):
    """Rows as they come. If its reader drops it, it is stopped."""

    @property
    def is_feed(self) -> bool:
        """Whether it is a changefeed, which has no last row."""

    def __aiter__(self) -> Stream: ...

    async def __anext__(self) -> Any:
        """Wait for the next row, without limit. If cancelled, no row is lost.

        Raises :class:`~async_repool.errors.ConnectionLost` if the connection ended before the last row.
        """

    def close(self) -> bool:
        """Stop it on the peer, at once. Rows that have come can still be read. Returns false if it had ended."""
