"""The line and the idle slots, without a pool: strictly first come, first served."""

from __future__ import annotations

import asyncio

import pytest

from async_repool._waiting_room import Need, WaitingRoom


async def test_a_newcomer_takes_no_idle_slot_while_somebody_waits() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    assert room.put_nowait("slot")
    ticket = room.join(Need.LEASE)
    assert room.take_nowait() is None
    assert room.pop_nowait() == "slot", "but it may be taken for who waits"
    assert room.hand_over("slot")
    assert await ticket == "slot"
    assert room.take_nowait() is None, "there is none left"


async def test_a_slot_is_not_kept_while_somebody_waits() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    ticket = room.join(Need.LEASE)
    assert not room.put_nowait("slot")
    ticket.cancel()
    assert room.put_nowait("slot"), "nobody is left who could take it"


async def test_slots_are_taken_longest_unused_first_and_others_keep_their_order() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    for slot in "abcd":
        room.put_nowait(slot)
    room.remove(("b", "d"))
    assert [room.take_nowait(), room.take_nowait(), room.take_nowait()] == ["a", "c", None]


async def test_hand_overs_and_refusals_go_to_the_oldest_that_can_still_be_served() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    tickets = [room.join(Need.LEASE) for _ in range(4)]
    tickets[0].cancel()
    assert room.hand_over("slot")
    assert room.refuse(KeyError("no"))
    assert tickets[1].result() == "slot"
    with pytest.raises(KeyError):
        await tickets[2]
    assert room.waiting == 1
    room.refuse_all(ValueError("none"))
    with pytest.raises(ValueError, match="none"):
        await tickets[3]
    assert not room.hand_over("slot")
    assert not room.refuse(KeyError("no"))


async def test_whoever_leaves_gets_what_was_handed_over_and_not_seen() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    served, waiting = room.join(Need.LEASE), room.join(Need.LEASE)
    room.hand_over("slot")
    assert room.leave(served) == "slot"
    assert room.leave(waiting) is None
    assert room.waiting == 0


async def test_there_is_one_line_whatever_its_callers_need() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    needs = [Need.QUERY, Need.LEASE, Need.FEED, Need.QUERY]
    tickets = [room.join(need) for need in needs]
    for ticket, need in zip(tickets, needs, strict=True):
        assert room.next_need is need
        assert room.hand_over(need.name)
        assert ticket.result() == need.name
    assert room.next_need is None
    assert room.waiting == 0


async def test_it_counts_how_many_wait_for_what() -> None:
    room: WaitingRoom[str] = WaitingRoom()

    def waiting() -> list[int]:
        assert room.waiting == sum(room.waiting_for(need) for need in Need)
        return [room.waiting_for(need) for need in (Need.LEASE, Need.QUERY, Need.FEED)]

    tickets = [room.join(need) for need in (Need.QUERY, Need.LEASE, Need.FEED, Need.QUERY, Need.LEASE, Need.FEED)]
    assert waiting() == [2, 2, 2]
    room.hand_over("slot")
    assert waiting() == [2, 1, 2]
    room.refuse(KeyError("no"))
    assert waiting() == [1, 1, 2]
    assert isinstance(tickets[1].exception(), KeyError)
    assert room.leave(tickets[0]) == "slot"
    assert room.leave(tickets[1]) is None
    assert waiting() == [1, 1, 2], "they had left before"
    room.leave(tickets[5])
    assert waiting() == [1, 1, 1]
    room.refuse_all(ValueError("none"))
    assert waiting() == [0, 0, 0]
    assert all(ticket.exception() for ticket in tickets[2:5])


async def test_whoever_was_cancelled_but_has_not_left_yet_is_passed_over_and_counts_no_more() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    tickets = [room.join(need) for need in (Need.FEED, Need.QUERY, Need.LEASE)]
    tickets[0].cancel()
    tickets[1].cancel()
    assert room.next_need is Need.LEASE
    assert [room.waiting_for(need) for need in Need] == [1, 0, 0]
    assert [room.leave(ticket) for ticket in tickets] == [None] * 3
    assert room.waiting == 0


async def test_a_need_that_was_served_does_not_leave_twice() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    ticket = room.join(Need.QUERY)
    room.hand_over("slot")
    room.join(Need.QUERY)
    assert room.leave(ticket) == room.leave(ticket) == "slot"
    assert room.waiting_for(Need.QUERY) == 1


async def test_slots_that_are_idle_for_long_are_taken_first_also_for_those_who_wait() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    assert not room.has_idle
    for slot in "ab":
        room.put_nowait(slot)
    room.join(Need.QUERY)
    assert [room.pop_nowait(), room.has_idle, room.pop_nowait(), room.pop_nowait()] == ["a", True, "b", None]
    assert not room.has_idle


async def test_an_idle_slot_may_be_kept_though_somebody_waits_who_cannot_use_it() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    ticket = room.join(Need.FEED)
    room.keep_nowait("slot")
    assert not ticket.done()
    assert room.take_nowait() is None, "it is not for newcomers"
    assert room.pop_nowait() == "slot"


async def test_whoever_is_out_of_time_leaves_the_line_at_once() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    tickets = [room.join(need) for need in (Need.LEASE, Need.QUERY)]
    room.expire(tickets[0], TimeoutError())
    assert (room.waiting, room.waiting_for(Need.LEASE), room.next_need) == (1, 0, Need.QUERY)
    with pytest.raises(TimeoutError):
        await tickets[0]
    assert room.leave(tickets[0]) is None
    assert room.hand_over("slot")
    assert await tickets[1] == "slot"


@pytest.mark.parametrize("before", ["served", "refused", "cancelled"])
async def test_time_that_is_up_changes_nothing_for_whoever_was_answered_before(before: str) -> None:
    room: WaitingRoom[str] = WaitingRoom()
    ticket = room.join(Need.QUERY)
    room.join(Need.QUERY)
    if before == "served":
        room.hand_over("slot")
    elif before == "refused":
        room.refuse(KeyError("no"))
    else:
        ticket.cancel()
    room.expire(ticket, TimeoutError())
    assert room.leave(ticket) == ("slot" if before == "served" else None)
    assert ticket.cancelled() or not isinstance(ticket.exception(), TimeoutError)
    assert (room.waiting, room.waiting_for(Need.QUERY)) == (1, 1)


async def test_ten_thousand_may_leave_at_once() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    tickets = [room.join(Need.LEASE) for _ in range(10_000)]
    for ticket in reversed(tickets):
        ticket.cancel()
    assert not room.hand_over("slot")
    assert room.waiting == 0
    await asyncio.sleep(0)
