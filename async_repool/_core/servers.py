"""The server that a pool leads to: whether connections to it can be opened, and when to try again."""

from __future__ import annotations

from typing import Final

from .backoff import NEVER, Backoff, Random

PROBATION_SECONDS: Final = 1.0
"""A connection that dies unused within this time counts as one that could not be opened. So a server that
accepts connections and then closes them is tried after growing pauses."""


class Server:
    """One server. An outage begins when an opening fails. It ends PROBATION_SECONDS after one succeeds, unless another
    failure comes before that: then the outage and its back-off go on.
    """

    def __init__(self, random: Random, reconnect_timeout: float | None) -> None:
        self._backoff = Backoff(random)
        self._reconnect_timeout = reconnect_timeout
        self.is_down = False
        """Whether the last attempt failed: it was not opened, or died unused."""
        self.is_hopeless = False
        """Whether trying again cannot help, as with a wrong password."""
        self._since: float | None = None  # the first failure of this outage; None if there is no outage
        self._over_at = NEVER  # when the outage ends, if nothing fails before
        self._has_lasted = False  # it was reported that the outage lasts
        self._is_resting = False  # nothing had to be opened since the last failure: nobody knows whether it lasts

    @property
    def retry_at(self) -> float:
        """When the next attempt may begin."""
        return self._backoff.retry_at

    def succeeded(self, now: float) -> bool:
        """A connection was opened. True if that may end an outage, after PROBATION_SECONDS."""
        was_down, self.is_down, self.is_hopeless = self.is_down, False, False
        if was_down:
            self._over_at = now + PROBATION_SECONDS
        return was_down

    def failed(self, now: float, *, is_hopeless: bool) -> bool:
        """An opening failed. True if that begins an outage."""
        is_new = self._since is None
        if is_new:
            self._since, self._has_lasted = now, False
        self.is_down, self.is_hopeless, self._is_resting = True, is_hopeless, False
        self._over_at = NEVER
        self._backoff.failed(now)
        return is_new

    def rest(self) -> None:
        """Nothing has to be opened now."""
        self._is_resting = True

    def is_over(self, now: float) -> tuple[bool, float]:
        """Whether the outage has just ended (true once), and when to ask again."""
        if now < self._over_at:
            return False, self._over_at
        self._since, self._over_at = None, NEVER
        self._backoff.reset()
        return True, NEVER

    def lasts(self, now: float) -> tuple[bool, float]:
        """Whether the outage has lasted for ``reconnect_timeout`` (true once), and when to ask again."""
        if not self.is_down or self._since is None or self._is_resting or self._has_lasted:
            return False, NEVER
        lasts_at = NEVER if self._reconnect_timeout is None else self._since + self._reconnect_timeout
        self._has_lasted = now >= lasts_at
        return self._has_lasted, NEVER if self._has_lasted else lasts_at
