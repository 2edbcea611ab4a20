"""The protocols of a connector: how the pool opens, checks, closes and aborts one kind of connection.

Each of the three adds to the one before:

- :class:`Connector`: connections that are leased to one user at a time.
- :class:`StreamingConnector`: connections from which somebody may still read after the lease.
- :class:`QueryConnector`: connections that carry many queries at once.

Here are only the promises. What keeps them for RethinkDB is in ``rethinkdb/``, beside this file. Try a connector of
your own with ``async_repool.testing.check_connector``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

__all__ = ["Connector", "QueryConnector", "Stream", "StreamingConnector"]


@runtime_checkable
class Connector(Protocol):
    """Knows how to connect, check, close and abort one kind of connection.

    A connection is any object: the pool only hands it back to the connector that opened it. The pool calls all methods
    from the event loop that it was opened in.

    A connector may have one more attribute, ``lease_type: type[Lease]``: the class of what ``acquire()`` and
    ``connect()`` give for its connections. Without it they give a plain :class:`~async_repool.Lease`.
    """

    @property
    def endpoint(self) -> str:
        """Where connections go, such as ``"db1:28015"``, for errors and logs. Never a password."""

    @property
    def connect_timeout(self) -> float:
        """Seconds that one :meth:`connect` may take, if the pool's ``connect_timeout`` is not given."""

    async def connect(self) -> Any:
        """Open a connection, ready for queries.

        Raises any exception if that fails. A :class:`~async_repool.ConnectFailed` with ``is_permanent`` says that
        trying again cannot help. If cancelled at any await, it aborts what was half open and leaves no socket and no
        task.
        """

    def is_open(self, connection: Any, /) -> bool:
        """Whether the connection is usable, as far as is known without asking. Cheap: it is called for each lease."""

    def on_lost(self, connection: Any, callback: Callable[[], None], /) -> None:
        """Call ``callback`` once, from the event loop, when the connection is found to be lost.

        Not after :meth:`close` or :meth:`abort`. A connector that cannot tell does nothing here. In any case the pool
        asks :meth:`is_open` before each lease.
        """

    async def check(self, connection: Any, /) -> None:
        """Ask the peer for a sign of life. Raises if none comes.

        May wait for ever if the peer is frozen: the pool bounds it. If cancelled, the connection remains usable.
        """

    async def close(self, connection: Any, /) -> None:
        """Close politely: let writes that are under way finish, then end the connection.

        May wait for ever if the peer is frozen: the pool bounds it, then calls :meth:`abort`. If cancelled, it can be
        followed by :meth:`abort`, which then releases everything. Closing a closed connection does nothing.
        """

    def abort(self, connection: Any, /) -> None:
        """End the connection now, without waiting, and release its socket. Never raises. May be called twice."""


@runtime_checkable
class StreamingConnector(Connector, Protocol):
    """A connector whose connections may still be read from after their lease, by cursors or changefeeds.

    The pool leases such a connection to others meanwhile. It closes the connection when its readers have ended, or
    after a grace time.
    """

    def has_streams(self, connection: Any, /) -> bool:
        """Whether anybody still reads from it: open cursors, changefeeds. Cheap."""

    async def wait_streams(self, connection: Any, /) -> None:
        """Wait until :meth:`has_streams` is false, because each stream has ended or the connection is lost."""


@runtime_checkable
class QueryConnector(StreamingConnector, Protocol):
    """A connector that also runs queries, many at a time on one connection.

    ``pool.run()``, ``pool.stream()`` and ``pool.changes()`` need it.

    :meth:`run` and :meth:`open_stream` raise :class:`~async_repool.errors.NotSent` if the connection had ended and the
    query was never sent. They raise :class:`~async_repool.errors.ConnectionLost` if the connection ended before the
    answer came. They raise what the peer says against the query as it is. If cancelled, the query is stopped, and no
    other query on that connection notices.
    """

    async def run(self, connection: Any, query: Any, options: dict[str, Any], /) -> Any:
        """Run a query and return its value; a sequence whole, as a list."""

    async def open_stream(self, connection: Any, query: Any, options: dict[str, Any], /) -> Stream:
        """Run a query whose value is a sequence, and return as soon as its first rows are there.

        Raises ``TypeError`` if the value is no sequence.
        """

    def is_transient(self, error: BaseException, /) -> bool:
        """Whether a feed that was refused, or has ended, with this error may be opened again.

        True if the cause passes by itself, such as a server that restarts or moves its data; else false.
        """


class Stream(Protocol):
    """Rows as they come. If its reader drops it, it is stopped."""

    @property
    def is_feed(self) -> bool:
        """Whether it is a changefeed, which has no last row."""

    def __aiter__(self) -> Stream: ...

    async def __anext__(self) -> Any:
        """Wait for the next row, for any time. If cancelled, no row is lost.

        Raises :class:`~async_repool.errors.ConnectionLost` if the connection ended before the last row.
        """

    def close(self) -> bool:
        """Stop it on the peer, at once. Rows that have come can still be read. May be called twice.

        Returns true if that cut it off; false if it had ended.
        """
