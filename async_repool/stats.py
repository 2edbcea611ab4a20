"""The statistics of a pool, and the report of its closing, as frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = ["CloseReport", "PoolStats"]


@dataclass(frozen=True, kw_only=True)
class CloseReport:
    """How a pool was closed."""

    leases_waited_for: int = 0
    """Leases that were out when the closing began."""
    leases_aborted: int = 0
    """Those of them that were not released in time."""
    feeds_ended: int = 0
    """Feeds that were ended."""
    seconds: float = 0.0
    """How long the closing took, from the first ``close()`` on."""
    queries_waited_for: int = 0
    """Queries that were under way when the closing began."""
    queries_aborted: int = 0
    """Those of them that had no answer in time."""


@dataclass(slots=True)
class Totals:
    """The totals of :class:`PoolStats` that are counted."""

    acquired_total: int = 0
    waited_total: int = 0
    waited_seconds_total: float = 0.0
    timeouts_total: int = 0
    cancelled_total: int = 0
    refused_total: int = 0
    queries_done_total: int = 0
    queries_stopped_total: int = 0
    queries_lost_total: int = 0
    opened_total: int = 0
    connect_failures_total: int = 0


@dataclass(frozen=True, kw_only=True)
class PoolStats:
    """A snapshot of a pool. The gauges say how it is now. The totals only grow, from the pool's construction on."""

    name: str
    """The pool's name."""

    min_size: int
    """Connections that the pool keeps open."""
    max_size: int
    """Most connections open at once. Those that serve feeds do not count."""

    # Gauges.
    size: int
    """``idle + leased + shared + connecting + closing``; never above ``max_size``."""
    idle: int
    """Connections ready to be used."""
    leased: int
    """Connections that users have."""
    shared: int
    """Connections that carry queries of ``run()`` and ``stream()``, up to ``max_in_flight`` each."""
    connecting: int
    """Connections being opened, checked or reset."""
    closing: int
    """Connections being closed."""
    waiting: int
    """Callers waiting in line, for a lease, a query or a feed."""
    feeds: int
    """Connections in the feed lane, outside ``size``."""
    retired: int
    """Connections outside ``size`` that are closing, or close when the last cursor on them has ended."""
    queries_in_flight: int
    """Queries of ``run()`` and ``stream()`` that are not answered yet."""
    queries_waiting: int
    """Callers in line that wait to send a query."""
    changefeeds: int
    """Feeds of ``changes()`` that are open."""

    # Totals.
    acquired_total: int
    """Leases handed out."""
    waited_total: int
    """Callers that had to wait in line, whatever came of it."""
    waited_seconds_total: float
    """Seconds spent waiting in line, by all callers together."""
    timeouts_total: int
    """Callers that got ``PoolTimeout`` or ``PoolDeadlock``."""
    cancelled_total: int
    """Callers that were cancelled in line."""
    refused_total: int
    """Callers that were refused because ``max_waiting`` were waiting."""
    queries_done_total: int
    """Queries of ``run()`` and ``stream()`` that the server has answered, also with an error."""
    queries_stopped_total: int
    """Queries that were cancelled or timed out after they were sent, and streams that were left before their end."""
    queries_lost_total: int
    """Queries whose connection ended before the answer came."""
    opened_total: int
    """Connections opened."""
    connect_failures_total: int
    """Attempts to open a connection that failed."""
    closed_total: int
    """Connections closed or aborted, whatever the reason."""
    closed_by_reason: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """``closed_total`` by reason, such as ``expired`` or ``broken``."""
