"""The asyncio connection pool for RethinkDB. The public names; everything else may change without notice."""

from .async_pool import AsyncConnectionPool, R
from .connectors import Connector
from .connectors.rethinkdb import RethinkDBConnector
from .errors import ConnectFailed, LeaseError, PoolClosed, PoolException, PoolTimeout, TooManyWaiters
from .lease import Lease
from .stats import PoolStats

__version__ = "2.0.0"

__all__ = [
    "AsyncConnectionPool",
    "ConnectFailed",
    "Connector",
    "Lease",
    "LeaseError",
    "PoolClosed",
    "PoolException",
    "PoolStats",
    "PoolTimeout",
    "R",
    "RethinkDBConnector",
    "TooManyWaiters",
]
