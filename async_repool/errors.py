"""What the pool raises.

Every error is a :class:`PoolException`. Those that have a counterpart in the standard library are that too, so code
that catches ``TimeoutError`` or ``ConnectionError`` keeps working. No message ever carries a password.
"""

from __future__ import annotations


class PoolException(Exception):
    """Root of all errors of this library."""


class PoolTimeout(PoolException, TimeoutError):
    """No connection became free within the time that the caller was ready to wait."""


class PoolDeadlock(PoolTimeout):
    """Every lease is held by a task that itself waits for one. Raised with ``debug=True`` only, at once."""


class PoolClosed(PoolException):
    """The pool is not open: not opened yet, closing or closed."""


class TooManyWaiters(PoolException):
    """As many callers wait already as ``max_waiting`` allows."""


class ConnectFailed(PoolException, ConnectionError):
    """A connection could not be opened. ``__cause__`` is the error of the driver or of the operating system.

    ``is_permanent`` is true where trying again cannot help, such as after a wrong password.
    """

    def __init__(self, message: str, *, is_permanent: bool = False) -> None:
        super().__init__(message)
        self.is_permanent = is_permanent


class FeedLaneFull(PoolException):
    """As many connections serve feeds as ``max_feed_connections`` allows."""


class OutcomeUnknown(PoolException):
    """A query was sent, and its answer will not come: it may have been done, or not, or in part.

    It is not repeated, unless ``retry=True`` says that it may be. Is a :class:`QueryTimeout` or a
    :class:`ConnectionLost`. Every other :class:`PoolException` of a query means that it was never sent; an error of the
    driver, that the server has refused or failed it.
    """


class QueryTimeout(OutcomeUnknown, TimeoutError):
    """The time for a query was over before its answer had come. It was stopped on the server."""


class ConnectionLost(OutcomeUnknown, ConnectionError):
    """The connection of a query ended before its answer had come, or that of a stream before its last row.

    ``lost_at`` is the event-loop time at which the connection ended; None if the connector cannot tell.
    """

    def __init__(self, *arguments: object, lost_at: float | None = None) -> None:
        super().__init__(*arguments)
        self.lost_at = lost_at


class NotSent(PoolException, ConnectionError):
    """For connectors: the connection has ended, and this query was never sent on it. The pool runs it on another."""


class LeaseError(PoolException):
    """A lease was misused: released twice, released to a pool that is not its own, or used after its release."""
