"""The :class:`Connector` protocol: how the pool opens, checks, closes and aborts one kind of connection.

Here are only the promises. What keeps them for RethinkDB is in ``rethinkdb.py`` beside this file; a connector of your
own can be tried with ``async_repool.testing.check_connector``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

__all__ = ["Connector"]


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
