"""Time: connections that expire, and idle ones above min_size that are closed when they were not used for max_idle."""

from __future__ import annotations

import pytest

from core_kit import LEASE, QUERY, Shell


def grown_to(size: int, **options: object) -> Shell:
    """A pool with so many connections, all idle since time 0, and used last in the order of their numbers."""
    pool = Shell(pool_size=size, **options)
    for number in range(size):
        pool.ask(f"caller {number}")
        for slot in list(pool.work):
            pool.opened(slot.number)
    for name in sorted(pool.uses, key=lambda name: pool.uses[name].slot.number):
        for order in pool.release(name):
            pool.closed(order[1])
    return pool


# ---- expiry


def test_time_to_live_counts_from_opening_whatever_happens_in_between() -> None:
    pool = Shell(pool_size=1, connection_ttl=100)
    for _ in range(10):
        assert pool.ask("a") == [("serve", "a", 1)]
        pool.wait(9)
        assert pool.release("a") == []
        pool.wait(1)
    assert pool.ask("a") == [("close", 1, "expired")]


@pytest.mark.parametrize("for_ever", [0, None])
def test_time_to_live_of_zero_or_none_means_for_ever(for_ever: int | None) -> None:
    pool = Shell(pool_size=1, connection_ttl=for_ever)
    pool.wait(1e12)
    assert pool.ask("a") == [("serve", "a", 1)]


def test_an_expired_connection_is_closed_when_somebody_asks_for_it_and_not_before() -> None:
    pool = Shell(pool_size=2, connection_ttl=100)
    pool.wait(1000)
    assert pool.states() == {1: "idle", 2: "idle"}
    assert pool.ask("a") == [("close", 2, "expired"), ("close", 1, "expired")]


def test_a_lease_may_outlive_its_connections_time() -> None:
    pool = Shell(pool_size=1, connection_ttl=100)
    pool.ask("a")
    pool.wait(1000)
    assert pool.release("a") == []
    assert pool.ask("b") == [("close", 1, "expired")]


# ---- surplus


def test_surplus_is_closed_after_max_idle_and_not_before() -> None:
    pool = grown_to(5, min_size=2, max_idle=600)
    pool.wait(599)
    assert (pool.tick(), pool.core.wake_at) == ([], 600)
    assert pool.wait(1) == [("close", number, "surplus") for number in (1, 2, 3)], "those unused for longest"


def test_light_steady_traffic_does_not_keep_the_surplus() -> None:
    pool = grown_to(5, min_size=1, max_idle=600)
    for _ in range(59):
        assert pool.ask("a") == [("serve", "a", 5)], "it is always the same one that is used"
        assert pool.wait(5) == []
        assert pool.release("a") == []
        assert pool.wait(5) == []
    assert len(pool.wait(10)) == 4


def test_a_peak_now_and_then_keeps_the_connections_that_it_needs() -> None:
    pool = grown_to(4, min_size=1, max_idle=600)
    for _ in range(6):
        for name in "abcd":
            assert pool.ask(name)[0][0] == "serve"
        pool.wait(1)
        for name in "abcd":
            pool.release(name)
        assert pool.wait(499) == []


def test_each_surplus_connection_has_its_own_time() -> None:
    pool = grown_to(4, min_size=1, max_idle=600)
    pool.ask("a")
    pool.ask("b")
    pool.wait(500)
    pool.release("a")
    pool.release("b")
    assert pool.wait(100) == [("close", 1, "surplus"), ("close", 2, "surplus")]
    assert pool.core.wake_at == 1100
    assert [len(pool.wait(499)), len(pool.wait(1))] == [0, 1]


def test_a_connection_that_was_just_opened_is_not_surplus_though_others_were_idle_for_long() -> None:
    pool = Shell(pool_size=4, min_size=3, max_idle=600)
    pool.wait(1000)
    for name in "abcd":
        pool.ask(name)
    pool.opened(4)
    for name in "abcd":
        pool.release(name)
    assert pool.tick() == []
    assert len(pool.wait(600)) == 1


def test_max_idle_of_none_keeps_surplus_for_ever() -> None:
    pool = grown_to(3, min_size=1, max_idle=None)
    assert pool.wait(1e12) == []
    assert pool.tick() == []


def test_max_idle_of_zero_closes_surplus_when_it_is_released() -> None:
    pool = Shell(pool_size=3, min_size=1, max_idle=0)
    pool.ask("a")
    pool.ask("b")
    pool.opened(2)
    assert pool.release("a") == [("close", 1, "surplus")]
    assert pool.release("b") == []


def test_max_idle_of_zero_does_not_close_what_somebody_waits_for() -> None:
    pool = Shell(pool_size=1, min_size=0, max_idle=0)
    pool.ask("a")
    pool.opened(1)
    pool.ask("b")
    assert pool.release("a") == [("serve", "b", 1)]
    assert pool.release("b") == [("close", 1, "surplus")]


@pytest.mark.parametrize("need", [LEASE, QUERY])
def test_connections_in_use_are_not_surplus_and_make_idle_ones_so(need: object) -> None:
    pool = grown_to(4, min_size=2, max_idle=100)
    pool.ask("a", need)  # type: ignore[arg-type]
    pool.ask("b", need)  # type: ignore[arg-type]
    assert pool.wait(100) == [("close", 1, "surplus"), ("close", 2, "surplus")]
    assert pool.wait(10_000) == []


def test_a_shared_connection_begins_to_be_surplus_when_its_last_query_has_ended() -> None:
    pool = grown_to(2, min_size=0, max_idle=100)
    pool.ask("a", QUERY)
    pool.ask("b", QUERY)
    pool.wait(500)
    pool.release("a")
    assert pool.wait(99) == []
    assert pool.wait(1) == [("close", 2, "surplus")]


def test_queries_that_take_long_do_not_make_the_pool_close_and_open_connections_in_turn() -> None:
    pool = Shell(pool_size=5, min_size=1, max_idle=600)
    for name in "abc":
        pool.ask(name, QUERY)
    assert pool.opened(2) == []
    told = [order for _ in range(120) for order in pool.wait(50)]
    assert told == [("close", 2, "surplus")]
    pool.closed(2)
    assert pool.states() == {1: "shared"}


def test_min_size_connections_are_never_surplus() -> None:
    pool = grown_to(3, max_idle=10)
    assert pool.wait(1e6) == []


def test_surplus_that_is_still_read_is_closed_when_its_readers_are_done() -> None:
    pool = grown_to(2, min_size=1, max_idle=100, cursor_grace=30)
    pool.ask("a")  # 2
    pool.ask("b")  # 1
    pool.read("b")
    pool.release("b")
    pool.release("a")
    assert pool.wait(100) == [("await readers", 1, 30)]
    assert pool.read_out(1) == [("close", 1, "surplus")]
