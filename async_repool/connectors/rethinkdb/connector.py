"""The RethinkDB connector: what the pool asks to connect, check, close and abort, and to run queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rethinkdb.ast import ReQLDecoder, ReQLEncoder, RqlQuery
from rethinkdb.errors import ReqlAuthError, ReqlDriverError

from ...errors import ConnectFailed
from .arguments import DEFAULT_TIMEOUT, ArgumentSource, ConnectArguments, ask, check_arguments, check_timeout
from .connection import RethinkDBConnection
from .cursor import AsyncioCursor, RethinkDBStream
from .errors import ConnectionClosed
from .lease import RethinkDBLease
from .login import Dialer
from .transient import is_transient

__all__ = ["RethinkDBConnector"]


class _Target:
    """A server and a user, as one set of arguments names them. Kept as long as the arguments stay the same."""

    def __init__(self, arguments: ConnectArguments) -> None:
        self.arguments = arguments
        self.dialer = Dialer(
            arguments.host,
            arguments.port,
            arguments.user,
            arguments.passwords,
            arguments.ssl.get("ca_certs"),
            arguments.codecs.get("json_encoder", ReQLEncoder),
            arguments.codecs.get("json_decoder", ReQLDecoder),
        )

    async def connect(self) -> RethinkDBConnection:
        its = self.arguments
        connection = RethinkDBConnection(
            its.host, its.port, its.db, None, its.user, None, its.timeout, its.ssl, 10,
            dialer=self.dialer, **its.codecs,
        )  # fmt: skip
        try:
            await connection.open(its.timeout)
        except ReqlAuthError as error:
            message = f"{error.message} (user {its.user!r}). Check `user` and `password`."
            raise ConnectFailed(message, is_permanent=True) from error
        except ReqlDriverError as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            raise ConnectFailed(error.message) from cause
        return connection


class RethinkDBConnector:
    """Knows how to connect, check, close and abort RethinkDB connections, and to run queries on them.

    It is a :class:`~async_repool.connectors.QueryConnector`, and its leases are :class:`RethinkDBLease`.

    It takes the arguments of the driver's ``r.connect()``, with the same defaults: ``host``, ``port``, ``db``,
    ``user``, ``password`` (or ``auth_key``), ``timeout`` (seconds for the whole of :meth:`connect`), ``ssl={"ca_certs":
    path}``, ``json_encoder``, ``json_decoder`` (classes), ``io_loop`` (which is not used), and ``url``, whose parts win
    over the other arguments. Raises ``ValueError`` or ``TypeError`` if one is wrong. No message has a password in it.

    A password may be percent-encoded in the ``url``; the driver does not decode that. A password may also be other than
    ASCII; the driver sends that as Latin-1. The driver's reading is tried first. If the server refuses it, the other
    reading is tried.

    :param arguments: instead of all other arguments but ``timeout``, for secrets that change: a callable, sync or
        async, that returns a mapping of them. It is asked at every opening. What it raises, the opening raises. A
        ``timeout`` that is given beside it wins over the one that it returns.
    """

    lease_type = RethinkDBLease

    def __init__(
        self,
        *,
        arguments: ArgumentSource | None = None,
        host: str | None = None,
        port: int | str | None = None,
        db: str | None = None,
        auth_key: str | None = None,
        user: str | None = None,
        password: str | None = None,
        timeout: float | None = None,
        ssl: Mapping[str, Any] | None = None,
        url: str | None = None,
        json_encoder: Callable[..., Any] | None = None,
        json_decoder: Callable[..., Any] | None = None,
        io_loop: object = None,
        _handshake_version: int | None = None,
    ) -> None:
        given: dict[str, Any] = {"host": host, "port": port, "db": db, "auth_key": auth_key, "user": user}
        given |= {"password": password, "ssl": ssl, "url": url, "json_encoder": json_encoder}
        given |= {"json_decoder": json_decoder, "io_loop": io_loop, "_handshake_version": _handshake_version}
        self._source = arguments
        self._timeout = timeout  # of the constructor: it wins over what the source says
        self._asked: dict[str, Any] | None = None  # what the source returned last
        self._target: _Target | None = None  # None until the source was asked
        if arguments is None:
            self._target = _Target(check_arguments(timeout=timeout, **given))
        elif not callable(arguments):
            raise TypeError(f"arguments must be a callable that returns them, not {type(arguments).__name__}")
        elif beside := [name for name, value in given.items() if value is not None]:
            raise TypeError(
                f"give {', '.join(beside)} in what `arguments` returns; only timeout may be given beside it"
            )
        elif timeout is not None:
            self._timeout = check_timeout(timeout)

    @property
    def endpoint(self) -> str:
        """``"host:port"``; if a callable gives the arguments, as it was at the last opening."""
        return "a server that was not asked for yet" if self._target is None else self._target.dialer.endpoint

    @property
    def connect_timeout(self) -> float:
        """Seconds that :meth:`connect` may take: the argument ``timeout``.

        If a callable gives it, as it was at the last opening. The first opening has to be bounded before the callable
        is asked: by 20 s.
        """
        if self._target is not None:
            return self._target.arguments.timeout
        return DEFAULT_TIMEOUT if self._timeout is None else self._timeout

    async def connect(self) -> RethinkDBConnection:
        """Open a connection within :attr:`connect_timeout`: name look-up, TCP, TLS and log-in together.

        Raises :class:`~async_repool.ConnectFailed`. Its cause is the error of the driver or of the operating system. It
        is permanent if the user or the password is refused. If cancelled, no socket and no task is left.
        """
        target = self._target
        if self._source is not None:
            asked = await ask(self._source)
            if self._timeout is not None:
                asked["timeout"] = self._timeout
            target = self._target
            if target is None or asked != self._asked:
                self._target = target = _Target(check_arguments(**asked))
                self._asked = asked
        assert target is not None
        return await target.connect()

    def is_open(self, connection: RethinkDBConnection, /) -> bool:
        """Whether the connection is usable, as far as is known here, and not clogged by forgotten queries."""
        wire = connection.wire
        return wire is not None and wire.is_usable

    def on_lost(self, connection: RethinkDBConnection, callback: Callable[[], None], /) -> None:
        """Call ``callback`` once when the connection is lost. Not after :meth:`close` or :meth:`abort`."""
        connection.on_lost(callback)

    def has_streams(self, connection: RethinkDBConnection, /) -> bool:
        """Whether anybody still reads from it: a cursor, a changefeed, or a query whose answer is to come."""
        return not connection.is_idle

    async def wait_streams(self, connection: RethinkDBConnection, /) -> None:
        """Wait until :meth:`has_streams` is false."""
        await connection.wait_idle()

    async def check(self, connection: RethinkDBConnection, /) -> None:
        """Ask the server who it is. Waits for ever if it is frozen. If cancelled, the connection remains usable."""
        await connection.check()

    async def close(self, connection: RethinkDBConnection, /) -> None:
        """Wait for ``noreply`` writes, if there are any, and end the connection. If cancelled, it is aborted."""
        await connection.close()

    def abort(self, connection: RethinkDBConnection, /) -> None:
        """End the connection now, without waiting. Never raises."""
        connection.abort()

    async def run(self, connection: RethinkDBConnection, query: Any, options: dict[str, Any], /) -> Any:
        """Run a query and return its value; a sequence whole, as a list. ``options`` are the driver's.

        With ``profile=True`` the value is the driver's ``{"value": …, "profile": …}``; with ``noreply=True`` None.

        Raises :class:`~async_repool.errors.NotSent` or :class:`~async_repool.errors.ConnectionLost` from the driver's
        error if the connection has ended. Raises ``TypeError`` if ``query`` is no query, or if it is a changefeed,
        which has no last row. Raises the driver's errors. If cancelled, the query is stopped on the server.
        """
        _check_query(query)
        try:
            value = await connection._start(query, **options)
            if type(value) is AsyncioCursor:
                return await value.read_all()
            if "profile" in options and isinstance(value, dict) and type(value.get("value")) is AsyncioCursor:
                value["value"] = await value["value"].read_all()
        except ConnectionClosed as error:
            raise error.for_pool() from error
        return value

    async def open_stream(
        self, connection: RethinkDBConnection, query: Any, options: dict[str, Any], /
    ) -> RethinkDBStream:
        """Run a query whose value is a sequence, and return as soon as its first rows are there.

        Raises ``TypeError`` if the value is no sequence, and for the options ``noreply`` and ``profile``, which have no
        place in a stream. Otherwise it raises what :meth:`run` raises. If cancelled, the query is stopped on the
        server.
        """
        _check_query(query)
        for option in ("noreply", "profile"):
            if options.get(option):
                raise TypeError(f"a stream of rows has no place for {option}: run the query with run() instead")
        try:
            value = await connection._start(query, **options)
        except ConnectionClosed as error:
            raise error.for_pool() from error
        if not isinstance(value, AsyncioCursor | list):
            raise TypeError(f"the value of the query is no sequence of rows but {type(value).__name__}: use run()")
        return RethinkDBStream(value)

    def is_transient(self, error: BaseException, /) -> bool:
        """Whether a changefeed that was refused, or has ended, with this error may be opened again.

        True if the server starts, shuts down, moves data, or has lost another server. False for the end of a
        connection, which has errors of its own.
        """
        return is_transient(error)

    def __repr__(self) -> str:
        if self._target is None:
            return f"<{type(self).__name__} {self.endpoint}>"
        its = self._target.arguments
        return f"<{type(self).__name__} {its.user}@{self.endpoint}{' with TLS' if its.ssl else ''}>"


def _check_query(query: object) -> None:
    if not isinstance(query, RqlQuery):
        raise TypeError(f"query must be a ReQL query such as R.table('users').get(1), not {type(query).__name__}")
