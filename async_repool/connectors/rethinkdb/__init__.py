"""Connections to RethinkDB: the driver's connection made safe to cancel and to share, and the connector that opens it.

Only here is ``rethinkdb`` imported. The pool, its sizes, and who waits for a connection are not known here.

Each module imports only those that stand above it::

    frames      bytes into frames
    codec       frames into answers, and queries into frames
    reader      reading from a socket into shared memory
    login       opening a socket and logging in
    errors      the error of a closed connection
    cursor      rows, as they come
    wire        queries and answers on one socket
    arguments   the arguments of r.connect()
    connection  what users hold: the driver's connection; and R
    lease       what users hold in a pool
    transient   which errors pass by themselves
    connector   what the pool asks
"""

from .connection import R, RethinkDBConnection
from .connector import RethinkDBConnector
from .cursor import AsyncioCursor, RethinkDBStream
from .lease import RethinkDBLease

__all__ = [
    "AsyncioCursor",
    "R",
    "RethinkDBConnection",
    "RethinkDBConnector",
    "RethinkDBCursor",
    "RethinkDBLease",
    "RethinkDBStream",
]

RethinkDBCursor = AsyncioCursor
