"""Who holds the leases: which task, since when, acquired where; and whether all of them wait for each other.

For errors and warnings only: no rule of the pool depends on it. Tasks are opaque here, and so are slots; it knows
nothing of sizes, event loops or clocks.
"""

from __future__ import annotations

import traceback
from collections.abc import Hashable, Iterable, Iterator
from types import CodeType, FrameType
from typing import Any, Final
from weakref import ref

MOST_NAMED: Final = 10
"""Holders that one message names."""


class Holder:
    """One lease that is out. Holds its task weakly, and no frame: both would keep alive what they refer to."""

    __slots__ = ("_code", "_line", "_stack", "_task", "is_told", "since")

    def __init__(self, task: Any, since: float, caller: FrameType, keep_stack: bool) -> None:
        self._task = None if task is None else ref(task)
        self.since = since
        self._code: CodeType = caller.f_code
        self._line = caller.f_lineno
        self._stack = traceback.extract_stack(caller) if keep_stack else None
        self.is_told = False  # that it holds its lease for long

    @property
    def task(self) -> Any:
        """The task that acquired; None where it is gone, or was none."""
        return None if self._task is None else self._task()

    @property
    def where(self) -> str:
        """``file:line in function`` of the acquire."""
        return f"{self._code.co_filename}:{self._line} in {self._code.co_name}"

    def describe(self, now: float) -> str:
        """One line; with the stack of the acquire below it, where that was kept."""
        task = self.task
        name = "a task that is gone" if task is None else task.get_name()
        line = f"{name}, for {now - self.since:.1f} s, acquired at {self.where}"
        return line if self._stack is None else f"{line}\n{''.join(self._stack.format())}".rstrip()

    def stack_now(self) -> str:
        """Where its task is now, innermost call last."""
        task = self.task
        if task is None:
            return "its task is gone"
        lines = []
        awaited = task.get_coro()
        while awaited is not None and hasattr(awaited, "cr_frame") and awaited.cr_frame is not None:
            frame = awaited.cr_frame
            lines.append(f"  {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}")
            awaited = awaited.cr_await
        return "\n".join(lines) or "its task has ended"


class Holders:
    """The leases that are out, and the tasks that wait for one."""

    def __init__(self) -> None:
        self._holders: dict[Hashable, Holder] = {}
        self._waiting: dict[Any, int] = {}

    def hold(self, slot: Hashable, holder: Holder) -> None:
        """A slot was leased."""
        self._holders[slot] = holder

    def release(self, slot: Hashable) -> Holder | None:
        """A lease has ended."""
        return self._holders.pop(slot, None)

    def wait(self, task: Any) -> None:
        """A task waits for a lease."""
        self._waiting[task] = self._waiting.get(task, 0) + 1

    def wait_no_more(self, task: Any) -> None:
        """It waits no more, whatever the reason."""
        if self._waiting[task] == 1:
            del self._waiting[task]
        else:
            self._waiting[task] -= 1

    def is_deadlock(self) -> bool:
        """Whether there are leases, and each is held by a task that itself waits for one.

        To be asked where no slot is left but the leased ones. A lease that was handed to another task counts for the
        task that acquired it, so this may be true though all is well.
        """
        return bool(self._holders) and all(holder.task in self._waiting for holder in self._holders.values())

    def describe(self, now: float) -> str:
        """Who holds the leases, the eldest first; empty where nobody does."""
        eldest = sorted(self._holders.values(), key=lambda holder: holder.since)
        lines = [holder.describe(now) for holder in eldest[:MOST_NAMED]]
        if len(eldest) > MOST_NAMED:
            lines.append(f"and {len(eldest) - MOST_NAMED} more")
        return "".join(f"\n  {line}" for line in lines)

    def leaks(self, now: float, threshold: float) -> Iterable[Holder]:
        """Those that hold a lease for ``threshold`` seconds and were not told of before."""
        for holder in self:
            if not holder.is_told and holder.since + threshold <= now:
                holder.is_told = True
                yield holder

    def next_leak(self, threshold: float) -> float:
        """When there may be more of them."""
        return min((holder.since + threshold for holder in self if not holder.is_told), default=float("inf"))

    def __iter__(self) -> Iterator[Holder]:
        return iter(self._holders.values())
