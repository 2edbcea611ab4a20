"""What the pool raises.

Every error is a :class:`PoolException`. Some are ``TimeoutError`` or ``ConnectionError`` as well, so code that catches
those keeps working. No message has a password in it.
"""

from __future__ import annotations


class PoolException(Exception):
    """Root of all errors of this library."""


class PoolTimeout(PoolException, TimeoutError):
    """No connection became free in the time that the caller had. The message names who holds the leases."""


class PoolDeadlock(PoolTimeout):
    """Every lease is held by a task that itself waits for one. Raised at once, and with ``debug=True`` only."""


class PoolClosed(PoolException):
    """The pool is not open: not opened yet, closing or closed."""


class TooManyWaiters(PoolException):
    """``max_waiting`` callers wait already."""


class ConnectFailed(PoolException, ConnectionError):
    """A connection could not be opened. ``__cause__`` is the error of the driver or of the operating system.

    ``is_permanent`` is true if trying again cannot help, as with a wrong password.
    """

    def __init__(self, message: str, *, is_permanent: bool = False) -> None:
        super().__init__(message)
        self.is_permanent = is_permanent


class FeedLaneFull(PoolException):
    """``max_feed_connections`` connections serve feeds already."""


class OutcomeUnknown(PoolException):
    """A query was sent, and its answer will not come: it may have been done, or not, or in part.

    The pool repeats it only if the caller said ``retry=True``. It is a :class:`QueryTimeout` or a
    :class:`ConnectionLost`. Any other :class:`PoolException` of a query means that it was never sent. An error of the
    driver means that the server refused or failed it.
    """


class QueryTimeout(OutcomeUnknown, TimeoutError):
    """The ``timeout`` of a query was over before its answer came. The query was stopped on the server."""


class ConnectionLost(OutcomeUnknown, ConnectionError):
    """The connection ended before the answer of a query came, or before the last row of a stream.

    ``lost_at`` is the event-loop time at which the connection ended; None if the connector cannot tell.
    """

    def __init__(self, *arguments: object, lost_at: float | None = None) -> None:
        super().__init__(*arguments)
        self.lost_at = lost_at


class NotSent(PoolException, ConnectionError):
    """For connectors: the connection had ended before this query was sent. The pool sends it on another one."""


class LeaseError(PoolException):
    """A lease was released twice, released to a pool that is not its own, or used after its release."""
