"""The error of a closed connection, and which errors pass by themselves.

Existing code recognises the errors of a closed connection in three ways: by their class, by the name of their class,
and by their ``message``. All three are the driver's here.
"""

from __future__ import annotations

import re

from rethinkdb.errors import ReqlAvailabilityError, ReqlDriverError, ReqlRuntimeError

from ...errors import ConnectionLost, NotSent


class ConnectionClosed(ReqlDriverError, ReqlRuntimeError):  # type: ignore[misc]
    """The connection of a query is closed.

    The driver raises :class:`ReqlDriverError` from queries and :class:`ReqlRuntimeError` from cursors. This is both, so
    ``except`` finds it under either name.
    """

    def __init__(self, reason: str, *, was_sent: bool, lost_at: float | None = None) -> None:
        # The driver's text for a query that finds its connection closed. Existing code compares it.
        super().__init__(reason if was_sent else "Connection is closed.")
        self.reason = reason  # the whole text
        self.was_sent = was_sent  # whether the query was handed to the socket. If so, nobody knows what became of it
        self.lost_at = lost_at  # event-loop time at which the connection ended; None if that is not known

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

# What the server says, by its source, while it starts, shuts down, moves the data of a table, or has lost another
# server. It uses the same classes of errors for what does not pass by itself, such as a table that does not exist.
_TRANSIENT = re.compile(
    r"(?:Cannot perform (?:read|write): |cannot subscribe to table `[^`]*`: )?"
    r"(?:Changefeed aborted \(unavailable\)|Subscription destroyed \(shutting down"
    r"|Query terminated by an unknown cause"  # but not by the `rethinkdb.jobs` table, which a user did
    r"|Feed aborted before initial values were read|Read aborted by unshard operation"
    r"|Unable to retrieve (?:the )?start stamp|Empty start stamps|Failed to retrieve the table configuration"
    r"|cannot compute sharding scheme because primary replicas are unavailable|too many primary replicas available"
    r"|primary replica for shard .* not available|no replica is available|No replicas are ready"
    r"|This server does not have any data available for the given table"
    r"|The primary replica (?:is currently changing|isn't connected to a quorum|lost contact)"
    r"|lost contact with primary replica|Lost contact with replica|We lost contact with the server"
    r"|The server\(s\) hosting table `[^`]*` are currently unreachable"
    r"|Index `.*` on table `[^`]*` was accessed before its construction was finished)"
)


def is_transient(error: BaseException, /) -> bool:
    """Whether a changefeed may be opened again after this error. The end of a connection has errors of its own."""
    return isinstance(error, ReqlAvailabilityError) and _TRANSIENT.match(error.message) is not None
