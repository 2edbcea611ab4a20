"""Who holds leases, and when all of them wait for each other: random commands beside the plainest model there is."""

from __future__ import annotations

import sys
from types import FrameType

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from async_repool._shell.holders import MOST_NAMED, Holder, Place, WaitingTasks, describe, is_deadlock, leaks, next_leak

SLOTS = 3


class Task:
    """As much of a task as a holder looks at."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get_name(self) -> str:
        return self.name

    def get_coro(self) -> None:
        return None


TASKS = [Task(f"task {n}") for n in range(4)]
tasks = st.sampled_from(TASKS)


def place(frame: FrameType) -> Place:
    return frame.f_code, frame.f_lasti, None


def holder(task: Task | None, since: float = 0.0) -> Holder:
    holder = Holder()
    holder.begin(task, since, place(sys._getframe()))
    return holder


class RandomTasks(RuleBasedStateMachine):
    """Tasks that acquire, wait, give up, release, and hand leases to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.holders: dict[int, Holder] = {}
        self.waiting_tasks = WaitingTasks()
        self.leased: dict[int, Task] = {}  # slot: who acquired
        self.waiting: list[Task] = []  # in line

    @rule(task=tasks)
    def acquire(self, task: Task) -> None:
        if task in self.waiting:
            return
        free = [slot for slot in range(SLOTS) if slot not in self.leased]
        if free and not self.waiting:
            self.lease(free[0], task)
        else:
            self.waiting.append(task)
            self.waiting_tasks.add(task)

    def lease(self, slot: int, task: Task) -> None:
        self.leased[slot] = task
        self.holders[slot] = holder(task)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """By whoever has it by now: a lease may have been handed to another task."""
        if not self.leased:
            return
        slot = data.draw(st.sampled_from(sorted(self.leased)))
        del self.leased[slot]
        del self.holders[slot]
        if self.waiting:
            task = self.waiting.pop(0)
            self.waiting_tasks.remove(task)
            self.lease(slot, task)

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        if self.waiting:
            task = data.draw(st.sampled_from(self.waiting))
            self.waiting.remove(task)
            self.waiting_tasks.remove(task)

    @invariant()
    def it_is_a_deadlock_when_each_lease_is_held_by_a_task_that_waits(self) -> None:
        expected = bool(self.leased) and set(self.leased.values()) <= set(self.waiting)
        assert is_deadlock(self.holders.values(), self.waiting_tasks) is expected


RandomTasks.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestRandomTasks = RandomTasks.TestCase


def test_a_task_that_is_gone_holds_no_lease_of_a_deadlock() -> None:
    waiting = WaitingTasks()
    task = Task("short")
    holders = [holder(task)]
    waiting.add(task)
    assert is_deadlock(holders, waiting)
    waiting.remove(task)
    del task
    assert not is_deadlock(holders, waiting)
    assert "a task that is gone, for 5.0 s" in describe(holders, 5)
    assert holders[0].stack_now() == "its task is gone"


def test_a_task_that_waits_twice_waits_until_both_waits_have_ended() -> None:
    waiting = WaitingTasks()
    waiting.add(TASKS[0])
    waiting.add(TASKS[0])
    waiting.remove(TASKS[0])
    assert TASKS[0] in waiting
    waiting.remove(TASKS[0])
    assert TASKS[0] not in waiting


def test_a_message_names_the_eldest_holders_and_counts_the_others() -> None:
    kept = [Task(f"t{n}") for n in range(MOST_NAMED + 5)]
    holders = [holder(task, since=n + 1) for n, task in enumerate(kept)]
    lines = describe(reversed(holders), 100).splitlines()[1:]
    assert len(lines) == MOST_NAMED + 1
    assert lines[0].startswith("  t0, for 99.0 s, acquired at ")
    assert lines[-1] == "  and 5 more"


def test_a_holder_tells_the_line_of_the_acquire() -> None:
    here = Holder()
    here.begin(None, 0, place(sys._getframe()))
    line = sys._getframe().f_lineno - 1
    assert here.where == f"at {__file__}:{line} in test_a_holder_tells_the_line_of_the_acquire"


def test_a_leak_is_told_once_for_each_lease() -> None:
    slow = holder(TASKS[0], since=10)
    assert list(leaks([slow], 19, 10)) == []
    assert next_leak([slow], 10) == 20
    assert list(leaks([slow], 20, 10)) == [slow]
    assert list(leaks([slow], 30, 10)) == []
    assert next_leak([slow], 10) == float("inf")
    slow.begin(TASKS[0], 40, place(sys._getframe()))
    assert next_leak([slow], 10) == 50


def test_a_lease_for_a_task_that_was_woken_and_has_not_run_yet_says_so() -> None:
    holder = Holder()
    holder.hand_over(3.0)
    assert holder.describe(4.5) == "a task that was woken 1.5 s ago and has not run yet"
