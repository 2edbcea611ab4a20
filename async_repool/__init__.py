"""The asyncio connection pool for RethinkDB. The public names; everything else may change without notice."""

from typing import TYPE_CHECKING

from ._lazy import lazy_names

__version__ = "2.0.0"

__all__ = [
    "AsyncConnectionPool",
    "ConnectFailed",
    "Connector",
    "FeedGap",
    "Lease",
    "LeaseError",
    "OutcomeUnknown",
    "PoolClosed",
    "PoolDeadlock",
    "PoolException",
    "PoolStats",
    "PoolTimeout",
    "R",
    "RethinkDBConnector",
    "TooManyWaiters",
]

# Each name stands twice: for type checkers, and for the first use at run time. A test compares the two.
if TYPE_CHECKING:
    from .async_pool import AsyncConnectionPool, R
    from .connectors import Connector
    from .connectors.rethinkdb import RethinkDBConnector
    from .errors import (
        ConnectFailed,
        LeaseError,
        OutcomeUnknown,
        PoolClosed,
        PoolDeadlock,
        PoolException,
        PoolTimeout,
        TooManyWaiters,
    )
    from .feeds import FeedGap
    from .lease import Lease
    from .stats import PoolStats
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "async_pool": ("AsyncConnectionPool", "R"),
            "connectors": ("Connector",),
            "connectors.rethinkdb": ("RethinkDBConnector",),
            "errors": (
                "ConnectFailed",
                "LeaseError",
                "OutcomeUnknown",
                "PoolClosed",
                "PoolDeadlock",
                "PoolException",
                "PoolTimeout",
                "TooManyWaiters",
            ),
            "lease": ("Lease",),
            "stats": ("PoolStats",),
            "feeds": ("FeedGap",),
        },
    )
