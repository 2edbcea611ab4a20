"""Leases: one connection, one user."""

from __future__ import annotations

import pytest

from core_kit import LEASE, QUERY, Shell, hook


def test_a_lease_and_its_release_keep_the_size() -> None:
    pool = Shell(pool_size=3)
    pool.ask("a")
    census = pool.core.census()
    assert (census.idle, census.leased, census.size) == (2, 1, 3)
    pool.release("a")
    census = pool.core.census()
    assert (census.idle, census.leased, census.size) == (3, 0, 3)


def test_the_connection_that_was_used_last_is_leased_first() -> None:
    pool = Shell(pool_size=3)
    for name in "abc":
        pool.ask(name)
    for name, seconds in (("c", 1), ("a", 1), ("b", 1)):
        pool.wait(seconds)
        pool.release(name)
    assert [pool.ask(name) for name in "xyz"] == [
        [("serve", "x", 2)],
        [("serve", "y", 3)],
        [("serve", "z", 1)],
    ]


def test_an_idle_connection_that_died_unnoticed_is_aborted_and_another_one_serves() -> None:
    pool = Shell(pool_size=2)
    pool.wait(2)
    pool.die(2)
    assert pool.ask("a") == [("abort", 2, "broken"), ("serve", "a", 1), ("open", 3)]


def test_the_place_of_a_connection_that_is_closed_politely_is_free_when_it_is_closed() -> None:
    pool = Shell(pool_size=1, connection_ttl=100)
    pool.wait(100)
    assert pool.ask("a") == [("close", 1, "expired")]
    assert pool.closed(1) == [("open", 2)]
    assert pool.opened(2) == [("serve", "a", 2)]


def test_a_connection_that_died_in_its_users_hands_does_not_come_back() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a")
    assert pool.lost(1) == [], "its user still has it"
    assert pool.release("a") == [("abort", 1, "broken"), ("open", 2)]


def test_a_connection_that_died_in_its_users_hands_serves_nobody_in_line() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a")
    pool.ask("b")
    pool.die(1)
    assert pool.release("a") == [("abort", 1, "broken"), ("open", 2)]
    assert pool.opened(2) == [("serve", "b", 2)]


def test_a_lease_that_the_pool_has_ended_may_be_released_without_effect() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a")
    pool.close()
    assert pool.end_uses() == [("abort", 1, "pool closed")]
    assert pool.release("a") == []


def test_a_released_connection_is_reset_before_the_next_caller_gets_it() -> None:
    pool = Shell(pool_size=1, reset=hook)
    pool.ask("a")
    pool.ask("b")
    assert pool.release("a") == [("reset", 1)]
    assert pool.prepared(1) == [("serve", "b", 1)]


def test_a_connection_that_is_reset_is_not_idle_and_counts_against_the_size() -> None:
    pool = Shell(pool_size=2, reset=hook)
    pool.ask("a")
    pool.release("a")
    census = pool.core.census()
    assert (census.preparing, census.idle, census.size) == (1, 1, 2)


def test_a_connection_whose_reset_failed_is_closed_and_replaced() -> None:
    pool = Shell(pool_size=1, reset=hook)
    pool.ask("a")
    pool.release("a")
    assert pool.prepared(1, is_fit=False) == [("close", 1, "unfit")]
    assert pool.closed(1) == [("open", 2)]


def test_a_connection_that_died_in_its_reset_is_aborted_as_broken() -> None:
    pool = Shell(pool_size=1, reset=hook)
    pool.ask("a")
    pool.release("a")
    pool.die(1)
    assert pool.prepared(1, is_fit=False) == [("abort", 1, "broken"), ("open", 2)]


def test_a_lease_that_nobody_saw_needs_no_reset() -> None:
    pool = Shell(pool_size=1, reset=hook)
    pool.ask("a")
    assert pool.release("a", was_used=False) == []
    assert pool.ask("b") == [("serve", "b", 1)]


def test_a_connection_that_carried_queries_only_needs_no_reset() -> None:
    pool = Shell(pool_size=1, reset=hook)
    pool.ask("a", QUERY)
    assert pool.release("a") == []


@pytest.mark.parametrize("leased", [0, 1, 2])
def test_the_pool_is_leased_out_only_if_every_connection_that_it_may_have_is_leased(leased: int) -> None:
    pool = Shell(pool_size=2, min_size=0)
    for name in "ab"[:leased]:
        pool.ask(name, LEASE)
        pool.opened(pool.slot(len(pool.work) + len(pool.uses)).number)
    assert pool.core.is_leased_out is (leased == 2)


def test_a_shared_connection_is_no_lease() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a", QUERY)
    assert not pool.core.is_leased_out, "the query will end by itself"


def test_a_shrunk_pool_in_which_more_are_leased_than_it_may_have_is_leased_out() -> None:
    pool = Shell(pool_size=3)
    for name in "abc":
        pool.ask(name)
    pool.resize(pool_size=2, min_size=0)
    assert pool.core.is_leased_out
    pool.release("a")
    assert pool.core.is_leased_out
    pool.release("b")
    assert not pool.core.is_leased_out
