"""Shared connections alone, by how many requests each carries."""

from __future__ import annotations

import random

import pytest

from async_repool._core.shares import NOBODY, Shares
from async_repool._core.slots import Slot


def shares_of(*loads: int) -> tuple[Shares, list[Slot]]:
    shares = Shares()
    slots = [Slot(number) for number in range(1, len(loads) + 1)]
    for slot, load in zip(slots, loads, strict=True):
        slot.load = load
        shares.add(slot)
    shares.check()
    return shares, slots


def test_the_least_loaded_is_first() -> None:
    shares, (_, b, c) = shares_of(4, 1, 3)
    assert shares.first() is b
    shares.remove(b)
    assert shares.first() is c


def test_there_is_no_first_if_all_carry_as_many_as_they_may() -> None:
    shares, _ = shares_of(2, 3)
    assert shares.first(below=2) is None
    assert shares.first(below=3) is not None
    assert Shares().first() is None
    assert Shares().least == NOBODY


def test_of_equals_the_one_that_has_had_this_load_for_longest_is_first() -> None:
    shares, (a, b, c) = shares_of(1, 1, 1)
    taken = []
    for _ in range(6):
        first = shares.first()
        assert first is not None
        taken.append(shares.more(first))
    assert taken == [a, b, c, a, b, c]
    shares.fewer(b)
    shares.fewer(a)
    assert shares.first() is b


def test_one_leaves_the_group_with_its_last_request() -> None:
    shares, (a,) = shares_of(1)
    shares.fewer(a)
    assert a not in shares
    assert (a.load, list(shares), shares.first()) == (0, [], None)
    shares.check()


@pytest.mark.parametrize(("loads", "most", "room"), [((), 3, 0), ((1, 2), 3, 3), ((3, 5), 3, 0), ((1,), 1, 0)])
def test_room_is_what_they_take_until_each_carries_the_most(loads: tuple[int, ...], most: int, room: int) -> None:
    assert shares_of(*loads)[0].room(most) == room


def test_random_requests_agree_with_a_plain_search() -> None:
    dice = random.Random(1)
    shares, slots = shares_of(1, 1, 1, 1)
    for _ in range(2000):
        least = min((slot.load for slot in shares), default=NOBODY)
        first = shares.first()
        assert (first is None) or first.load == least == shares.least
        slot = dice.choice(slots)
        if slot not in shares:
            slot.load = dice.randint(1, 5)
            shares.add(slot)
        elif dice.random() < 0.1:
            shares.remove(slot)
        elif dice.random() < 0.5:
            shares.more(slot)
        else:
            shares.fewer(slot)
        shares.check()
