"""The line and the idle slots, without a pool: strictly first come, first served."""

from __future__ import annotations

import asyncio

import pytest

from async_repool._waiting_room import WaitingRoom


async def test_a_newcomer_takes_no_idle_slot_while_somebody_waits() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    assert room.put_nowait("slot")
    ticket = room.join()
    assert room.take_nowait() is None
    assert room.pop_nowait() == "slot", "but it may be taken for who waits"
    assert room.hand_over("slot")
    assert await ticket == "slot"
    assert room.take_nowait() is None, "there is none left"


async def test_a_slot_is_not_kept_while_somebody_waits() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    ticket = room.join()
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
    tickets = [room.join() for _ in range(4)]
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
    served, waiting = room.join(), room.join()
    room.hand_over("slot")
    assert room.leave(served) == "slot"
    assert room.leave(waiting) is None
    assert room.waiting == 0


async def test_ten_thousand_may_leave_at_once() -> None:
    room: WaitingRoom[str] = WaitingRoom()
    tickets = [room.join() for _ in range(10_000)]
    for ticket in reversed(tickets):
        ticket.cancel()
    assert not room.hand_over("slot")
    assert room.waiting == 0
    await asyncio.sleep(0)
