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
"""Where a lease is asked for: code and instruction, which give the line when it is reported, and the stack if ``debug``
is set. Not the frame: it would keep alive what it refers to.
"""


def _own_task() -> None: ...


OWN_TASK: Final[Place] = (_own_task.__code__, 0, None)
"""The place of an ``acquire()`` that is a task by itself, as in ``gather()``: no code of the user awaits it there."""

_AWAITS: Final = CO_COROUTINE | CO_GENERATOR | CO_ASYNC_GENERATOR


def is_awaiting(frame: FrameType) -> bool:
    """Whether this is code that awaits, and not the event loop."""
    return bool(frame.f_code.co_flags & _AWAITS)


def with_stack(caller: FrameType) -> Place:
    """Where ``caller`` is now, with its stack."""
    return caller.f_code, caller.f_lasti, traceback.extract_stack(caller)


class Holder:
    """Who holds one lease. Made once for each connection and overwritten at each lease, because every acquire pays for
    it. Holds the task weakly, so as not to keep it alive.
    """

    __slots__ = ("is_dropped", "place", "reported_since", "since", "task_ref")

    def __init__(self) -> None:
        self.task_ref: ref[Any] | None = None
        self.place: Place | None = None  # None if the task that it is for has not run yet
        self.since = 0.0  # when the lease began
        self.is_dropped = False  # collected without release, and not taken back yet
        self.reported_since = -1.0  # `since` of the lease that was reported as held for long

    def hand_over(self, now: float) -> None:
        """The lease is for a task that was woken, but has not run yet: until it begins, nobody holds it."""
        self.task_ref = self.place = None
        self.since = now
        self.is_dropped = False

    def begin(self, task: Any, now: float, place: Place) -> None:
        """A lease of this task begins, asked for at this place."""
        self.task_ref = None if task is None else ref(task)
        self.since = now
        self.place = place
        self.is_dropped = False

    @property
    def task(self) -> Any:
        """The task that acquired; None if it is gone, or was none."""
        return None if self.task_ref is None else self.task_ref()

    @property
    def where(self) -> str:
        """``at file:line in function`` of the acquire."""
        assert self.place is not None  # the task has run
        code, instruction, _ = self.place
        if code is OWN_TASK[0]:
            return "by a task of its own, as of wait_for() or gather()"
        lines = (line for start, end, line in code.co_lines() if start <= instruction < end and line is not None)
        return f"at {code.co_filename}:{next(lines, code.co_firstlineno)} in {code.co_name}"

    def describe(self, now: float) -> str:
        """One line; with the stack of the acquire below it, if that was kept."""
        if self.place is None:
            return f"a task that was woken {now - self.since:.1f} s ago and has not run yet"
        task, stack = self.task, self.place[2]
        name = "a task that is gone" if task is None else task.get_name()
        line = f"{name}, for {now - self.since:.1f} s, acquired {self.where}"
        return line if stack is None else f"{line}\n{''.join(stack.format())}".rstrip()

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


class WaitingTasks(dict[Any, int]):
    """The tasks that wait for a lease, and how often each does."""

    def add(self, task: Any) -> None:
        """A task waits."""
        self[task] = self.get(task, 0) + 1

    def remove(self, task: Any) -> None:
        """It waits no more, whatever the reason."""
        if (times := self.pop(task)) > 1:
            self[task] = times - 1


def is_deadlock(holders: Iterable[Holder], waiting: WaitingTasks) -> bool:
    """Whether there are leases, and each is held by a task that itself waits for one.

    Ask only if every connection is leased. A lease that one task passed to another counts for the one that acquired it,
    so this may be true without a deadlock.
    """
    is_held = False
    for holder in holders:
        if holder.is_dropped or holder.task not in waiting:
            return False
        is_held = True
    return is_held


def describe(holders: Iterable[Holder], now: float) -> str:
    """Who holds the leases, the eldest first, each on a line of its own; empty if nobody does."""
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
    """When the next of them may be due."""
    return min(
        (holder.since + threshold for holder in holders if holder.reported_since != holder.since), default=float("inf")
    )
