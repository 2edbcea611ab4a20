"""The stand-in server: RethinkDB's protocol and a small part of ReQL, over data in memory.

A query passes these modules in this order:

- ``endpoint``: the listening port and its connections, with the faults that act on them
- ``wire``: bytes, frames and the login
- ``server``: tokens, streams and the life of the server
- ``evaluator``: a query, from its terms to its answers
- ``compiler``: a term becomes a Python function
- ``terms`` and ``table_terms``: what each term does
- ``streams``: lazy sequences
- ``tables``: databases, tables and documents
- ``changefeed``: the changes of a table that a client has not read yet

Only public names are imported here. No module of this package imports the driver or the pool.
"""

from .server import StandInServer

__all__ = ["StandInServer"]
