"""All slots, counted; and the census."""

from __future__ import annotations

import pytest

from async_repool._core.shares import Shares
from async_repool._core.slots import CLOSING, GONE, IDLE, LEASED, OPENING, READ_ON, SHARED, Reason, Slot, Slots
from core_kit import FEED, LEASE, QUERY, Shell, hook


def test_slots_are_numbered_from_one_and_no_number_comes_twice() -> None:
    slots = Slots()
    first = slots.new()
    slots.remove(first)
    assert [first.number, slots.new().number, slots.new().number] == [1, 2, 3]


def test_a_new_slot_is_opening_and_counts_against_the_size() -> None:
    slots = Slots()
    slot = slots.new()
    assert (slot.state, slots.size, slots.inside[OPENING], len(slots)) == (OPENING, 1, 1, 1)


def test_a_slot_that_is_put_beside_counts_in_its_state_but_not_against_the_size() -> None:
    slots = Slots()
    slot = slots.new()
    slot.connection = "a connection"
    slots.move(slot, LEASED)
    for _ in range(2):
        slots.put_beside(slot)
        assert (slots.size, slots.inside[LEASED], slots.outside[LEASED]) == (0, 0, 1)
    slots.move(slot, READ_ON)
    slots.check(Shares(), Shares())
    for _ in range(2):
        slots.put_inside(slot)
        assert (slots.size, slots.inside[READ_ON], slots.outside[READ_ON]) == (1, 1, 0)
    slots.move(slot, IDLE)
    slots.check(Shares(), Shares())


def test_a_slot_that_is_removed_is_gone_wherever_it_was() -> None:
    slots = Slots()
    inside, beside = slots.new(), slots.new()
    slots.move(beside, CLOSING)
    slots.put_beside(beside)
    slots.remove(beside)
    assert (slots.size, list(slots), beside.state) == (1, [inside], GONE)
    slots.remove(inside)
    assert (slots.size, list(slots)) == (0, [])
    slots.check(Shares(), Shares())


def test_forget_removes_all() -> None:
    slots = Slots()
    made = [slots.new() for _ in range(3)]
    slots.move(made[0], IDLE)
    slots.forget()
    assert (len(slots), slots.size, [slot.state for slot in made]) == (0, 0, [GONE] * 3)
    slots.check(Shares(), Shares())


def test_the_repr_of_a_slot_is_a_status_line() -> None:
    slot = Slots().new()
    assert repr(slot) == "<#1 OPENING>"
    slot.state, slot.load, slot.beside, slot.is_doubted, slot.doom = LEASED, 2, True, True, Reason.DRAINED
    assert repr(slot) == "<#1 LEASED beside load 2 doubted doom: drained>"


def test_the_census_counts_each_connection_once() -> None:
    pool = Shell(pool_size=5, min_size=5, max_waiting=0)
    pool.ask("feed", FEED)  # 5
    pool.step_aside("feed")
    pool.ask("lease")
    pool.ask("a", QUERY)
    pool.ask("b", QUERY)
    pool.ask("c", QUERY)
    pool.ask("d", QUERY)
    pool.ask("x")
    census = pool.core.census()
    assert (census.opening, census.preparing, census.idle, census.leased, census.shared, census.closing) == (
        *(1, 0, 0, 1, 3, 0),
    )
    assert (census.size, census.feeds, census.retired) == (5, 1, 0)
    assert (census.queries, census.changefeeds, census.waiting, census.queries_waiting) == (4, 1, 1, 0)
    assert (census.is_short, census.is_down, census.min_size, census.max_size) == (True, False, 5, 5)


def test_the_census_counts_what_is_on_its_way_out_of_the_lane_apart_from_feeds() -> None:
    pool = Shell(pool_size=2, min_size=0)
    for name in "ab":
        pool.ask(name)
    for number in (1, 2):
        pool.opened(number)
    for name in "ab":
        pool.step_aside(name)
    pool.read("a")
    pool.release("a")
    assert (pool.core.census().feeds, pool.core.census().retired) == (2, 0), "one is read on, and stays"
    pool.drain()
    assert (pool.core.census().feeds, pool.core.census().retired) == (1, 1)


def test_in_use_is_what_closing_waits_for() -> None:
    pool = Shell(pool_size=9, min_size=4, check=hook)
    for name in "abc":
        pool.ask(name, QUERY if name == "c" else LEASE)
        pool.prepared(next(iter(pool.work)).number)
    pool.step_aside("a")
    pool.read("a")
    pool.release("a")
    pool.ask("d")
    counts = sorted(state for state in pool.states().values())
    assert counts == ["leased", "opening", "preparing", "read on", "shared"]
    assert pool.core.census().in_use == 4, "all but the one that is opening"


@pytest.mark.parametrize(
    "wrong",
    [
        {"connection": None},
        {"in_lane": True},
        {"state": READ_ON},
        {"state": IDLE, "doom": Reason.DRAINED},
        {"state": IDLE, "beside": True},
        {"state": SHARED},
        {"shares": Shares()},
        {"load": 1},
        {"is_doubted": True},
    ],
    ids=str,
)
def test_a_slot_that_breaks_an_invariant_is_found(wrong: dict[str, object]) -> None:
    slots = Slots()
    slot = slots.new()
    slot.connection = "a connection"
    slots.move(slot, LEASED)
    slots.check(Shares(), Shares())
    for name, value in wrong.items():
        if name == "state":
            slots.move(slot, value)  # type: ignore[arg-type]
        elif name == "beside":
            slots.put_beside(slot)
        else:
            setattr(slot, name, value)
    with pytest.raises(AssertionError):
        slots.check(Shares(), Shares())


def shared(*, load: int, doom: Reason | None = None, is_doubted: bool = False) -> tuple[Slots, Slot, Shares]:
    slots, shares = Slots(), Shares()
    slot = slots.new()
    slot.connection = "a connection"
    slots.move(slot, SHARED)
    slot.shares, slot.load, slot.doom, slot.is_doubted = shares, load, doom, is_doubted
    return slots, slot, shares


@pytest.mark.parametrize(
    ("doom", "is_doubted", "is_listed"),
    [(None, False, True), (Reason.DRAINED, False, False), (None, True, False), (Reason.DRAINED, True, False)],
)
def test_a_shared_slot_is_listed_exactly_if_it_takes_more(
    doom: Reason | None, is_doubted: bool, is_listed: bool
) -> None:
    slots, slot, shares = shared(load=2, doom=doom, is_doubted=is_doubted)
    if is_listed:
        with pytest.raises(AssertionError):
            slots.check(shares, Shares())
        shares.add(slot)
        slots.check(shares, Shares())
    else:
        slots.check(shares, Shares())
        shares.add(slot)
        with pytest.raises(AssertionError):
            slots.check(shares, Shares())


def test_queries_are_never_beside_the_size_but_feeds_may_be() -> None:
    slots, slot, shares = shared(load=1)
    shares.add(slot)
    slots.put_beside(slot)
    slots.check(Shares(), shares)
    with pytest.raises(AssertionError):
        slots.check(shares, Shares())
