"""When the pool opens connections: for callers in line, for min_size, and if all that carry queries are crowded."""

from __future__ import annotations

import pytest

from async_repool._core.core import CROWDED
from core_kit import FEED, LEASE, QUERY, Shell


def opens(told: list[tuple[object, ...]]) -> int:
    return sum(order == "open" for order, *_ in told)


@pytest.mark.parametrize(("min_size", "expected"), [(None, 3), (0, 0), (2, 2), (3, 3)])
def test_a_pool_opens_min_size_connections_at_once(min_size: int | None, expected: int) -> None:
    pool = Shell(pool_size=3, min_size=min_size, is_started=False)
    assert pool.tick() == [("open", number) for number in range(1, expected + 1)]


@pytest.mark.parametrize("callers", [1, 2, 5, 9])
def test_one_connection_is_opened_for_each_lease_in_line_up_to_the_maximum(callers: int) -> None:
    pool = Shell(pool_size=5, min_size=0)
    told = [order for number in range(callers) for order in pool.ask(f"{number}", LEASE)]
    assert opens(told) == min(callers, 5)
    assert pool.tick() == [], "those that are under way serve the same callers"


def test_an_opening_that_is_under_way_counts_for_a_caller_that_comes_later() -> None:
    pool = Shell(pool_size=5, min_size=1, is_started=False)
    pool.tick()
    assert pool.ask("a") == []
    assert pool.ask("b") == [("open", 2)]


def test_an_opening_whose_caller_has_gone_counts_for_the_next() -> None:
    pool = Shell(pool_size=5, min_size=0)
    pool.ask("a")
    pool.leave("a")
    assert pool.ask("b") == []
    assert pool.opened(1) == [("serve", "b", 1)]


def test_a_connection_that_nobody_needs_any_more_is_idle() -> None:
    pool = Shell(pool_size=5, min_size=0)
    pool.ask("a")
    pool.leave("a")
    assert pool.opened(1) == []
    assert pool.states() == {1: "idle"}


@pytest.mark.parametrize(("callers", "expected"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (9, 5), (11, 5)])
def test_for_queries_in_line_so_many_are_opened_that_none_will_be_crowded(callers: int, expected: int) -> None:
    pool = Shell(pool_size=5, min_size=0)
    told = [order for number in range(callers) for order in pool.ask(f"{number}", QUERY)]
    assert opens(told) == expected


def test_if_each_carries_one_query_at_a_time_one_is_opened_for_each_query_in_line() -> None:
    pool = Shell(pool_size=5, min_size=0, max_in_flight=1)
    assert sum(opens(pool.ask(name, QUERY)) for name in "abc") == 3


def test_one_connection_is_opened_for_all_feeds_in_line() -> None:
    pool = Shell(pool_size=5, min_size=0)
    assert [pool.ask(name, FEED) for name in "abc"] == [[("open", 1)], [], []]


def test_leases_queries_and_feeds_in_line_need_their_own_connections() -> None:
    pool = Shell(pool_size=9, min_size=0)
    needs = [LEASE, LEASE, QUERY, QUERY, QUERY, FEED, FEED]
    assert sum(opens(pool.ask(f"{number}", need)) for number, need in enumerate(needs)) == 2 + 2 + 1


def test_queries_behind_a_lease_need_others_only_if_the_shared_have_no_place_for_them() -> None:
    pool = Shell(pool_size=9, min_size=1, max_in_flight=4)
    pool.ask("first", QUERY)  # 1 takes three more
    assert pool.ask("lease", LEASE) == [("open", 2)]
    assert [opens(pool.ask(f"{number}", QUERY)) for number in range(6)] == [0, 0, 0, 1, 0, 1]


def test_nothing_is_opened_for_a_caller_whom_an_idle_connection_serves() -> None:
    pool = Shell(pool_size=5, min_size=2)
    assert [pool.ask("a"), pool.ask("b", QUERY)] == [[("serve", "a", 2)], [("serve", "b", 1)]]
    assert pool.ask("c") == [("open", 3)]


def test_shared_connections_keep_up_min_size() -> None:
    pool = Shell(pool_size=4, min_size=2)
    pool.ask("a", QUERY)
    pool.ask("b", QUERY)
    assert (pool.tick(), pool.core.census().is_short) == ([], False)
    pool.die(1)
    assert pool.release("b") == [("abort", 1, "broken"), ("open", 3)]
    assert pool.core.census().is_short, "until it is open"


def test_the_connection_that_is_replaced_is_closed_first_if_the_pool_is_full() -> None:
    pool = Shell(pool_size=1)
    assert pool.drain() == [("close", 1, "drained")]
    assert pool.closed(1) == [("open", 2)]


def test_a_connection_that_is_closing_does_not_keep_up_min_size() -> None:
    pool = Shell(pool_size=2, min_size=1)
    assert pool.drain() == [("close", 1, "drained"), ("open", 2)]


# ---- crowding


def crowded(**options: object) -> Shell:
    """A pool with one connection, which carries CROWDED queries."""
    pool = Shell(**{"pool_size": 3, "min_size": 1, **options})
    for number in range(CROWDED):
        pool.ask(f"query {number}", QUERY)
    return pool


def test_another_connection_is_opened_for_a_query_that_comes_if_each_shared_one_is_crowded() -> None:
    pool = crowded()
    assert pool.tick() == [], "those that are under way need no other: what was sent cannot move"
    assert pool.ask("x", QUERY) == [("open", 2), ("serve", "x", 1)]


def test_nothing_is_opened_while_one_of_the_shared_connections_is_not_crowded() -> None:
    pool = crowded(pool_size=4)
    pool.ask("x", QUERY)
    pool.opened(2)
    assert [pool.ask(name, QUERY) for name in "abc"] == [[("serve", name, 2)] for name in "ab"] + [
        [("open", 3), ("serve", "c", 2)]
    ]


def test_queries_that_end_make_the_next_one_need_no_other_connection() -> None:
    pool = crowded()
    pool.release("query 0")
    assert pool.ask("x", QUERY) == [("serve", "x", 1)]
    assert pool.ask("y", QUERY) == [("open", 2), ("serve", "y", 1)], "each query that comes is judged by itself"


def test_crowded_connections_get_one_more_at_a_time() -> None:
    pool = crowded(pool_size=9)
    assert pool.ask("x", QUERY) == [("open", 2), ("serve", "x", 1)]
    assert pool.ask("y", QUERY) == [("serve", "y", 1)], "one is on its way"
    assert pool.opened(2) == []
    assert pool.ask("z", QUERY) == [("serve", "z", 2)]


def test_a_pool_that_has_no_place_left_is_never_crowded() -> None:
    pool = crowded(pool_size=1)
    assert pool.ask("x", QUERY) == [("serve", "x", 1)]


def test_nothing_is_opened_for_crowded_connections_if_an_idle_one_would_be_closed_at_once() -> None:
    pool = crowded(max_idle=0)
    assert pool.ask("x", QUERY) == [("serve", "x", 1)]
    assert pool.ask("y", LEASE) == [("open", 2)], "but for those who wait"


def test_an_idle_connection_is_checked_for_crowded_ones_before_another_is_opened() -> None:
    pool = Shell(pool_size=3, min_size=2, check_idle=10)
    for name in "ab":
        pool.ask(name, QUERY)
    for name in "cd":
        pool.ask(name, QUERY)
    pool.release("b")
    pool.release("d")
    assert pool.states() == {1: "idle", 2: "shared"}
    pool.wait(11)
    assert pool.ask("e", QUERY) == [("check", 1), ("serve", "e", 2)], "e need not wait for it"
