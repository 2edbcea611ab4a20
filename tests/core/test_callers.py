"""Callers and the line: strictly first come, first served, and how each caller stops waiting."""

from __future__ import annotations

import asyncio

import pytest

from core_kit import FEED, LEASE, QUERY, Need, Shell


def test_a_caller_who_comes_first_is_served_first() -> None:
    pool = Shell(pool_size=1)
    assert pool.ask("a") == [("serve", "a", 1)]
    assert pool.ask("b") == []
    assert pool.ask("c") == []
    assert pool.release("a") == [("serve", "b", 1)]
    assert pool.release("b") == [("serve", "c", 1)]


def test_there_is_one_line_whatever_its_callers_need() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a")
    for name, need in (("b", QUERY), ("c", LEASE), ("d", QUERY)):
        assert pool.ask(name, need) == []
    assert pool.release("a") == [("serve", "b", 1)], "d could share with b, but c came first"
    assert pool.release("b") == [("serve", "c", 1)]
    assert pool.release("c") == [("serve", "d", 1)]


def test_a_newcomer_takes_no_place_on_a_shared_connection_while_somebody_waits() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a", QUERY)
    pool.ask("b", LEASE)
    assert pool.ask("c", QUERY) == []
    assert pool.line() == ["b", "c"]


def test_a_fact_serves_all_whom_it_can_serve() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a")
    for name in "bcd":
        pool.ask(name, QUERY)
    assert pool.release("a") == [("serve", "b", 1), ("serve", "c", 1), ("serve", "d", 1)]


def test_a_caller_who_leaves_makes_way_for_those_behind() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a", QUERY)
    pool.ask("b", LEASE)
    pool.ask("c", QUERY)
    assert pool.leave("b") == [("serve", "c", 1)]


def test_a_caller_who_was_cancelled_but_has_not_left_yet_is_passed_over() -> None:
    pool = Shell(pool_size=1)
    for name in "abc":
        pool.ask(name)
    pool.cancel("b")
    assert pool.release("a") == [("serve", "c", 1)]
    assert pool.leave("b") == [], "it had left the line before"


def test_a_caller_who_was_served_and_never_saw_it_gives_it_to_the_next() -> None:
    pool = Shell(pool_size=1, reset=None)
    pool.ask("a")
    pool.ask("b")
    pool.ask("c")
    pool.release("a")
    assert pool.release("b", was_used=False) == [("serve", "c", 1)]


def test_a_caller_whose_time_is_up_is_refused() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a", QUERY)
    pool.ask("b", LEASE)
    pool.ask("c", QUERY)
    assert pool.expire("b") == [("refuse", "b", "timed out"), ("serve", "c", 1)]


def test_a_caller_whose_time_is_up_in_a_deadlock_is_told() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a")
    pool.ask("b")
    assert pool.expire("b", is_deadlock=True) == [("refuse", "b", "deadlock")]


@pytest.mark.parametrize("before", ["served", "refused", "left"])
def test_time_that_is_up_changes_nothing_for_a_caller_who_was_answered_before(before: str) -> None:
    pool = Shell(pool_size=1)
    pool.ask("a")
    pool.ask("b")
    ticket = pool.waiting["b"]
    if before == "served":
        pool.release("a")
    elif before == "refused":
        pool.expire("b")
    else:
        pool.leave("b")
    pool.core.expire(ticket, pool.now)
    pool.core.leave_line(ticket, pool.now)
    assert not pool.core.orders


@pytest.mark.parametrize(("most", "waiting"), [(1, 1), (2, 2), (5, 5)])
def test_max_waiting_limits_the_line(most: int, waiting: int) -> None:
    pool = Shell(pool_size=1, max_waiting=most)
    pool.ask("holder")
    for number in range(waiting):
        assert pool.ask(f"caller {number}") == []
    assert pool.ask("z") == [("refuse", "z", "too many waiters")]


def test_max_waiting_of_zero_means_no_limit() -> None:
    pool = Shell(pool_size=1, max_waiting=0)
    pool.ask("holder")
    for number in range(100):
        assert pool.ask(f"caller {number}") == []


def test_max_waiting_does_not_count_callers_for_whom_a_connection_is_opened() -> None:
    pool = Shell(pool_size=3, min_size=0, max_waiting=1)
    assert [pool.ask(name) for name in "abc"] == [[("open", 1)], [("open", 2)], [("open", 3)]]
    assert pool.ask("d") == [], "it is the one who may wait"
    assert pool.ask("e") == [("refuse", "e", "too many waiters")]


def test_max_waiting_does_not_count_queries_that_a_connection_under_way_will_carry() -> None:
    pool = Shell(pool_size=1, min_size=0, max_in_flight=3, max_waiting=1)
    assert pool.ask("a", QUERY) == [("open", 1)]
    assert [pool.ask(name, QUERY) for name in "bcd"] == [[], [], []]
    assert pool.ask("e", QUERY) == [("refuse", "e", "too many waiters")]


@pytest.mark.parametrize("under_way", ["an opening", "a check", "an empty place in an outage"])
def test_max_waiting_counts_on_every_connection_that_can_still_serve_somebody(under_way: str) -> None:
    pool = Shell(pool_size=2, min_size=1, max_waiting=1, random=1.0, ping_interval=5)
    if under_way == "a check":
        assert pool.wait(5) == [("check", 1)]
        assert [pool.ask("a"), pool.ask("b")] == [[], [("open", 2)]]
    else:
        pool.ask("holder")
        assert pool.ask("a") == [("open", 2)]
        if under_way == "an empty place in an outage":
            pool.open_failed(2)
    assert pool.ask("y") == []
    assert pool.ask("z") == [("refuse", "z", "too many waiters")]


def test_max_waiting_of_a_shrunk_pool_counts_no_connection_that_is_too_many() -> None:
    pool = Shell(pool_size=3, max_waiting=1)
    for name in "abc":
        pool.ask(name, LEASE)
    pool.resize(pool_size=1, min_size=0)
    assert pool.ask("x", QUERY) == [], "it is the one who may wait"
    assert pool.ask("y", QUERY) == [("refuse", "y", "too many waiters")]


def test_take_serves_a_newcomer_without_an_order_and_leaves_everything_else_to_the_line() -> None:
    pool = Shell(pool_size=2, min_size=0)
    assert pool.core.take(LEASE, 0.0) is None
    assert not pool.core.orders, "nothing is opened"
    assert pool.ask("a") == [("open", 1)]


@pytest.mark.parametrize("need", [LEASE, QUERY, FEED])
def test_nobody_is_let_in_when_the_pool_is_closed(need: Need) -> None:
    pool = Shell(pool_size=1)
    pool.close()
    assert pool.ask("a", need) == [("refuse", "a", "closed")]


def test_callers_in_line_are_refused_in_their_order_when_the_pool_closes() -> None:
    pool = Shell(pool_size=1)
    for name in "abcd":
        pool.ask(name)
    pool.cancel("c")
    assert pool.close() == [("refuse", "b", "closed"), ("refuse", "d", "closed")]
    pool.leave("c")


def test_a_queue_of_asyncio_will_do_for_a_shelf() -> None:
    pool = Shell(pool_size=2, queue=asyncio.LifoQueue())
    assert pool.ask("a") == [("serve", "a", 2)]
    assert pool.release("a") == []
    assert pool.ask("b") == [("serve", "b", 2)]
