"""The server that a pool leads to: whether connections to it can be opened, and when to try again."""

from __future__ import annotations

from typing import Final

from .backoff import NEVER, Backoff, Random

PROBATION_SECONDS: Final = 1.0
"""A connection that dies unused within this time counts as one that could not be opened. So a server that lets
everybody in and then hangs up is called at growing intervals."""


class Server:
    """One server. An outage begins when an opening fails, and ends when one succeeds.

    If the connection that ended it dies within PROBATION_SECONDS, the outage goes on, with the same pauses.
    """

    def __init__(self, random: Random, reconnect_timeout: float | None) -> None:
        self._backoff = Backoff(random)
        self._reconnect_timeout = reconnect_timeout
        self.is_down = False
        """Whether the last opening failed."""
        self.is_hopeless = False
        """Whether it failed in a way that trying again cannot mend."""
        self._opened_at = -NEVER
        self._is_reported = False  # its beginning, and not its end
        self._has_lasted = False  # reported that it lasts
        self._since = 0.0  # when the first of these failures was
        self._is_resting = False  # nothing had to be opened since the last failure: nobody knows whether it lasts

    @property
    def retry_at(self) -> float:
        """When the next attempt may begin."""
        return self._backoff.retry_at

    @property
    def is_missed(self) -> bool:
        """Whether it is down, and connections to it are wanted."""
        return self.is_down and not self._is_resting

    def succeeded(self, now: float) -> bool:
        """A connection was opened. True if that ends an outage that was reported."""
        was_reported, self._is_reported = self._is_reported, False
        self.is_down = self.is_hopeless = False
        self._opened_at = now
        return was_reported

    def failed(self, now: float, *, is_hopeless: bool) -> bool:
        """An opening failed. True if that begins an outage."""
        is_new = not self.is_down and (not self._backoff.failures or now > self._opened_at + PROBATION_SECONDS)
        if is_new:
            self._backoff.reset()
            self._since, self._has_lasted = now, False
            self._is_reported = True
        self.is_down, self.is_hopeless, self._is_resting = True, is_hopeless, False
        self._backoff.failed(now)
        return is_new

    def rest(self) -> None:
        """Nothing has to be opened."""
        self._is_resting = True

    def lasts(self, now: float) -> tuple[bool, float]:
        """Whether the outage has lasted ``reconnect_timeout``, which is true once; and when to ask again."""
        if not self.is_missed or self._has_lasted or self._reconnect_timeout is None:
            return False, NEVER
        self._has_lasted = now >= self._since + self._reconnect_timeout
        return self._has_lasted, NEVER if self._has_lasted else self._since + self._reconnect_timeout
