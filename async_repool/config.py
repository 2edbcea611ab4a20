"""The options of a pool: one frozen record, with units, defaults and checks.

Every option stands here and nowhere else. Nothing here waits, reads a clock or opens anything.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, TypeAlias, TypedDict, Unpack

from .events import Observer

__all__ = ["UNSET", "Hook", "PoolConfig", "PoolOptions", "Unpack", "Unset"]

Hook: TypeAlias = Callable[[Any], Awaitable[object]]
"""An async callable that is given a connection. Raising makes the pool discard that connection."""


class Unset:
    """The type of :data:`UNSET`."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset()
"""The default of an argument for which the pool has an option. None has a meaning of its own there."""


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """All options of a pool. Raises ``TypeError`` or ``ValueError``, which names the option and the value.

    All times are seconds. ``None`` means no limit, unless the option says otherwise.
    """

    pool_size: int = 3
    """Most connections open at once. Those that serve feeds do not count."""

    connection_ttl: float | None = 3600
    """How long a connection may live, from its opening on. Up to 5 % are subtracted at random. 0 or None: for ever."""

    min_size: int | None = None
    """Connections that ``init_pool()`` opens and the pool keeps open. None: ``pool_size``."""

    max_idle: float | None = 600
    """How long a connection above ``min_size`` may be unused before it is closed. 0: no time at all. None: for ever."""

    acquire_timeout: float | None = 30
    """How long a caller waits for a connection by default. None: for ever."""

    connect_timeout: float | None = None
    """How long opening a connection may take: name look-up, TCP, TLS, log-in and ``configure``. None: the ``timeout``
    of the connect arguments, else 20.
    """

    close_timeout: float = 5
    """How long a connection may take to close politely before it is aborted."""

    check_timeout: float = 5
    """How long a ``check`` or a ``reset`` may take before its connection is discarded."""

    check_idle: float | None = 60
    """How long a connection may be unused before it is checked ahead of its next use. 0 or None: never."""

    ping_interval: float = 0
    """How often the pool checks each idle connection. 0: never."""

    reconnect_timeout: float | None = 300
    """How long an outage may last before ``on_reconnect_failed`` is called, once. The pool goes on trying."""

    cursor_grace: float = 60
    """How long cursors may go on reading from a connection that is to be closed."""

    max_feed_connections: int | None = None
    """Most connections that serve feeds. None: ``pool_size``."""

    max_in_flight: int = 128
    """Most queries of ``run()`` and ``stream()`` on one connection at once. RethinkDB takes 1,024."""

    max_waiting: int = 0
    """Most callers waiting at once. 0: no limit."""

    configure: Hook | None = None
    """Called with each new connection, after it was opened."""

    check: Hook | None = None
    """Called with a connection before each lease."""

    reset: Hook | None = None
    """Called with a connection after each release."""

    on_reconnect_failed: Callable[[Any], object] | None = None
    """Called with the pool, in a task of its own, if an outage lasts for ``reconnect_timeout``. May be async."""

    leak_threshold: float | None = None
    """How long a lease may be held before its holder and stack are logged, once. None: for ever."""

    observer: Observer | None = None
    """Called with an event for whatever happens; see :mod:`async_repool.events`."""

    debug: bool = False
    """Keep the stack of every acquire, and raise ``PoolDeadlock`` at once instead of logging it. Slower.

    Not for leases that one task acquires and another releases: a lease counts for the task that acquired it.
    """

    name: str | None = None
    """Shown in repr, logs, errors and events. None: ``pool-1``, ``pool-2``, …"""

    def __post_init__(self) -> None:
        self._check_count("pool_size", at_least=1)
        self._check_count("min_size", at_least=0, optional=True)
        if self.min_size is not None and self.min_size > self.pool_size:
            raise ValueError(f"min_size={self.min_size} is more than pool_size={self.pool_size}")
        self._check_count("max_feed_connections", at_least=0, optional=True)
        self._check_count("max_in_flight", at_least=1)
        self._check_count("max_waiting", at_least=0)
        for option in ("connection_ttl", "max_idle", "acquire_timeout"):
            self._check_seconds(option, optional=True)
        self._check_seconds("connect_timeout", optional=True, positive=True)
        self._check_seconds("close_timeout")
        self._check_seconds("check_timeout", positive=True)
        self._check_seconds("cursor_grace")
        self._check_seconds("ping_interval")
        for option in ("check_idle", "reconnect_timeout"):
            self._check_seconds(option, optional=True)
        self._check_seconds("leak_threshold", optional=True, positive=True)
        if not isinstance(self.debug, bool):
            raise TypeError(f"debug must be a bool, not {self.debug!r}")
        for option in ("configure", "check", "reset", "on_reconnect_failed", "observer"):
            hook = getattr(self, option)
            if hook is not None and not callable(hook):
                kind = "a callable" if option in ("on_reconnect_failed", "observer") else "an async callable"
                raise TypeError(f"{option} must be {kind} or None, not {hook!r}")
        if self.name is not None and not isinstance(self.name, str):
            raise TypeError(f"name must be a str or None, not {self.name!r}")

    @property
    def smallest_size(self) -> int:
        """``min_size``; if it is None, ``pool_size``."""
        return self.pool_size if self.min_size is None else self.min_size

    @property
    def feed_limit(self) -> int:
        """``max_feed_connections``; if it is None, ``pool_size``."""
        return self.pool_size if self.max_feed_connections is None else self.max_feed_connections

    def _check_count(self, option: str, *, at_least: int, optional: bool = False) -> None:
        value = getattr(self, option)
        if value is None and optional:
            return
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{option} must be an int{' or None' if optional else ''}, not {value!r}")
        if value < at_least:
            raise ValueError(f"{option} must be {at_least} or more, not {value!r}")

    def _check_seconds(self, option: str, *, optional: bool = False, positive: bool = False) -> None:
        check_seconds(option, getattr(self, option), optional=optional, positive=positive)


def check_seconds(option: str, value: object, *, optional: bool = True, positive: bool = False) -> None:
    """Raise unless ``value`` is a finite number of seconds, 0 or more (``positive``: more than 0), or None if
    ``optional``.
    """
    if value is None and optional:
        return
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{option} must be a number of seconds{' or None' if optional else ''}, not {value!r}")
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{option} must be a finite number of seconds {'> 0' if positive else '>= 0'}, not {value!r}")


class PoolOptions(TypedDict, total=False):
    """The keyword-only options of a pool, for editors and type checkers. :class:`PoolConfig` says what each means."""

    min_size: int | None
    max_idle: float | None
    acquire_timeout: float | None
    connect_timeout: float | None
    close_timeout: float
    check_timeout: float
    check_idle: float | None
    ping_interval: float
    reconnect_timeout: float | None
    cursor_grace: float
    max_feed_connections: int | None
    max_in_flight: int
    max_waiting: int
    configure: Hook | None
    check: Hook | None
    reset: Hook | None
    on_reconnect_failed: Callable[[Any], object] | None
    leak_threshold: float | None
    observer: Observer | None
    debug: bool
    name: str | None


def check_names(options: Iterable[str]) -> None:
    """Raise ``TypeError`` if one of these is no option. It names the most similar option."""
    known = PoolOptions.__annotations__
    for name in options:
        if name not in known:
            similar = get_close_matches(name, known, n=1)
            hint = f"; did you mean {similar[0]!r}?" if similar else ""
            raise TypeError(f"AsyncConnectionPool() has no option {name!r}{hint}")
