"""Which errors of the server pass by themselves, so that a changefeed may be opened again after them."""

from __future__ import annotations

import re

from rethinkdb.errors import ReqlAvailabilityError

__all__ = ["is_transient"]

# What the server says, by its source, while it starts, shuts down, moves the data of a table, or has lost another
# server. It uses the same classes of errors for what does not pass by itself, such as a table that does not exist.
_TRANSIENT = re.compile(
    r"(?:Cannot perform (?:read|write): |cannot subscribe to table `[^`]*`: )?"
    r"(?:Changefeed aborted \(unavailable\)"
    r"|Subscription destroyed \(shutting down"
    r"|Query terminated by an unknown cause"  # but not by the `rethinkdb.jobs` table: somebody wanted that
    r"|Feed aborted before initial values were read"
    r"|Read aborted by unshard operation"
    r"|Unable to retrieve (?:the )?start stamp|Empty start stamps"
    r"|Failed to retrieve the table configuration"
    r"|cannot compute sharding scheme because primary replicas are unavailable"
    r"|too many primary replicas available"
    r"|primary replica for shard .* not available|no replica is available|No replicas are ready"
    r"|This server does not have any data available for the given table"
    r"|The primary replica is currently changing"
    r"|The primary replica isn't connected to a quorum"
    r"|lost contact with primary replica|Lost contact with replica|The primary replica lost contact"
    r"|The server\(s\) hosting table `[^`]*` are currently unreachable|We lost contact with the server"
    r"|Index `.*` on table `[^`]*` was accessed before its construction was finished)"
)


def is_transient(error: BaseException) -> bool:
    """Whether a changefeed that was refused, or has ended, with this error may be opened again.

    True if the server starts, shuts down, moves data, or has lost another server. False for the end of a connection,
    which has errors of its own.
    """
    return isinstance(error, ReqlAvailabilityError) and _TRANSIENT.match(error.message) is not None
