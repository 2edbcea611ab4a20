"""Who holds leases, and when all of them wait for each other: random commands beside the plainest model there is."""

from __future__ import annotations

import sys

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from async_repool._holders import MOST_NAMED, Holder, Holders

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


def holder(task: Task | None, since: float = 0.0, *, keep_stack: bool = False) -> Holder:
    return Holder(task, since, sys._getframe(), keep_stack)


class RandomTasks(RuleBasedStateMachine):
    """Tasks that acquire, wait, give up, release, and hand leases to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.holders = Holders()
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
            self.holders.wait(task)

    def lease(self, slot: int, task: Task) -> None:
        self.leased[slot] = task
        self.holders.hold(slot, holder(task))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """By whoever has it by now: a lease may have been handed to another task."""
        if not self.leased:
            return
        slot = data.draw(st.sampled_from(sorted(self.leased)))
        del self.leased[slot]
        self.holders.release(slot)
        if self.waiting:
            task = self.waiting.pop(0)
            self.holders.wait_no_more(task)
            self.lease(slot, task)

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        if self.waiting:
            task = data.draw(st.sampled_from(self.waiting))
            self.waiting.remove(task)
            self.holders.wait_no_more(task)

    @invariant()
    def it_is_a_deadlock_when_each_lease_is_held_by_a_task_that_waits(self) -> None:
        expected = bool(self.leased) and set(self.leased.values()) <= set(self.waiting)
        assert self.holders.is_deadlock() is expected


RandomTasks.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestRandomTasks = RandomTasks.TestCase


def test_a_task_that_is_gone_holds_no_lease_of_a_deadlock() -> None:
    holders = Holders()
    task = Task("short")
    holders.hold(1, holder(task))
    holders.wait(task)
    assert holders.is_deadlock()
    holders.wait_no_more(task)
    del task
    assert not holders.is_deadlock()
    assert "a task that is gone, for 5.0 s" in holders.describe(5)


def test_a_message_names_the_eldest_holders_and_counts_the_others() -> None:
    holders = Holders()
    kept = [Task(f"t{n}") for n in range(MOST_NAMED + 5)]
    for n, task in enumerate(reversed(kept)):
        holders.hold(n, holder(task, since=len(kept) - n))
    lines = holders.describe(100).splitlines()[1:]
    assert len(lines) == MOST_NAMED + 1
    assert lines[0].startswith("  t0, for 99.0 s, acquired at ")
    assert lines[-1] == "  and 5 more"


def test_a_leak_is_told_once() -> None:
    holders = Holders()
    kept = Task("slow")
    holders.hold(1, holder(kept, since=10))
    assert list(holders.leaks(19, 10)) == []
    assert holders.next_leak(10) == 20
    assert [leak.task for leak in holders.leaks(20, 10)] == [kept]
    assert list(holders.leaks(30, 10)) == []
    assert holders.next_leak(10) == float("inf")
