"""What happened in a pool, as frozen records, and the observer that is given each of them.

Metrics, traces and audit logs are built on this: ``AsyncConnectionPool(…, observer=observer)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "CallerGone",
    "CallerRefused",
    "CallerServed",
    "ConnectionChecked",
    "ConnectionClosed",
    "ConnectionFailed",
    "ConnectionOpened",
    "Event",
    "LeaseReturned",
    "Observer",
    "OutageBegan",
    "OutageEnded",
    "QueryDone",
    "QueryLost",
    "QueryStopped",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. All times are seconds."""

    pool: str
    """The pool's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOpened(Event):
    """A connection was opened, and configured."""

    number: int
    """Its number in this opening of the pool, as in logs: ``#7``."""
    server: str
    """Where it leads, such as ``"db1:28015"``."""
    seconds: float
    """How long that took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionFailed(Event):
    """A connection could not be opened or configured."""

    number: int
    server: str
    seconds: float
    """How long the attempt took."""
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionChecked(Event):
    """A connection was checked or reset."""

    number: int
    server: str
    is_reset: bool
    seconds: float
    error: BaseException | None
    """Why the connection is discarded; None if it is fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionClosed(Event):
    """A connection was closed."""

    number: int
    server: str
    reason: str
    """Such as ``"expired"``; as in ``PoolStats.closed_by_reason``."""
    age_seconds: float
    """How long it lived, from its opening."""
    was_aborted: bool
    """Whether it was ended at once, instead of politely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerServed(Event):
    """A caller got what it asked for."""

    need: str
    """``"lease"``, ``"query"`` or ``"feed"``."""
    number: int
    """The connection's."""
    waited_seconds: float
    """0 if it did not have to wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerRefused(Event):
    """A caller got an error instead of a connection."""

    need: str
    reason: str
    """``"timed out"``, ``"deadlock"``, ``"unreachable"``, ``"hopeless"``, ``"too many waiters"``, ``"lane full"`` or
    ``"closed"``."""
    waited_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerGone(Event):
    """A caller was cancelled while it waited."""

    need: str
    waited_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseReturned(Event):
    """A lease was released, or taken back."""

    number: int
    held_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryDone(Event):
    """The server has answered a query of ``run()``, or a stream was read to its end."""

    number: int
    seconds: float
    """From the moment when the query had a connection."""
    error: BaseException | None
    """The error with which the server answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryStopped(Event):
    """A query was cancelled or ran out of time, or a stream was left before its end."""

    number: int
    seconds: float
    is_timeout: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryLost(Event):
    """The connection of a query ended before its answer came, or that of a stream before its last row."""

    number: int
    seconds: float
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class OutageBegan(Event):
    """A connection could not be opened, after others could."""

    server: str
    error: BaseException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutageEnded(Event):
    """A connection could be opened again."""

    server: str
    seconds: float
    """How long the outage lasted."""


Observer: TypeAlias = Callable[[Event], object]
"""Any callable that takes an event. It is called at once, in the event loop of the pool, and must not wait. If it
raises, that is logged once."""
