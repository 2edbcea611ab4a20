"""What users hold: the driver's connection, on our wire; its lease in a pool; and ``R``, which opens connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from rethinkdb import RethinkDB
from rethinkdb.asyncio_net import net_asyncio
from rethinkdb.errors import ReqlDriverError

from ...lease import Lease
from .arguments import ConnectArguments, encodings
from .codec import Codec
from .login import Dialer
from .wire import Wire


class RethinkDBConnection(net_asyncio.Connection):  # type: ignore[misc]
    """The driver's asyncio connection, safe to cancel and to share between tasks.

    A query that is cancelled is stopped on the server and disturbs no other. Don't use the connection from other
    threads or event loops.
    """

    def __init__(
        self,
        host: str,
        port: int,
        db: str | None,
        auth_key: str | None,
        user: str,
        password: str | None,
        timeout: float,
        ssl: Mapping[str, Any],
        _handshake_version: int,
        *,
        dialer: Dialer | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("io_loop", None)  # the driver takes one and does not use it here
        unknown = kwargs.keys() - {"json_encoder", "json_decoder"}
        if unknown:
            raise TypeError(f"connect() got unexpected arguments: {', '.join(sorted(unknown))}")
        # The base class must not see the password: it would keep it, once for each connection.
        super().__init__(host, port, db, None, user, None, timeout, ssl, _handshake_version, **kwargs)
        if auth_key is not None and password is not None:
            raise ReqlDriverError("`auth_key` and `password` are both set.")
        if dialer is None:
            passwords = encodings(password or auth_key or "")
            dialer = Dialer(ConnectArguments(host, self.port, db, user, passwords, timeout, ssl, {}))
        self._dialer = dialer
        self._codec = Codec(self._json_encoder, self._json_decoder)
        self._server_id: str | None = None  # as the first check() found it
        self.wire: Wire | None = None
        """The socket and what is under way on it. None before the first opening."""
        self._lost_callbacks: list[Callable[[], None]] = []  # each wire has this very list
        self._ends = 0  # how often it was closed or aborted

    @property
    def endpoint(self) -> str:
        """``"host:port"``."""
        return self._dialer.endpoint

    @property
    def in_flight(self) -> int:
        """Queries that are not answered yet, or not sent because the server does not read."""
        return 0 if self.wire is None else self.wire.in_flight

    @property
    def open_cursors(self) -> int:
        """Cursors and changefeeds that have rows to come on the server."""
        return 0 if self.wire is None else self.wire.open_cursors

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for an answer or reads a cursor."""
        return not self.in_flight and not self.open_cursors

    @property
    def lost_reason(self) -> str | None:
        """What the peer did, if it ended the connection or broke the protocol; else None."""
        return None if self.wire is None else self.wire.lost_reason

    async def wait_idle(self) -> None:
        """Wait until :attr:`is_idle`, or until the connection is lost. Has no limit."""
        if self.wire is not None:
            await self.wire.wait_idle()

    async def check(self) -> None:
        """Ask the server who it is.

        Raises :class:`ReqlDriverError` if it is not the server that the first check found.
        """
        server_id = (await self.server())["id"]
        if self._server_id not in (None, server_id):
            found = f"{server_id}, not {self._server_id}"
            raise ReqlDriverError(f"the server at {self.endpoint} is another one now: {found}")
        self._server_id = server_id

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once when the connection is lost, and once more if it is lost after :meth:`reconnect`."""
        self._lost_callbacks.append(callback)
        if self.lost_reason is not None:
            asyncio.get_running_loop().call_soon(callback)

    def check_open(self) -> None:
        """Raise :class:`ReqlDriverError`, which says why, if the connection is not open."""
        if self.wire is None:
            raise ReqlDriverError("Connection is closed.")
        if not self.wire.is_open():
            raise self.wire.closed_error(was_sent=False)

    async def open(self, timeout: float, ends: int | None = None) -> None:
        """Connect and log in within ``timeout`` seconds, or raise ReqlDriverError. If cancelled, leaves nothing.

        It remains closed if somebody ends it meanwhile, or ended it after the caller read ``ends``.
        """
        ends = self._ends if ends is None else ends
        transport, sock = await self._dialer.open(timeout)
        if self._ends != ends:
            transport.abort()
            raise ReqlDriverError("Connection is closed (that was asked for while it was opened).")
        if self.wire is not None:
            self.wire.abort()  # another task may have been faster
        wire = Wire(transport, sock, self._codec, self.endpoint)
        wire.lost_callbacks = self._lost_callbacks
        self.wire = self._instance = wire  # two names of one thing: the driver's methods use the second

    async def reconnect(self, noreply_wait: bool = True, timeout: float | None = None) -> RethinkDBConnection:
        """Close, then connect again within ``timeout`` seconds (None: as long as the first time)."""
        ends = self._ends
        if self.wire is not None:
            await self.wire.close(noreply_wait, self._new_token())
        await self.open(self.connect_timeout if timeout is None else timeout, ends)
        return self

    async def close(self, noreply_wait: bool = True) -> None:
        """End the connection. Queries and cursors that still run get an error.

        With ``noreply_wait`` it waits until the server has done the ``noreply`` queries, if there are any: for ever if
        the server is frozen. If interrupted, the connection is aborted. A :meth:`reconnect` that is under way fails.
        """
        self._ends += 1
        if self.wire is not None:
            await self.wire.close(noreply_wait, self._new_token())

    def abort(self) -> None:
        """End the connection now. Never raises. A :meth:`reconnect` that is under way fails."""
        self._ends += 1
        if self.wire is not None:
            self.wire.abort()

    def __repr__(self) -> str:
        state = f"{self.in_flight} in flight, {self.open_cursors} cursors"
        if not self.is_open():
            state = "closed" if self.lost_reason is None else f"closed: {self.lost_reason}"
        return f"<{type(self).__name__} {self.endpoint} {state}>"


class RethinkDBLease(Lease):
    """A lease that passes for the driver's connection. What ``use()`` sets lasts as long as the lease."""

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
        """Make ``db`` the default database of this lease."""
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
        """Close the connection and open it again, as its own method does. The lease goes on with it."""
        await self._live("reconnect()").reconnect(*arguments, **options)
        return self

    def repl(self) -> Any:
        """Make this lease the connection of every ``query.run()`` without one in this thread, as long as it lasts."""
        return type(self._live("repl()")).repl(self)

    async def __aenter__(self) -> RethinkDBLease:
        self._live("async with")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection, as the driver's does. The pool gives a fresh one to the next user."""
        await self._live("async with").close(False)


class _AsyncRethinkDB(RethinkDB):  # type: ignore[misc]
    """The driver's ``r``, set to asyncio. ``R.connect()`` opens a :class:`RethinkDBConnection`."""

    def __init__(self) -> None:
        super().__init__()
        self.set_loop_type("asyncio")

    def set_loop_type(self, library: str | None = None) -> None:
        """As the driver's. ``"asyncio"``, which existing code sets once more, leaves our connections in place."""
        super().set_loop_type(library)
        if library == "asyncio":
            self.connection_type = RethinkDBConnection


R = _AsyncRethinkDB()
