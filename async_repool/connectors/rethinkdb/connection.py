"""The RethinkDB connection as its users hold it: the driver's, on our wire; and ``R``, which opens such connections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rethinkdb import RethinkDB
from rethinkdb.asyncio_net import net_asyncio
from rethinkdb.errors import ReqlDriverError

from .arguments import encodings
from .codec import Codec
from .login import Dialer
from .wire import Wire

__all__ = ["R", "RethinkDBConnection"]


class RethinkDBConnection(net_asyncio.Connection):  # type: ignore[misc]
    """The driver's asyncio connection, safe to cancel and to share between tasks.

    Use it as the driver's: ``query.run(connection)``, ``use()``, ``server()``, ``noreply_wait()``, ``close()``,
    ``reconnect()``, ``async with``. A query that is cancelled is stopped on the server and disturbs no other. Don't use
    it from other threads or event loops.
    """

    wire: Wire | None
    """The socket and what is under way on it. None before the first opening."""

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
            certificates = ssl["ca_certs"] if ssl else None
            dialer = Dialer(host, self.port, user, passwords, certificates, self._json_encoder, self._json_decoder)
        self._dialer = dialer
        self._codec = Codec(self._json_encoder, self._json_decoder)
        self._server_id: str | None = None  # as the first check() found it
        self.wire = None
        self._lost_callbacks: tuple[Callable[[], None], ...] = ()
        self._ends = 0  # how often it was closed or aborted

    @property
    def endpoint(self) -> str:
        """``"host:port"``."""
        return self._dialer.endpoint

    @property
    def in_flight(self) -> int:
        """Queries that are not answered yet. Those that wait because the server does not read are included."""
        return 0 if self.wire is None else self.wire.in_flight

    @property
    def open_cursors(self) -> int:
        """Cursors and changefeeds that have rows to come on the server."""
        return 0 if self.wire is None else self.wire.open_cursors

    @property
    def pending_noreply(self) -> int:
        """``noreply`` queries sent since the last ``noreply_wait()``. :meth:`close` waits for them."""
        return 0 if self.wire is None else self.wire.pending_noreply

    @property
    def is_clogged(self) -> bool:
        """Whether the server still works on so many cancelled queries that others would have to wait."""
        return self.wire is not None and self.wire.is_clogged

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for an answer or reads a cursor."""
        return not self.in_flight and not self.open_cursors

    @property
    def lost_reason(self) -> str | None:
        """What the peer did, if it ended the connection or broke the protocol; else None."""
        return None if self.wire is None else self.wire.lost_reason

    async def wait_idle(self) -> None:
        """Wait until nobody waits for an answer or reads a cursor, or until the connection is lost. Has no limit."""
        if self.wire is not None:
            await self.wire.wait_idle()

    async def check(self) -> None:
        """Ask the server who it is.

        Raises :class:`ReqlDriverError` if it is not the server that the first check found. Waits for ever if the server
        is frozen. If cancelled, the connection remains usable.
        """
        server_id = (await self.server())["id"]
        if self._server_id not in (None, server_id):
            raise ReqlDriverError(
                f"the server at {self.endpoint} is another one now: {server_id}, not {self._server_id}"
            )
        self._server_id = server_id

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, from the event loop, when the connection is lost. Not after close or abort.

        It is called once more if the connection is lost again after :meth:`reconnect`.
        """
        self._lost_callbacks += (callback,)
        if self.wire is not None:
            self.wire.on_lost(callback)

    def check_open(self) -> None:
        """Raise :class:`ReqlDriverError`, which says why, if the connection is not open."""
        if self.wire is None:
            raise ReqlDriverError("Connection is closed.")
        if not self.wire.is_open():
            raise self.wire.closed_error(was_sent=False)

    async def open(self, timeout: float) -> None:
        """For the connector: connect and log in within ``timeout`` seconds, or raise ReqlDriverError.

        If cancelled, leaves nothing.
        """
        await self._open(timeout, self._ends)

    async def _open(self, timeout: float, ends: int) -> None:
        """The same, unless the connection was ended since, which ``ends`` tells: then it remains closed."""
        transport, sock = await self._dialer.open(timeout)
        if self._ends != ends:
            transport.abort()
            raise ReqlDriverError("Connection is closed (that was asked for while it was opened).")
        if self.wire is not None:
            self.wire.abort()  # another task may have been faster
        wire = Wire(transport, sock, self._codec, self.endpoint)
        self.wire = self._instance = wire  # two names of one thing: the driver's methods use the second
        for callback in self._lost_callbacks:
            wire.on_lost(callback)

    async def reconnect(self, noreply_wait: bool = True, timeout: float | None = None) -> RethinkDBConnection:
        """Close, then connect again within ``timeout`` seconds (None: as long as the first time)."""
        ends = self._ends
        await self._close(noreply_wait)
        await self._open(self.connect_timeout if timeout is None else timeout, ends)
        return self

    async def close(self, noreply_wait: bool = True) -> None:
        """End the connection. Queries and cursors that still run get an error.

        With ``noreply_wait`` it waits until the server has done the ``noreply`` queries, if there are any. If the
        server is frozen, that is for ever, so bound it. If interrupted, the connection is aborted. May be called twice.
        A :meth:`reconnect` that is under way fails.
        """
        self._ends += 1
        await self._close(noreply_wait)

    async def _close(self, noreply_wait: bool) -> None:
        if self.wire is not None:
            await self.wire.close(noreply_wait, self._new_token())

    def abort(self) -> None:
        """End the connection now, without waiting. Never raises. May be called twice.

        A :meth:`reconnect` that is under way fails.
        """
        self._ends += 1
        if self.wire is not None:
            self.wire.abort()

    def __repr__(self) -> str:
        if not self.is_open():
            return (
                f"<{type(self).__name__} {self.endpoint} closed{': ' + self.lost_reason if self.lost_reason else ''}>"
            )
        return f"<{type(self).__name__} {self.endpoint} {self.in_flight} in flight, {self.open_cursors} cursors>"


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
