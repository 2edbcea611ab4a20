"""The line alone: who waits, oldest first, and how many connections all of them need."""

from __future__ import annotations

import pytest

from async_repool._core.line import Line
from core_kit import FEED, LEASE, QUERY, Need, Ticket


def line_of(*needs: Need) -> tuple[Line, list[Ticket]]:
    line = Line()
    tickets = [Ticket(f"caller {number}", need) for number, need in enumerate(needs)]
    for ticket in tickets:
        line.join(ticket, ticket.need)
    line.check()
    return line, tickets


def test_the_oldest_is_the_one_who_came_first_whatever_it_needs() -> None:
    line, tickets = line_of(QUERY, LEASE, FEED)
    for ticket in tickets:
        assert line.oldest() == (ticket, ticket.need)
        line.leave(ticket)
    assert line.oldest() is None


def test_a_caller_leaves_once_from_any_place() -> None:
    line, (a, b, c) = line_of(LEASE, LEASE, LEASE)
    assert [line.leave(b), line.leave(b)] == [True, False]
    assert line.all() == [a, c]
    line.check()


def test_it_counts_how_many_wait_for_what() -> None:
    line, tickets = line_of(QUERY, LEASE, FEED, QUERY)
    assert (line.total, line.waiting) == (4, [1, 2, 1])
    line.leave(tickets[0])
    assert (line.total, line.waiting) == (3, [1, 1, 1])


def test_the_oldest_is_one_who_can_still_be_served() -> None:
    line, (a, b, c) = line_of(FEED, QUERY, LEASE)
    a.is_done = b.is_done = True
    assert line.oldest() == (c, LEASE)
    assert line.total == 1, "those who were met and cannot be served have left"
    assert [line.leave(a), line.leave(b)] == [False, False]
    line.check()


def test_the_oldest_of_those_with_another_need() -> None:
    line, (a, b, c, d) = line_of(FEED, FEED, QUERY, LEASE)
    assert line.oldest(FEED) == (c, QUERY)
    assert line.oldest(QUERY) == (a, FEED)
    c.is_done = True
    assert line.oldest(FEED) == (d, LEASE)
    line.leave(d)
    assert line.oldest(FEED) is None
    assert line.all() == [a, b]


def test_those_who_cannot_be_served_are_not_listed() -> None:
    line, (a, b, c, d) = line_of(FEED, LEASE, FEED, FEED)
    c.is_done = True
    assert line.all_who_need(FEED) == [a, d]
    assert line.all_who_need(QUERY) == []
    assert line.all() == [a, b, d]


@pytest.mark.parametrize(
    ("needs", "room", "most", "expected"),
    [
        ([], 0, 2, 0),
        ([LEASE, LEASE], 9, 2, 2),
        ([FEED, FEED, FEED], 0, 2, 1),
        ([QUERY], 0, 2, 1),
        ([QUERY] * 3, 0, 2, 2),
        ([QUERY] * 3, 1, 2, 1),
        ([QUERY] * 3, 3, 2, 0),
        ([QUERY] * 3, 0, 1, 3),
        ([LEASE, FEED, QUERY, QUERY, QUERY], 0, 2, 4),
    ],
)
def test_connections_that_serve_all(needs: list[Need], room: int, most: int, expected: int) -> None:
    assert line_of(*needs)[0].connections_needed(room, most) == expected


@pytest.mark.parametrize(
    ("needs", "connections", "expected"),
    [
        ([], 0, 0),
        ([LEASE, LEASE, LEASE], 2, 1),
        ([QUERY] * 5, 1, 2),
        ([QUERY] * 5, 2, 0),
        ([LEASE, QUERY, QUERY], 1, 2),
        ([FEED, FEED], 0, 2),
        ([FEED, FEED, QUERY], 1, 1),
    ],
)
def test_those_who_still_wait_if_so_many_connections_come(needs: list[Need], connections: int, expected: int) -> None:
    assert line_of(*needs)[0].not_served_by(connections, most=3) == expected


def test_ten_thousand_may_leave_at_once() -> None:
    line, tickets = line_of(*[LEASE] * 10_000)
    for ticket in reversed(tickets):
        ticket.is_done = True
    assert line.oldest() is None
    assert line.total == 0
