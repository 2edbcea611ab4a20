"""Arithmetic on time: lifetimes and pauses."""

from __future__ import annotations

import pytest

from async_repool._core.backoff import LIFETIME_JITTER, LONGEST_DELAY, NEVER, Backoff, expiry


def test_lifetimes_are_up_to_five_percent_shorter_so_that_they_do_not_end_together() -> None:
    assert expiry(0, 100, lambda: 0.0) == 100
    assert expiry(0, 100, lambda: 1.0) == pytest.approx(100 * (1 - LIFETIME_JITTER))
    assert expiry(7, 100, lambda: 0.5) == pytest.approx(104.5)


@pytest.mark.parametrize("for_ever", [0, None])
def test_a_lifetime_of_zero_or_none_means_for_ever(for_ever: float | None) -> None:
    assert expiry(5, for_ever, lambda: 0.5) == NEVER


def test_failures_that_come_together_count_as_one() -> None:
    backoff = Backoff(lambda: 1.0)
    for _ in range(50):
        backoff.failed(0)
    assert (backoff.failures, backoff.retry_at) == (1, pytest.approx(0.1))


def test_full_jitter_draws_each_pause_from_zero_up() -> None:
    backoff = Backoff(lambda: 0.25)
    for now in range(0, 400, 10):
        backoff.failed(now)
    assert backoff.retry_at == 390 + LONGEST_DELAY / 4


def test_a_reset_begins_a_new_series() -> None:
    backoff = Backoff(lambda: 1.0)
    for now in range(5):
        backoff.failed(now * 10)
    backoff.reset()
    assert (backoff.failures, backoff.retry_at) == (0, -NEVER)
    backoff.failed(100)
    assert backoff.retry_at == pytest.approx(100.1)


def test_pauses_stay_finite_however_often_it_fails() -> None:
    backoff = Backoff(lambda: 1.0)
    for now in range(0, 100_000, 10):
        backoff.failed(now)
    assert backoff.retry_at == 99_990 + LONGEST_DELAY
