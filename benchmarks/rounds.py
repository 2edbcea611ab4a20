"""Interleaved rounds: everything is measured once per round, so that whatever else the machine does hits all alike.

Ratios are taken within a round, then their median: numbers of two rounds, or of two runs, do not compare.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

K = TypeVar("K", bound=Hashable)

Measure: TypeAlias = Callable[[], float]
"""Measures something once, and returns what it came to: seconds, say."""


@dataclass(frozen=True)
class Rounds(Generic[K]):
    """What was measured, per thing and round."""

    values: dict[K, list[float]] = field(default_factory=dict)

    def __contains__(self, key: K) -> bool:
        return key in self.values

    def median(self, key: K) -> float:
        return statistics.median(self.values[key])

    def ratios(self, key: K, to: K) -> list[float]:
        """``key`` as a multiple of ``to``, in each round."""
        return [a / b for a, b in zip(self.values[key], self.values[to], strict=True)]

    def ratio(self, key: K, to: K) -> float:
        """The median of :meth:`ratios`."""
        return statistics.median(self.ratios(key, to))


def measure_in_rounds(measures: Mapping[K, Measure], rounds: int, progress: Callable[[str], None]) -> Rounds[K]:
    """Measure each of ``measures`` once per round: there and back, then the same from one place later on, and so on."""
    result: Rounds[K] = Rounds({key: [] for key in measures})
    keys = list(measures)
    for number in range(rounds):
        start = number // 2 % len(keys)
        order = keys[start:] + keys[:start]
        for key in reversed(order) if number % 2 else order:
            progress(f"round {number + 1}/{rounds}: {key}")
            gc.collect()
            result.values[key].append(measures[key]())
    return result
