"""The result of a run as tables, goals and JSON."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass
class Table:
    """A table of text, the first column left, the others right."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [self.head, *self.rows]
        widths = [max(len(row[n]) for row in rows) for n in range(len(self.head))]
        rule = "  ".join("=" * width for width in widths)
        lines = [
            "  ".join(
                cell.rjust(width) if n else cell.ljust(width)
                for n, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join([self.title, "", rule, lines[0].rstrip(), rule, *(line.rstrip() for line in lines[1:]), rule])


@dataclass(frozen=True)
class Goal:
    """Something that must be at most so large, or at least. ``found`` is None where it could not be measured."""

    text: str
    limit: float
    found: float | None
    bound: Literal["at most", "at least"] = "at most"

    @property
    def is_met(self) -> bool | None:
        if self.found is None:
            return None
        return self.found <= self.limit if self.bound == "at most" else self.found >= self.limit

    def __str__(self) -> str:
        if self.found is None:
            return f"not measured  {self.text}: {self.bound} {self.limit:g}"
        return (
            f"{'met' if self.is_met else 'MISSED':<12}  {self.text}: {self.bound} {self.limit:g}, is {self.found:.2f}"
        )


@dataclass
class Report:
    """One run."""

    sections: list[Table | str] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    not_measured: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    """Every value of every round, by the names of the tables' rows, in seconds or bytes."""
    server: dict[str, Any] | None = None
    """What queries were run on."""

    @property
    def has_missed_goals(self) -> bool:
        return any(goal.is_met is False for goal in self.goals)

    def __str__(self) -> str:
        parts = [f"{machine()}; medians of interleaved rounds", *map(str, self.sections)]
        if self.not_measured:
            parts.append("\n".join(f"{name}: not measured, {why}" for name, why in self.not_measured.items()))
        parts.append("\n".join(["Goals", "", *map(str, self.goals)]))
        return "\n\n".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "machine": machine(),
            "server": self.server,
            "values": self.values,
            "goals": [{**asdict(goal), "is_met": goal.is_met} for goal in self.goals],
            "not_measured": self.not_measured,
        }


def machine() -> str:
    """The interpreter and the number of cores."""
    return f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores"


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.2f} µs"


def times(ratio: float) -> str:
    return f"{ratio:,.2f}"
