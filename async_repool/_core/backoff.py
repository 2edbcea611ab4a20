"""Retry delays and lifetime jitter: arithmetic on ``now`` and a random function, both given. No clock, no logging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

Random: TypeAlias = Callable[[], float]
"""Gives floats in [0, 1), as ``random.random`` does."""

NEVER: Final = float("inf")
FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 5.0
LIFETIME_JITTER: Final = 0.05


def expiry(now: float, lifetime: float | None, random: Random) -> float:
    """When a connection that is opened at ``now`` expires: up to 5 % early, so that connections that were opened
    together do not expire together. ``lifetime`` is in seconds; 0 or None means never.
    """
    if not lifetime:
        return NEVER
    return now + lifetime * (1.0 - LIFETIME_JITTER * random())


class Backoff:
    """Exponential back-off with full jitter: the pause after failure n (from 0) is up to ``FIRST_DELAY * 2 ** n``
    seconds, never more than ``LONGEST_DELAY``. Full jitter keeps a thousand clients from coming back in step after an
    outage. (Exponential Backoff And Jitter, AWS Architecture Blog, 2015.)
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self.failures = 0
        """Attempts that failed in this series."""
        self.retry_at = -NEVER
        """When the next attempt may begin."""

    def failed(self, now: float) -> None:
        """One more attempt failed. A failure during the pause is not counted: many connections may end at once."""
        if now < self.retry_at:
            return
        ceiling = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(self.failures, 32))
        self.failures += 1
        self.retry_at = now + ceiling * self._random()

    def reset(self) -> None:
        """The next failure is the first of a new series."""
        self.failures = 0
        self.retry_at = -NEVER
