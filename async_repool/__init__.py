"""The asyncio connection pool for RethinkDB. The public names; everything else may change without notice."""

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
from .lease import Lease
from .stats import PoolStats
from .streams import FeedGap

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
