"""The shelf alone: idle connections, the one that was used last on top."""

from __future__ import annotations

import asyncio
import queue

import pytest

from async_repool._core.backoff import NEVER
from async_repool._core.shelf import Shelf, Stack
from async_repool._core.slots import Slot
from core_kit import Lifo


def shelf_of(*used_at: float, on: Stack | None = None) -> tuple[Shelf, list[Slot]]:
    """Slots numbered from 1, the first at the bottom."""
    shelf = Shelf(Lifo() if on is None else on)
    slots = [slot_of(number, seconds) for number, seconds in enumerate(used_at, 1)]
    for slot in slots:
        shelf.put(slot)
    shelf.check()
    return shelf, slots


def slot_of(number: int, used_at: float, heard_at: float = -NEVER) -> Slot:
    slot = Slot(number)
    slot.used_at, slot.heard_at = used_at, heard_at
    return slot


def numbers(slots: list[Slot]) -> list[int]:
    return [slot.number for slot in slots]


@pytest.mark.parametrize("on", [Lifo, asyncio.LifoQueue, queue.LifoQueue])
def test_any_queue_that_is_last_in_first_out_will_do(on: type) -> None:
    shelf, _ = shelf_of(1, 2, 3, on=on())
    assert len(shelf) == 3
    assert [shelf.take().number for _ in range(3)] == [3, 2, 1]


@pytest.mark.parametrize(("used_at", "expected"), [(0, [9, 1, 2, 3]), (15, [1, 9, 2, 3]), (30, [1, 2, 3, 9])])
def test_one_that_was_used_before_others_is_put_below_them(used_at: float, expected: list[int]) -> None:
    shelf, _ = shelf_of(10, 20, 30)
    shelf.insert(slot_of(9, used_at))
    assert numbers(shelf.oldest_first()) == expected
    shelf.check()


def test_some_are_taken_out_and_the_others_keep_their_places() -> None:
    shelf, (a, b, c, d) = shelf_of(1, 2, 3, 4)
    shelf.remove((b, d))
    assert shelf.oldest_first() == [a, c]


def test_the_surplus_is_what_was_not_used_for_longest() -> None:
    shelf, (a, b, *_) = shelf_of(0, 50, 60, 100)
    assert shelf.take_surplus(3, now=150, max_idle=100) == ([a, b], 160)
    assert numbers(shelf.oldest_first()) == [3, 4]


@pytest.mark.parametrize(("surplus", "taken", "again_at"), [(-1, 0, 250), (0, 0, 250), (1, 1, 250), (9, 3, 250)])
def test_no_more_than_the_surplus_is_taken(surplus: int, taken: int, again_at: float) -> None:
    shelf, _ = shelf_of(0, 1, 2)
    due, at = shelf.take_surplus(surplus, now=150, max_idle=100)
    assert (len(due), at) == (taken, again_at)


def test_those_that_were_silent_are_taken_wherever_they_lie() -> None:
    shelf, _ = shelf_of(0, 10)
    shelf.put(slot_of(3, used_at=20, heard_at=0))
    shelf.put(slot_of(4, used_at=20, heard_at=35))
    due, again_at = shelf.take_silent(now=45, interval=30)
    assert (numbers(due), again_at) == ([1, 2], 50)
    assert numbers(shelf.oldest_first()) == [3, 4]


def test_an_empty_shelf_is_looked_at_again_after_the_interval() -> None:
    shelf, _ = shelf_of()
    assert shelf.take_silent(now=5, interval=30) == ([], 35)
    assert shelf.take_surplus(0, now=5, max_idle=30) == ([], 35)
