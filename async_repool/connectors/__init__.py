"""The :class:`Connector` protocol: how the pool opens, checks, closes and aborts one kind of connection; and the
:class:`QueryConnector`, for connections that carry many queries at once.

Here are only the promises. What keeps them for RethinkDB is in ``rethinkdb.py`` beside this file; a connector of your
own can be tried with ``async_repool.testing.check_connector``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

__all__ = ["Connector", "QueryConnector", "Stream"]


@runtime_checkable
class Connector(Protocol):
    """Knows how to connect, check, close and abort one kind of connection.

    A connection is any object: the pool only hands it back to the connector that opened it. All methods are called from
    the event loop that the pool was opened in.
    """

    @property
    def endpoint(self) -> str:
        """Where connections go, such as ``"db1:28015"``, for errors and logs. Never a password."""

    @property
    def connect_timeout(self) -> float:
        """Seconds that one :meth:`connect` may take, where the pool's ``connect_timeout`` does not say."""

    async def connect(self) -> Any:
        """Open a connection, ready for queries.

        Raises any exception where that fails. A :class:`~async_repool.ConnectFailed` with ``is_permanent`` says that
        trying again cannot help. If cancelled at any await, it aborts what was half open and leaves no socket and no
        task behind.
        """

    def is_open(self, connection: Any, /) -> bool:
        """Whether the connection is usable, as far as is known without asking. Cheap; called on every acquire."""

    def on_lost(self, connection: Any, callback: Callable[[], None], /) -> None:
        """Call ``callback`` once, from the event loop, when the connection is found to have died.

        Not after :meth:`close` or :meth:`abort`. A connector that cannot tell does nothing here: the pool asks
        :meth:`is_open` before each lease in any case.
        """

    def has_streams(self, connection: Any, /) -> bool:
        """Whether somebody still reads from it: open cursors, changefeeds. They may outlive the lease. Cheap."""

    async def wait_streams(self, connection: Any, /) -> None:
        """Wait until :meth:`has_streams` is false, because each has ended or because the connection is lost."""

    async def check(self, connection: Any, /) -> None:
        """Ask the peer for a sign of life. Raises where none comes.

        May wait for ever on a peer that is frozen: the pool bounds it. If cancelled, the connection remains usable.
        """

    async def close(self, connection: Any, /) -> None:
        """Close politely: let writes that are under way finish, then end the connection.

        May wait for ever on a peer that is frozen: the pool bounds it, then calls :meth:`abort`. If cancelled, it can
        be followed by :meth:`abort`, which then releases everything. Closing a closed connection does nothing.
        """

    def abort(self, connection: Any, /) -> None:
        """End the connection now, without waiting, and release its socket. Never raises; may be called twice."""


@runtime_checkable
class QueryConnector(Connector, Protocol):
    """A connector that also runs queries, many at a time on one connection: what ``pool.run()``, ``pool.stream()`` and
    ``pool.changes()`` need.

    Both calls raise :class:`~async_repool.errors.NotSent` where the connection had ended and the query was never sent;
    :class:`~async_repool.errors.ConnectionLost` where it ended before the answer came; and what the peer says against
    the query as it is. If cancelled, the query is stopped, and no other on that connection notices.
    """

    async def run(self, connection: Any, query: Any, options: dict[str, Any], /) -> Any:
        """Run a query and return its value; a sequence whole, as a list."""

    async def open_stream(self, connection: Any, query: Any, options: dict[str, Any], /) -> Stream:
        """Run a query whose value is a sequence, and return as soon as its first rows are there.

        Raises ``TypeError`` where the value is none.
        """

    def may_pass(self, error: BaseException, /) -> bool:
        """Whether a feed that was refused or ended with this error may be opened again, for it is the affair of a
        server that restarts or moves its data; false for what will not get better by itself.
        """


class Stream(Protocol):
    """Rows as they come. Dropped by its reader, it is stopped."""

    @property
    def is_feed(self) -> bool:
        """Whether it is a changefeed, which has no last row."""

    def __aiter__(self) -> Stream: ...

    async def __anext__(self) -> Any:
        """Wait for the next row, as long as it takes. If cancelled, no row is lost.

        Raises :class:`~async_repool.errors.ConnectionLost` where the connection has ended before the last row.
        """

    def close(self) -> bool:
        """Stop it on the peer, at once; rows that have come can still be read. May be called twice. True where that cut
        it off; false where it had ended.
        """
