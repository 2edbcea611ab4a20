"""The error of a connection that is closed: the driver's, for those who use the driver; and the pool's.

Existing code recognises these errors in three ways: by their class, by the name of their class, and by their
``message``. All three are the driver's here.
"""

from __future__ import annotations

from rethinkdb.errors import ReqlDriverError, ReqlRuntimeError

from ...errors import ConnectionLost, NotSent

__all__ = ["ConnectionClosed", "CursorConnectionClosed"]


class ConnectionClosed(ReqlDriverError, ReqlRuntimeError):  # type: ignore[misc]
    """The connection of a query is closed.

    The driver raises :class:`ReqlDriverError` from queries and :class:`ReqlRuntimeError` from cursors. This is both, so
    ``except`` finds it under either name.

    :param reason: the whole text, which is what ``str()`` gives.
    :param was_sent: whether the query was handed to the socket. If so, nobody knows what became of it.
    :param lost_at: event-loop time at which the connection ended; None if that is not known.
    """

    def __init__(self, reason: str, *, was_sent: bool, lost_at: float | None = None) -> None:
        # The driver says just this of a query that finds its connection closed, and code in the wild compares it.
        super().__init__(reason if was_sent else "Connection is closed.")
        self.reason = reason
        self.was_sent = was_sent
        self.lost_at = lost_at

    def __str__(self) -> str:
        return self.reason

    def for_pool(self) -> ConnectionLost | NotSent:
        """The same in the pool's words."""
        return ConnectionLost(self.reason, lost_at=self.lost_at) if self.was_sent else NotSent(self.reason)


class CursorConnectionClosed(ConnectionClosed):
    """The connection of a cursor is closed."""


# The names that the driver's errors have: code in the wild compares them, and the driver's repr() shows them.
ConnectionClosed.__name__ = "ReqlDriverError"
CursorConnectionClosed.__name__ = "ReqlRuntimeError"
