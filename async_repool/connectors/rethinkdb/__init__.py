"""Connections to RethinkDB: the driver's connection made safe to cancel and to share, and the connector that opens it.

Only here is ``rethinkdb`` imported. The pool, its sizes, and who waits for a connection are not known here.

Each module imports only those that stand above it::

    frames      bytes into frames
    codec       frames into answers, and queries into frames
    arguments   the arguments of r.connect()
    login       opening a socket and logging in
    transient   the error of a closed connection, and which errors pass by themselves
    cursor      rows, as they come
    wire        queries and answers on one socket
    connection  what users hold: the driver's connection, its lease in a pool; and R
    connector   what the pool asks
"""

from .connection import R, RethinkDBConnection, RethinkDBLease
from .connector import RethinkDBConnector
from .cursor import AsyncioCursor as RethinkDBCursor
from .cursor import RethinkDBStream

__all__ = ["R", "RethinkDBConnection", "RethinkDBConnector", "RethinkDBCursor", "RethinkDBLease", "RethinkDBStream"]
