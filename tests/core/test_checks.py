"""Checks and resets: which connections are checked when, doubt, and the siblings of a connection that was lost."""

from __future__ import annotations

import pytest

from core_kit import FEED, LEASE, QUERY, Need, Shell, hook


def test_a_connection_that_was_silent_for_longer_than_check_idle_is_checked_before_its_lease() -> None:
    pool = Shell(pool_size=1, check_idle=60)
    pool.wait(60)
    assert pool.ask("a") == [("serve", "a", 1)]
    pool.release("a")
    pool.wait(61)
    assert pool.ask("b") == [("check", 1)]
    census = pool.core.census()
    assert (census.idle, census.preparing, census.size) == (0, 1, 1)
    assert pool.prepared(1) == [("serve", "b", 1)]


@pytest.mark.parametrize("never", [0, None])
def test_check_idle_of_zero_or_none_means_never(never: int | None) -> None:
    pool = Shell(pool_size=1, check_idle=never)
    pool.wait(1e9)
    assert pool.ask("a") == [("serve", "a", 1)]


@pytest.mark.parametrize("need", [LEASE, QUERY, FEED])
def test_every_caller_gets_a_connection_that_is_as_fit(need: Need) -> None:
    pool = Shell(pool_size=3, check_idle=60, connection_ttl=100)
    pool.wait(61)
    pool.die(3)
    assert pool.ask("a", need) == [("abort", 3, "broken"), ("check", 2), ("check", 1), ("open", 4)]
    assert pool.prepared(2) == [("serve", "a", 2)]
    assert pool.release("a") == []
    pool.wait(39)
    assert pool.ask("b", need) == [("close", 2, "expired")]
    assert pool.prepared(1) == [("close", 1, "expired")]


@pytest.mark.parametrize("need", [LEASE, QUERY, FEED])
def test_a_connection_is_checked_before_each_use_if_there_is_a_check(need: Need) -> None:
    pool = Shell(pool_size=1, check=hook)
    for name in "abc":
        assert pool.ask(name, need) == [("check", 1)]
        assert pool.prepared(1) == [("serve", name, 1)]
        assert pool.release(name) == []


def test_a_query_that_joins_others_needs_no_check() -> None:
    pool = Shell(pool_size=1, check=hook)
    pool.ask("a", QUERY)
    pool.prepared(1)
    assert pool.ask("b", QUERY) == [("serve", "b", 1)]


def test_a_connection_that_was_checked_for_a_caller_who_has_gone_is_idle() -> None:
    pool = Shell(pool_size=1, check=hook)
    pool.ask("a")
    pool.leave("a")
    assert pool.prepared(1) == []
    assert pool.states() == {1: "idle"}


def test_a_connection_that_fails_its_check_is_closed_and_another_one_serves() -> None:
    pool = Shell(pool_size=1, check=hook)
    pool.ask("a")
    pool.wait(2)
    assert pool.prepared(1, is_fit=False) == [("close", 1, "unfit")]
    assert pool.closed(1) == [("open", 2)]
    assert pool.opened(2) == [("check", 2)]


def test_no_more_connections_are_checked_than_callers_wait() -> None:
    pool = Shell(pool_size=3, check=hook)
    assert pool.ask("a") == [("check", 3)]
    assert pool.ask("b") == [("check", 2)]
    assert pool.states() == {1: "idle", 2: "preparing", 3: "preparing"}


def test_one_check_is_enough_for_two_queries() -> None:
    pool = Shell(pool_size=3, check=hook)
    assert [pool.ask("a", QUERY), pool.ask("b", QUERY)] == [[("check", 3)], []]
    assert pool.prepared(3) == [("serve", "a", 3), ("serve", "b", 3)]


def test_a_reset_is_no_check() -> None:
    pool = Shell(pool_size=1, check=hook, reset=hook)
    pool.ask("a")
    pool.prepared(1)
    pool.ask("b")
    assert pool.release("a") == [("reset", 1)]
    assert pool.prepared(1) == [("check", 1)], "a check comes before each lease"
    assert pool.prepared(1) == [("serve", "b", 1)]


def test_a_reset_is_a_sign_of_life() -> None:
    pool = Shell(pool_size=1, check_idle=60, reset=hook)
    pool.ask("a")
    pool.release("a")
    pool.wait(5)
    pool.prepared(1)
    pool.wait(60)
    assert pool.ask("b") == [("serve", "b", 1)]


def test_what_the_other_queries_did_counts_if_the_last_one_was_never_seen() -> None:
    pool = Shell(pool_size=1, check=hook)
    pool.ask("a", QUERY)
    pool.prepared(1)
    pool.ask("b", QUERY)
    pool.release("a")
    pool.release("b", was_used=False)
    assert pool.ask("c") == [("check", 1)]


@pytest.mark.parametrize("need", [LEASE, QUERY, FEED])
def test_a_connection_that_is_fit_serves_though_those_above_it_must_be_checked_first(need: Need) -> None:
    pool = Shell(pool_size=4, check=hook)
    for name, number in (("a", 4), ("b", 3)):
        pool.ask(name)
        pool.prepared(number)
    assert pool.ask("c") == [("check", 2)]
    pool.leave("c")
    pool.prepared(2)  # nobody uses it, so it is fit
    assert [pool.release("a"), pool.release("b")] == [[], []]  # 3 and 4 lie above 2
    assert pool.ask("x", need) == [("check", 3), ("serve", "x", 2)], "and one is checked for the next"
    assert pool.states() == {1: "idle", 2: "leased" if need is LEASE else "shared", 3: "preparing", 4: "idle"}


# ---- pings


def test_idle_connections_are_checked_when_they_were_silent_for_ping_interval() -> None:
    pool = Shell(pool_size=2, ping_interval=30)
    assert pool.core.wake_at == 30
    pool.wait(10)
    pool.ask("a")
    pool.wait(10)
    pool.release("a")
    assert pool.wait(10) == [("check", 1)]
    assert pool.core.wake_at == 50
    assert pool.prepared(1) == []
    assert pool.wait(20) == [("check", 2)]


def test_a_connection_that_is_pinged_serves_when_the_check_is_over() -> None:
    pool = Shell(pool_size=1, ping_interval=30)
    pool.wait(30)
    assert pool.ask("a") == []
    assert pool.prepared(1) == [("serve", "a", 1)]


def test_pings_do_not_keep_surplus_connections_open() -> None:
    pool = Shell(pool_size=3, min_size=1, max_idle=100, ping_interval=30)
    for name in "abc":
        pool.ask(name)
        for slot in list(pool.work):
            pool.opened(slot.number)
    for name in "abc":
        pool.release(name)
    closed = 0
    for _ in range(40):
        for order, number, *_ in pool.wait(5):
            closed += order == "close"
            pool.prepared(number) if order == "check" else pool.closed(number)
    assert closed == 2


# ---- doubt


def test_a_doubted_connection_takes_no_query_until_its_check_has_passed() -> None:
    pool = Shell(pool_size=2)
    pool.ask("a", QUERY)
    pool.ask("b", QUERY)
    assert pool.doubt("a") == [("check", 2)]
    assert [pool.ask(name, QUERY) for name in "cd"] == [[("serve", "c", 1)], [("serve", "d", 1)]]
    assert pool.core.census().queries == 4, "the check is none"
    assert pool.prepared(2) == []
    assert pool.ask("e", QUERY) == [("serve", "e", 2)]


def test_a_query_that_waits_is_served_when_the_check_of_a_doubted_connection_has_passed() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a", QUERY)
    pool.doubt("a")
    assert pool.ask("b", QUERY) == []
    assert pool.prepared(1) == [("serve", "b", 1)]


def test_a_connection_is_checked_once_at_a_time() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a", QUERY)
    pool.ask("b", QUERY)
    assert [pool.doubt("a"), pool.doubt("b")] == [[("check", 1)], []]
    pool.prepared(1)
    assert pool.doubt("b") == [("check", 1)]


def test_a_connection_that_is_to_be_closed_anyway_is_not_checked() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a", QUERY)
    pool.drain()
    assert pool.doubt("a") == []


def test_a_lease_is_not_doubted() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a")
    assert pool.doubt("a") == [], "its user knows"


def test_a_full_connection_may_be_doubted_and_then_carries_as_many_as_before() -> None:
    pool = Shell(pool_size=1, max_in_flight=2)
    pool.ask("a", QUERY)
    pool.ask("b", QUERY)
    pool.doubt("a")
    assert pool.prepared(1) == []
    assert pool.ask("c", QUERY) == []
    assert pool.release("a") == [("serve", "c", 1)]


def test_a_doubted_connection_whose_queries_have_ended_stays_until_its_check_is_over() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a", QUERY)
    pool.doubt("a")
    assert pool.release("a") == []
    assert (pool.states(), pool.core.census().queries) == ({1: "shared"}, 0)
    pool.ask("b")
    assert pool.prepared(1) == [("serve", "b", 1)]


def test_a_doubted_connection_that_fails_its_check_is_aborted_with_its_queries() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a", QUERY)
    pool.ask("b", QUERY)
    pool.doubt("a")
    assert pool.prepared(1, is_fit=False) == [("abort", 1, "unfit"), ("open", 2)]
    assert [pool.release("a"), pool.release("b")] == [[], []]


def test_a_doubted_connection_that_is_drained_is_closed_as_such_when_its_check_has_passed() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a", QUERY)
    pool.doubt("a")
    pool.drain()
    assert pool.release("a") == []
    assert pool.prepared(1) == [("close", 1, "drained")]


def test_a_doubted_connection_that_passed_its_check_has_shown_that_its_peer_is_alive() -> None:
    pool = Shell(pool_size=1, check_idle=60)
    pool.ask("a", QUERY)
    pool.wait(100)
    pool.doubt("a")
    pool.prepared(1)
    pool.release("a", was_used=False)
    pool.wait(60)
    assert pool.ask("b") == [("serve", "b", 1)]


# ---- siblings


def test_when_one_connection_is_lost_its_idle_siblings_are_checked() -> None:
    pool = Shell(pool_size=4)
    pool.ask("a")  # 4
    pool.wait(2)
    assert pool.lost(2) == [("abort", 2, "broken"), ("check", 1), ("check", 3), ("open", 5)]
    assert pool.states() == {1: "preparing", 3: "preparing", 4: "leased", 5: "opening"}


def test_siblings_that_died_too_are_aborted_without_a_check() -> None:
    pool = Shell(pool_size=3)
    pool.wait(2)
    pool.die(3)
    assert pool.lost(1) == [("abort", 1, "broken"), ("check", 2), ("abort", 3, "broken"), ("open", 4), ("open", 5)]


def test_when_a_leased_connection_is_lost_its_idle_siblings_are_checked() -> None:
    pool = Shell(pool_size=2)
    pool.ask("a")
    assert pool.lost(2) == [("check", 1)]


def test_when_a_check_fails_idle_siblings_are_checked() -> None:
    pool = Shell(pool_size=2, check=hook)
    pool.wait(2)
    pool.ask("a")
    assert pool.prepared(2, is_fit=False) == [("close", 2, "unfit"), ("check", 1)]


def test_when_a_reset_fails_no_sibling_is_checked() -> None:
    pool = Shell(pool_size=2, reset=hook)
    pool.ask("a")
    pool.release("a")
    assert pool.prepared(2, is_fit=False) == [("close", 2, "unfit")]
    assert pool.states() == {1: "idle", 2: "closing"}


def test_when_a_closing_connection_is_lost_nothing_happens() -> None:
    pool = Shell(pool_size=2, min_size=1, connection_ttl=100)
    pool.wait(100)
    pool.ask("a")
    assert pool.lost(1) == []
