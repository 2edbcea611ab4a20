"""One server alone: up or down, how long, and when the next attempt may begin."""

from __future__ import annotations

import pytest

from async_repool._core.backoff import NEVER
from async_repool._core.servers import PROBATION_SECONDS, Server


def server_of(reconnect_timeout: float | None = 300) -> Server:
    return Server(lambda: 1.0, reconnect_timeout)


def fail(server: Server, now: float, *, is_hopeless: bool = False) -> bool:
    return server.failed(now, is_hopeless=is_hopeless)


def test_an_outage_begins_once_and_only_its_first_success_may_end_it() -> None:
    server = server_of()
    assert [fail(server, 0), fail(server, 1), server.is_down] == [True, False, True]
    assert [server.succeeded(2), server.succeeded(2), server.is_down] == [True, False, False]


def test_a_server_is_up_before_anything_was_tried() -> None:
    server = server_of()
    assert (server.is_down, server.retry_at) == (False, -NEVER)
    assert server.succeeded(0) is False, "there was no outage to end"
    assert server.is_over(1000) == (False, NEVER)


def test_an_outage_is_over_once_when_no_attempt_has_failed_for_a_second() -> None:
    server = server_of()
    fail(server, 0)
    assert server.is_over(1000) == (False, NEVER), "nothing was opened yet"
    server.succeeded(20)
    assert server.is_over(20.5) == (False, 20 + PROBATION_SECONDS)
    server.succeeded(20.7)
    assert server.is_over(20 + PROBATION_SECONDS) == (True, NEVER)
    assert server.is_over(1000) == (False, NEVER)


def test_each_failure_is_followed_by_a_longer_pause() -> None:
    server = server_of()
    pauses = []
    now = 0.0
    for _ in range(4):
        fail(server, now)
        pauses.append(server.retry_at - now)
        now = server.retry_at
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8])


def test_the_next_outage_begins_with_a_short_pause() -> None:
    server = server_of()
    fail(server, 0)
    fail(server, 10)
    server.succeeded(20)
    server.is_over(20 + PROBATION_SECONDS)
    assert fail(server, 20 + PROBATION_SECONDS + 0.1) is True
    assert server.retry_at == pytest.approx(20 + PROBATION_SECONDS + 0.2)


def test_an_outage_goes_on_with_its_pauses_if_an_attempt_fails_before_it_is_over() -> None:
    server = server_of()
    fail(server, 0)
    fail(server, 10)
    assert server.succeeded(20) is True
    assert fail(server, 20.5) is False
    assert server.retry_at == pytest.approx(20.9)
    assert server.is_over(21) == (False, NEVER)
    assert server.lasts(300) == (True, NEVER), "it has lasted since the first failure"
    assert server.succeeded(310) is True
    assert server.is_over(311) == (True, NEVER)


def test_an_outage_that_has_lasted_does_not_last_again_though_an_attempt_succeeded() -> None:
    server = server_of(300)
    fail(server, 0)
    assert server.lasts(300) == (True, NEVER)
    server.succeeded(400)
    fail(server, 400.5)
    assert server.lasts(1000) == (False, NEVER)


def test_what_failed_last_says_whether_it_is_hopeless() -> None:
    server = server_of()
    fail(server, 0, is_hopeless=True)
    assert server.is_hopeless
    fail(server, 1)
    assert not server.is_hopeless
    fail(server, 2, is_hopeless=True)
    server.succeeded(3)
    assert not server.is_hopeless


def test_an_outage_lasts_reconnect_timeout_once() -> None:
    server = server_of(300)
    fail(server, 10)
    assert server.lasts(309) == (False, 310)
    assert server.lasts(310) == (True, NEVER)
    assert server.lasts(999) == (False, NEVER)


@pytest.mark.parametrize("why", ["it is up", "there is no limit", "nothing has to be opened"])
def test_an_outage_does_not_last_if(why: str) -> None:
    server = server_of(None if why == "there is no limit" else 300)
    if why != "it is up":
        fail(server, 0)
    if why == "nothing has to be opened":
        server.rest()
    assert server.lasts(1000) == (False, NEVER)


def test_an_outage_in_which_nothing_has_to_be_opened_lasts_from_the_next_failure_on() -> None:
    server = server_of()
    fail(server, 0)
    server.rest()
    assert (server.is_down, server.lasts(499)) == (True, (False, NEVER))
    fail(server, 500)
    assert server.lasts(501) == (True, NEVER)
