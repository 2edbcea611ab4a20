"""Drain, resize and close: what becomes of connections in each state."""

from __future__ import annotations

import pytest

from core_facts import finish
from core_kit import FEED, LEASE, QUERY, Need, Shell, hook

NEEDS = [LEASE, QUERY, FEED]


# ---- drain


def test_drain_closes_idle_connections_now_and_replaces_them() -> None:
    pool = Shell(pool_size=2)
    assert pool.drain() == [("close", 1, "drained"), ("close", 2, "drained")]
    assert [pool.closed(1), pool.closed(2)] == [[("open", 3)], [("open", 4)]]


@pytest.mark.parametrize("need", [LEASE, QUERY])
def test_drain_closes_connections_in_use_when_nobody_uses_them_any_more(need: Need) -> None:
    pool = Shell(pool_size=1)
    pool.ask("a", need)
    assert pool.drain() == []
    assert pool.release("a") == [("close", 1, "drained")]
    assert pool.closed(1) == [("open", 2)]


def test_a_drained_connection_takes_no_query() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a", QUERY)
    pool.drain()
    assert pool.ask("b", QUERY) == []


def test_a_drained_connection_that_carries_queries_needs_no_other_before_somebody_asks() -> None:
    pool = Shell(pool_size=3, min_size=1)
    for name in "ab":
        pool.ask(name, QUERY)
    assert pool.drain() == []
    assert pool.ask("x", QUERY) == [("open", 2)]


def test_a_connection_that_is_being_opened_during_a_drain_is_replaced_too() -> None:
    pool = Shell(pool_size=1, min_size=0)
    pool.ask("a")
    assert pool.drain() == []
    assert pool.opened(1) == [("close", 1, "drained")]
    assert pool.closed(1) == [("open", 2)]
    assert pool.opened(2) == [("serve", "a", 2)]


def test_a_connection_that_is_being_checked_during_a_drain_is_replaced_too() -> None:
    pool = Shell(pool_size=1, check=hook)
    pool.ask("a")
    assert pool.drain() == []
    assert pool.prepared(1) == [("close", 1, "drained")]


def test_the_connection_that_replaces_a_drained_one_stays() -> None:
    pool = Shell(pool_size=1)
    pool.drain()
    pool.closed(1)
    assert pool.opened(2) == []
    assert pool.states() == {2: "idle"}


def test_a_drained_connection_that_died_is_aborted() -> None:
    pool = Shell(pool_size=1)
    pool.die(1)
    assert pool.drain() == [("abort", 1, "drained"), ("open", 2)]


def test_a_second_drain_changes_nothing_for_those_that_were_drained() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a")
    pool.drain()
    assert pool.drain() == []
    assert pool.release("a") == [("close", 1, "drained")]


def test_those_in_line_are_served_by_what_replaces_drained_connections() -> None:
    pool = Shell(pool_size=2)
    pool.ask("a")
    pool.ask("b")
    pool.ask("c")
    pool.drain()
    assert pool.release("a") == [("close", 2, "drained")]
    assert pool.closed(2) == [("open", 3)]
    assert pool.opened(3) == [("serve", "c", 3)]


# ---- resize


def test_growing_serves_those_who_wait() -> None:
    pool = Shell(pool_size=1)
    for name in "abc":
        pool.ask(name)
    assert pool.resize(pool_size=2, min_size=0) == [("open", 2)]
    assert pool.opened(2) == [("serve", "b", 2)]


def test_growing_opens_min_size() -> None:
    pool = Shell(pool_size=1)
    assert pool.resize(pool_size=3, min_size=2) == [("open", 2)]


def test_shrinking_closes_idle_connections_now_those_unused_for_longest_first() -> None:
    pool = Shell(pool_size=3)
    pool.ask("a")
    pool.wait(1)
    pool.release("a")
    assert pool.resize(pool_size=1, min_size=1) == [("close", 1, "surplus"), ("close", 2, "surplus")]


def test_shrinking_closes_leased_connections_when_they_come_home() -> None:
    pool = Shell(pool_size=2)
    pool.ask("a")
    pool.ask("b")
    assert pool.resize(pool_size=1, min_size=1) == []
    assert pool.release("a") == [("close", 2, "surplus")]
    assert pool.release("b") == []


def test_a_shrunk_pool_serves_those_who_wait_only_from_what_it_may_keep() -> None:
    pool = Shell(pool_size=2)
    for name in "abc":
        pool.ask(name)
    pool.resize(pool_size=1, min_size=1)
    assert pool.release("a") == [("close", 2, "surplus")]
    assert pool.closed(2) == []
    assert pool.release("b") == [("serve", "c", 1)]


def test_shrinking_ends_the_sharing_of_connections_under_a_steady_load() -> None:
    pool = Shell(pool_size=2)
    pool.ask("a", QUERY)  # 2
    pool.ask("b", QUERY)  # 1
    pool.resize(pool_size=1, min_size=1)
    assert pool.ask("c", QUERY) == [("serve", "c", 1)]
    assert pool.release("a") == [("close", 2, "surplus")]


def test_a_connection_that_is_opened_for_a_pool_that_has_shrunk_is_closed() -> None:
    pool = Shell(pool_size=2, min_size=0)
    pool.ask("a")
    pool.ask("b")
    pool.opened(1)
    pool.resize(pool_size=1, min_size=0)
    assert pool.opened(2) == [("close", 2, "surplus")]
    assert pool.release("a") == [("serve", "b", 1)]


def test_what_is_on_its_way_out_is_not_too_many() -> None:
    pool = Shell(pool_size=2)
    pool.ask("a")
    pool.ask("b")
    pool.drain()
    pool.release("a")
    pool.resize(pool_size=1, min_size=1)
    assert pool.release("b") == [("close", 1, "drained")]


def test_a_resize_of_the_lane_lets_feeds_in() -> None:
    pool = Shell(pool_size=1, max_feed_connections=0)
    assert pool.ask("a", FEED) == [("refuse", "a", "lane full")]
    pool.resize(max_feed_connections=1)
    assert pool.ask("b", FEED) == [("serve", "b", 1)]


# ---- close


def test_closing_closes_idle_connections() -> None:
    pool = Shell(pool_size=2)
    assert pool.close() == [("close", 1, "pool closed"), ("close", 2, "pool closed")]
    assert [pool.closed(1), pool.closed(2)] == [[], []]
    assert pool.states() == {}


@pytest.mark.parametrize("need", [LEASE, QUERY])
def test_leases_and_queries_may_go_on_while_the_pool_closes(need: Need) -> None:
    pool = Shell(pool_size=1)
    pool.ask("a", need)
    assert pool.close() == []
    assert pool.release("a") == [("close", 1, "pool closed")]


@pytest.mark.parametrize("need", [LEASE, QUERY])
def test_leases_and_queries_are_ended_when_their_time_is_over(need: Need) -> None:
    pool = Shell(pool_size=1)
    pool.ask("a", need)
    pool.close()
    assert pool.end_uses() == [("abort", 1, "pool closed")]


@pytest.mark.parametrize("is_drained", [False, True])
@pytest.mark.parametrize("need", [LEASE, FEED])
def test_feeds_end_at_once_when_the_pool_closes(need: Need, is_drained: bool) -> None:
    pool = Shell(pool_size=1, min_size=0)
    pool.ask("a", need)
    pool.opened(1)
    pool.step_aside("a")
    if is_drained:
        pool.drain()
    assert pool.close() == [("close", 1, "pool closed")]
    assert pool.release("a") == []


@pytest.mark.parametrize("is_drained", [False, True])
@pytest.mark.parametrize(
    ("what", "feeds"),
    [
        ("a lease", 0),
        ("a query", 0),
        ("a feed that is not open yet", 0),
        ("a cursor", 0),
        ("a lease that serves a feed", 1),
        ("three feeds", 3),
        ("three feeds of a doubted connection", 3),
        ("no feed any more, of a doubted connection", 0),
        ("a feed that is read on", 1),
    ],
)
def test_closing_tells_how_many_feeds_it_ends(what: str, feeds: int, is_drained: bool) -> None:
    pool = Shell(pool_size=1)
    need = QUERY if what == "a query" else LEASE if "lease" in what or "read on" in what or "cursor" in what else FEED
    for name in "abc" if "three" in what else "a":
        pool.ask(name, need)
    if what in ("a lease that serves a feed", "a feed that is read on") or "doubted" in what or "three" in what:
        pool.step_aside("a")
    if "doubted" in what:
        pool.doubt("a")
    if "read on" in what or "cursor" in what:
        pool.read("a")
    if "any more" in what or "read on" in what or "cursor" in what:
        pool.release("a")
    if is_drained:
        pool.drain()
    assert pool.core.close(pool.now) == feeds


def test_what_is_read_on_in_the_lane_ends_at_once_when_the_pool_closes() -> None:
    pool = Shell(pool_size=1, min_size=0)
    pool.ask("a")
    pool.opened(1)
    pool.step_aside("a")
    pool.read("a")
    pool.release("a")
    assert pool.close() == [("close", 1, "pool closed")]


def test_cursors_have_their_grace_while_the_pool_closes() -> None:
    pool = Shell(pool_size=1, cursor_grace=7)
    pool.ask("a")
    pool.read("a")
    pool.release("a")
    assert pool.close() == [("await readers", 1, 7)]
    assert pool.read_out(1) == [("close", 1, "pool closed")]


def test_cursors_are_ended_with_the_time_of_all_users() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a")
    pool.read("a")
    pool.release("a")
    pool.close()
    assert pool.end_uses() == [("abort", 1, "pool closed")]


def test_an_opening_is_aborted_when_the_pool_closes() -> None:
    pool = Shell(pool_size=1, is_started=False)
    pool.tick()
    assert pool.close() == [("abort", 1, "pool closed")]
    assert pool.states() == {}


def test_a_connection_that_is_opened_in_the_moment_of_closing_is_aborted() -> None:
    pool = Shell(pool_size=1, is_started=False)
    pool.tick()
    pool.close()
    assert pool.opened(1) == [("abort", 1, "pool closed")]


def test_a_connection_that_is_opened_in_the_moment_of_closing_has_its_times() -> None:
    pool = Shell(pool_size=1, is_started=False)
    pool.tick()
    (slot,) = pool.core.slots
    pool.close()
    pool.wait(5)
    pool.opened(1)
    assert (slot.opened_at, slot.used_at) == (5, 5), "its life is reported to the second"


def test_an_opening_that_fails_after_closing_changes_nothing() -> None:
    pool = Shell(pool_size=1, is_started=False)
    pool.tick()
    pool.close()
    assert pool.open_failed(1) == []


def test_a_connection_that_is_checked_is_closed_when_its_check_is_over() -> None:
    pool = Shell(pool_size=1, check=hook)
    pool.ask("a")
    assert pool.close() == [("refuse", "a", "closed")]
    assert pool.prepared(1) == [("close", 1, "pool closed")]


@pytest.mark.parametrize("fact", ["tick", "drain", "resize"])
def test_a_closing_pool_opens_nothing(fact: str) -> None:
    pool = Shell(pool_size=2)
    pool.ask("a")
    pool.close()
    pool.closed(1)
    told = pool.resize(pool_size=5) if fact == "resize" else getattr(pool, fact)()
    assert told == []


def test_nothing_exists_any_more_after_forget() -> None:
    pool = Shell(pool_size=3)
    pool.ask("a", QUERY)
    slot = pool.uses["a"].slot
    pool.core.forget()
    assert not list(pool.core.slots)
    pool.core.release(slot, pool.now)
    pool.core.tick(pool.now)
    assert not pool.core.orders, "no connection is closed: a fork's parent still uses it"


@pytest.mark.parametrize("is_patient", [True, False])
@pytest.mark.parametrize("before", NEEDS)
def test_closing_leaves_nothing(before: Need, is_patient: bool) -> None:
    pool = Shell(pool_size=2, min_size=1)
    pool.ask("a", before)
    pool.ask("b", LEASE)
    finish(pool, is_patient=is_patient)


@pytest.mark.parametrize("need", NEEDS)
def test_a_fact_about_a_connection_that_is_gone_changes_nothing(need: Need) -> None:
    pool = Shell(pool_size=1)
    pool.ask("a", need)
    slot = pool.uses["a"].slot
    pool.close()
    pool.end_uses()
    core = pool.core
    core.prepared(slot, 0.0, is_fit=False)
    core.read_out(slot, 0.0)
    core.closed(slot, 0.0)
    core.lost(slot, 0.0)
    core.doubt(slot, 0.0)
    core.open_failed(slot, 0.0)
    assert core.step_aside(slot, 0.0)
    core.end_uses(0.0)
    assert not core.orders
