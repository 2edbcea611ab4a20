"""The ledger without an event loop: tables of facts and orders, and random command sequences with ``check()`` in
between.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from async_repool._backoff import LIFETIME_JITTER, LONGEST_DELAY, Backoff, expiry
from async_repool._ledger import CHECK, CROWDED, NEVER, Check, CloseReason, Ledger, Refusal, Slot, SlotState
from async_repool._waiting_room import Need
from async_repool.config import PoolConfig

numbers = itertools.count()


def connection() -> str:
    return f"connection {next(numbers)}"


def ledger_of(random: float = 0.0, **options: Any) -> Ledger:
    ledger = Ledger(PoolConfig(**{"check_idle": None, **options}), lambda: random)
    ledger.open()
    return ledger


def opened(now: float = 0.0, **options: Any) -> tuple[Ledger, list[Slot]]:
    """A ledger whose first connections are open, and their slots."""
    ledger = ledger_of(**options)
    slots = ledger.tend(now, 0).open
    for slot in slots:
        assert ledger.opened(slot, connection(), now) is None
    ledger.opened_all()
    ledger.check()
    return ledger, slots


# ---- opening


@pytest.mark.parametrize(("min_size", "expected"), [(None, 3), (0, 0), (2, 2), (3, 3)])
def test_a_pool_opens_min_size_connections_at_once(min_size: int | None, expected: int) -> None:
    assert len(ledger_of(pool_size=3, min_size=min_size).tend(0, 0).open) == expected


@pytest.mark.parametrize(
    ("waiting", "expected"), [(0, 0), (1, 1), (2, 2), (5, 5), (9, 5)], ids=lambda value: str(value)
)
def test_growing_opens_one_connection_for_each_caller_up_to_the_maximum(waiting: int, expected: int) -> None:
    ledger, _ = opened(pool_size=5, min_size=0)
    assert len(ledger.tend(0, waiting).open) == expected
    assert ledger.tend(0, waiting).open == [], "openings under way serve the same callers"


def test_a_connection_that_is_being_opened_counts_for_a_caller_that_comes_later() -> None:
    ledger, _ = opened(pool_size=5, min_size=0)
    ledger.tend(0, 1)
    assert len(ledger.tend(0, 2).open) == 1


def test_nothing_is_opened_for_a_closed_pool() -> None:
    ledger, _ = opened(pool_size=2)
    ledger.close(0)
    assert ledger.tend(0, 3).open == []


# ---- leases


def test_a_lease_and_its_release_keep_the_size() -> None:
    ledger, slots = opened(pool_size=3)
    assert ledger.lease(slots[0], 1, is_open=True) is None
    assert (ledger.idle, ledger.leased, ledger.size) == (2, 1, 3)
    assert ledger.release(slots[0], 2, is_open=True) is None
    assert (ledger.idle, ledger.leased, ledger.size) == (3, 0, 3)


def test_a_connection_that_died_is_never_leased() -> None:
    ledger, slots = opened(pool_size=1)
    assert ledger.lease(slots[0], 1, is_open=False) is CloseReason.BROKEN
    assert slots[0].state is SlotState.CLOSING
    assert ledger.tend(1, 1).open == [], "its place is free only when it is closed"
    ledger.closed(slots[0], CloseReason.BROKEN)
    assert ledger.tend(1, 1).open == [slots[0]]


def test_a_connection_that_died_in_its_users_hands_does_not_come_back() -> None:
    ledger, slots = opened(pool_size=1)
    ledger.lease(slots[0], 1, is_open=True)
    assert ledger.release(slots[0], 2, is_open=False) is CloseReason.BROKEN


def test_time_to_live_counts_from_opening_whatever_happens_in_between() -> None:
    ledger, slots = opened(pool_size=1, connection_ttl=100)
    for now in range(0, 100, 10):
        assert ledger.lease(slots[0], now, is_open=True) is None
        assert ledger.release(slots[0], now + 9, is_open=True) is None
    assert ledger.lease(slots[0], 100, is_open=True) is CloseReason.EXPIRED


@pytest.mark.parametrize("forever", [0, None])
def test_time_to_live_of_zero_or_none_means_for_ever(forever: int | None) -> None:
    ledger, slots = opened(pool_size=1, connection_ttl=forever)
    assert ledger.lease(slots[0], 1e12, is_open=True) is None


def test_lifetimes_are_up_to_five_percent_shorter_so_that_they_do_not_end_at_once() -> None:
    assert expiry(0, 100, lambda: 0.0) == 100
    assert expiry(0, 100, lambda: 1.0) == pytest.approx(100 * (1 - LIFETIME_JITTER))
    assert expiry(0, 100, lambda: 0.5) == pytest.approx(97.5)


def test_a_lease_that_nobody_saw_is_not_counted() -> None:
    ledger, slots = opened(pool_size=1)
    ledger.lease(slots[0], 0, is_open=True)
    assert ledger.pass_on(slots[0], 0, is_open=True) is None
    assert ledger.acquired_total == 0


@pytest.mark.parametrize("passes", [True, False])
def test_a_slot_that_is_checked_counts_as_connecting(passes: bool) -> None:
    ledger, slots = opened(pool_size=2)
    ledger.hold(slots[0], 0)
    assert (ledger.idle, ledger.connecting, ledger.size) == (1, 1, 2)
    if passes:
        assert ledger.prepared(slots[0], 1, is_open=True) is None
        assert ledger.idle == 2
    else:
        assert ledger.unfit(slots[0], 1, is_open=True) is CloseReason.UNFIT
        assert ledger.closing == 1
    ledger.check()


@pytest.mark.parametrize(("max_waiting", "waiting", "admits"), [(0, 10_000, True), (2, 1, True), (2, 2, False)])
def test_max_waiting_limits_the_line(max_waiting: int, waiting: int, admits: bool) -> None:
    ledger, (slot,) = opened(pool_size=1, max_waiting=max_waiting)
    ledger.lease(slot, 0, is_open=True)
    assert ledger.admits(waiting) is admits


def test_max_waiting_does_not_count_callers_whom_a_connection_is_opened_for() -> None:
    ledger, _ = opened(pool_size=3, min_size=0, max_waiting=1)
    assert [ledger.admits(waiting) for waiting in range(5)] == [True, True, True, True, False]


# ---- drain and close


def test_drain_closes_idle_connections_now_and_leased_ones_when_they_come_home() -> None:
    ledger, slots = opened(pool_size=3)
    ledger.lease(slots[0], 0, is_open=True)
    assert ledger.drain(0) == slots[1:]
    assert ledger.release(slots[0], 1, is_open=True) is CloseReason.DRAINED
    for slot in slots:
        ledger.closed(slot, CloseReason.DRAINED)
    assert len(ledger.tend(1, 0).open) == 3


def test_a_connection_that_is_being_opened_during_a_drain_is_replaced_too() -> None:
    ledger, _ = opened(pool_size=1, min_size=0)
    (slot,) = ledger.tend(0, 1).open
    ledger.drain(0)
    assert ledger.opened(slot, connection(), 1) is CloseReason.DRAINED


def test_the_connection_that_replaces_a_drained_one_stays() -> None:
    ledger, (slot,) = opened(pool_size=1)
    ledger.drain(0)
    ledger.closed(slot, CloseReason.DRAINED)
    ledger.tend(0, 0)
    assert ledger.opened(slot, connection(), 0) is None


def test_a_lease_that_is_ended_by_the_pool_leaves_an_empty_slot_behind() -> None:
    ledger, (slot,) = opened(pool_size=1)
    ledger.lease(slot, 0, is_open=True)
    ledger.close(0)
    ledger.abandon(slot, CloseReason.POOL_CLOSED)
    ledger.check()
    assert (ledger.size, slot.state) == (0, SlotState.GONE)


# ---- shrinking


def test_surplus_is_closed_after_max_idle_and_not_before() -> None:
    ledger, slots = grown_to(5, min_size=2, max_idle=600)
    orders = ledger.tend(599, 0)
    assert (orders.close, orders.wake_at) == ([], 600)
    assert [slot for slot, _ in ledger.tend(600, 0).close] == slots[:3], "the longest unused ones"


def test_light_steady_traffic_that_uses_every_connection_does_not_keep_the_surplus() -> None:
    ledger, slots = grown_to(5, min_size=1, max_idle=600)
    queue = list(slots)
    for now in range(0, 600, 10):  # one user at a time, each time another connection
        slot = queue.pop(0)
        assert ledger.lease(slot, now, is_open=True) is None
        assert ledger.release(slot, now + 5, is_open=True) is None
        queue.append(slot)
        assert ledger.tend(now + 5, 0).close == []
    assert len(ledger.tend(600, 0).close) == 4, "one was in use, the others never at the same time"
    assert ledger.idle == 1


def test_a_peak_now_and_then_keeps_the_connections_that_it_needs() -> None:
    ledger, slots = grown_to(4, min_size=1, max_idle=600)
    for now in range(0, 3000, 500):
        for slot in slots:
            assert ledger.lease(slot, now, is_open=True) is None
        for slot in slots:
            assert ledger.release(slot, now + 1, is_open=True) is None
        assert ledger.tend(now + 499, 0).close == []


def test_a_connection_that_was_just_opened_is_not_surplus_because_others_were_idle_for_long() -> None:
    ledger, _ = opened(pool_size=4, min_size=3, max_idle=600)
    extra = Slot()
    slots = [slot for slot in ledger.slots if slot.state is SlotState.IDLE]
    for slot in slots:
        ledger.lease(slot, 1000, is_open=True)
    (extra,) = ledger.tend(1000, 1).open
    ledger.opened(extra, connection(), 1000)
    for slot in slots:
        ledger.release(slot, 1000, is_open=True)
    assert ledger.tend(1000, 0).close == []
    assert len(ledger.tend(1600, 0).close) == 1


def test_each_surplus_connection_has_its_own_time() -> None:
    ledger, slots = grown_to(4, min_size=1, max_idle=600, connection_ttl=0)
    for slot in slots[2:]:
        assert ledger.lease(slot, 0, is_open=True) is None
    for slot in slots[2:]:
        assert ledger.release(slot, 500, is_open=True) is None  # two were surplus from 0 on, the third from 500 on
    orders = ledger.tend(600, 0)
    assert (len(orders.close), orders.wake_at) == (2, 1100)
    for slot, reason in orders.close:
        ledger.closed(slot, reason)
    assert ledger.tend(1099, 0).close == []
    assert len(ledger.tend(1100, 0).close) == 1


def test_max_idle_of_zero_closes_surplus_at_once_and_none_never() -> None:
    assert len(grown_to(3, min_size=1, max_idle=0)[0].tend(0, 0).close) == 2
    assert grown_to(3, min_size=1, max_idle=None)[0].tend(1e12, 0).close == []


def grown_to(size: int, **options: Any) -> tuple[Ledger, list[Slot]]:
    """A ledger with this many connections, all idle at time 0."""
    ledger, slots = opened(pool_size=size, **options)
    for slot in slots:
        ledger.lease(slot, 0, is_open=True)
    grown = ledger.tend(0, size - len(slots)).open
    for slot in grown:
        ledger.opened(slot, connection(), 0)
        ledger.lease(slot, 0, is_open=True)
    for slot in (*slots, *grown):
        ledger.release(slot, 0, is_open=True)
    return ledger, [*slots, *grown]


# ---- outages


def test_an_opening_that_fails_gives_its_place_back_and_is_told_to_whoever_waits_longest() -> None:
    ledger, _ = opened(pool_size=2, min_size=0)
    (slot,) = ledger.tend(0, 1).open
    assert ledger.open_failed(slot, 0) is Refusal.OLDEST
    assert ledger.size == 0


def test_during_an_outage_one_probe_is_in_flight_and_its_failure_is_told_to_nobody() -> None:
    ledger, _ = opened(pool_size=5, min_size=0)
    for slot in ledger.tend(0, 5).open:
        assert ledger.open_failed(slot, 0) is Refusal.OLDEST
    (probe,) = ledger.tend(0, 5).open
    assert ledger.tend(0, 9).open == []
    assert ledger.open_failed(probe, 0) is Refusal.NOBODY


def test_after_an_outage_the_pool_opens_as_many_as_it_needs() -> None:
    ledger, _ = opened(pool_size=5, min_size=0)
    (slot,) = ledger.tend(0, 1).open
    ledger.open_failed(slot, 0)
    (probe,) = ledger.tend(0, 4).open
    ledger.opened(probe, connection(), 1)
    ledger.lease(probe, 1, is_open=True)
    assert len(ledger.tend(1, 3).open) == 3


def test_a_hopeless_failure_is_told_to_all_and_the_next_caller_tries_again_at_once() -> None:
    ledger = Ledger(PoolConfig(pool_size=2, min_size=0), lambda: 1.0)
    ledger.open()
    ledger.opened_all()
    for _ in range(3):
        (slot,) = ledger.tend(0, 1).open
        assert ledger.open_failed(slot, 0, is_hopeless=True) is Refusal.ALL


def test_probes_are_spaced_by_exponential_back_off() -> None:
    ledger = Ledger(PoolConfig(pool_size=1), lambda: 1.0)
    ledger.open()
    ledger.opened_all()
    now, pauses = 0.0, []
    for _ in range(10):
        (slot,) = ledger.tend(now, 0).open
        ledger.open_failed(slot, now)
        orders = ledger.tend(now, 0)
        assert orders.open == []
        pauses.append(orders.wake_at - now)
        now = orders.wake_at
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5])


@pytest.mark.parametrize("how", ["fails its check", "is lost", "is found broken"])
def test_a_server_that_hangs_up_on_every_new_connection_is_called_at_growing_intervals(how: str) -> None:
    ledger = Ledger(PoolConfig(pool_size=1), lambda: 1.0)
    ledger.open()
    ledger.opened_all()
    now, pauses = 0.0, []
    for _ in range(5):
        (slot,) = ledger.tend(now, 0).open
        ledger.opened(slot, connection(), now)
        if how == "fails its check":
            ledger.hold(slot, now)
            ledger.unfit(slot, now, is_open=True)
        elif how == "is lost":
            ledger.lost(slot, now)
        else:
            assert ledger.lease(slot, now, is_open=False) is CloseReason.BROKEN
        ledger.closed(slot, CloseReason.BROKEN)
        pauses.append(ledger.tend(now, 1).wake_at - now)
        now = ledger.backoff.retry_at
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])


@pytest.mark.parametrize("how", ["leased", "checked"])
def test_an_outage_is_over_when_a_connection_has_proven_good(how: str) -> None:
    ledger, _ = opened(pool_size=1, min_size=0)
    (slot,) = ledger.tend(0, 1).open
    ledger.open_failed(slot, 0)
    (slot,) = ledger.tend(0, 1).open
    ledger.opened(slot, connection(), 0)
    assert ledger.is_outage
    if how == "leased":
        ledger.lease(slot, 0, is_open=True)
    else:
        ledger.hold(slot, 0)
        ledger.prepared(slot, 0, is_open=True)
    assert not ledger.is_outage


def test_a_connection_that_was_good_and_dies_is_replaced_at_once() -> None:
    ledger, (slot,) = opened(pool_size=1)
    ledger.lease(slot, 0, is_open=True)
    ledger.release(slot, 0, is_open=True)
    ledger.lost(slot, 0)
    ledger.closed(slot, CloseReason.BROKEN)
    assert len(ledger.tend(0, 0).open) == 1


def test_connections_that_are_lost_at_once_count_as_one_failure() -> None:
    backoff = Backoff(lambda: 1.0)
    for _ in range(50):
        backoff.failed(0)
    assert backoff.failures == 1
    assert backoff.retry_at == pytest.approx(0.1)


def test_full_jitter_draws_each_pause_from_zero_up() -> None:
    backoff = Backoff(lambda: 0.25)
    for now in range(0, 400, 10):
        backoff.failed(now)
    assert backoff.retry_at == 390 + LONGEST_DELAY / 4
    backoff.succeeded()
    backoff.failed(0)
    assert backoff.retry_at == pytest.approx(0.025)


@pytest.mark.parametrize(("timeout", "expected"), [(300, [300.0]), (None, [])])
def test_an_outage_that_has_lasted_reconnect_timeout_is_told_once(timeout: float | None, expected: list[float]) -> None:
    ledger = Ledger(PoolConfig(pool_size=1, reconnect_timeout=timeout), lambda: 1.0)
    ledger.open()
    ledger.opened_all()
    now, told = 0.0, []
    while now < 1000:
        orders = ledger.tend(now, 0)
        if orders.has_outage_lasted:
            told.append(now)
        for slot in orders.open:
            ledger.open_failed(slot, now)
            orders = ledger.tend(now, 0)
        now = orders.wake_at
    assert told == expected


# ---- checks


def test_a_connection_that_was_not_used_for_check_idle_is_checked_before_its_lease() -> None:
    ledger, (slot,) = opened(pool_size=1, check_idle=60)
    assert ledger.lease(slot, 59, is_open=True) is None
    ledger.release(slot, 59, is_open=True)
    assert ledger.lease(slot, 119, is_open=True) is CHECK
    assert (ledger.idle, ledger.connecting) == (0, 1)
    assert ledger.prepared(slot, 120, is_open=True) is None
    assert ledger.lease(slot, 120, is_open=True) is None


@pytest.mark.parametrize("never", [0, None])
def test_check_idle_of_zero_or_none_means_never(never: int | None) -> None:
    ledger, (slot,) = opened(pool_size=1, check_idle=never, connection_ttl=0)
    assert ledger.lease(slot, 1e9, is_open=True) is None


def test_idle_connections_are_pinged_every_ping_interval() -> None:
    ledger, slots = opened(pool_size=2, ping_interval=30)
    assert ledger.tend(0, 0).wake_at == 30
    ledger.lease(slots[0], 10, is_open=True)
    ledger.release(slots[0], 20, is_open=True)
    orders = ledger.tend(30, 0)
    assert (orders.check, orders.wake_at) == ([slots[1]], 50)
    ledger.prepared(slots[1], 31, is_open=True)
    assert ledger.tend(31, 0).wake_at == 50


def test_pings_do_not_keep_surplus_connections_open() -> None:
    ledger, _ = grown_to(3, min_size=1, max_idle=100, ping_interval=30, connection_ttl=0)
    closed = 0
    for now in range(0, 200, 5):
        orders = ledger.tend(now, 0)
        for slot in orders.check:
            ledger.prepared(slot, now, is_open=True)
        for slot, reason in orders.close:
            ledger.closed(slot, reason)
            closed += 1
    assert closed == 2


def test_when_one_connection_dies_its_idle_siblings_are_checked_together() -> None:
    ledger, slots = opened(pool_size=4)
    ledger.lease(slots[0], 0, is_open=True)
    ledger.lost(slots[1], 0)
    assert ledger.suspect(0) == slots[2:]
    assert (ledger.idle, ledger.connecting, ledger.leased) == (0, 2, 1)


# ---- sharing


def carrying(*loads: int, **options: Any) -> tuple[Ledger, list[Slot]]:
    """A ledger with so many shared connections, and so many queries on each, all at time 0."""
    ledger, slots = opened(**{"pool_size": len(loads), "min_size": len(loads), **options})
    for slot in slots:
        assert ledger.share(slot, 0, is_open=True) is None
    while any(slot.in_flight < max(loads) for slot in slots):
        ledger.join(0)
    for slot, load in zip(slots, loads, strict=True):
        while slot.in_flight > load:
            assert not ledger.leave(slot)
    ledger.check()
    return ledger, slots


def joined(ledger: Ledger, queries: int, now: float = 0.0) -> list[Slot | None]:
    """Where so many queries go, one after the other."""
    slots = [ledger.join(now) for _ in range(queries)]
    ledger.check()
    return slots


def end_queries(ledger: Ledger, slot: Slot, now: float, is_open: bool = True) -> CloseReason | None:
    """All queries on a shared slot end. Says what its last one leaves behind."""
    while not ledger.leave(slot):
        ledger.check()
    reason = ledger.unshare(slot, now, is_open)
    ledger.check()
    return reason


def test_a_query_makes_an_idle_connection_a_shared_one_which_is_no_lease() -> None:
    ledger, (slot, _) = opened(pool_size=2)
    assert ledger.share(slot, 0, is_open=True) is None
    assert (ledger.idle, ledger.shared, ledger.leased, ledger.size) == (1, 1, 0, 2)
    assert (slot.state, slot.in_flight) == (SlotState.SHARED, 1)
    assert (ledger.queries, ledger.leases, ledger.is_leased_out) == (1, 0, False)
    ledger.check()


def test_sharing_does_not_count_as_acquiring() -> None:
    ledger, (slot, other) = opened(pool_size=2, min_size=2)
    ledger.share(slot, 0, is_open=True)
    joined(ledger, 5)
    end_queries(ledger, slot, 0)
    ledger.carry(other, 0, is_open=True)
    assert ledger.acquired_total == 0
    ledger.lease(slot, 0, is_open=True)
    assert ledger.acquired_total == 1


@pytest.mark.parametrize("command", ["share", "carry"])
def test_whoever_shares_a_connection_gets_it_as_fit_as_whoever_leases_it(command: str) -> None:
    ledger, slots = opened(pool_size=4, check_idle=60, connection_ttl=100)
    use = getattr(ledger, command)
    assert use(slots[0], 59, is_open=True) is None
    assert use(slots[1], 60, is_open=True) is CHECK
    assert use(slots[2], 60, is_open=False) is CloseReason.BROKEN
    assert use(slots[3], 100, is_open=True) is CloseReason.EXPIRED
    assert [slot.state for slot in slots[1:]] == [SlotState.CONNECTING, SlotState.CLOSING, SlotState.CLOSING]
    assert [slot.in_flight for slot in slots] == [1, 0, 0, 0]
    assert ledger.acquired_total == 0
    ledger.check()


@pytest.mark.parametrize("command", ["share", "carry"])
def test_whoever_shares_a_connection_that_was_just_checked_gets_it_at_once(command: str) -> None:
    ledger, (slot,) = opened(pool_size=1, check_idle=60)
    assert getattr(ledger, command)(slot, 60, is_open=True, is_checked=True) is None


def test_the_least_loaded_connection_takes_the_query() -> None:
    ledger, (a, b, c) = carrying(4, 1, 3)
    joined(ledger, 3)
    assert [slot.in_flight for slot in (a, b, c)] == [4, 3, 4]
    assert joined(ledger, 1) == [b]


def test_a_query_that_ends_makes_its_connection_the_least_loaded() -> None:
    ledger, (a, b) = carrying(3, 3)
    ledger.leave(b)
    ledger.leave(b)
    assert joined(ledger, 2) == [b, b]
    ledger.leave(a)
    assert joined(ledger, 1) == [a]


def test_connections_that_carry_the_same_take_queries_in_turn() -> None:
    ledger, slots = carrying(1, 1, 1)
    assert joined(ledger, 9) == slots * 3


def test_of_connections_that_carry_the_same_the_one_whose_query_ended_last_comes_last() -> None:
    ledger, (a, b, c) = carrying(2, 1, 1)
    ledger.leave(a)
    assert joined(ledger, 3) == [b, c, a]


@pytest.mark.parametrize("max_in_flight", [1, 2, 5, 128])
def test_a_connection_carries_max_in_flight_queries_and_no_more(max_in_flight: int) -> None:
    ledger, (slot,) = opened(pool_size=1, max_in_flight=max_in_flight)
    ledger.share(slot, 0, is_open=True)
    assert joined(ledger, max_in_flight + 1) == [slot] * (max_in_flight - 1) + [None, None]
    if max_in_flight > 1:
        assert not ledger.leave(slot)
        assert joined(ledger, 2) == [slot, None]
    assert ledger.queries == max_in_flight


def test_every_connection_is_filled_before_a_query_is_refused() -> None:
    ledger, (a, b, c) = carrying(1, 3, 2, max_in_flight=3)
    assert joined(ledger, 4)[-1] is None
    assert [slot.in_flight for slot in (a, b, c)] == [3, 3, 3]
    ledger.leave(b)
    assert joined(ledger, 2) == [b, None]


def test_none_takes_a_query_where_none_is_shared() -> None:
    ledger, (slot, _) = opened(pool_size=2)
    assert joined(ledger, 1) == [None]
    ledger.lease(slot, 0, is_open=True)
    assert joined(ledger, 1) == [None]


def test_a_shared_connection_whose_time_is_up_takes_no_query_and_is_closed_when_its_last_has_ended() -> None:
    ledger, (slot,) = carrying(2, connection_ttl=100)
    assert joined(ledger, 1, now=99) == [slot]
    assert joined(ledger, 2, now=100) == [None, None]
    assert slot.state is SlotState.SHARED, "its queries go on"
    assert end_queries(ledger, slot, 101) is CloseReason.EXPIRED


def test_queries_pass_over_connections_whose_time_is_up_however_little_they_carry() -> None:
    ledger, (a, b) = opened(pool_size=3, min_size=2, connection_ttl=100)
    ledger.share(a, 0, is_open=True)
    ledger.share(b, 0, is_open=True)
    joined(ledger, 1)
    (young,) = ledger.tend(50, 1).open
    ledger.opened(young, connection(), 50)
    ledger.share(young, 50, is_open=True)
    for _ in range(3):  # the eldest carry fewer
        joined(ledger, 2, now=50)
        ledger.leave(a)
        ledger.leave(b)
    assert young.in_flight > b.in_flight
    assert joined(ledger, 2, now=100) == [young, young]
    assert end_queries(ledger, a, 100) is CloseReason.EXPIRED
    assert end_queries(ledger, young, 100) is None


def test_a_connection_whose_time_ran_out_under_its_queries_and_that_nobody_joined_is_closed_at_its_next_use() -> None:
    ledger, (slot,) = carrying(1, connection_ttl=100)
    assert end_queries(ledger, slot, 101) is None
    assert ledger.share(slot, 101, is_open=True) is CloseReason.EXPIRED


def test_a_shared_connection_whose_queries_have_ended_is_idle_again_and_may_be_leased() -> None:
    ledger, (slot,) = carrying(3)
    assert end_queries(ledger, slot, 1) is None
    assert (ledger.idle, ledger.shared, ledger.queries, slot.state) == (1, 0, 0, SlotState.IDLE)
    assert joined(ledger, 1) == [None]
    assert ledger.lease(slot, 2, is_open=True) is None
    ledger.check()


def test_a_shared_connection_was_last_used_when_its_last_query_ended() -> None:
    ledger, (slot,) = carrying(1, check_idle=60)
    assert end_queries(ledger, slot, 100) is None
    assert ledger.share(slot, 159, is_open=True) is None


def test_a_shared_connection_that_died_does_not_come_back() -> None:
    ledger, (slot,) = carrying(2)
    assert end_queries(ledger, slot, 1, is_open=False) is CloseReason.BROKEN
    assert (ledger.closing, ledger.shared) == (1, 0)


def test_a_query_that_finds_its_connection_broken_leaves_it_and_no_other_goes_there() -> None:
    ledger, (a, b) = carrying(1, 2)
    assert joined(ledger, 1) == [a]
    assert not ledger.turn_away(a), "it carries another one"
    assert (a.in_flight, ledger.queries) == (1, 3)
    assert joined(ledger, 3) == [b, b, b]
    assert end_queries(ledger, a, 1) is CloseReason.BROKEN


def test_a_connection_that_only_the_query_that_found_it_broken_was_on_is_closed_at_once() -> None:
    ledger, (slot,) = carrying(1)
    joined(ledger, 1)
    assert not ledger.leave(slot)
    assert ledger.turn_away(slot)
    assert ledger.unshare(slot, 0, is_open=False) is CloseReason.BROKEN
    ledger.check()


# ---- questions: a query had no answer in time


def test_a_suspected_connection_takes_no_query_until_its_check_has_passed() -> None:
    ledger, (a, b) = carrying(1, 3)
    assert ledger.question(a)
    assert (a.in_flight, ledger.queries) == (2, 4), "the check is in flight too, and is no query"
    assert joined(ledger, 2) == [b, b]
    assert not ledger.answered(a, is_good=True)
    assert joined(ledger, 2) == [a, a]


def test_a_connection_is_checked_once_at_a_time_and_not_at_all_where_it_is_to_be_closed_anyway() -> None:
    ledger, (a, b) = carrying(2, 2)
    assert ledger.question(a)
    assert not ledger.question(a)
    assert a.in_flight == 3
    ledger.drain(0)
    assert not ledger.question(b)
    assert b.in_flight == 2
    ledger.answered(a, is_good=True)
    assert not ledger.question(a)
    ledger.check()


def test_a_full_connection_may_be_suspected_and_then_carries_as_many_as_before() -> None:
    ledger, (slot,) = carrying(3, max_in_flight=3)
    assert ledger.question(slot)
    ledger.check()
    assert not ledger.answered(slot, is_good=True)
    assert joined(ledger, 1) == [None]
    ledger.leave(slot)
    assert joined(ledger, 2) == [slot, None]


def test_a_suspected_connection_whose_queries_have_ended_stays_until_its_check_has() -> None:
    ledger, (slot,) = carrying(2)
    ledger.question(slot)
    assert not ledger.leave(slot)
    assert not ledger.leave(slot)
    assert (ledger.queries, ledger.shared, slot.state) == (0, 1, SlotState.SHARED)
    assert ledger.answered(slot, is_good=True)
    assert ledger.unshare(slot, 1, is_open=True) is None
    assert joined(ledger, 1) == [None], "it is idle, not shared"


def test_a_suspected_connection_that_fails_its_check_is_closed_when_its_last_query_has_ended() -> None:
    ledger, (a, b) = carrying(2, 5)
    ledger.question(a)
    assert not ledger.answered(a, is_good=False)
    assert (a.in_flight, ledger.queries) == (2, 7)
    assert joined(ledger, 1) == [b]
    assert end_queries(ledger, a, 1) is CloseReason.UNFIT


@pytest.mark.parametrize(("is_good", "expected"), [(True, CloseReason.DRAINED), (False, CloseReason.DRAINED)])
def test_a_suspected_connection_that_is_drained_is_closed_as_such_whatever_its_check_says(
    is_good: bool, expected: CloseReason
) -> None:
    ledger, (slot,) = carrying(1)
    ledger.question(slot)
    ledger.drain(0)
    ledger.check()
    assert not ledger.answered(slot, is_good=is_good)
    assert joined(ledger, 1) == [None]
    assert end_queries(ledger, slot, 1) is expected


# ---- shared connections and the size


def test_shared_connections_keep_up_min_size() -> None:
    ledger, slots = opened(pool_size=4, min_size=2, max_idle=100)
    for slot in slots:
        ledger.share(slot, 0, is_open=True)
    assert (ledger.tend(0, 0).open, ledger.is_short) == ([], False)
    ledger.leave(slots[0])
    ledger.unshare(slots[0], 1, is_open=False)
    assert ledger.is_short
    ledger.closed(slots[0], CloseReason.BROKEN)
    assert len(ledger.tend(1, 0).open) == 1


def test_shared_connections_are_not_surplus_and_make_idle_ones_so() -> None:
    ledger, slots = grown_to(4, min_size=2, max_idle=100, connection_ttl=0)
    for slot in slots[:2]:
        assert ledger.share(slot, 0, is_open=True) is None
    assert [slot for slot, _ in ledger.tend(100, 0).close] == slots[2:]
    ledger.check()
    assert ledger.tend(10_000, 0).close == []


def test_a_shared_connection_begins_to_be_surplus_when_its_last_query_has_ended() -> None:
    ledger, slots = grown_to(2, min_size=0, max_idle=100, connection_ttl=0)
    for slot in slots:
        assert ledger.share(slot, 10, is_open=True) is None
    assert ledger.tend(500, 0).wake_at == NEVER
    assert end_queries(ledger, slots[0], 500) is None
    orders = ledger.tend(599, 0)
    assert (orders.close, orders.wake_at) == ([], 600)
    assert ledger.tend(600, 0).close == [(slots[0], CloseReason.SURPLUS)]


def test_light_traffic_of_queries_that_uses_every_connection_in_turn_does_not_keep_the_surplus() -> None:
    ledger, slots = grown_to(3, min_size=1, max_idle=600, connection_ttl=0)
    for now in range(0, 600, 10):
        slot = slots[now // 10 % 3]
        assert ledger.share(slot, now, is_open=True) is None
        assert end_queries(ledger, slot, now + 5) is None
        assert ledger.tend(now + 5, 0).close == []
    assert len(ledger.tend(600, 0).close) == 2


def test_drain_closes_shared_connections_when_their_last_query_has_ended() -> None:
    ledger, (a, b, c) = opened(pool_size=3)
    ledger.share(a, 0, is_open=True)
    ledger.share(b, 0, is_open=True)
    joined(ledger, 2)
    assert ledger.drain(0) == [c], "only the idle ones are closed now"
    assert joined(ledger, 1) == [None]
    assert end_queries(ledger, a, 1) is CloseReason.DRAINED
    assert end_queries(ledger, b, 1) is CloseReason.DRAINED


def test_closing_closes_shared_connections_when_their_last_query_has_ended() -> None:
    ledger, (slot,) = carrying(2)
    assert ledger.close(0) == []
    assert joined(ledger, 1) == [None]
    assert end_queries(ledger, slot, 1) is CloseReason.POOL_CLOSED


@pytest.mark.parametrize("before", ["nothing", "a drain", "a question"])
def test_a_shared_connection_that_is_ended_by_the_pool_leaves_an_empty_slot_behind(before: str) -> None:
    ledger, (a, b) = carrying(1, 2, max_idle=0)
    if before == "a drain":
        ledger.drain(0)
    elif before == "a question":
        ledger.question(a)
    ledger.abandon(a, CloseReason.POOL_CLOSED)
    ledger.check()
    assert (ledger.shared, ledger.size, ledger.queries, a.state) == (1, 1, 2, SlotState.GONE)
    assert ledger.closed_by_reason == {CloseReason.POOL_CLOSED: 1}
    assert joined(ledger, 1) == [None if before == "a drain" else b]
    assert len(ledger.tend(0, 0).open) == 1


def test_a_pool_that_ended_without_closing_forgets_who_shared_what() -> None:
    ledger, _ = carrying(1, 2, 1, max_in_flight=3)
    ledger.bury()
    ledger.check()
    assert (ledger.size, ledger.queries) == (0, 0)
    ledger.open()
    slots = ledger.tend(0, 0).open
    for slot in slots:
        ledger.opened(slot, connection(), 0)
    ledger.opened_all()
    assert joined(ledger, 1) == [None]
    assert ledger.share(slots[0], 0, is_open=True) is None
    assert joined(ledger, 3) == [slots[0], slots[0], None]


# ---- the lane


def test_a_feed_leaves_the_size_and_another_connection_takes_its_place() -> None:
    ledger, (slot,) = opened(pool_size=1)
    ledger.lease(slot, 0, is_open=True)
    ledger.to_feed_lane(slot)
    assert (ledger.size, ledger.feeds) == (0, 1)
    assert len(ledger.tend(0, 0).open) == 1
    ledger.check()


def test_a_feed_that_ended_is_returned_where_there_is_room_and_else_closed() -> None:
    ledger, (slot,) = opened(pool_size=1)
    ledger.lease(slot, 0, is_open=True)
    ledger.to_feed_lane(slot)
    assert ledger.feed_ended(slot, 1, is_open=True) is None
    assert (ledger.idle, ledger.feeds) == (1, 0)
    ledger.lease(slot, 2, is_open=True)
    ledger.to_feed_lane(slot)
    (other,) = ledger.tend(2, 0).open
    ledger.opened(other, connection(), 2)
    assert ledger.feed_ended(slot, 3, is_open=True) is CloseReason.FEED_ENDED
    ledger.closed(slot, CloseReason.FEED_ENDED)
    assert (ledger.size, ledger.feeds, ledger.retired) == (1, 0, 0)


def test_a_feed_that_outlived_its_connections_time_is_closed_not_returned() -> None:
    ledger, (slot,) = opened(pool_size=1, connection_ttl=10)
    ledger.lease(slot, 0, is_open=True)
    ledger.to_feed_lane(slot)
    assert ledger.feed_ended(slot, 11, is_open=True) is CloseReason.FEED_ENDED


@pytest.mark.parametrize(("limit", "room"), [(None, [True, True, False]), (1, [True, False]), (0, [False])])
def test_max_feed_connections_caps_the_lane(limit: int | None, room: list[bool]) -> None:
    ledger, slots = opened(pool_size=2, max_feed_connections=limit)
    for expected, slot in itertools.zip_longest(room, slots[: len(room) - 1]):
        assert ledger.has_feed_room() is expected
        if slot is not None:
            ledger.lease(slot, 0, is_open=True)
            ledger.to_feed_lane(slot)


def test_a_connection_that_is_still_read_costs_no_capacity_while_it_waits_to_close() -> None:
    ledger, (slot,) = opened(pool_size=1, connection_ttl=10)
    assert ledger.lease(slot, 10, is_open=True) is CloseReason.EXPIRED
    ledger.retire(slot)
    assert (ledger.size, ledger.retired) == (0, 1)
    assert len(ledger.tend(10, 1).open) == 1


def opened_with_carriers(*loads: int, **options: Any) -> tuple[Ledger, list[Slot]]:
    """A ledger with so many connections in its lane, and so many feeds on each."""
    ledger, slots = opened(**{"pool_size": len(loads), "connection_ttl": 0, **options})
    for slot, load in zip(slots, loads, strict=False):
        assert ledger.carry(slot, 0, is_open=True) is None
        for _ in range(load - 1):
            ledger.add_feed(slot)
        assert ledger.feed_opened(slot)
    ledger.check()
    return ledger, slots[: len(loads)]


def test_a_carrier_of_feeds_leaves_the_size_and_another_connection_takes_its_place() -> None:
    ledger, (slot,) = opened_with_carriers(1)
    assert (ledger.size, ledger.feeds, ledger.carried, slot.state) == (0, 1, 1, SlotState.CARRIER)
    assert len(ledger.tend(0, 0).open) == 1
    assert ledger.leases == 0


def carrier_on_trial(**options: Any) -> tuple[Ledger, Slot]:
    """A ledger whose only connection was put into its lane for a feed that is not open yet."""
    ledger, (slot,) = opened(pool_size=1, **options)
    assert ledger.carry(slot, 0, is_open=True) is None
    return ledger, slot


def test_nothing_is_opened_to_keep_up_the_size_before_a_feed_on_a_new_carrier_is_open() -> None:
    ledger, slot = carrier_on_trial()
    assert ledger.tend(0, 0).open == []
    ledger.add_feed(slot)
    assert ledger.feed_opened(slot)
    assert not ledger.feed_opened(slot), "only the first one makes it a carrier for good"
    assert len(ledger.tend(0, 0).open) == 1


def test_a_carrier_whose_feeds_were_all_refused_comes_back() -> None:
    ledger, slot = carrier_on_trial()
    ledger.add_feed(slot)
    assert not ledger.remove_feed(slot)
    assert ledger.tend(0, 0).open == []
    assert ledger.remove_feed(slot)
    assert ledger.feed_ended(slot, 0, is_open=True) is None
    assert (ledger.idle, ledger.feeds) == (1, 0)
    ledger.check()


@pytest.mark.parametrize("waiting", [(1, 0), (0, 1)], ids=["for a lease", "to run a query"])
def test_whoever_waits_does_not_wait_for_a_feed_to_be_open(waiting: tuple[int, int]) -> None:
    ledger, _ = carrier_on_trial()
    assert len(ledger.tend(0, *waiting).open) == 1


@pytest.mark.parametrize("event", ["drained", "lost", "read on"])
def test_a_carrier_that_will_not_come_back_is_replaced_though_no_feed_was_open(event: str) -> None:
    ledger, slot = carrier_on_trial()
    if event == "drained":
        ledger.drain(0)
    elif event == "lost":
        ledger.abandon(slot, CloseReason.BROKEN)
    else:
        assert ledger.remove_feed(slot)
    assert len(ledger.tend(0, 0).open) == 1
    ledger.check()


def test_a_feed_goes_to_the_carrier_that_carries_the_fewest() -> None:
    ledger, (_, b, c) = opened_with_carriers(4, 1, 2)
    assert ledger.carrier() is b
    ledger.add_feed(b)
    ledger.add_feed(b)
    assert ledger.carrier() is c
    assert ledger.carried == 9
    ledger.check()


def test_there_is_no_carrier_where_the_lane_holds_leases_trails_and_retired_connections_only() -> None:
    ledger, slots = opened(pool_size=3, connection_ttl=10)
    for slot in slots[:2]:
        ledger.lease(slot, 0, is_open=True)
        ledger.to_feed_lane(slot)
    ledger.trail(slots[1])
    ledger.lease(slots[2], 10, is_open=True)
    ledger.retire(slots[2])
    assert ledger.carrier() is None
    assert (ledger.feeds, ledger.retired, ledger.carried) == (2, 1, 0)


def test_a_carrier_ignores_its_age_while_feeds_come_and_is_closed_when_its_last_has_ended() -> None:
    ledger, (slot,) = opened_with_carriers(1, connection_ttl=10)
    assert ledger.tend(1000, 0).close == []
    assert ledger.carrier() is slot
    ledger.add_feed(slot)
    assert not ledger.remove_feed(slot)
    assert ledger.remove_feed(slot)
    assert ledger.feed_ended(slot, 1001, is_open=True) is CloseReason.FEED_ENDED


def test_a_carrier_whose_last_feed_has_ended_is_returned_where_there_is_room() -> None:
    ledger, (slot,) = opened_with_carriers(2)
    assert not ledger.remove_feed(slot)
    assert ledger.remove_feed(slot)
    assert ledger.feed_ended(slot, 1, is_open=True) is None
    assert (ledger.idle, ledger.feeds, slot.state) == (1, 0, SlotState.IDLE)
    assert ledger.carrier() is None
    ledger.check()


@pytest.mark.parametrize(
    ("in_flight", "limit", "expected"),
    [
        ([], 1, True),
        ([], 0, False),
        ([2], 2, False),
        ([3], 2, True),
        ([4], 2, True),
        ([3], 1, False),
        ([3, 2], 3, False),
        ([3, 3], 3, True),
    ],
)
def test_another_carrier_is_wanted_only_where_each_carries_max_in_flight_and_the_lane_has_room(
    in_flight: list[int], limit: int, expected: bool
) -> None:
    ledger, _ = opened_with_carriers(*in_flight, pool_size=3, max_in_flight=3, max_feed_connections=limit)
    assert ledger.wants_carrier() is expected


def test_a_suspected_carrier_takes_no_feed_until_its_check_is_over_but_keeps_its_place_in_the_lane() -> None:
    ledger, (slot,) = opened_with_carriers(2, pool_size=2, max_feed_connections=1)
    assert ledger.question(slot)
    ledger.check()
    assert (ledger.carrier(), ledger.carried, slot.in_flight) == (None, 2, 3)
    assert not ledger.has_feed_room()
    assert ledger.has_feed_place(), "a feed may wait for the check"
    assert not ledger.question(slot)
    assert not ledger.answered(slot, is_good=True)
    assert (ledger.carrier(), ledger.carried) == (slot, 2)
    ledger.check()


def test_a_suspected_carrier_whose_feeds_have_ended_stays_until_its_check_has() -> None:
    ledger, (slot,) = opened_with_carriers(1)
    ledger.question(slot)
    assert not ledger.remove_feed(slot)
    assert (ledger.carried, slot.state) == (0, SlotState.CARRIER)
    assert ledger.answered(slot, is_good=True)
    assert ledger.feed_ended(slot, 0, is_open=True) is None


def test_a_carrier_that_is_suspected_makes_another_one_wanted() -> None:
    ledger, (slot,) = opened_with_carriers(1, pool_size=2, max_feed_connections=2)
    assert not ledger.wants_carrier()
    ledger.question(slot)
    assert ledger.wants_carrier()


def test_a_carrier_that_was_drained_is_not_checked() -> None:
    ledger, (slot,) = opened_with_carriers(1)
    ledger.drain(0)
    assert not ledger.question(slot)


@pytest.mark.parametrize(("limit", "place"), [(0, False), (1, True)])
def test_the_lane_has_a_place_for_a_feed_where_it_takes_another_connection(limit: int, place: bool) -> None:
    ledger, (slot,) = opened(pool_size=1, max_feed_connections=limit)
    assert ledger.has_feed_place() is place
    if place:
        ledger.lease(slot, 0, is_open=True)
        ledger.to_feed_lane(slot)
        assert not ledger.has_feed_place(), "a leased one serves its own feed only"


def test_the_lane_has_a_place_for_a_feed_where_it_has_a_carrier_that_is_not_drained() -> None:
    ledger, slots = opened_with_carriers(9, pool_size=2, max_feed_connections=1)
    assert ledger.has_feed_place()
    ledger.drain(0)
    (new,) = ledger.tend(0, 1).open[:1]
    ledger.opened(new, connection(), 0)
    ledger.lease(new, 0, is_open=True)
    ledger.to_feed_lane(new)
    assert slots[0].state is SlotState.CARRIER
    assert not ledger.has_feed_place()


def test_a_carrier_without_feeds_that_is_still_read_from_takes_feeds_again() -> None:
    ledger, (slot,) = opened_with_carriers(1)
    assert ledger.remove_feed(slot)
    assert ledger.carrier() is slot
    ledger.check()
    ledger.add_feed(slot)
    assert ledger.carried == 1


def test_a_drained_carrier_takes_no_feed_and_no_place_in_the_lane() -> None:
    ledger, (a, b) = opened_with_carriers(1, 1, pool_size=2, max_feed_connections=2)
    assert not ledger.has_feed_room()
    ledger.drain(0)
    assert ledger.carrier() is None
    assert ledger.has_feed_room()
    assert ledger.wants_carrier()
    (new, other) = ledger.tend(0, 0).open
    ledger.opened(new, connection(), 0)
    ledger.opened(other, connection(), 0)
    assert ledger.carry(new, 0, is_open=True) is None
    assert ledger.carrier() is new
    assert ledger.has_feed_room()
    assert ledger.carry(other, 0, is_open=True) is None
    assert not ledger.has_feed_room(), "each of the new ones takes a place"
    assert ledger.remove_feed(a)
    assert ledger.feed_ended(a, 0, is_open=True) is CloseReason.DRAINED
    ledger.closed(a, CloseReason.DRAINED)
    assert not ledger.has_feed_room(), "it had none to give back"
    assert ledger.feeds == 3
    assert b.doomed is CloseReason.DRAINED
    ledger.check()


def test_a_drained_connection_that_is_leased_to_a_feed_keeps_its_place_in_the_lane() -> None:
    ledger, (slot,) = opened(pool_size=1)
    ledger.lease(slot, 0, is_open=True)
    ledger.to_feed_lane(slot)
    ledger.drain(0)
    assert not ledger.has_feed_room()


def test_closing_dooms_carriers() -> None:
    ledger, (slot,) = opened_with_carriers(1)
    ledger.close(0)
    assert ledger.carrier() is None
    assert ledger.remove_feed(slot)
    assert ledger.feed_ended(slot, 0, is_open=True) is CloseReason.POOL_CLOSED


def test_a_carrier_that_is_lost_is_forgotten_and_its_place_in_the_lane_is_free() -> None:
    ledger, (slot,) = opened_with_carriers(3)
    ledger.abandon(slot, CloseReason.BROKEN)
    ledger.check()
    assert (ledger.feeds, ledger.carried, ledger.size, slot.state) == (0, 0, 0, SlotState.GONE)
    assert ledger.has_feed_room()
    assert ledger.carrier() is None
    assert ledger.closed_by_reason == {CloseReason.BROKEN: 1}


# ---- openings for queries


@pytest.mark.parametrize(("waiting", "expected"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (9, 5), (100, 5)])
def test_for_queries_that_wait_so_many_connections_are_opened_that_none_will_be_crowded(
    waiting: int, expected: int
) -> None:
    ledger, _ = opened(pool_size=5, min_size=0)
    assert len(ledger.tend(0, 0, waiting).open) == expected
    assert ledger.tend(0, 0, waiting).open == [], "openings under way serve the same callers"


@pytest.mark.parametrize(("waiting", "expected"), [(1, 1), (2, 2), (3, 3), (4, 3)])
def test_where_each_carries_one_query_at_a_time_one_connection_is_opened_for_each_that_waits(
    waiting: int, expected: int
) -> None:
    ledger, _ = carrying(1, 1, pool_size=5, max_in_flight=1)
    assert len(ledger.tend(0, 0, waiting).open) == expected


@pytest.mark.parametrize("why", ["its time is up", "it was drained", "it is suspected", "it is broken"])
def test_for_a_query_that_waits_one_is_opened_where_the_shared_connection_takes_no_more(why: str) -> None:
    ledger, (slot,) = carrying(2, pool_size=5, connection_ttl=100)
    if why == "its time is up":
        joined(ledger, 1, now=100)
    elif why == "it was drained":
        ledger.drain(100)
    elif why == "it is suspected":
        ledger.question(slot)
    else:
        joined(ledger, 1)
        ledger.turn_away(slot)
    assert len(ledger.tend(100, 0, 1).open) == 1


def test_queries_on_connections_that_take_no_more_need_no_others() -> None:
    ledger, slots = carrying(25, 25, pool_size=10, connection_ttl=100)
    assert joined(ledger, 1, now=100) == [None]
    assert ledger.tend(100, 0).open == []
    ledger.drain(100)
    assert ledger.tend(100, 0).open == []
    assert len(ledger.tend(100, 0, 1).open) == 1
    assert [slot.in_flight for slot in slots] == [25, 25]


def test_leases_and_queries_that_wait_need_their_own_connections() -> None:
    ledger, _ = opened(pool_size=9, min_size=0)
    assert len(ledger.tend(0, 2, 3).open) == 4
    assert len(ledger.tend(0, 3, 3).open) == 1


@pytest.mark.parametrize(("queries", "expected"), [(3, 1), (4, 2), (5, 2), (6, 3)])
def test_queries_that_wait_behind_a_lease_need_others_only_where_the_shared_have_no_place_for_them(
    queries: int, expected: int
) -> None:
    ledger, _ = carrying(4, 3, pool_size=9, max_in_flight=5)
    assert len(ledger.tend(0, 1, queries).open) == expected


def test_shared_connections_are_no_use_to_whoever_waits_for_a_lease() -> None:
    ledger, _ = carrying(1, 1, pool_size=5)
    assert len(ledger.tend(0, 2).open) == 2


def test_nothing_is_opened_for_a_caller_whom_an_idle_connection_will_serve() -> None:
    ledger, _ = opened(pool_size=5, min_size=2)
    assert ledger.tend(0, 2).open == []
    assert ledger.tend(0, 1, 1).open == []
    assert len(ledger.tend(0, 3).open) == 1


def test_another_connection_is_opened_for_a_query_that_comes_where_each_shared_one_carries_crowded_queries() -> None:
    ledger, _ = carrying(CROWDED, CROWDED, pool_size=4)
    assert (ledger.is_crowded, ledger.tend(0, 0).open) == (False, [])
    joined(ledger, 1)
    assert ledger.is_crowded
    assert len(ledger.tend(0, 0).open) == 1
    assert not ledger.is_crowded
    assert ledger.tend(0, 0).open == []


def test_nothing_is_opened_while_one_of_the_shared_connections_is_not_crowded() -> None:
    ledger, _ = carrying(CROWDED + 3, CROWDED - 1, pool_size=4)
    assert ledger.tend(0, 0).open == []
    joined(ledger, 1)
    assert ledger.tend(0, 0).open == []


def test_connections_that_were_crowded_and_are_no_more_need_no_other() -> None:
    ledger, (slot,) = carrying(CROWDED, pool_size=3)
    joined(ledger, 1)
    ledger.leave(slot)
    ledger.leave(slot)
    assert ledger.tend(0, 0).open == []
    joined(ledger, 1)
    assert ledger.tend(0, 0).open == [], "each query that comes is judged by itself"


@pytest.mark.parametrize("end", ["drained", "suspected", "broken", "unshared"])
def test_a_crowded_connection_that_takes_no_more_queries_needs_no_other(end: str) -> None:
    ledger, (slot,) = carrying(CROWDED, pool_size=3)
    joined(ledger, 1)
    if end == "drained":
        ledger.drain(0)
    elif end == "suspected":
        ledger.question(slot)
    elif end == "broken":
        ledger.turn_away(slot)
    else:
        end_queries(ledger, slot, 0)
    assert ledger.tend(0, 0).open == []


def test_crowded_connections_get_one_more_at_a_time() -> None:
    ledger, _ = carrying(CROWDED, pool_size=9)
    joined(ledger, 30)
    (slot,) = ledger.tend(0, 0).open
    joined(ledger, 1)
    assert ledger.tend(0, 0).open == [], "one is on its way"
    assert ledger.opened(slot, connection(), 1) is None
    assert ledger.tend(1, 0).open == [], "one is idle"
    assert ledger.share(slot, 1, is_open=True) is None
    joined(ledger, CROWDED - 1, now=1)
    assert ledger.tend(1, 0).open == [], "it is not crowded yet"
    joined(ledger, 1, now=1)
    assert len(ledger.tend(1, 0).open) == 1


def test_nothing_is_opened_for_crowded_connections_while_one_is_idle() -> None:
    ledger, (slot, _) = opened(pool_size=5, min_size=2)
    ledger.share(slot, 0, is_open=True)
    joined(ledger, CROWDED)
    assert ledger.tend(0, 0).open == []


def test_a_crowded_pool_that_cannot_open_another_one_tries_again_after_a_pause() -> None:
    ledger, _ = carrying(CROWDED, pool_size=3, random=1.0)
    joined(ledger, 1)
    (slot,) = ledger.tend(0, 0).open
    assert ledger.open_failed(slot, 0) is Refusal.NOBODY
    joined(ledger, 1)
    orders = ledger.tend(0, 0)
    assert orders.open == []
    assert orders.wake_at == pytest.approx(0.1)
    assert len(ledger.tend(0.1, 0).open) == 1


def test_a_pool_that_reopens_is_not_crowded() -> None:
    ledger, _ = carrying(CROWDED, pool_size=2)
    joined(ledger, 1)
    ledger.bury()
    ledger.open()
    assert not ledger.is_crowded


def test_a_pool_that_has_no_place_left_is_never_called_crowded() -> None:
    ledger, _ = carrying(9, 9)
    joined(ledger, 1)
    assert not ledger.is_crowded
    assert ledger.tend(0, 0, 5).open == []


def test_queries_that_take_long_do_not_make_the_pool_close_and_open_connections_in_turn() -> None:
    ledger, slots = carrying(CROWDED, pool_size=5, max_idle=600, connection_ttl=0)
    joined(ledger, 1)
    opens = []
    for now in range(0, 6000, 50):
        orders = ledger.tend(now, 0)
        for slot, reason in orders.close:
            ledger.closed(slot, reason)
        for slot in orders.open:
            assert ledger.opened(slot, connection(), now) is None
            opens.append(now)
    assert opens == [0]
    assert ledger.size == 1, "it was closed as surplus, and the queries that are under way need no other"
    assert slots[0].in_flight == CROWDED + 1


def test_nothing_is_opened_for_crowded_connections_where_an_idle_one_would_be_closed_at_once() -> None:
    ledger, _ = carrying(CROWDED, pool_size=5, max_idle=0)
    joined(ledger, 1)
    assert not ledger.is_crowded
    assert ledger.tend(0, 0).open == []
    assert len(ledger.tend(0, 1).open) == 1, "but for those who wait"


def test_growing_goes_on_when_connections_are_crowded_again_after_an_opening_has_failed() -> None:
    ledger, (slot,) = carrying(1, pool_size=3)
    joined(ledger, 2)
    (new,) = ledger.tend(0, 0).open
    assert ledger.open_failed(new, 0) is Refusal.NOBODY
    ledger.leave(slot)
    ledger.leave(slot)
    orders = ledger.tend(10, 0)
    assert (orders.open, orders.wake_at) == ([], NEVER), "nobody needs it any more"
    joined(ledger, 2, now=10)
    assert ledger.is_crowded
    assert len(ledger.tend(10, 0).open) == 1


@pytest.mark.parametrize(
    ("leases", "queries", "admits"),
    [(2, 0, True), (3, 0, False), (0, 6, True), (0, 7, False), (1, 3, True), (1, 4, False), (2, 1, False)],
)
def test_max_waiting_does_not_count_queries_that_connections_under_way_will_carry(
    leases: int, queries: int, admits: bool
) -> None:
    ledger, _ = carrying(3, pool_size=3, max_in_flight=3, max_waiting=1)
    assert ledger.admits(leases, queries) is admits


@pytest.mark.parametrize("under_way", ["an idle one", "an opening", "an empty place"])
def test_max_waiting_counts_on_every_connection_that_can_still_serve_somebody(under_way: str) -> None:
    ledger, slots = opened(pool_size=2, min_size=1 if under_way == "an empty place" else 2, max_waiting=1)
    ledger.lease(slots[0], 0, is_open=True)
    if under_way == "an opening":
        ledger.hold(slots[1], 0)
    assert (ledger.admits(1), ledger.admits(2)) == (True, False)
    assert (ledger.admits(0, 128), ledger.admits(0, 129)) == (True, False)


def test_max_waiting_of_zero_means_no_limit_for_queries_too() -> None:
    ledger, _ = carrying(1, max_in_flight=1)
    assert ledger.admits(10_000, 10_000)


# ---- openings that fail: who is told at once


def test_the_failure_of_an_opening_that_keeps_up_min_size_is_told_to_nobody() -> None:
    ledger = ledger_of(pool_size=2)
    ledger.opened_all()
    slots = ledger.tend(0, 0).open
    assert [ledger.open_failed(slot, 0) for slot in slots] == [Refusal.NOBODY] * 2


def test_a_caller_who_comes_while_an_opening_for_nobody_is_under_way_is_not_told_of_its_failure() -> None:
    ledger = ledger_of(pool_size=1)
    ledger.opened_all()
    (slot,) = ledger.tend(0, 0).open
    assert ledger.tend(0, 1).open == []
    assert ledger.open_failed(slot, 0) is Refusal.NOBODY


@pytest.mark.parametrize(("leases", "queries"), [(1, 0), (0, 1)])
def test_of_openings_for_callers_and_for_min_size_only_the_former_are_told(leases: int, queries: int) -> None:
    ledger = ledger_of(pool_size=5, min_size=3)
    ledger.opened_all()
    slots = ledger.tend(0, leases, queries).open
    told = [ledger.open_failed(slot, 0) for slot in slots]
    assert sorted(told, key=str) == [Refusal.NOBODY] * 2 + [Refusal.OLDEST]


def test_the_failure_of_an_opening_for_crowded_connections_is_told_to_nobody() -> None:
    ledger, _ = carrying(1, pool_size=2)
    joined(ledger, 2)
    (slot,) = ledger.tend(0, 0).open
    assert ledger.open_failed(slot, 0) is Refusal.NOBODY


def test_the_failures_of_openings_are_told_to_no_more_callers_than_waited_when_they_began() -> None:
    ledger, _ = carrying(10, pool_size=8, max_in_flight=10)
    slots = ledger.tend(0, 0, 1).open
    assert sum(slot.is_for_caller for slot in slots) == 1
    slots += ledger.tend(0, 0, 3).open
    assert [ledger.open_failed(slot, 0) for slot in slots].count(Refusal.OLDEST) <= 3


def test_openings_that_are_under_way_for_nobody_count_for_callers_that_come_later() -> None:
    ledger = ledger_of(pool_size=4, min_size=2)
    ledger.opened_all()
    ledger.tend(0, 0)
    (slot,) = ledger.tend(0, 3).open
    assert ledger.open_failed(slot, 0) is Refusal.OLDEST


def test_a_slot_forgets_whom_its_last_opening_was_for() -> None:
    ledger, (slot,) = opened(pool_size=1)
    ledger.lost(slot, 100)
    ledger.closed(slot, CloseReason.BROKEN)
    assert ledger.tend(100, 1).open == [slot]
    assert ledger.open_failed(slot, 100) is Refusal.OLDEST
    assert ledger.tend(200, 0).open == [slot]
    assert ledger.open_failed(slot, 200) is Refusal.NOBODY


# ---- random command sequences


@dataclass
class Shared:
    """What the model knows of a shared slot."""

    load: int
    turn: int  # when it came to this load: of those that carry the same, the first takes the next query
    doomed: CloseReason | None = None
    is_suspected: bool = False

    @property
    def takes_queries(self) -> bool:
        return self.doomed is None and not self.is_suspected


class RandomLedger(RuleBasedStateMachine):
    """Every command that a shell may give, in any order; a simple model says who waits, what is held and who shares it.

    Whoever comes is served strictly first come, first served: by an idle slot, by the shared one that is due, or by a
    carrier of feeds.
    """

    @initialize(
        max_size=st.sampled_from([3, 2, 4, 1, 5]),
        min_size=st.sampled_from([1, 5, 2, 0, 3]),
        ttl=st.sampled_from([0, 20, 200]),
        max_idle=st.sampled_from([None, 0, 7]),
        ping_interval=st.sampled_from([0, 3]),
        check_idle=st.sampled_from([0, 4]),
        max_in_flight=st.sampled_from([1, 2, 3, 5]),
        max_feed_connections=st.sampled_from([None, 0, 1]),
        random=st.floats(0, 1),
    )
    def start(self, max_size: int, min_size: int, ttl: float, random: float, **options: Any) -> None:
        self.config = PoolConfig(pool_size=max_size, min_size=min(min_size, max_size), connection_ttl=ttl, **options)
        self.ledger = Ledger(self.config, lambda: random)
        self.now = 0.0
        self.steps = 0  # since the last drain or closing
        self.turns = itertools.count()
        self.line: list[Need] = []
        self.idle: list[Slot] = []
        self.shared: dict[Slot, Shared] = {}
        self.has_joined_crowd = False
        self.carriers: dict[Slot, int] = {}
        self.carriers_on_trial: set[Slot] = set()
        self.drained_carriers: set[Slot] = set()
        self.suspected_carriers: set[Slot] = set()
        self.open_again()

    def open_again(self) -> None:
        self.ledger.open()
        self.carry_out()
        for slot in self.in_state(SlotState.CONNECTING):
            self.come_home(slot, self.ledger.opened(slot, connection(), self.now))
        self.ledger.opened_all()

    def all_slots(self) -> list[Slot]:
        """In an order that is the same each time that Hypothesis repeats a run; that of a set is not."""
        return [*self.ledger.slots, *sorted(self.ledger.lane, key=lambda slot: int(slot.connection.split()[-1]))]

    def in_state(self, *states: SlotState) -> list[Slot]:
        return [slot for slot in self.all_slots() if slot.state in states]

    def pick(self, data: st.DataObject, *states: SlotState) -> Slot:
        return data.draw(st.sampled_from(self.in_state(*states)))

    # ---- what the shell does

    def come_home(self, slot: Slot, reason: CloseReason | None) -> None:
        if reason is None:
            self.idle.append(slot)
        self.carry_out()

    def carry_out(self) -> None:
        self.serve_line()
        ledger = self.ledger
        before = ledger.connecting
        orders = ledger.tend(self.now, self.leases_wanted, self.line.count(Need.QUERY))
        for slot in (*(slot for slot, _ in orders.close), *orders.check):
            self.idle.remove(slot)
        before += len(orders.check)
        assert all(slot.state is SlotState.CONNECTING for slot in orders.open)
        if orders.open:
            on_trial = len(self.carriers_on_trial - self.drained_carriers)
            enough = max(self.enough, ledger.min_size - (ledger.idle + ledger.leased + ledger.shared + on_trial))
            assert before + len(orders.open) <= enough, "more openings than callers to serve and connections to keep"
        asked_for = sum(slot.is_for_caller for slot in orders.open)
        assert asked_for <= (0 if ledger.is_outage else len(self.line)), "openings for callers that do not wait"
        if self.line and orders.open and not before and not ledger.is_outage:
            assert asked_for, "an opening for a caller is called one for nobody"
        self.has_joined_crowd = self.is_crowded and ledger.can_grow and not orders.open
        self.wake_at = orders.wake_at

    @property
    def leases_wanted(self) -> int:
        return self.line.count(Need.LEASE) + min(1, self.line.count(Need.FEED))

    @property
    def enough(self) -> int:
        """Connections for callers, beside those that are open. Those that take no queries are no use to any."""
        most = self.config.max_in_flight
        room = sum(most - shared.load for shared in self.shared.values() if shared.takes_queries)
        for_queries = -(-max(0, self.line.count(Need.QUERY) - room) // min(CROWDED, most))
        return max(self.leases_wanted + for_queries - len(self.idle), self.is_crowded)

    @property
    def is_crowded(self) -> bool:
        """Whether each connection that takes queries carries CROWDED, and one that came lately found them so."""
        takers = [shared.load for shared in self.shared.values() if shared.takes_queries]
        return self.has_joined_crowd and not self.idle and min(takers, default=0) >= CROWDED

    def serve_line(self) -> None:
        while self.line:
            if self.line[0] is Need.FEED and not self.has_feed_place:
                del self.line[0]  # refused
            elif self.find(self.line[0]) is None:
                return
            else:
                del self.line[0]

    def find(self, need: Need) -> Slot | None:
        if need is Need.FEED and (self.carrier is not None or not self.has_feed_room):
            return self.add_feed()
        return self.use_idle(need) or (self.join() if need is Need.QUERY else None)

    def use_idle(self, need: Need) -> Slot | None:
        """The longest unused slot, put to use. Those that have to be checked or closed first are sent there."""
        begin = {Need.LEASE: self.ledger.lease, Need.QUERY: self.ledger.share, Need.FEED: self.ledger.carry}[need]
        acquired = self.ledger.acquired_total
        while self.idle:
            slot = self.idle.pop(0)
            order: CloseReason | Check | None = begin(slot, self.now, is_open=True)
            assert (order is CloseReason.EXPIRED) is (slot.expires_at <= self.now)
            if order is None:
                if need is Need.QUERY:
                    self.shared[slot] = Shared(load=1, turn=next(self.turns))
                elif need is Need.FEED:
                    self.carriers[slot] = 1
                    self.carriers_on_trial.add(slot)
                assert self.ledger.acquired_total == acquired + (need is Need.LEASE)
                return slot
            assert order in (CHECK, CloseReason.EXPIRED)
        return None

    def due(self) -> Slot | None:
        """The shared slot that the next query goes to. Dooms those that would come before, but whose time is up."""
        shared = self.shared
        takers = [slot for slot in shared if shared[slot].takes_queries and not self.is_full(slot)]
        for slot in sorted(takers, key=lambda slot: (shared[slot].load, shared[slot].turn)):
            if self.now < slot.expires_at:
                return slot
            shared[slot].doomed = CloseReason.EXPIRED
        return None

    def is_full(self, slot: Slot) -> bool:
        return self.shared[slot].load >= self.config.max_in_flight

    def join(self) -> Slot | None:
        due = self.due()
        assert self.ledger.join(self.now) is due, "another one is the least loaded, or came to that load before"
        if due is not None:
            self.has_joined_crowd |= self.shared[due].load >= CROWDED and self.ledger.can_grow
            self.shared[due].load += 1
            self.shared[due].turn = next(self.turns)
        return due

    def leave(self, slot: Slot, is_last: bool, is_open: bool = True) -> None:
        """A query, or a check, has left a shared slot, as the ledger knows."""
        shared = self.shared[slot]
        shared.load -= 1
        shared.turn = next(self.turns)
        assert is_last is (shared.load == 0)
        if is_last:
            del self.shared[slot]
            reason = self.ledger.unshare(slot, self.now, is_open)
            assert reason is (shared.doomed or (None if is_open else CloseReason.BROKEN))
            self.come_home(slot, reason)
        else:
            self.serve_line()

    @property
    def has_feed_room(self) -> bool:
        leased = len(self.in_state(SlotState.FEED, SlotState.TRAILING))
        room = leased + len(self.carriers.keys() - self.drained_carriers) < self.config.feed_limit
        assert self.ledger.has_feed_room() is room
        return room

    @property
    def has_feed_place(self) -> bool:
        place = self.has_feed_room or bool(self.carriers.keys() - self.drained_carriers)
        assert self.ledger.has_feed_place() is place
        return place

    @property
    def carrier(self) -> Slot | None:
        unfit = self.drained_carriers | self.suspected_carriers
        fit = {slot: feeds for slot, feeds in self.carriers.items() if slot not in unfit}
        carrier = self.ledger.carrier()
        assert (carrier is None) is (not fit)
        assert carrier is None or fit[carrier] == min(fit.values())
        return min(fit, key=lambda slot: fit[slot], default=None)

    def add_feed(self) -> Slot | None:
        carrier = self.carrier
        if carrier is not None:
            self.ledger.add_feed(carrier)
            self.carriers[carrier] += 1
        return carrier

    def forget(self, slot: Slot) -> None:
        self.shared.pop(slot, None)
        self.carriers.pop(slot, None)
        self.carriers_on_trial.discard(slot)
        self.drained_carriers.discard(slot)
        self.suspected_carriers.discard(slot)

    # ---- callers and time

    @rule(data=st.data(), seconds=st.sampled_from([1, 0.01, 1, 6, 60]), times=st.integers(0, 4))
    def time_passes(self, data: st.DataObject, seconds: float, times: int) -> None:
        self.now += seconds
        self.carry_out()
        self.something_ends(data, times)

    @rule(need=st.sampled_from([Need.LEASE, Need.QUERY, Need.QUERY, Need.FEED]), count=st.integers(1, 8))
    def somebody_comes(self, need: Need, count: int) -> None:
        if need is Need.QUERY:
            self.queries_come(count)
        elif need is Need.FEED:
            self.feed_comes()
        else:
            if self.line or self.find(Need.LEASE) is None:
                self.line.append(Need.LEASE)
            self.carry_out()

    def queries_come(self, count: int) -> None:
        """The ledger is asked for more connections only where it says that the shared ones are crowded."""
        for _ in range(count):
            was_crowded = self.ledger.is_crowded
            if self.line or self.find(Need.QUERY) is None:
                self.line.append(Need.QUERY)
                self.carry_out()
            elif self.ledger.is_crowded and not was_crowded:
                self.carry_out()
        if self.is_crowded and self.ledger.can_grow and not self.ledger.is_outage and self.config.max_idle != 0:
            assert self.ledger.connecting, "all are crowded, and none is opened"

    def feed_comes(self) -> None:
        if self.carrier is not None:
            if not (self.idle and not self.line and self.ledger.wants_carrier()):
                self.add_feed()
                return
            fit = self.carriers.keys() - self.drained_carriers - self.suspected_carriers
            assert min(self.carriers[slot] for slot in fit) >= self.config.max_in_flight
            if self.use_idle(Need.FEED) is None:
                self.add_feed()
        elif self.has_feed_place and (self.line or self.find(Need.FEED) is None):
            self.line.append(Need.FEED)
        self.carry_out()

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def somebody_gives_up(self, data: st.DataObject) -> None:
        del self.line[data.draw(st.integers(0, len(self.line) - 1))]
        self.serve_line()

    # ---- what is under way goes on

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), times=st.integers(1, 4))
    def things_end(self, data: st.DataObject, times: int) -> None:
        self.something_ends(data, times)

    def something_ends(self, data: st.DataObject, times: int) -> None:
        for _ in range(times):
            if self.under_way:
                slot = data.draw(st.sampled_from(self.under_way))
                self.end(slot, data.draw(st.sampled_from([True, True, True, False])), data.draw(st.integers(1, 8)))
                self.ledger.check()

    def end(self, slot: Slot, goes_well: bool, count: int) -> None:
        """Whatever goes on in this slot, and so many of it."""
        if slot.state is SlotState.CONNECTING and slot.connection is None:
            self.opening_ends(slot, goes_well, is_hopeless=count == 8)
        elif slot.state is SlotState.CONNECTING and goes_well:
            self.come_home(slot, self.ledger.prepared(slot, self.now, is_open=True))
        elif slot.state is SlotState.CONNECTING:
            self.come_home(slot, self.ledger.unfit(slot, self.now, is_open=True))
        elif slot.state is SlotState.LEASED:
            come_home = self.ledger.pass_on if count == 8 else self.ledger.release
            self.come_home(slot, come_home(slot, self.now, is_open=goes_well))
        elif slot.state is SlotState.SHARED and self.shared[slot].is_suspected and count < 5:
            self.check_of_a_shared_slot_ends(slot, goes_well)
        elif slot.state is SlotState.SHARED:
            for _ in range(min(count, self.shared[slot].load - self.shared[slot].is_suspected)):
                self.leave(slot, self.ledger.leave(slot), is_open=goes_well)
        elif slot.state is SlotState.CARRIER:
            self.something_ends_on_a_carrier(slot, goes_well, count)
        elif slot.state in (SlotState.FEED, SlotState.TRAILING):
            self.come_home(slot, self.ledger.feed_ended(slot, self.now, is_open=goes_well))
        else:
            self.ledger.closed(slot, CloseReason.BROKEN)
            self.carry_out()

    @property
    def under_way(self) -> list[Slot]:
        done = (SlotState.IDLE, SlotState.EMPTY)
        return [slot for slot in self.all_slots() if slot.state not in done]

    def opening_ends(self, slot: Slot, goes_well: bool, is_hopeless: bool) -> None:
        if goes_well:
            self.come_home(slot, self.ledger.opened(slot, connection(), self.now))
            return
        expected = Refusal.OLDEST if slot.is_for_caller else Refusal.NOBODY
        refusal = self.ledger.open_failed(slot, self.now, is_hopeless=is_hopeless)
        assert refusal is (Refusal.ALL if is_hopeless else expected)
        if refusal is not Refusal.NOBODY:
            del self.line[: None if refusal is Refusal.ALL else 1]
        self.carry_out()

    def check_of_a_shared_slot_ends(self, slot: Slot, is_good: bool) -> None:
        self.shared[slot].is_suspected = False
        if not is_good:
            self.shared[slot].doomed = self.shared[slot].doomed or CloseReason.UNFIT
        self.leave(slot, self.ledger.answered(slot, is_good=is_good), is_open=is_good)
        if not is_good:
            self.siblings_are_checked()

    def something_ends_on_a_carrier(self, slot: Slot, goes_well: bool, count: int) -> None:
        is_suspected = slot in self.suspected_carriers
        if self.carriers[slot] == 0:
            self.end_carrier(slot, goes_well)
        elif self.carriers[slot] > is_suspected and count > 6:
            assert self.ledger.feed_opened(slot) is (slot in self.carriers_on_trial)
            self.carriers_on_trial.discard(slot)
            self.carry_out()
        elif self.carriers[slot] > is_suspected and count > 3:
            self.leave_carrier(slot, self.ledger.remove_feed(slot), goes_well, is_read_on=count > 5)
        elif is_suspected:
            self.suspected_carriers.discard(slot)
            is_last = self.ledger.answered(slot, is_good=goes_well)
            if goes_well:
                self.leave_carrier(slot, is_last, is_open=True, is_read_on=False)
            else:
                self.ledger.abandon(slot, CloseReason.BROKEN)
                self.forget(slot)
            self.carry_out()

    def leave_carrier(self, slot: Slot, is_last: bool, is_open: bool, is_read_on: bool) -> None:
        self.carriers[slot] -= 1
        assert is_last is (self.carriers[slot] == 0)
        if is_last:
            self.carriers_on_trial.discard(slot)
        if is_last and not is_read_on:
            self.end_carrier(slot, is_open)

    def end_carrier(self, slot: Slot, is_open: bool) -> None:
        was_drained = slot in self.drained_carriers
        self.forget(slot)
        reason = self.ledger.feed_ended(slot, self.now, is_open)
        assert (reason is CloseReason.DRAINED) is was_drained
        self.come_home(slot, reason)

    # ---- what comes in between

    @precondition(lambda self: self.ledger.leased)
    @rule(data=st.data(), what=st.sampled_from(["is reset", "serves a feed", "served a feed that is read on"]))
    def something_happens_to_a_lease(self, data: st.DataObject, what: str) -> None:
        slot = self.pick(data, SlotState.LEASED)
        if what == "is reset":
            self.ledger.hold_released(slot)
        elif self.has_feed_room:
            self.ledger.to_feed_lane(slot)
            if what == "served a feed that is read on":
                self.ledger.trail(slot)
        self.carry_out()

    @precondition(lambda self: self.shared or self.carriers)
    @rule(data=st.data())
    def something_has_no_answer_in_time(self, data: st.DataObject) -> None:
        slot = self.pick(data, SlotState.SHARED, SlotState.CARRIER)
        is_suspected = slot in self.suspected_carriers or (slot in self.shared and self.shared[slot].is_suspected)
        if slot.in_flight == is_suspected:
            return
        if slot in self.shared:
            is_news = self.shared[slot].takes_queries
            self.shared[slot].is_suspected |= is_news
            self.shared[slot].load += is_news
        elif is_news := slot not in self.drained_carriers | self.suspected_carriers:
            self.suspected_carriers.add(slot)
            self.carriers[slot] += 1
        assert self.ledger.question(slot) is is_news
        if slot in self.shared:
            self.leave(slot, self.ledger.leave(slot))
        else:
            self.leave_carrier(slot, self.ledger.remove_feed(slot), is_open=True, is_read_on=False)

    @precondition(lambda self: self.shared and not self.line and not self.idle)
    @rule()
    def query_finds_its_slot_broken(self) -> None:
        if (slot := self.join()) is not None:
            self.shared[slot].doomed = CloseReason.BROKEN
            self.leave(slot, self.ledger.turn_away(slot), is_open=False)
            if self.find(Need.QUERY) is None:
                self.line.append(Need.QUERY)
            self.carry_out()

    @precondition(lambda self: self.idle)
    @rule(is_reset=st.booleans())
    def something_happens_to_an_idle_one(self, is_reset: bool) -> None:
        slot = self.idle.pop(0)
        if is_reset:
            self.ledger.hold(slot, self.now)
            self.carry_out()
        else:
            assert self.ledger.lost(slot, self.now) is CloseReason.BROKEN
            self.siblings_are_checked()

    def siblings_are_checked(self) -> None:
        assert sorted(self.idle, key=id) == sorted(self.ledger.suspect(self.now), key=id)
        self.idle.clear()
        self.carry_out()

    @precondition(lambda self: self.ledger.closing)
    @rule(data=st.data())
    def closing_one_is_still_read(self, data: st.DataObject) -> None:
        self.ledger.retire(self.pick(data, SlotState.CLOSING))
        self.carry_out()

    # ---- the pool

    @precondition(lambda self: self.steps >= 10 and (self.ledger.leased or self.shared or self.carriers))
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        slot = self.pick(data, SlotState.LEASED, SlotState.SHARED, SlotState.CARRIER)
        self.ledger.abandon(slot, CloseReason.BROKEN)
        self.forget(slot)
        self.carry_out()

    @precondition(lambda self: self.steps >= 20)
    @rule()
    def drain(self) -> None:
        self.steps = 0
        assert self.ledger.drain(self.now) == [slot for slot in self.ledger.slots if slot in self.idle]
        self.idle.clear()
        for shared in self.shared.values():
            shared.doomed = CloseReason.DRAINED
        self.drained_carriers |= self.carriers.keys()
        self.carry_out()

    @precondition(lambda self: self.steps >= 20)
    @rule(how=st.sampled_from(["closed", "aborted", "buried"]))
    def close_and_open_again(self, how: str) -> None:
        self.steps = 0
        self.idle.clear()
        self.line.clear()
        if how == "buried":
            self.ledger.bury()
        else:
            self.close(is_patient=how == "closed")
        self.ledger.check()
        assert (self.ledger.size, self.ledger.lane, self.ledger.queries) == (0, set(), 0)
        for slot in (*self.shared, *self.carriers):
            self.forget(slot)
        self.has_joined_crowd = False
        self.open_again()

    def close(self, is_patient: bool) -> None:
        """A patient one waits until all queries have ended."""
        self.ledger.close(self.now)
        self.ledger.check()
        assert self.ledger.join(self.now) is self.ledger.carrier() is None
        for slot in list(self.shared) if is_patient else []:
            self.shared[slot].doomed = CloseReason.POOL_CLOSED
            if self.shared[slot].is_suspected:
                self.shared[slot].is_suspected = False
                self.leave(slot, self.ledger.answered(slot, is_good=False))
            while slot in self.shared:
                self.leave(slot, self.ledger.leave(slot))
        in_use = (SlotState.LEASED, SlotState.SHARED, SlotState.FEED, SlotState.CARRIER, SlotState.TRAILING)
        for slot in self.in_state(*in_use):
            self.ledger.abandon(slot, CloseReason.POOL_CLOSED)
        for slot in self.in_state(SlotState.CONNECTING):
            if slot.connection is None:
                self.ledger.open_cancelled(slot)
            else:
                assert self.ledger.prepared(slot, self.now, is_open=True) is CloseReason.POOL_CLOSED
        for slot in self.in_state(SlotState.CLOSING, SlotState.RETIRED):
            self.ledger.closed(slot, CloseReason.POOL_CLOSED)
        self.ledger.check()
        self.ledger.closed_all()

    # ---- what holds after every command

    @property
    def waits_for_a_check(self) -> bool:
        """Whether a feed is the first in line, and what it waits for is a carrier in question: the lane takes no other
        connection.
        """
        return self.line[0] is Need.FEED and not self.has_feed_room

    @invariant()
    def the_counts_agree(self) -> None:
        if hasattr(self, "ledger"):
            self.steps += 1
            self.ledger.check()
            assert self.ledger.idle == len(self.idle)
            assert set(self.in_state(SlotState.SHARED)) == self.shared.keys()
            assert set(self.in_state(SlotState.CARRIER)) == self.carriers.keys()
            assert all(slot.in_flight == shared.load for slot, shared in self.shared.items())
            assert all(slot.in_flight == feeds for slot, feeds in self.carriers.items())
            checks = sum(shared.is_suspected for shared in self.shared.values())
            assert self.ledger.queries == sum(shared.load for shared in self.shared.values()) - checks
            assert self.ledger.carried == sum(self.carriers.values()) - len(self.suspected_carriers)

    @invariant()
    def nobody_waits_beside_what_could_serve_him(self) -> None:
        """Only whoever has waited longest: the others must not overtake."""
        if hasattr(self, "ledger") and self.line:
            assert not self.idle or self.waits_for_a_check, "somebody waits beside an idle connection"
            if self.line[0] is Need.QUERY:
                takers = [slot for slot in self.shared if self.shared[slot].takes_queries and not self.is_full(slot)]
                assert all(slot.expires_at <= self.now for slot in takers), "a query waits beside a place for it"
            if self.line[0] is Need.FEED:
                assert self.carrier is None, "a feed waits beside a carrier"
                assert self.has_feed_place, "a feed waits for a lane that is full"

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """Where there is place for one more connection, one is under way to whoever waits, or a probe that will be
        ordered in time.
        """
        if not hasattr(self, "ledger") or not self.line or self.waits_for_a_check:
            return
        if self.ledger.can_grow and not self.ledger.connecting:
            assert self.ledger.is_outage
            assert self.wake_at < NEVER


RandomLedger.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestRandomCommands = RandomLedger.TestCase
