"""What happened in a pool, as frozen records, and the observer that is given each of them.

Metrics, traces and audit logs are built on this: ``AsyncConnectionPool(…, observer=observer)``. All times are seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened."""

    pool: str
    """The pool's name."""


@dataclass(frozen=True, slots=True)
class ConnectionEvent(Event):
    """Something that happened to one connection."""

    number: int
    """Its number in this opening of the pool, as in logs: ``#7``."""
    server: str
    """Where it leads, such as ``"db1:28015"``."""
    seconds: float
    """How long that took; of a connection that was closed, how long it lived."""


@dataclass(frozen=True, slots=True)
class ConnectionOpened(ConnectionEvent):
    """A connection was opened, and configured."""


@dataclass(frozen=True, slots=True)
class ConnectionFailed(ConnectionEvent):
    """A connection could not be opened or configured."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class ConnectionChecked(ConnectionEvent):
    """A connection was checked or reset."""

    is_reset: bool
    error: BaseException | None
    """Why the connection is discarded; None if it is fit."""


@dataclass(frozen=True, slots=True)
class ConnectionClosed(ConnectionEvent):
    """A connection was closed."""

    reason: str
    """Such as ``"expired"``; as in ``PoolStats.closed_by_reason``."""
    was_aborted: bool
    """Whether it was ended at once, instead of politely."""


@dataclass(frozen=True, slots=True)
class CallerEvent(Event):
    """Something that happened to a caller."""

    need: str
    """What it asked for: ``"lease"``, ``"query"`` or ``"feed"``."""
    waited_seconds: float
    """0 if it did not have to wait."""


@dataclass(frozen=True, slots=True)
class CallerServed(CallerEvent):
    """A caller got what it asked for."""

    number: int
    """The connection's."""


@dataclass(frozen=True, slots=True)
class CallerRefused(CallerEvent):
    """A caller got an error instead of a connection."""

    reason: str
    """``"timed out"``, ``"deadlock"``, ``"unreachable"``, ``"hopeless"``, ``"too many waiters"``, ``"lane full"`` or
    ``"closed"``."""


@dataclass(frozen=True, slots=True)
class CallerGone(CallerEvent):
    """A caller was cancelled while it waited."""


@dataclass(frozen=True, slots=True)
class LeaseReturned(Event):
    """A lease was released, or taken back."""

    number: int
    held_seconds: float


@dataclass(frozen=True, slots=True)
class QueryEvent(Event):
    """A query of ``run()`` or ``stream()`` has ended."""

    number: int
    """The connection's."""
    seconds: float
    """From the moment when the query had a connection."""
    error: BaseException | None
    """The error that the caller got; None if it got its answer, was cancelled, or left a stream before its end."""


@dataclass(frozen=True, slots=True)
class QueryDone(QueryEvent):
    """The server has answered, or a stream was read to its end."""


@dataclass(frozen=True, slots=True)
class QueryStopped(QueryEvent):
    """It was cancelled or ran out of time, or a stream was left before its end."""


@dataclass(frozen=True, slots=True)
class QueryLost(QueryEvent):
    """Its connection ended before the answer came, or before the last row of a stream."""


@dataclass(frozen=True, slots=True)
class OutageBegan(Event):
    """A connection could not be opened, after others could."""

    server: str
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class OutageEnded(Event):
    """A connection could be opened again."""

    server: str
    seconds: float
    """How long the outage lasted."""


Observer: TypeAlias = Callable[[Event], object]
"""Any callable that takes an event. The pool calls it at once, in its event loop. If it raises, that is logged once."""
