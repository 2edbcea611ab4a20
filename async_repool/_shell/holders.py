"""Who holds the leases: which task, since when, acquired where; and whether all of them wait for each other.

For errors and warnings only: no rule of the pool depends on it. Tasks are opaque here; it knows nothing of slots,
sizes, event loops or clocks.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from types import CodeType, FrameType
from typing import Any, Final, TypeAlias
from weakref import ref

MOST_NAMED: Final = 10
"""Holders that one message names."""


Place: TypeAlias = tuple[CodeType, int, traceback.StackSummary | None]
"""Where a lease is asked for: code and instruction, from which the line is found when it is reported, and the stack if
that is to be kept. Not the frame: it would keep alive what it refers to.
"""


def _own_task() -> None: ...


OWN_TASK: Final[Place] = (_own_task.__code__, 0, None)
"""The place of a lease that a task of its own acquired, such as one of ``gather()``: nobody else's code is in it."""

_AWAITS: Final = CO_COROUTINE | CO_GENERATOR | CO_ASYNC_GENERATOR


def is_awaiting(frame: FrameType) -> bool:
    """Whether this is code that awaits, and not the event loop."""
    return bool(frame.f_code.co_flags & _AWAITS)


def place(caller: FrameType) -> Place:
    """Where ``caller`` is now."""
    return caller.f_code, caller.f_lasti, None


def place_and_stack(caller: FrameType) -> Place:
    """The same, with its stack."""
    return caller.f_code, caller.f_lasti, traceback.extract_stack(caller)


class Holder:
    """Who holds one lease. Made once for each connection and written anew at each lease, since every acquire pays for
    it. Holds the task weakly: it would keep it alive.
    """

    __slots__ = ("_code", "_instruction", "_stack", "_task", "is_dropped", "reported_since", "since")

    def __init__(self) -> None:
        self._task: ref[Any] | None = None
        self._code: CodeType | None = None
        self._instruction = 0
        self._stack: traceback.StackSummary | None = None
        self.since = 0.0  # when the lease began
        self.is_dropped = False  # the lease was collected without release, and is not taken back yet
        self.reported_since = -1.0  # `since` of the lease that was reported as held for long

    def hand_over(self, now: float) -> None:
        """The lease is for a task that was woken, but has not run yet: until it begins, nobody holds it."""
        self._task = self._code = None
        self.since = now
        self.is_dropped = False

    def begin(self, task: Any, now: float, place: Place) -> None:
        """A lease of this task begins, asked for at this place."""
        self._task = None if task is None else ref(task)
        self.since = now
        self._code, self._instruction, self._stack = place
        self.is_dropped = False

    @property
    def task(self) -> Any:
        """The task that acquired; None if it is gone, or was none."""
        return None if self._task is None else self._task()

    @property
    def where(self) -> str:
        """``at file:line in function`` of the acquire."""
        code = self._code
        if code is None:
            return "at a place that it has not come back to yet"
        if code is OWN_TASK[0]:
            return "by a task of its own, as of wait_for() or gather()"
        lines = (line for start, end, line in code.co_lines() if start <= self._instruction < end and line is not None)
        return f"at {code.co_filename}:{next(lines, code.co_firstlineno)} in {code.co_name}"

    def describe(self, now: float) -> str:
        """One line; with the stack of the acquire below it, if that was kept."""
        task = self.task
        name = "a task that is gone" if task is None else task.get_name()
        line = f"{name}, for {now - self.since:.1f} s, acquired {self.where}"
        return line if self._stack is None else f"{line}\n{''.join(self._stack.format())}".rstrip()

    def stack_now(self) -> str:
        """Where its task is now, innermost call last."""
        task = self.task
        if task is None:
            return "its task is gone"
        lines = [f"  {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" for frame in _awaited(task)]
        return "\n".join(lines) or "its task has ended"


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

    Ask if nothing is left but what is leased. A lease that was handed to another task counts for the task
    that acquired it, so this may be true though all is well.
    """
    is_held = False
    for holder in holders:
        if holder.is_dropped or holder.task not in waiting:
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
    """Those that hold a lease for ``threshold`` seconds and were not reported before."""
    for holder in holders:
        if holder.reported_since != holder.since and holder.since + threshold <= now:
            holder.reported_since = holder.since
            yield holder


def next_leak(holders: Iterable[Holder], threshold: float) -> float:
    """When there may be more of them."""
    return min(
        (holder.since + threshold for holder in holders if holder.reported_since != holder.since), default=float("inf")
    )
