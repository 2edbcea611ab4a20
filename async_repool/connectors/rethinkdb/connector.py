"""The RethinkDB connector: what the pool asks to connect, check, close and abort, and to run queries."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rethinkdb.ast import RqlQuery
from rethinkdb.errors import ReqlAuthError, ReqlDriverError

from ...errors import ConnectFailed
from .. import never_raises
from .arguments import check_arguments, check_timeout
from .connection import RethinkDBConnection, RethinkDBLease
from .cursor import AsyncioCursor, RethinkDBStream
from .login import Dialer
from .transient import ConnectionClosed, is_transient


class RethinkDBConnector:
    """Opens RethinkDB connections and runs queries on them: a :class:`~async_repool.connectors.QueryConnector`.

    It takes the arguments of the driver's ``r.connect()``, with the same defaults: ``host``, ``port``, ``db``,
    ``user``, ``password`` (or ``auth_key``), ``timeout`` (seconds for the whole of :meth:`connect`), ``ssl={"ca_certs":
    path}``, ``json_encoder``, ``json_decoder`` (classes), ``io_loop`` (which is not used), and ``url``, whose parts win
    over the other arguments. Raises ``ValueError`` or ``TypeError`` if one is wrong. No message has a password in it.

    A password may be percent-encoded in the ``url``, which the driver does not decode, and may be other than ASCII,
    which the driver sends as Latin-1. The driver's reading is tried first, then the other.

    :param arguments: a callable, sync or async, that returns a mapping of the other arguments at every opening, for
        secrets that change. :meth:`connect` raises what it raises. Only ``timeout`` may be given beside it, and wins.
    """

    lease_type = RethinkDBLease
    is_transient = staticmethod(is_transient)
    # The connection does these by itself.
    on_lost = staticmethod(RethinkDBConnection.on_lost)
    wait_streams = staticmethod(RethinkDBConnection.wait_idle)
    check = staticmethod(RethinkDBConnection.check)
    close = staticmethod(RethinkDBConnection.close)
    abort = staticmethod(RethinkDBConnection.abort)

    def __init__(
        self,
        *,
        arguments: Callable[[], Any] | None = None,
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
        self._timeout = timeout
        self._asked: dict[str, Any] | None = None  # what the source returned last
        self._dialer: Dialer | None = None  # kept until the arguments change; None until the source was asked
        if arguments is None:
            self._dialer = Dialer(check_arguments({**given, "timeout": timeout}))
        elif not callable(arguments):
            raise TypeError(f"arguments must be a callable that returns them, not {type(arguments).__name__}")
        elif beside := [name for name, value in given.items() if value is not None]:
            message = f"give {', '.join(beside)} in what `arguments` returns; only timeout may be given beside it"
            raise TypeError(message)
        else:
            check_timeout(timeout)

    @property
    def endpoint(self) -> str:
        """``"host:port"``; if a callable gives the arguments, as it was at the last opening."""
        return "a server that was not asked for yet" if self._dialer is None else self._dialer.endpoint

    @property
    def connect_timeout(self) -> float:
        """The argument ``timeout``; if a callable gives it, as it was at the last opening, and 20 s at the first."""
        return check_timeout(self._timeout) if self._dialer is None else self._dialer.arguments.timeout

    async def connect(self) -> RethinkDBConnection:
        """Open a connection: name look-up, TCP, TLS and log-in together within :attr:`connect_timeout`.

        Raises :class:`~async_repool.ConnectFailed`, which is permanent if the user or the password is refused. Its
        cause is the error of the driver or of the operating system.
        """
        if self._source is not None:
            asked = self._source()
            if inspect.isawaitable(asked):
                asked = await asked
            if not isinstance(asked, Mapping):
                found = type(asked).__name__
                raise TypeError(f"the callable for the connect() arguments must return a mapping of them, not {found}")
            asked = {**asked} if self._timeout is None else {**asked, "timeout": self._timeout}
            if asked != self._asked:
                self._dialer, self._asked = Dialer(check_arguments(asked)), asked
        dialer = self._dialer
        assert dialer is not None
        its = dialer.arguments
        connection = RethinkDBConnection(
            its.host, its.port, its.db, None, its.user, None, its.timeout, its.ssl, 10, dialer=dialer, **its.codecs
        )
        try:
            await connection.open(its.timeout)
        except ReqlAuthError as error:
            message = f"{error.message} (user {its.user!r}). Check `user` and `password`."
            raise ConnectFailed(message, is_permanent=True) from error
        except ReqlDriverError as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            raise ConnectFailed(error.message) from cause
        return connection

    @never_raises
    def is_open(self, connection: RethinkDBConnection, /) -> bool:
        """Whether the connection is usable, as far as is known here, and not clogged by forgotten queries."""
        wire = connection.wire
        return wire is not None and wire.is_usable

    def has_streams(self, connection: RethinkDBConnection, /) -> bool:
        """Whether anybody still reads from it: a cursor, a changefeed, or a query whose answer is to come."""
        return not connection.is_idle

    async def run(self, connection: RethinkDBConnection, query: Any, options: dict[str, Any], /) -> Any:
        """Run a query and return its value; a sequence whole, as a list. ``options`` are the driver's.

        With ``profile=True`` the value is the driver's ``{"value": …, "profile": …}``; with ``noreply=True`` None.
        Raises ``TypeError`` if ``query`` is no query, or if it is a changefeed, which has no last row.
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

        Raises ``TypeError`` also for the options ``noreply`` and ``profile``, which have no place in a stream.
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

    def __repr__(self) -> str:
        if self._dialer is None:
            return f"<{type(self).__name__} {self.endpoint}>"
        its = self._dialer.arguments
        return f"<{type(self).__name__} {its.user}@{self.endpoint}{' with TLS' if its.ssl else ''}>"


def _check_query(query: object) -> None:
    if not isinstance(query, RqlQuery):
        raise TypeError(f"query must be a ReQL query such as R.table('users').get(1), not {type(query).__name__}")
