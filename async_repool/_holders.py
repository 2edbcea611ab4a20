"""Who holds the leases: which task, since when, acquired where; and whether all of them wait for each other.

For errors and warnings only: no rule of the pool depends on it. Tasks are opaque here; it knows nothing of slots,
sizes, event loops or clocks.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType
from typing import Any, Final, TypeAlias
from weakref import ref

MOST_NAMED: Final = 10
"""Holders that one message names."""


Place: TypeAlias = tuple[CodeType, int, traceback.StackSummary | None]
"""Where a lease is asked for: code and instruction, for which the line is looked up when it is told, and the stack if
that is to be kept. No frame, which would keep alive what it refers to.
"""


def place(caller: FrameType) -> Place:
    """Where ``caller`` is now."""
    return caller.f_code, caller.f_lasti, None


def place_and_stack(caller: FrameType) -> Place:
    """The same, with its stack."""
    return caller.f_code, caller.f_lasti, traceback.extract_stack(caller)


class Holder:
    """Who holds one lease. Made once for each slot and written anew at each lease, since every acquire pays for it.

    Holds the task weakly, which it would keep alive.
    """

    __slots__ = ("_asker", "_code", "_instruction", "_stack", "_task", "since", "told_of")

    def __init__(self) -> None:
        self._task: ref[Any] | None = None
        self._asker: ref[Any] | None = None  # who had that task acquire; None where it did by itself
        self._code: CodeType | None = None
        self._instruction = 0
        self.since = 0.0
        self.told_of = -1.0  # since when it had held the lease that was told of as held for long
        self._stack: traceback.StackSummary | None = None

    def hand_over(self, now: float) -> None:
        """The lease is for a task that was woken, but has not run yet: until it begins, nobody holds it."""
        self._task = self._asker = self._code = None
        self.since = now

    def begin(self, task: Any, now: float, place: Place, asker: Any = None) -> None:
        """A lease begins: of this task, from now on, asked for at this place; on behalf of ``asker``, if of any."""
        self._task = None if task is None else ref(task)
        self._asker = None if asker is None else ref(asker)
        self.since = now
        self._code, self._instruction, self._stack = place

    @property
    def task(self) -> Any:
        """The task that acquired; None where it is gone, or was none."""
        return None if self._task is None else self._task()

    @property
    def where(self) -> str:
        """``file:line in function`` of the acquire."""
        code = self._code
        if code is None:
            return "a place that it has not come back to yet"
        lines = (line for start, end, line in code.co_lines() if start <= self._instruction < end and line is not None)
        return f"{code.co_filename}:{next(lines, code.co_firstlineno)} in {code.co_name}"

    def describe(self, now: float) -> str:
        """One line; with the stack of the acquire below it, where that was kept."""
        asker = self.task if self._asker is None else self._asker()
        name = "a task that is gone" if asker is None else asker.get_name()
        line = f"{name}, for {now - self.since:.1f} s, acquired at {self.where}"
        return line if self._stack is None else f"{line}\n{''.join(self._stack.format())}".rstrip()

    def stack_now(self) -> str:
        """Where its task is now, innermost call last."""
        task = self.task if self._asker is None else self._asker()
        if task is None:
            return "its task is gone"
        lines = [f"  {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" for frame in _awaited(task)]
        return "\n".join(lines) or "its task has ended"


def innermost_frame(task: Any) -> FrameType | None:
    """Where a task is that waits, of all that awaits what."""
    return next(reversed(list(_awaited(task))), None)


def _awaited(task: Any) -> Iterator[FrameType]:
    """Where a task is: what awaits what, the innermost last."""
    awaited = task.get_coro()
    while awaited is not None and getattr(awaited, "cr_frame", None) is not None:
        yield awaited.cr_frame
        awaited = awaited.cr_await


class WaitingTasks:
    """The tasks that wait for a lease."""

    def __init__(self) -> None:
        self._times: dict[Any, int] = {}

    def add(self, task: Any) -> None:
        """A task waits."""
        self._times[task] = self._times.get(task, 0) + 1

    def remove(self, task: Any) -> None:
        """It waits no more, whatever the reason."""
        if self._times[task] == 1:
            del self._times[task]
        else:
            self._times[task] -= 1

    def __contains__(self, task: object) -> bool:
        return task in self._times


def is_deadlock(holders: Iterable[Holder], waiting: WaitingTasks) -> bool:
    """Whether there are leases, and each is held by a task that itself waits for one.

    To be asked where no slot is left but the leased ones. A lease that was handed to another task counts for the task
    that acquired it, so this may be true though all is well.
    """
    is_held = False
    for holder in holders:
        if holder.task not in waiting:
            return False
        is_held = True
    return is_held


def describe(holders: Iterable[Holder], now: float) -> str:
    """Who holds the leases, the eldest first, each on a line of its own; empty where nobody does."""
    eldest = sorted(holders, key=lambda holder: holder.since)
    lines = [holder.describe(now) for holder in eldest[:MOST_NAMED]]
    if len(eldest) > MOST_NAMED:
        lines.append(f"and {len(eldest) - MOST_NAMED} more")
    return "".join(f"\n  {line}" for line in lines)


def leaks(holders: Iterable[Holder], now: float, threshold: float) -> Iterator[Holder]:
    """Those that hold a lease for ``threshold`` seconds and were not told of before."""
    for holder in holders:
        if holder.told_of != holder.since and holder.since + threshold <= now:
            holder.told_of = holder.since
            yield holder


def next_leak(holders: Iterable[Holder], threshold: float) -> float:
    """When there may be more of them."""
    return min((holder.since + threshold for holder in holders if holder.told_of != holder.since), default=float("inf"))
