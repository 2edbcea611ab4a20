"""Feeds: they share connections of the lane, which do not count against the size; and cursors that are read on."""

from __future__ import annotations

import pytest

from core_kit import FEED, LEASE, QUERY, Need, Shell, hook


def feed(pool: Shell, name: str) -> int:
    """A feed that is served and known to be one. Returns the number of its connection."""
    told = pool.ask(name, FEED)
    for order, number in [order for order in told if order[0] == "open"]:
        assert order == "open"
        told += pool.opened(number)
    (served,) = [order for order in told if order[0] == "serve"]
    pool.step_aside(name)
    return int(served[2])


def test_the_connection_of_a_feed_leaves_the_size_and_another_one_takes_its_place() -> None:
    pool = Shell(pool_size=1)
    assert pool.ask("a", FEED) == [("serve", "a", 1)]
    assert pool.step_aside("a") == [("open", 2)]
    census = pool.core.census()
    assert (census.size, census.feeds, census.changefeeds) == (1, 1, 1)


def test_no_other_connection_is_opened_before_the_feed_is_open() -> None:
    pool = Shell(pool_size=1)
    assert pool.ask("a", FEED) == [("serve", "a", 1)]
    assert pool.release("a") == [], "it was refused by the server, and its connection is idle again"
    assert pool.states() == {1: "idle"}


@pytest.mark.parametrize("need", [LEASE, QUERY])
def test_a_caller_is_served_when_the_connection_of_a_feed_has_left_the_size(need: object) -> None:
    pool = Shell(pool_size=1)
    pool.ask("a", FEED)
    assert pool.ask("x", need) == []  # type: ignore[arg-type]
    assert pool.step_aside("a") == [("open", 2)]
    assert pool.opened(2) == [("serve", "x", 2)]


def test_feeds_share_a_connection() -> None:
    pool = Shell(pool_size=1, min_size=0)
    assert [feed(pool, name) for name in "abc"] == [1, 1, 1]
    assert pool.loads() == {1: 3}


def test_a_feed_may_share_a_connection_before_the_first_one_is_open() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a", FEED)
    assert pool.ask("b", FEED) == [("serve", "b", 1)]


def test_a_feed_goes_to_the_connection_that_carries_the_fewest() -> None:
    pool = Shell(pool_size=2, max_in_flight=1)
    assert [feed(pool, name) for name in "ab"] == [2, 1]
    pool.ask("c", FEED)
    pool.ask("d", FEED)
    assert pool.loads()[1] == pool.loads()[2] == 2
    pool.release("b")
    assert pool.ask("e", FEED) == [("serve", "e", 1)]


def test_a_feed_uses_an_idle_connection_if_each_one_in_the_lane_carries_max_in_flight() -> None:
    pool = Shell(pool_size=3, min_size=2, max_in_flight=2)
    assert [feed(pool, name) for name in "abc"] == [2, 2, 1]


def test_a_feed_shares_a_full_connection_if_no_idle_one_is_at_hand() -> None:
    pool = Shell(pool_size=1, min_size=0, max_in_flight=2, max_feed_connections=2)
    assert [feed(pool, name) for name in "abc"] == [1, 1, 1], "a feed shares rather than waits"


def test_a_feed_shares_a_full_connection_if_the_lane_takes_no_other() -> None:
    pool = Shell(pool_size=2, max_in_flight=1, max_feed_connections=1)
    assert [feed(pool, name) for name in "abc"] == [2, 2, 2]


def test_a_feed_goes_ahead_of_others_if_it_shares_a_connection() -> None:
    pool = Shell(pool_size=1, min_size=0)
    feed(pool, "a")
    pool.ask("lease")
    pool.opened(2)
    assert pool.ask("waits") == []
    assert pool.ask("b", FEED) == [("serve", "b", 1)], "it takes nothing from the one that waits"


def test_a_feed_goes_ahead_on_a_good_connection_though_another_one_of_the_lane_is_found_broken() -> None:
    pool = Shell(pool_size=2, max_in_flight=1)
    assert [feed(pool, "a"), feed(pool, "b")] == [2, 1]
    for name, number in (("x", 3), ("y", 4)):
        pool.opened(number)
        pool.ask(name)
    pool.ask("waits")
    pool.die(2)
    assert pool.ask("c", FEED) == [("abort", 2, "broken"), ("serve", "c", 1)]


def test_feeds_in_line_share_the_connection_that_the_first_of_them_gets() -> None:
    pool = Shell(pool_size=1)
    pool.ask("lease")
    assert [pool.ask("a", FEED), pool.ask("x"), pool.ask("b", FEED)] == [[], [], []]
    assert pool.release("lease") == [("serve", "a", 1), ("serve", "b", 1)]


def test_a_feed_is_refused_if_the_lane_takes_none() -> None:
    pool = Shell(pool_size=1, max_feed_connections=0)
    assert pool.ask("a", FEED) == [("refuse", "a", "lane full")]


def test_a_feed_is_refused_if_the_lane_is_full_of_leased_connections() -> None:
    pool = Shell(pool_size=1, max_feed_connections=1)
    pool.ask("a")
    assert pool.step_aside("a") == [("open", 2)]
    assert pool.ask("b", FEED) == [("refuse", "b", "lane full")], "a leased one serves its own feed only"


def test_a_feed_is_refused_if_the_only_connection_that_it_could_share_is_found_broken() -> None:
    pool = Shell(pool_size=1)
    feed(pool, "a")
    pool.opened(2)
    pool.resize(max_feed_connections=0)
    pool.die(1)
    assert pool.ask("b", FEED) == [("abort", 1, "broken"), ("refuse", "b", "lane full")]


def test_a_feed_in_line_is_refused_when_the_lane_becomes_full() -> None:
    pool = Shell(pool_size=2, min_size=0, max_feed_connections=1)
    pool.ask("a")
    pool.opened(1)
    assert pool.ask("b", FEED) == [("open", 2)]
    assert pool.step_aside("a") == [("refuse", "b", "lane full")]


@pytest.mark.parametrize(("limit", "aside"), [(None, [True, True, False]), (1, [True, False]), (0, [False])])
def test_max_feed_connections_caps_the_leases_in_the_lane(limit: int | None, aside: list[bool]) -> None:
    pool = Shell(pool_size=2, min_size=0, max_feed_connections=limit)
    for number, expected in enumerate(aside, 1):
        pool.ask(f"{number}")
        pool.opened(number)
        assert (pool.step_aside(f"{number}") is not None) is expected


def test_a_lease_that_may_not_step_aside_stays_a_lease() -> None:
    pool = Shell(pool_size=1, max_feed_connections=0)
    pool.ask("a")
    assert pool.step_aside("a") is None
    assert (pool.states(), pool.core.census().size) == ({1: "leased"}, 1)


def test_a_lease_steps_aside_once() -> None:
    pool = Shell(pool_size=1, max_feed_connections=1)
    pool.ask("a")
    assert pool.step_aside("a") == [("open", 2)]
    assert pool.step_aside("a") == []
    assert pool.core.census().size == 1


def test_a_feed_that_steps_aside_is_never_too_many_though_the_lane_is_full() -> None:
    pool = Shell(pool_size=2, max_feed_connections=1)
    pool.ask("a", FEED)
    assert pool.core.has_lane() is False, "it counts from its beginning"
    assert pool.step_aside("a") is not None


def test_a_connection_whose_last_feed_has_ended_is_idle_if_the_size_has_room() -> None:
    pool = Shell(pool_size=1, min_size=0)
    feed(pool, "a")
    feed(pool, "b")
    assert [pool.release("a"), pool.release("b")] == [[], []]
    assert (pool.states(), pool.core.census().feeds) == ({1: "idle"}, 0)


def test_a_connection_whose_last_feed_has_ended_serves_who_waits() -> None:
    pool = Shell(pool_size=1, min_size=0)
    feed(pool, "a")
    assert pool.ask("x") == [("open", 2)]
    assert pool.release("a") == [("close", 1, "feed ended")], "2 has taken its place"
    assert pool.opened(2) == [("serve", "x", 2)]


def test_a_connection_whose_last_feed_has_ended_is_closed_if_the_size_has_no_room() -> None:
    pool = Shell(pool_size=1)
    feed(pool, "a")
    pool.opened(2)
    assert pool.release("a") == [("close", 1, "feed ended")]
    census = pool.core.census()
    assert (census.size, census.feeds, census.retired) == (1, 0, 1)
    assert pool.closed(1) == []


def test_the_connection_of_a_feed_takes_others_whatever_its_age_and_is_closed_when_its_last_has_ended() -> None:
    pool = Shell(pool_size=1, min_size=0, connection_ttl=10)
    feed(pool, "a")
    pool.wait(1000)
    assert pool.ask("b", FEED) == [("serve", "b", 1)]
    pool.release("a")
    assert pool.release("b") == [("close", 1, "feed ended")]


def test_a_leased_connection_that_served_a_feed_is_reset_when_it_comes_back() -> None:
    pool = Shell(pool_size=1, min_size=0, reset=hook)
    pool.ask("a")
    pool.opened(1)
    pool.step_aside("a")
    assert pool.release("a") == [("reset", 1)]
    assert pool.prepared(1) == []
    assert pool.core.census().size == 1


def test_a_connection_of_the_lane_that_is_lost_is_aborted_and_its_place_is_free() -> None:
    pool = Shell(pool_size=1, min_size=0, max_feed_connections=1)
    feed(pool, "a")
    feed(pool, "b")
    assert not pool.core.has_lane()
    assert pool.lost(1) == [("abort", 1, "broken")]
    assert pool.core.has_lane()
    assert [pool.release("a"), pool.release("b")] == [[], []], "they notice by themselves"


def test_a_feed_that_finds_the_connection_of_the_lane_broken_gets_another_one() -> None:
    pool = Shell(pool_size=1)
    feed(pool, "a")
    pool.opened(2)
    pool.die(1)
    assert pool.ask("b", FEED) == [("abort", 1, "broken"), ("serve", "b", 2)]


def test_a_drained_connection_of_the_lane_takes_no_feed_and_no_place() -> None:
    pool = Shell(pool_size=1, min_size=0, max_feed_connections=1)
    feed(pool, "a")
    pool.drain()
    assert pool.core.has_lane()
    assert pool.ask("b", FEED) == [("open", 2)]
    assert pool.opened(2) == [("serve", "b", 2)]
    pool.step_aside("b")
    assert pool.release("a") == [("close", 1, "drained")]
    assert not pool.core.has_lane(), "the drained one had no place to give back"


def test_a_drained_lease_in_the_lane_takes_no_place() -> None:
    pool = Shell(pool_size=1, max_feed_connections=1)
    pool.ask("a")
    pool.step_aside("a")
    pool.drain()
    assert pool.core.has_lane()


def test_a_doubted_connection_of_the_lane_takes_no_feed_and_keeps_its_place() -> None:
    pool = Shell(pool_size=2, max_feed_connections=1)
    feed(pool, "a")
    pool.opened(3)
    assert pool.doubt("a") == [("check", 2)]
    assert pool.ask("b", FEED) == [], "it waits for the check"
    assert pool.prepared(2) == [("serve", "b", 2)]


def test_a_doubted_connection_of_the_lane_makes_way_for_another_one() -> None:
    pool = Shell(pool_size=2, max_feed_connections=2)
    feed(pool, "a")
    pool.doubt("a")
    assert pool.ask("b", FEED) == [("serve", "b", 1)]


def test_a_doubted_connection_whose_feeds_have_ended_stays_until_its_check_is_over() -> None:
    pool = Shell(pool_size=1, min_size=0)
    feed(pool, "a")
    pool.doubt("a")
    assert pool.release("a") == []
    assert (pool.states(), pool.core.census().changefeeds) == ({1: "shared"}, 0)
    assert pool.prepared(1) == []
    assert pool.states() == {1: "idle"}


def test_a_doubted_connection_of_the_lane_that_fails_its_check_ends_its_feeds_and_frees_its_place() -> None:
    pool = Shell(pool_size=1, min_size=0, max_feed_connections=1)
    feed(pool, "a")
    pool.doubt("a")
    assert pool.prepared(1, is_fit=False) == [("abort", 1, "unfit")]
    assert pool.core.has_lane()
    assert pool.release("a") == []


@pytest.mark.parametrize("need", [LEASE, QUERY])
def test_a_feed_that_waits_only_for_a_connection_of_the_lane_holds_back_nobody(need: Need) -> None:
    pool = Shell(pool_size=2, min_size=1, max_feed_connections=1)
    feed(pool, "a")
    pool.opened(2)
    pool.ask("holder")
    pool.doubt("a")
    assert pool.ask("b", FEED) == []
    assert pool.ask("x", need) == [("open", 3)]
    assert pool.opened(3) == [("serve", "x", 3)]
    assert pool.line() == ["b"]
    assert pool.prepared(1) == [("serve", "b", 1)]


def test_a_feed_that_waits_for_any_connection_is_not_overtaken() -> None:
    pool = Shell(pool_size=1, max_feed_connections=1)
    pool.ask("holder")
    assert [pool.ask("b", FEED), pool.ask("x")] == [[], []]
    assert pool.release("holder") == [("serve", "b", 1)]


def test_nothing_is_opened_for_a_feed_that_waits_only_for_a_connection_of_the_lane() -> None:
    pool = Shell(pool_size=5, min_size=0, max_feed_connections=1)
    feed(pool, "a")
    pool.doubt("a")
    assert [pool.ask("b", FEED), pool.ask("c", FEED), pool.tick()] == [[], [], []]
    assert pool.ask("x") == [("open", 2)], "one for x, and none for b and c"
    assert pool.prepared(1) == [("serve", "b", 1), ("serve", "c", 1)]


def test_a_feed_in_line_is_refused_when_the_check_of_the_only_connection_it_could_share_fails() -> None:
    pool = Shell(pool_size=2, min_size=0, max_feed_connections=1)
    feed(pool, "a")
    pool.doubt("a")
    pool.ask("b", FEED)
    pool.resize(max_feed_connections=0)
    assert pool.prepared(1, is_fit=False) == [("abort", 1, "unfit"), ("refuse", "b", "lane full")]


@pytest.mark.parametrize("is_doubted", [False, True])
@pytest.mark.parametrize("is_aside", [False, True])
@pytest.mark.parametrize("is_drained", [False, True])
def test_the_connection_of_a_feed_has_a_place_in_the_lane_unless_it_is_to_be_closed(
    is_doubted: bool, is_aside: bool, is_drained: bool
) -> None:
    pool = Shell(pool_size=2, min_size=0, max_feed_connections=1)
    pool.ask("a", FEED)
    pool.opened(1)
    if is_aside:
        pool.step_aside("a")
    if is_doubted:
        pool.doubt("a")
    if is_drained:
        pool.drain()
    assert pool.core.has_lane() is is_drained
    assert pool.ask("b", FEED) == ([("open", 2)] if is_drained else [] if is_doubted else [("serve", "b", 1)]), (
        "no feed is refused"
    )


def test_readers_beside_the_size_take_no_place_in_the_lane() -> None:
    pool = Shell(pool_size=1, connection_ttl=10, max_feed_connections=1)
    pool.ask("a")
    pool.read("a")
    pool.release("a")
    pool.wait(10)
    assert pool.ask("b", FEED) == [("await readers", 1, 60), ("open", 2)]
    assert pool.core.has_lane()
    assert pool.opened(2) == [("serve", "b", 2)]


# ---- cursors that are read on


def test_a_released_connection_is_free_for_others_while_its_cursors_are_read() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a")
    pool.read("a")
    assert pool.release("a") == []
    assert pool.ask("b") == [("serve", "b", 1)]


def test_a_connection_that_is_to_be_closed_waits_for_its_readers_outside_the_size() -> None:
    pool = Shell(pool_size=1, connection_ttl=10, cursor_grace=60)
    pool.ask("a")
    pool.read("a")
    pool.release("a")
    pool.wait(10)
    assert pool.ask("b") == [("await readers", 1, 60), ("open", 2)]
    census = pool.core.census()
    assert (census.size, census.feeds, census.retired) == (1, 0, 1)
    assert pool.opened(2) == [("serve", "b", 2)]
    assert pool.read_out(1) == [("close", 1, "expired")]


def test_a_connection_whose_readers_had_their_time_is_closed_under_them() -> None:
    pool = Shell(pool_size=1, connection_ttl=10)
    pool.ask("a")
    pool.read("a")
    pool.release("a")
    pool.wait(10)
    pool.ask("b")
    assert pool.read_out(1, is_time_over=True) == [("close", 1, "expired")]


def test_a_connection_that_dies_while_its_readers_have_time_is_aborted() -> None:
    pool = Shell(pool_size=1, connection_ttl=10)
    pool.ask("a")
    pool.read("a")
    pool.release("a")
    pool.wait(10)
    pool.ask("b")
    pool.lost(1)
    assert pool.read_out(1) == [("abort", 1, "expired")]


def test_a_connection_that_served_a_feed_is_read_on_in_the_lane_as_long_as_it_takes() -> None:
    pool = Shell(pool_size=1, min_size=0, max_feed_connections=1)
    pool.ask("a")
    pool.opened(1)
    pool.step_aside("a")
    pool.read("a")
    assert pool.release("a") == [("await readers", 1, None)]
    assert (pool.states(), pool.core.has_lane()) == ({1: "read on"}, False)
    assert pool.read_out(1) == []
    assert (pool.states(), pool.core.has_lane()) == ({1: "idle"}, True)


def test_a_connection_that_was_read_on_to_the_end_is_closed_if_the_size_has_no_room() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a")
    pool.step_aside("a")
    pool.opened(2)
    pool.read("a")
    pool.release("a")
    assert pool.read_out(1) == [("close", 1, "feed ended")]


def test_a_connection_that_is_read_on_is_closed_as_drained_after_a_drain() -> None:
    pool = Shell(pool_size=1, min_size=0)
    pool.ask("a")
    pool.opened(1)
    pool.step_aside("a")
    pool.read("a")
    pool.release("a")
    assert pool.drain() == []
    assert pool.core.census().retired == 1
    assert pool.read_out(1) == [("close", 1, "drained")]


def test_a_released_lease_whose_feed_is_read_on_leaves_the_size_and_takes_a_place_in_the_lane() -> None:
    pool = Shell(pool_size=1, max_feed_connections=1)
    pool.ask("a")
    pool.read("a")
    assert pool.release("a", is_read_on=True) == [("await readers", 1, None), ("open", 2)]
    assert not pool.core.has_lane()
    pool.opened(2)
    assert pool.read_out(1) == [("close", 1, "feed ended")]
    assert pool.core.has_lane()


def test_a_released_lease_whose_feed_has_ended_meanwhile_is_idle() -> None:
    pool = Shell(pool_size=1)
    pool.ask("a")
    assert pool.release("a", is_read_on=True) == []
    assert (pool.states(), pool.core.census().size) == ({1: "idle"}, 1)
