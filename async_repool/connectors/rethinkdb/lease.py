"""The lease of a RethinkDB connection: what a lease has because its connection is the driver's."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from ...lease import Lease

__all__ = ["RethinkDBLease"]


class RethinkDBLease(Lease):
    """A lease that passes for the driver's connection wherever that is expected.

    ``query.run(lease)``, ``use()``, ``db``, ``server()``, ``noreply_wait()``, ``is_open()``, ``close()`` and everything
    else that the connection has work as on the connection. ``isinstance(lease, rethinkdb.net.Connection)`` is true.
    ``use()`` lasts as long as the lease. Cursors that were opened on the lease may still be read after release.
    """

    __slots__ = ()

    # `_own` is the database that use() chose; None before. The connection's own stays as it is, for its next user.

    @property
    def db(self) -> str | None:
        """The default database of queries on this lease."""
        connection = self._live("db")
        db: str | None = connection.db if self._own is None else self._own
        return db

    @db.setter
    def db(self, db: str | None) -> None:
        self._live("db")
        self._own = db

    def use(self, db: str) -> None:
        """Make ``db`` the default database of this lease. The connection's own stays as it is."""
        self._live("use()")
        self._own = db

    def _start(self, term: Any, **options: Any) -> Any:
        """What ``query.run(lease, **options)`` calls."""
        connection = self._connection
        if connection is None:
            raise self._dead("query.run()")
        if self._own is not None:
            options.setdefault("db", self._own)
        return connection._start(term, **options)

    async def reconnect(self, *arguments: Any, **options: Any) -> RethinkDBLease:
        """Close the connection and open it again. The lease goes on with it.

        Takes the arguments of the connection's own method. It waits, raises and is cancelled as that one.
        """
        await self._live("reconnect()").reconnect(*arguments, **options)
        return self

    def repl(self) -> Any:
        """Make this lease the connection of every ``query.run()`` without one in this thread, as long as it lasts."""
        return type(self._live("repl()")).repl(self)

    async def __aenter__(self) -> RethinkDBLease:
        self._live("async with")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection, as the driver's does. The pool gives a fresh one to the next user."""
        await self._live("async with").close(False)
