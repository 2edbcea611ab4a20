"""The journal of a pool: the one place that counts events, logs them, and gives them to the observer."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, Final

from .. import events
from .._core.census import Census
from ..config import PoolConfig
from ..stats import PoolStats, Totals
from .messages import describe

log = logging.getLogger("async_repool")

NEEDS: Final = ("lease", "query", "feed")
GAUGES: Final = (
    *("size", "opening", "preparing", "idle", "leased", "shared", "closing", "feeds", "retired", "waiting"),
    *("queries_waiting", "queries", "changefeeds"),
)


class Journal:
    """What happened in one pool, in all its openings."""

    def __init__(self, name: str, connector: Any, observer: events.Observer | None) -> None:
        self.name = name
        self.observer = observer
        self.totals = Totals()
        self.closed_by_reason: Counter[str] = Counter()
        self.last_failure: BaseException | None = None
        """Why a connection last failed to open, or failed its check or reset."""
        self._connector = connector
        self._has_complained = False  # that the observer raised

    @property
    def endpoint(self) -> str:
        """Where connections go now."""
        try:
            return str(self._connector.endpoint)
        except Exception:
            log.exception("%s: endpoint of the connector raised", self.name)
            return "a server without a name"

    def stats(self, config: PoolConfig, census: Census | None) -> PoolStats:
        """What was counted, and how the pool is now. ``census`` is None if it was never open."""
        gauges = dict.fromkeys(GAUGES, 0) if census is None else {name: getattr(census, name) for name in GAUGES}
        return PoolStats(
            name=self.name,
            min_size=config.smallest_size,
            max_size=config.pool_size,
            connecting=gauges.pop("opening") + gauges.pop("preparing"),
            queries_in_flight=gauges.pop("queries"),
            **gauges,
            **asdict(self.totals),
            closed_total=self.closed_by_reason.total(),
            closed_by_reason=MappingProxyType(dict(self.closed_by_reason)),
        )

    def served(self, need: int, number: int, waited_seconds: float) -> None:
        """A caller has a lease, or a place for a query or feed. No event is made without an observer: saves time."""
        if need == 0:
            self.totals.acquired_total += 1
        if self.observer is not None:
            self.tell(events.CallerServed(self.name, NEEDS[need], waited_seconds, number))

    def gone(self, need: int, waited_seconds: float) -> None:
        """A caller was cancelled while it waited. As above: thousands may leave at once."""
        self.totals.cancelled_total += 1
        if self.observer is not None:
            self.tell(events.CallerGone(self.name, NEEDS[need], waited_seconds))

    def query_done(self, number: int, seconds: float, error: BaseException | None = None) -> None:
        """A query was answered, or has failed on a connection that still lives."""
        self.totals.queries_done_total += 1
        if self.observer is not None:
            self.tell(events.QueryDone(self.name, number, seconds, error))

    def tell(self, event: events.Event) -> None:
        """Count and log an event, and give it to the observer."""
        self._count(event)
        self._log(event)
        if self.observer is not None:
            try:
                self.observer(event)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    raise
                if not self._has_complained:
                    self._has_complained = True
                    log.exception("%s: the observer raised, which is logged once; given %r", self.name, event)

    def _count(self, event: events.Event) -> None:
        totals = self.totals
        match event:
            case events.CallerRefused(reason="timed out" | "deadlock"):
                totals.timeouts_total += 1
            case events.CallerRefused(reason="too many waiters"):
                totals.refused_total += 1
            case events.QueryStopped():
                totals.queries_stopped_total += 1
            case events.QueryLost():
                totals.queries_lost_total += 1
            case events.ConnectionOpened():
                totals.opened_total += 1
            case events.ConnectionFailed(error=error):
                totals.connect_failures_total += 1
                self.last_failure = error
            case events.ConnectionChecked(error=BaseException() as error):
                self.last_failure = error
            case events.ConnectionClosed(reason=reason):
                self.closed_by_reason[reason] += 1

    def _log(self, event: events.Event) -> None:
        match event:
            case events.ConnectionOpened(number=number, seconds=seconds):
                log.debug("%s: #%d is open, after %.3f s", self.name, number, seconds)
            case events.ConnectionFailed(number=number, error=error):
                log.debug("%s: #%d could not be opened: %s", self.name, number, describe(error))
            case events.ConnectionChecked(number=number, is_reset=is_reset, error=BaseException() as error):
                what = "reset" if is_reset else "check"
                log.debug("%s: #%d is discarded, its %s failed: %s", self.name, number, what, describe(error))
            case events.ConnectionClosed(number=number, reason=reason, was_aborted=was_aborted):
                log.debug("%s: #%d is %s: %s", self.name, number, "aborted" if was_aborted else "closed", reason)
            case events.OutageBegan(server=server, error=error):
                log.warning("%s: cannot connect to %s: %s", self.name, server, describe(error))
            case events.OutageEnded(server=server):
                log.info("%s: connected to %s again", self.name, server)
