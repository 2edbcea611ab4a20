"""Every state of small pools is seen: all that there are, or those to a depth that takes a moment."""

from __future__ import annotations

import pytest
from explore import SMALL, Pool, Violation, explore, form

from async_repool._core.backoff import Backoff
from async_repool._core.core import Core
from async_repool._core.servers import Server
from async_repool._core.slots import Slot


@pytest.mark.parametrize("name", SMALL)
def test_all_states_of_a_pool_with_few_kinds_of_facts_are_good(name: str) -> None:
    seen = explore(SMALL[name], depth=100)
    print(f"{name}: {SMALL[name]}: {seen}")
    assert seen.is_whole
    assert seen.states > 20


@pytest.mark.parametrize(
    ("pool", "depth"),
    [
        (Pool(size=1, min_size=0, hooks="both"), 3),
        (Pool(size=1), 3),
        (Pool(size=2), 3),
        (Pool(size=2, hooks="check"), 3),
        (Pool(size=2, hooks="reset", max_idle=0, min_size=0, max_waiting=1), 3),
    ],
    ids=str,
)
def test_the_first_states_of_a_pool_with_all_kinds_of_facts_are_good(pool: Pool, depth: int) -> None:
    seen = explore(pool, depth)
    print(f"{pool}: {seen}")
    assert seen.states > 200


def test_it_makes_no_difference_which_connection_and_which_caller_it_is() -> None:
    one, other = (Pool(size=2, min_size=2).start() for _ in range(2))
    for name in "ab":
        one.ask(name)
    for name in "xy":
        other.ask(name)
    one.release("a")
    assert form(one) != form(other)
    other.release("y")
    assert one.states() == {1: "leased", 2: "idle"}
    assert other.states() == {1: "idle", 2: "leased"}
    assert form(one) == form(other)


def test_it_makes_no_difference_what_the_clock_says_only_how_long_ago_things_happened() -> None:
    one, other = (Pool(min_size=0).start() for _ in range(2))
    other.wait(50)
    for shell in (one, other):
        shell.ask("a")
        shell.opened(1)
    assert form(one) == form(other)
    other.wait_unnoticed(1)
    assert form(one) != form(other)


def test_the_form_of_a_state_holds_every_field_of_the_core() -> None:
    shell = Pool(min_size=0).start()
    assert vars(shell.core).keys() == {
        *("slots", "_inside", "_shelf", "_queries", "_feeds", "_line", "_server", "wake_at", "orders"),
        *("_random", "_is_open", "_has_streams"),  # never change
        *("_config", "_max_size", "_min_size", "_most", "_resets", "_trusts_use", "_check_after"),  # follow pool_size
        *("_is_closing", "_is_plain"),  # follows from the others; is false
    }
    assert set(Slot.__slots__) == {
        *("state", "beside", "in_lane", "connection", "doom", "is_doubted", "is_new", "load", "needs_reset", "shares"),
        *("expires_at", "heard_at", "opened_at", "used_at"),
        *("number", "holder", "work"),  # the core reads none of them
    }
    assert vars(Server(lambda: 1.0, None)).keys() == {
        *("_backoff", "is_down", "is_hopeless", "_since", "_over_at", "_has_lasted", "_is_resting"),
        "_reconnect_timeout",  # never changes
    }
    assert vars(Backoff(lambda: 1.0)).keys() == {"failures", "retry_at", "_random"}


def test_a_violation_names_the_shortest_list_of_facts_that_leads_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Core, "leave_line", lambda core, ticket, now: core._line.leave(ticket))
    with pytest.raises(Violation) as caught:
        explore(SMALL["leases and queries"], depth=100)
    assert str(caught.value).splitlines()[1:] == [
        "    shell.ask('a', QUERY)",
        "    shell.ask('b', LEASE)",
        "    shell.ask('c', QUERY)",
        "    shell.cancel('b')",
        "    shell.leave('b')",
        "AssertionError: <c> waits beside <#1 SHARED load 1>",
    ]
