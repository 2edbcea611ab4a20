"""The ledger without an event loop: tables of facts and orders, and random command sequences with ``check()`` in
between.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from async_repool._backoff import LIFETIME_JITTER, LONGEST_DELAY, Backoff, expiry
from async_repool._ledger import CHECK, CloseReason, Ledger, LedgerState, Refusal, Slot, SlotState
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
    assert (backoff.failures, backoff.retry_at) == (1, pytest.approx(0.1))


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


# ---- random command sequences


class RandomLedger(RuleBasedStateMachine):
    """Every command that a shell may give, in any order; a simple model says who waits and what is held."""

    @initialize(
        max_size=st.integers(1, 5),
        min_size=st.integers(0, 5),
        ttl=st.sampled_from([0, 5, 50]),
        max_idle=st.sampled_from([None, 0, 7]),
        ping_interval=st.sampled_from([0, 3]),
        check_idle=st.sampled_from([0, 4]),
        random=st.floats(0, 1),
    )
    def start(self, max_size: int, min_size: int, ttl: float, random: float, **options: Any) -> None:
        self.config = PoolConfig(pool_size=max_size, min_size=min(min_size, max_size), connection_ttl=ttl, **options)
        self.ledger = Ledger(self.config, lambda: random)
        self.now = 0.0
        self.waiting = 0
        self.idle: list[Slot] = []
        self.open_again()

    def open_again(self) -> None:
        self.ledger.open()
        self.carry_out()
        for slot in self.in_state(SlotState.CONNECTING):
            self.come_home(slot, self.ledger.opened(slot, connection(), self.now))
        self.ledger.opened_all()

    def in_state(self, *states: SlotState) -> list[Slot]:
        return [slot for slot in (*self.ledger.slots, *self.ledger.lane) if slot.state in states]

    def pick(self, data: st.DataObject, *states: SlotState) -> Slot | None:
        slots = self.in_state(*states)
        return data.draw(st.sampled_from(slots)) if slots else None

    def come_home(self, slot: Slot, reason: CloseReason | None) -> None:
        """What the shell does: serve who waits, or keep it idle."""
        if reason is None:
            if self.waiting:
                self.waiting -= self.ledger.lease(slot, self.now, is_open=True) is None
            else:
                self.idle.append(slot)
        self.carry_out()

    def carry_out(self) -> None:
        before = self.ledger.connecting
        orders = self.ledger.tend(self.now, self.waiting)
        for slot in (*(slot for slot, _ in orders.close), *orders.check):
            self.idle.remove(slot)
        before += len(orders.check)
        if before + len(orders.open) > max(self.waiting, self.ledger.min_size) and orders.open:
            raise AssertionError("more openings than callers to serve and connections to keep")
        assert all(slot.state is SlotState.CONNECTING for slot in orders.open)

    @rule(seconds=st.sampled_from([0.01, 1, 6, 60]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.carry_out()

    @rule()
    def acquire(self) -> None:
        if self.ledger.state is not LedgerState.OPEN:
            return
        while self.idle and not self.waiting:
            slot = self.idle.pop(0)
            expired = slot.expires_at <= self.now
            order = self.ledger.lease(slot, self.now, is_open=True)
            assert (order is CloseReason.EXPIRED) is expired
            if order is None:
                return
            assert order in (CHECK, CloseReason.EXPIRED)
        self.waiting += 1
        self.carry_out()

    @precondition(lambda self: self.waiting)
    @rule()
    def waiter_gives_up(self) -> None:
        self.waiting -= 1

    @rule(data=st.data(), is_open=st.booleans())
    def release(self, data: st.DataObject, is_open: bool) -> None:
        if slot := self.pick(data, SlotState.LEASED):
            self.come_home(slot, self.ledger.release(slot, self.now, is_open))

    @rule(data=st.data(), outcome=st.sampled_from(["opened", "failed", "hopeless"]))
    def opening_ends(self, data: st.DataObject, outcome: str) -> None:
        slot = self.pick(data, SlotState.CONNECTING)
        if slot is None or slot.connection is not None:
            return
        if outcome == "opened":
            self.come_home(slot, self.ledger.opened(slot, connection(), self.now))
            return
        refusal = self.ledger.open_failed(slot, self.now, is_hopeless=outcome == "hopeless")
        self.waiting = 0 if refusal is Refusal.ALL else max(0, self.waiting - (refusal is Refusal.OLDEST))
        self.carry_out()

    @rule(data=st.data(), of_idle=st.booleans())
    def hold(self, data: st.DataObject, of_idle: bool) -> None:
        if of_idle and self.idle:
            self.ledger.hold(self.idle.pop(0), self.now)
        elif not of_idle and (slot := self.pick(data, SlotState.LEASED)):
            self.ledger.hold_released(slot)

    @rule(data=st.data(), passes=st.booleans())
    def preparing_ends(self, data: st.DataObject, passes: bool) -> None:
        slot = self.pick(data, SlotState.CONNECTING)
        if slot is None or slot.connection is None:
            return
        if passes:
            self.come_home(slot, self.ledger.prepared(slot, self.now, is_open=True))
        else:
            self.come_home(slot, self.ledger.unfit(slot, self.now, is_open=True))

    @rule(data=st.data())
    def closed(self, data: st.DataObject) -> None:
        if slot := self.pick(data, SlotState.CLOSING, SlotState.RETIRED):
            self.ledger.closed(slot, CloseReason.BROKEN)
            self.carry_out()

    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        if slot := self.pick(data, SlotState.CLOSING):
            self.ledger.retire(slot)
            self.carry_out()

    @rule()
    def idle_one_dies(self) -> None:
        if self.idle:
            self.ledger.lost(self.idle.pop(0), self.now)
            assert sorted(self.idle, key=id) == sorted(self.ledger.suspect(self.now), key=id)
            self.idle.clear()

    @rule(data=st.data())
    def feed_begins(self, data: st.DataObject) -> None:
        slot = self.pick(data, SlotState.LEASED)
        if slot and self.ledger.has_feed_room():
            self.ledger.to_feed_lane(slot)
            self.carry_out()

    @rule(data=st.data(), is_open=st.booleans())
    def feed_ends(self, data: st.DataObject, is_open: bool) -> None:
        if slot := self.pick(data, SlotState.FEED, SlotState.TRAILING):
            self.come_home(slot, self.ledger.feed_ended(slot, self.now, is_open))

    @rule()
    def drain(self) -> None:
        assert self.ledger.drain(self.now) == [slot for slot in self.ledger.slots if slot in self.idle]
        self.idle.clear()

    @rule(data=st.data())
    def close_and_open_again(self, data: st.DataObject) -> None:
        self.ledger.close(self.now)
        self.idle.clear()
        self.waiting = 0
        self.ledger.check()
        for slot in self.in_state(SlotState.LEASED, SlotState.FEED, SlotState.TRAILING):
            self.ledger.abandon(slot, CloseReason.POOL_CLOSED)
        for slot in self.in_state(SlotState.CONNECTING):
            if slot.connection is None:
                self.ledger.open_cancelled(slot)
            else:
                assert self.ledger.prepared(slot, self.now, is_open=True) is CloseReason.POOL_CLOSED
        for slot in self.in_state(SlotState.CLOSING, SlotState.RETIRED):
            self.ledger.closed(slot, CloseReason.POOL_CLOSED)
        assert (self.ledger.size, self.ledger.lane) == (0, set())
        self.ledger.closed_all()
        self.open_again()

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.check()
            assert self.ledger.idle == len(self.idle)
            assert not (self.waiting and self.idle), "somebody waits beside an idle connection"

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """Whoever waits is waited for: by an opening, a closing, a lease, or a probe that will be ordered in time."""
        if hasattr(self, "ledger") and self.waiting and not self.ledger.size:
            orders = self.ledger.tend(self.now, self.waiting)
            assert orders.open or orders.wake_at < float("inf")


RandomLedger.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestRandomCommands = RandomLedger.TestCase
