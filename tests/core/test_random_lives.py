"""Random lives of a pool keep every promise. A failure names its seed, its options and its facts."""

from __future__ import annotations

import pytest

from core_lives import live

SEEDS = 200
"""Some three seconds."""


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_every_promise_holds_whatever_happens_in_whatever_order(first: int) -> None:
    for seed in range(first, first + 50):
        live(seed)


def test_a_life_is_the_same_each_time() -> None:
    assert live(1) == live(1)
