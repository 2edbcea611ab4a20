"""Retry delays and lifetime jitter: arithmetic on ``now`` and a random function, both given. No clock, no logging."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Random: TypeAlias = Callable[[], float]
"""Gives floats in [0, 1), as ``random.random`` does."""

FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
LIFETIME_JITTER = 0.05


def expiry(now: float, lifetime: float | None, random: Random) -> float:
    """When a connection opened at ``now`` has had its time: up to 5 % early, so that a pool opened at once does not
    expire at once. ``lifetime`` is in seconds; 0 or None means never.
    """
    if not lifetime:
        return float("inf")
    return now + lifetime * (1.0 - LIFETIME_JITTER * random())


class Backoff:
    """Exponential back-off with full jitter: failure n is followed by a pause of up to ``FIRST_DELAY * 2 ** n``
    seconds, never more than ``LONGEST_DELAY``. Full jitter keeps a thousand clients from coming back in step after an
    outage. (Exponential Backoff And Jitter, AWS Architecture Blog, 2015.)
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self.failures = 0
        self.since: float | None = None  # when the first of these failures was
        self.retry_at = float("-inf")

    def failed(self, now: float) -> None:
        """One more attempt failed. What fails while a pause is running is the same failure: many connections may end
        at once.
        """
        if now < self.retry_at:
            return
        if self.since is None:
            self.since = now
        ceiling = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(self.failures, 32))
        self.failures += 1
        self.retry_at = now + ceiling * self._random()

    def succeeded(self) -> None:
        """An attempt succeeded: the next failure starts anew."""
        self.failures = 0
        self.since = None
        self.retry_at = float("-inf")
