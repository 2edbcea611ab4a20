"""The journal of a pool: the one place that counts what happened, logs it, and tells the observer."""

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
        self.last_failure: BaseException | None = None  # of opening, checking or resetting a connection
        self._connector = connector
        self._has_complained = False  # of the observer

    @property
    def endpoint(self) -> str:
        """Where connections go now."""
        endpoint: str = self._connector.endpoint
        return endpoint

    def stats(self, config: PoolConfig, census: Census | None) -> PoolStats:
        """What was counted, and how the pool is now. ``census`` is None if it is not open."""
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
            closed_by_reason=MappingProxyType({str(reason): n for reason, n in self.closed_by_reason.items()}),
        )

    def _tell(self, event: events.Event) -> None:
        assert self.observer is not None
        try:
            self.observer(event)
        except Exception:
            if not self._has_complained:
                self._has_complained = True
                log.exception("%s: the observer raised, which is logged once; it was given %r", self.name, event)

    # ---- callers

    def served(self, need: int, number: int, waited_seconds: float) -> None:
        """A caller has a lease, a query has a place, or a feed."""
        if need == 0:
            self.totals.acquired_total += 1
        if self.observer is not None:
            self._tell(
                events.CallerServed(pool=self.name, need=NEEDS[need], number=number, waited_seconds=waited_seconds)
            )

    def waited(self, seconds: float) -> None:
        """A caller had to wait in line, whatever came of it."""
        self.totals.waited_total += 1
        self.totals.waited_seconds_total += seconds

    def refused(self, need: int, reason: str, waited_seconds: float) -> None:
        """A caller gets an error."""
        self.totals.timeouts_total += reason in ("timed out", "deadlock")
        self.totals.refused_total += reason == "too many waiters"
        if self.observer is not None:
            self._tell(
                events.CallerRefused(pool=self.name, need=NEEDS[need], reason=reason, waited_seconds=waited_seconds)
            )

    def gone(self, need: int, waited_seconds: float) -> None:
        """A caller was cancelled."""
        self.totals.cancelled_total += 1
        if self.observer is not None:
            self._tell(events.CallerGone(pool=self.name, need=NEEDS[need], waited_seconds=waited_seconds))

    def returned(self, number: int, held_seconds: float) -> None:
        """A lease has ended. To be called if there is an observer."""
        self._tell(events.LeaseReturned(pool=self.name, number=number, held_seconds=held_seconds))

    # ---- queries

    def query_done(self, number: int, seconds: float, error: BaseException | None = None) -> None:
        """The server has answered."""
        self.totals.queries_done_total += 1
        if self.observer is not None:
            self._tell(events.QueryDone(pool=self.name, number=number, seconds=seconds, error=error))

    def query_stopped(self, number: int, seconds: float, *, is_timeout: bool = False) -> None:
        """It was cancelled, timed out, or left."""
        self.totals.queries_stopped_total += 1
        if self.observer is not None:
            self._tell(events.QueryStopped(pool=self.name, number=number, seconds=seconds, is_timeout=is_timeout))

    def query_lost(self, number: int, seconds: float, error: BaseException) -> None:
        """Its connection ended."""
        self.totals.queries_lost_total += 1
        if self.observer is not None:
            self._tell(events.QueryLost(pool=self.name, number=number, seconds=seconds, error=error))

    # ---- connections

    def opened(self, number: int, seconds: float) -> None:
        """A connection is open."""
        self.totals.opened_total += 1
        log.debug("%s: #%d is open, after %.3f s", self.name, number, seconds)
        if self.observer is not None:
            self._tell(events.ConnectionOpened(pool=self.name, number=number, server=self.endpoint, seconds=seconds))

    def failed(self, number: int, seconds: float, error: BaseException) -> None:
        """A connection could not be opened."""
        self.totals.connect_failures_total += 1
        self.last_failure = error
        log.debug("%s: #%d could not be opened: %s", self.name, number, describe(error))
        if self.observer is not None:
            self._tell(
                events.ConnectionFailed(
                    pool=self.name, number=number, server=self.endpoint, seconds=seconds, error=error
                )
            )

    def checked(self, number: int, seconds: float, error: BaseException | None, *, is_reset: bool) -> None:
        """A check or a reset is over."""
        if error is not None:
            self.last_failure = error
            what = "reset" if is_reset else "check"
            log.debug("%s: #%d is discarded, its %s failed: %s", self.name, number, what, describe(error))
        if self.observer is not None:
            self._tell(
                events.ConnectionChecked(
                    pool=self.name,
                    number=number,
                    server=self.endpoint,
                    is_reset=is_reset,
                    seconds=seconds,
                    error=error,
                )
            )

    def closed(self, number: int, reason: str, age_seconds: float, *, was_aborted: bool) -> None:
        """A connection is closed."""
        self.closed_by_reason[reason] += 1
        log.debug("%s: #%d is %s: %s", self.name, number, "aborted" if was_aborted else "closed", reason)
        if self.observer is not None:
            self._tell(
                events.ConnectionClosed(
                    pool=self.name,
                    number=number,
                    server=self.endpoint,
                    reason=str(reason),
                    age_seconds=age_seconds,
                    was_aborted=was_aborted,
                )
            )

    # ---- outages

    def outage_began(self) -> None:
        """Connections cannot be opened."""
        log.warning("%s: cannot connect to %s: %s", self.name, self.endpoint, describe(self.last_failure))
        if self.observer is not None:
            self._tell(events.OutageBegan(pool=self.name, server=self.endpoint, error=self.last_failure))

    def outage_lasts(self, seconds: float) -> None:
        """They could not for so long."""
        log.warning(
            "%s: no connection to %s for %g s: %s", self.name, self.endpoint, seconds, describe(self.last_failure)
        )

    def outage_ended(self, seconds: float) -> None:
        """They can again."""
        log.info("%s: connected to %s again", self.name, self.endpoint)
        if self.observer is not None:
            self._tell(events.OutageEnded(pool=self.name, server=self.endpoint, seconds=seconds))
