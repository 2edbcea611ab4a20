"""Queries: many share one connection, and each goes to the one that carries fewest."""

from __future__ import annotations

import pytest

from core_kit import LEASE, QUERY, Shell


def carrying(*loads: int, **options: object) -> Shell:
    """A pool that is full, whose connection n carries ``loads[n - 1]`` queries. They are called ``1a``, ``1b``, …"""
    pool = Shell(**{"pool_size": len(loads), "min_size": len(loads), **options})
    names = {number: iter("abcdefghij") for number in pool.states()}
    for number in range(max(loads) * len(loads)):
        ((_, _, slot),) = pool.ask(f"query {number}", QUERY)
        use = pool.uses.pop(f"query {number}")
        use.name = f"{slot}{next(names[slot])}"
        pool.uses[use.name] = use
    for number, load in enumerate(loads, 1):
        for letter in "jihgfedcba":
            if f"{number}{letter}" in pool.uses and pool.loads()[number] > load:
                pool.release(f"{number}{letter}")
    assert pool.loads() == dict(enumerate(loads, 1))
    return pool


def places(pool: Shell, queries: int) -> list[int | None]:
    """Where so many queries go, one after the other. Those that have to wait give up at once."""
    numbers: list[int | None] = []
    for number in range(queries):
        name = f"place {len(pool.uses)} {number}"
        told = pool.ask(name, QUERY)
        served = [slot for order, *_, slot in told if order == "serve"]
        numbers.append(served[0] if served else None)
        if not served:
            pool.leave(name)
    return numbers


def test_a_query_makes_an_idle_connection_a_shared_one() -> None:
    pool = Shell(pool_size=2)
    assert pool.ask("a", QUERY) == [("serve", "a", 2)]
    census = pool.core.census()
    assert (census.idle, census.shared, census.leased, census.size, census.queries) == (1, 1, 0, 2, 1)


def test_a_query_uses_an_idle_connection_before_it_shares_one() -> None:
    pool = Shell(pool_size=2)
    assert [pool.ask("a", QUERY), pool.ask("b", QUERY)] == [[("serve", "a", 2)], [("serve", "b", 1)]]
    assert pool.ask("c", QUERY) == [("serve", "c", 2)]


def test_the_least_loaded_connection_takes_the_query() -> None:
    pool = carrying(4, 1, 3)
    assert places(pool, 3) == [2, 2, 3]
    assert pool.loads() == {1: 4, 2: 3, 3: 4}
    assert places(pool, 1) == [2]


def test_a_query_that_ends_makes_its_connection_the_least_loaded() -> None:
    pool = carrying(3, 3)
    pool.release("2a")
    pool.release("2b")
    assert places(pool, 2) == [2, 2]


def test_connections_that_carry_the_same_take_queries_in_turn() -> None:
    pool = Shell(pool_size=3)
    assert places(pool, 9) == [3, 2, 1] * 3


def test_of_connections_that_carry_the_same_the_one_whose_query_ended_last_comes_last() -> None:
    pool = Shell(pool_size=3)
    for name in "abc":  # on 3, 2, 1
        pool.ask(name, QUERY)
    pool.ask("d", QUERY)  # on 3
    pool.release("d")
    assert places(pool, 3) == [2, 1, 3]


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_connection_carries_max_in_flight_queries_and_no_more(most: int) -> None:
    pool = Shell(pool_size=1, max_in_flight=most)
    for number in range(most):
        assert pool.ask(f"{number}", QUERY) == [("serve", f"{number}", 1)]
    assert pool.ask("x", QUERY) == []
    assert pool.release("0") == [("serve", "x", 1)]
    assert pool.core.census().queries == most


def test_every_connection_is_filled_before_a_query_waits() -> None:
    pool = carrying(1, 3, 2, max_in_flight=3)
    assert sorted(place or 0 for place in places(pool, 4)) == [0, 1, 1, 3]
    assert pool.loads() == {1: 3, 2: 3, 3: 3}
    assert pool.ask("x", QUERY) == []
    assert pool.release("2a") == [("serve", "x", 2)]


def test_a_query_waits_if_every_connection_is_leased() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a", LEASE)
    assert pool.ask("b", QUERY) == []
    assert pool.release("a") == [("serve", "b", 1)]


def test_a_shared_connection_is_no_use_to_a_lease() -> None:
    pool = carrying(2)
    assert pool.ask("x", LEASE) == []
    assert pool.release("1a") == []
    assert pool.release("1b") == [("serve", "x", 1)]


def test_a_shared_connection_whose_queries_have_ended_is_idle_again() -> None:
    pool = carrying(3)
    for name in ("1a", "1b", "1c"):
        assert pool.release(name) == []
    assert pool.states() == {1: "idle"}
    assert pool.ask("x", LEASE) == [("serve", "x", 1)]


def test_a_shared_connection_was_last_used_when_its_last_query_ended() -> None:
    pool = carrying(2, check_idle=60)
    pool.wait(100)
    pool.release("1a")
    pool.wait(100)
    pool.release("1b")
    pool.wait(60)
    assert pool.ask("x", LEASE) == [("serve", "x", 1)]


def test_the_queries_of_a_shared_connection_count_as_uses_even_if_the_last_was_never_seen() -> None:
    pool = carrying(2, check_idle=60)
    pool.wait(100)
    pool.release("1a")
    pool.release("1b", was_used=False)
    pool.wait(60)
    assert pool.ask("x", LEASE) == [("serve", "x", 1)]


def test_a_shared_connection_whose_time_is_up_takes_no_query_and_is_closed_when_its_last_has_ended() -> None:
    pool = carrying(2, connection_ttl=100)
    pool.wait(99)
    assert pool.ask("x", QUERY) == [("serve", "x", 1)]
    pool.wait(1)
    assert pool.ask("y", QUERY) == []
    assert pool.states() == {1: "shared"}, "its queries go on"
    assert [pool.release("1a"), pool.release("1b")] == [[], []]
    assert pool.release("x") == [("close", 1, "expired")]


def test_queries_pass_over_connections_whose_time_is_up_however_little_they_carry() -> None:
    pool = Shell(pool_size=2, min_size=1, connection_ttl=100)
    pool.ask("old", QUERY)
    pool.wait(50)
    pool.ask("lease", LEASE)
    pool.opened(2)
    pool.release("lease")
    for name in "abc":
        pool.ask(name, QUERY)
    assert pool.loads() == {1: 2, 2: 2}
    pool.release("b")
    assert pool.loads() == {1: 1, 2: 2}
    pool.wait(50)
    assert [pool.ask("x", QUERY), pool.ask("y", QUERY)] == [[("serve", "x", 2)], [("serve", "y", 2)]]
    assert pool.release("old") == [("close", 1, "expired")]


def test_a_shared_connection_whose_time_ran_out_and_that_nobody_joined_is_closed_at_its_next_use() -> None:
    pool = carrying(1, connection_ttl=100)
    pool.wait(101)
    assert pool.release("1a") == []
    assert pool.ask("x", QUERY) == [("close", 1, "expired")]


def test_a_shared_connection_that_died_does_not_come_back() -> None:
    pool = carrying(2)
    pool.die(1)
    assert pool.release("1a") == []
    assert pool.release("1b") == [("abort", 1, "broken"), ("open", 2)]


def test_a_query_that_finds_the_least_loaded_connection_broken_goes_to_another() -> None:
    pool = carrying(1, 2)
    pool.die(1)
    assert pool.ask("x", QUERY) == [("serve", "x", 2)]
    assert pool.ask("y", QUERY) == [("serve", "y", 2)]
    assert pool.loads() == {1: 1, 2: 4}, "the query on 1 finds out by itself"
    assert pool.release("1a") == [("abort", 1, "broken"), ("open", 3)]


def test_a_shared_connection_that_is_lost_keeps_its_queries_until_they_notice() -> None:
    pool = carrying(2)
    assert pool.lost(1) == []
    assert pool.states() == {1: "shared"}
    pool.release("1a")
    assert pool.release("1b") == [("abort", 1, "broken"), ("open", 2)]


@pytest.mark.parametrize("why", ["drained", "expired", "doubted", "broken"])
def test_another_connection_is_opened_for_a_query_if_the_shared_one_takes_no_more(why: str) -> None:
    pool = carrying(1, pool_size=2, min_size=1, connection_ttl=100)
    if why == "drained":
        pool.drain()
    elif why == "expired":
        pool.wait(100)
    elif why == "doubted":
        pool.doubt("1a")
    else:
        pool.die(1)
    assert pool.ask("x", QUERY) == [("open", 2)]
    assert pool.opened(2) == [("serve", "x", 2)]
