"""For the tests of the pool: pauses that are the same in every run, and failures of shared judges in full."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("pool_kit", "cancellation_kit", "soak_judge", "soak_users")


@pytest.fixture
def repeatable() -> Iterator[None]:
    """Pauses are drawn from the common generator: the same in every run."""
    state = random.getstate()
    random.seed(1)
    yield
    random.setstate(state)
