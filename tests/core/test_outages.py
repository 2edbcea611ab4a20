"""Outages: an opening has failed, and none has succeeded since. Who is told, when it is tried again."""

from __future__ import annotations

import pytest

from core_kit import FEED, LEASE, QUERY, Need, Shell, hook

BEGAN, LASTS, ENDED = ("report", "began"), ("report", "lasts"), ("report", "ended")


def down(**options: object) -> Shell:
    """A pool whose first opening has just failed, for a caller ``a`` that still waits. It tries again in 0.1 s."""
    pool = Shell(**{"pool_size": 2, "min_size": 0, "random": 1.0, **options})
    assert pool.ask("a") == [("open", 1)]
    assert pool.open_failed(1) == [BEGAN]
    return pool


def test_an_opening_that_fails_gives_its_place_back_and_its_caller_waits_on() -> None:
    pool = down()
    assert (pool.core.census().size, pool.core.census().is_down, pool.line()) == (0, True, ["a"])
    assert pool.core.wake_at == pytest.approx(0.1)


def test_a_caller_is_served_if_the_server_comes_back_in_the_time_it_has() -> None:
    pool = down()
    assert pool.wait(0.1) == [("open", 2)]
    assert pool.opened(2) == [("serve", "a", 2)]
    assert pool.wait(1) == [ENDED]


def test_a_caller_whose_time_is_up_in_an_outage_learns_that_nothing_can_be_opened() -> None:
    pool = down()
    assert pool.expire("a") == [("refuse", "a", "unreachable")]


def test_a_deadlock_in_an_outage_is_an_outage() -> None:
    pool = Shell(pool_size=2, min_size=1, random=1.0)
    pool.ask("holder")
    pool.ask("a")
    pool.open_failed(2)
    assert pool.expire("a", is_deadlock=True) == [("refuse", "a", "unreachable")]


def test_a_caller_whose_time_is_up_after_an_outage_has_timed_out() -> None:
    pool = down(pool_size=1)
    pool.wait(0.1)
    pool.opened(2)
    pool.ask("b")
    assert pool.expire("b") == [("refuse", "b", "timed out")]


def test_in_an_outage_one_opening_at_a_time_is_tried_however_many_wait() -> None:
    pool = down(pool_size=5)
    assert [pool.ask(name) for name in "bcd"] == [[], [], []]
    assert pool.wait(0.1) == [("open", 2)]
    assert pool.ask("e") == []
    assert pool.open_failed(2) == []
    assert pool.line() == ["a", "b", "c", "d", "e"]


def test_after_an_outage_the_pool_opens_as_many_as_it_needs() -> None:
    pool = down(pool_size=5)
    for name in "bcd":
        pool.ask(name)
    pool.wait(0.1)
    assert pool.opened(2) == [("serve", "a", 2), ("open", 3), ("open", 4), ("open", 5)]


def test_openings_that_fail_together_begin_one_outage() -> None:
    pool = Shell(pool_size=3, random=1.0, is_started=False)
    pool.tick()
    assert [pool.open_failed(number) for number in (1, 2, 3)] == [[BEGAN], [], []]
    assert pool.wait(0.1) == [("open", 4)]


def test_an_opening_that_succeeds_beside_one_that_failed_ends_the_outage() -> None:
    pool = Shell(pool_size=2, random=1.0, is_started=False)
    pool.tick()
    assert pool.open_failed(1) == [BEGAN]
    assert pool.opened(2) == [("open", 3)]
    assert pool.wait(1) == [ENDED]


def test_what_waiting_cannot_mend_is_told_to_everybody_at_once() -> None:
    pool = Shell(pool_size=1, min_size=0, random=1.0)
    for name, need in (("a", LEASE), ("b", QUERY), ("c", FEED)):
        pool.ask(name, need)
    assert pool.open_failed(1, is_hopeless=True) == [
        BEGAN,
        ("refuse", "a", "hopeless"),
        ("refuse", "b", "hopeless"),
        ("refuse", "c", "hopeless"),
    ]


@pytest.mark.parametrize("need", [LEASE, QUERY, FEED])
def test_after_a_hopeless_failure_the_next_caller_tries_again_at_once(need: Need) -> None:
    pool = Shell(pool_size=1, min_size=0, random=1.0)
    pool.ask("a")
    pool.open_failed(1, is_hopeless=True)
    assert pool.ask("b", need) == [("open", 2)]
    assert pool.open_failed(2, is_hopeless=True) == [("refuse", "b", "hopeless")]


def test_after_a_hopeless_failure_min_size_is_opened_after_the_pause() -> None:
    pool = Shell(pool_size=1, random=1.0, is_started=False)
    pool.tick()
    assert pool.open_failed(1, is_hopeless=True) == [BEGAN]
    assert pool.wait(0.1) == [("open", 2)]


def test_attempts_are_spaced_by_exponential_back_off() -> None:
    pool = Shell(pool_size=1, random=1.0, reconnect_timeout=None, is_started=False)
    pool.tick()
    pauses = []
    for number in range(1, 11):
        pool.open_failed(number)
        pauses.append(pool.core.wake_at - pool.now)
        assert pool.wait(pauses[-1]) == [("open", number + 1)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5])


def test_nothing_is_tried_in_an_outage_if_nobody_waits_and_min_size_is_open() -> None:
    pool = down()
    pool.leave("a")
    assert pool.core.wake_at == float("inf") or pool.wait(1000) == []
    assert pool.ask("b") == [("open", 2)], "the pause is long over"


def test_an_outage_that_has_lasted_reconnect_timeout_is_reported_once() -> None:
    pool = Shell(pool_size=1, random=1.0, reconnect_timeout=300, is_started=False)
    pool.tick()
    reported_at = []
    while pool.now < 1000:
        for slot in list(pool.work):
            pool.open_failed(slot.number)
        if LASTS in pool.wait(pool.core.wake_at - pool.now):
            reported_at.append(pool.now)
    assert reported_at == [300]


def test_no_outage_lasts_too_long_without_reconnect_timeout() -> None:
    pool = Shell(pool_size=1, random=1.0, reconnect_timeout=None, is_started=False)
    pool.tick()
    while pool.now < 1000:
        for slot in list(pool.work):
            pool.open_failed(slot.number)
        assert LASTS not in pool.wait(pool.core.wake_at - pool.now)


def test_an_outage_that_nobody_needs_to_end_lasts_only_if_another_attempt_fails() -> None:
    pool = down(reconnect_timeout=10)
    pool.leave("a")
    pool.wait(100)
    assert pool.ask("b") == [("open", 2)]
    assert pool.open_failed(2) == [LASTS]


@pytest.mark.parametrize("how", ["is lost", "is found broken", "fails its check"])
def test_a_server_that_hangs_up_on_every_new_connection_is_called_at_growing_intervals(how: str) -> None:
    check = hook if how == "fails its check" else None
    pool = Shell(pool_size=1, random=1.0, check=check, is_started=False)
    pool.tick()
    pauses = []
    for number in range(1, 6):
        pool.opened(number)
        if how == "is lost":
            pool.lost(number)
        elif how == "is found broken":
            pool.die(number)
            pool.ask("a")
            pool.leave("a")
        else:
            assert pool.ask("a") == [("check", number)]
            pool.prepared(number, is_fit=False)
            pool.closed(number)
            pool.leave("a")
        assert pool.tick() == [], "the timer may still be set for the end of the outage"
        pauses.append(pool.core.wake_at - pool.now)
        assert pool.wait(pauses[-1]) == [("open", number + 1)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])


def test_a_connection_that_was_used_and_dies_is_replaced_at_once() -> None:
    pool = Shell(pool_size=1, random=1.0)
    pool.ask("a")
    pool.release("a")
    assert pool.lost(1) == [("abort", 1, "broken"), ("open", 2)]


def test_a_connection_that_dies_unused_after_a_second_is_replaced_at_once() -> None:
    pool = Shell(pool_size=1, random=1.0)
    pool.wait(1)
    assert pool.lost(1) == [("abort", 1, "broken"), ("open", 2)]


def test_an_outage_in_which_a_connection_is_opened_and_dies_at_once_goes_on() -> None:
    pool = down()
    pool.leave("a")
    pool.wait(1)
    pool.ask("b")
    assert pool.opened(2) == [("serve", "b", 2)]
    pool.release("b", was_used=False)
    assert pool.lost(2) == [("abort", 2, "broken")], "it is the same outage, which is reported as begun once"
    assert pool.ask("c") == []
    pool.tick()
    assert pool.core.wake_at == pytest.approx(pool.now + 0.2), "its pauses go on, too"


def test_an_outage_ends_a_second_after_the_opening_that_succeeded_and_not_before() -> None:
    pool = down()
    pool.wait(0.1)
    assert pool.opened(2) == [("serve", "a", 2)]
    assert pool.core.wake_at == pytest.approx(1.1)
    assert not pool.core.census().is_down, "for callers the server is up"
    assert [pool.wait(0.9), pool.tick(), pool.wait(0.1), pool.wait(100)] == [[], [], [ENDED], []]


def test_other_openings_that_succeed_do_not_put_off_the_end_of_an_outage() -> None:
    pool = down(pool_size=3)
    pool.wait(0.1)
    pool.opened(2)
    pool.wait(0.6)
    assert pool.ask("b") == [("open", 3)]
    assert pool.opened(3) == [("serve", "b", 3)]
    assert pool.wait(0.4) == [ENDED]


@pytest.mark.parametrize("how", ["an opening fails", "a connection dies at once"])
def test_a_failure_in_the_second_after_an_opening_goes_on_with_the_same_outage(how: str) -> None:
    pool = down(pool_size=2, reconnect_timeout=10)
    pool.wait(0.1)
    pool.opened(2)
    pool.wait(0.5)
    if how == "an opening fails":
        assert pool.ask("b") == [("open", 3)]
        assert pool.open_failed(3) == [], "it has begun before"
    else:
        pool.release("a", was_used=False)
        assert pool.lost(2) == [("abort", 2, "broken")]
        assert pool.ask("b") == []
    assert pool.wait(0.2) == [("open", 4 if how == "an opening fails" else 3)], "the second pause is twice the first"
    (opening,) = pool.work
    told = [*pool.wait(10), *pool.open_failed(opening.number)]
    assert told == [LASTS], "it has lasted since the first failure"
    assert pool.wait(0.4) == [("open", opening.number + 1)]
    pool.opened(opening.number + 1)
    assert pool.wait(1) == [ENDED]


def test_an_opening_that_fails_after_the_end_of_an_outage_begins_another_one() -> None:
    pool = down(pool_size=2)
    pool.wait(0.1)
    pool.opened(2)
    assert pool.wait(1) == [ENDED]
    pool.ask("b")
    assert pool.open_failed(3) == [BEGAN]
    assert pool.core.wake_at == pytest.approx(pool.now + 0.1), "its first pause is short again"


def test_an_outage_of_a_pool_that_closes_is_not_reported_as_ended() -> None:
    pool = down()
    pool.wait(0.1)
    pool.opened(2)
    pool.close()
    assert pool.wait(1) == []


@pytest.mark.parametrize(
    ("pool_size", "open_before", "why"),
    [(1, 1, "timed out"), (2, 2, "timed out"), (2, 1, "unreachable"), (1, 0, "unreachable")],
)
def test_in_an_outage_a_caller_timed_out_if_as_many_are_open_as_the_pool_may_have(
    pool_size: int, open_before: int, why: str
) -> None:
    pool = Shell(pool_size=pool_size + 1, min_size=0, random=1.0)
    for number in range(1, open_before + 1):
        pool.ask(f"holder {number}")
        pool.opened(number)
    pool.ask("a")
    pool.open_failed(open_before + 1)
    pool.resize(pool_size=pool_size, min_size=0)
    assert pool.expire("a") == [("refuse", "a", why)]


@pytest.mark.parametrize("under_way", [False, True])
def test_a_place_whose_opening_is_under_way_has_room_for_a_connection_that_is_open(under_way: bool) -> None:
    pool = down(pool_size=1)
    if under_way:
        assert pool.wait(0.1) == [("open", 2)]
    assert pool.expire("a") == [("refuse", "a", "unreachable")]


def test_a_crowded_pool_that_cannot_open_another_connection_tries_again_after_a_pause() -> None:
    pool = Shell(pool_size=3, min_size=1, random=1.0)
    for name in "ab":
        pool.ask(name, QUERY)
    assert pool.ask("c", QUERY) == [("open", 2), ("serve", "c", 1)]
    assert pool.open_failed(2) == [BEGAN]
    assert pool.ask("d", QUERY) == [("serve", "d", 1)], "no query waits for an outage if there is a place"
    pool.wait(0.1)
    assert pool.ask("e", QUERY) == [("open", 3), ("serve", "e", 1)]


def test_the_failure_of_an_opening_for_min_size_is_no_callers_affair() -> None:
    pool = Shell(pool_size=2, random=1.0, is_started=False)
    pool.tick()
    pool.opened(1)
    pool.ask("a")
    assert pool.open_failed(2) == [BEGAN]
    assert pool.release("a") == []
