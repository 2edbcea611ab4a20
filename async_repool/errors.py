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


class LeaseError(PoolException):
    """A lease was misused: released twice, released to a pool that is not its own, or used after its release."""
