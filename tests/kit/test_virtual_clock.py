"""The virtual clock, as the author of a test uses it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
import time

import pytest

from async_repool.testing.virtual_clock import (
    DeadlockError,
    LeftoverError,
    UnhandledError,
    VirtualClockLoop,
    cancel_at_every_step,
    run,
)


def loop_time():
    return asyncio.get_running_loop().time()


def virtual_loop():
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop)
    return loop


# The clock.


def test_a_month_passes_in_no_time():
    async def sleep_for_a_month():
        await asyncio.sleep(30 * 24 * 3600)
        return loop_time()

    began = time.monotonic()
    assert run(sleep_for_a_month()) == 30 * 24 * 3600
    assert time.monotonic() - began < 5


def test_ten_years_pass_too():
    async def scenario() -> float:
        await asyncio.sleep(86_400 * 3650)
        async with asyncio.timeout(1):
            await asyncio.sleep(0.5)
        return asyncio.get_running_loop().time()

    assert run(scenario()) == pytest.approx(86_400 * 3650 + 0.5)


def test_the_clock_starts_at_the_given_time():
    async def now():
        return loop_time()

    assert run(now()) == 0
    assert run(now(), start=1000.5) == 1000.5


def test_the_clock_stands_still_while_callbacks_run():
    async def turn_and_turn():
        for _ in range(100):
            await asyncio.sleep(0)
        return loop_time()

    assert run(turn_and_turn()) == 0


def test_the_clock_jumps_exactly_to_each_timer():
    async def watch():
        loop, seen = asyncio.get_running_loop(), []
        moments = [0.1, 0.1 + 0.2, 0.7, 1 / 3, 86_400.1, 1e6 + 1 / 7]
        for moment in moments:
            loop.call_at(moment, lambda: seen.append(loop_time()))
        await asyncio.sleep(2e6)
        return seen == sorted(moments)

    assert run(watch())


def test_timers_go_off_in_the_order_of_their_times():
    async def watch():
        seen = []

        async def note(seconds):
            await asyncio.sleep(seconds)
            seen.append(seconds)

        await asyncio.gather(*map(note, [3, 1, 2, 0, 5]))
        return seen

    assert run(watch()) == [0, 1, 2, 3, 5]


def test_a_cancelled_timer_does_not_stop_the_clock():
    async def watch():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(7):
                await asyncio.sleep(100)
        return loop_time()

    assert run(watch()) == 7


def test_whoever_asks_for_the_rest_of_its_time_gets_there():
    # asyncio calls a nanosecond early. A callback that asks for that nanosecond must not repeat without end.
    async def wait_until(deadline):
        loop, reached = asyncio.get_running_loop(), asyncio.Event()

        def look():
            if loop.time() >= deadline:
                reached.set()
            else:
                loop.call_at(deadline, look)

        look()
        await reached.wait()
        return loop.time()

    async def watch():
        asyncio.get_running_loop().call_at(1.0, lambda: None)
        return await wait_until(1.0 + 1e-10)

    assert run(watch(), max_steps=1000) == pytest.approx(1, abs=1e-5)


# Hanging.


def test_waiting_for_what_will_never_happen_is_an_error_that_lists_the_tasks():
    async def wait_for_ever():
        await asyncio.Event().wait()

    async def hang():
        task = asyncio.create_task(wait_for_ever(), name="the other")
        await asyncio.sleep(3)
        await task

    with pytest.raises(DeadlockError) as caught:
        run(hang())
    message = str(caught.value)
    assert "nothing will ever happen, at 3 s: 2 tasks are waiting" in message
    assert "the other: in " in message
    assert "wait_for_ever → Event.wait (locks.py:" in message


def test_a_hung_task_beside_one_that_ticks_for_ever_is_an_error_too():
    async def tick():
        for _ in itertools.count():
            await asyncio.sleep(1)

    async def hang():
        ticking = asyncio.create_task(tick(), name="ticking")
        await asyncio.Event().wait()
        ticking.cancel()

    with pytest.raises(DeadlockError, match=r"(?s)no end after 1000 steps.*2 tasks are waiting.*ticking"):
        run(hang(), max_steps=1000)


def test_spinning_without_waiting_is_an_error_too():
    async def spin():
        for _ in itertools.count():
            await asyncio.sleep(0)

    with pytest.raises(DeadlockError, match="no end after 1000 steps, at 0 s: 1 task is waiting"):
        run(spin(), max_steps=1000)


def test_an_error_that_made_the_test_hang_is_named():
    async def hang():
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError, match="ZeroDivisionError"):
        run(hang())


# Running and ending.


def test_what_the_coroutine_returns_and_raises_comes_out():
    async def fine():
        return 42

    async def broken():
        raise LookupError("of mine")

    assert run(fine()) == 42
    with pytest.raises(LookupError, match="of mine"):
        run(broken())


def test_tasks_that_are_left_over_are_cancelled_and_named():
    ended = []

    async def linger():
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(loop_time())

    async def forget():
        forget.task = asyncio.create_task(linger(), name="the forgotten one")
        await asyncio.sleep(1)

    with pytest.raises(LeftoverError, match=r"1 task is left over\n  the forgotten one: in .*linger → sleep"):
        run(forget())
    assert ended == [1]


def test_a_task_that_only_has_to_finish_is_not_left_over():
    async def forget():
        task = asyncio.create_task(asyncio.sleep(3600))
        await asyncio.sleep(1)
        task.cancel()

    run(forget())


def test_a_task_that_refuses_to_be_cancelled_is_named():
    async def refuse():
        for _ in range(1_000_000):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1)

    async def forget():
        forget.task = asyncio.create_task(refuse(), name="stubborn")
        await asyncio.sleep(0)

    with pytest.raises(LeftoverError) as caught:
        run(forget())
    assert any("1 task is impossible to cancel" in note and "stubborn" in note for note in caught.value.__notes__)


def test_a_task_that_spins_and_refuses_to_be_cancelled_does_not_hang_the_run():
    async def spin():
        for _ in itertools.count():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    async def forget():
        forget.task = asyncio.create_task(spin(), name="spinning")
        await asyncio.sleep(0)

    with pytest.raises(LeftoverError, match="spinning") as caught:
        run(forget())
    assert any("no end after" in note for note in caught.value.__notes__)


def test_a_task_that_fails_when_it_is_cancelled_is_named():
    async def fail_late():
        try:
            await asyncio.sleep(3600)
        finally:
            raise LookupError("of mine")

    async def forget():
        forget.task = asyncio.create_task(fail_late(), name="the forgotten one")
        await asyncio.sleep(0)

    with pytest.raises(LeftoverError) as caught:
        run(forget())
    assert "task the forgotten one failed when it was cancelled: LookupError('of mine')" in caught.value.__notes__[0]


def test_tasks_that_a_failure_left_behind_are_a_note_on_that_failure():
    async def fail():
        fail.task = asyncio.create_task(asyncio.sleep(3600), name="the other")
        await asyncio.sleep(0)
        raise LookupError("of mine")

    with pytest.raises(LookupError, match="of mine") as caught:
        run(fail())
    assert "the other" in "".join(caught.value.__notes__)


def test_an_error_in_a_callback_fails_the_run():
    async def schedule():
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(1)

    with pytest.raises(UnhandledError) as caught:
        run(schedule())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_error_of_a_task_that_nobody_asked_for_fails_the_run():
    async def fail():
        raise LookupError("of mine")

    async def forget():
        task = asyncio.create_task(fail())
        await asyncio.sleep(1)
        del task

    with pytest.raises(UnhandledError, match=r"never retrieved.*of mine"):
        run(forget())


def test_async_generators_are_closed():
    ended = []

    async def count():
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(1)
            ended.append(loop_time())

    async def leave_early():
        leave_early.kept = count()
        return await anext(leave_early.kept)

    assert run(leave_early()) == 1
    assert ended == [1]


async def test_run_refuses_to_start_inside_a_running_loop():
    async def nothing():
        pass

    with pytest.raises(RuntimeError, match="cannot be called from a running one"):
        run(nothing())
    with pytest.raises(RuntimeError, match="cannot be called from a running one"):
        cancel_at_every_step(nothing)


def test_the_loop_works_in_the_runner_of_asyncio():
    async def sleep_for_a_day():
        await asyncio.sleep(86_400)
        return loop_time()

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        assert runner.run(sleep_for_a_day()) == 86_400


# Sockets and threads.


def test_work_in_an_executor_is_waited_for():
    async def work():
        return await asyncio.to_thread(lambda: time.sleep(0.05) or "done")

    assert run(work()) == "done"


def test_the_clock_does_not_jump_ahead_of_work_in_an_executor():
    async def work():
        async with asyncio.timeout(30):
            await asyncio.to_thread(time.sleep, 0.05)
        return loop_time()

    assert run(work()) < 5
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        assert runner.run(work()) < 5


def test_a_thread_of_ones_own_is_waited_for_where_that_is_said():
    async def wait_for_thread():
        loop, called = virtual_loop(), asyncio.Event()
        thread = threading.Timer(0.05, lambda: loop.call_soon_threadsafe(called.set))
        thread.start()
        with loop.waiting_for_threads():
            await called.wait()
        thread.join()

    run(wait_for_thread())


def test_the_clock_runs_like_a_real_one_while_a_socket_is_watched():
    async def answer_late(reader, writer):
        await asyncio.sleep(0.05)
        writer.write(b"late")
        writer.close()
        await writer.wait_closed()

    async def ask():
        async with await asyncio.start_server(answer_late, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            async with asyncio.timeout(30):
                answer = await reader.read()
            writer.close()
            await writer.wait_closed()
        between = loop_time()
        await asyncio.sleep(86_400)
        return answer, between, loop_time()

    answer, between, at_last = run(ask())
    assert answer == b"late"
    assert 0.04 < between < 5
    assert at_last == pytest.approx(between + 86_400)


def test_a_timer_still_goes_off_while_a_socket_is_watched_in_vain():
    async def watch():
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await asyncio.get_running_loop().sock_recv(ours, 1)
        return loop_time()

    assert run(watch()) == 0.05


# Steps.


def test_steps_are_counted_alike_in_every_run():
    async def count():
        await asyncio.gather(*(asyncio.sleep(n % 3) for n in range(20)))
        return virtual_loop().steps

    first = run(count())
    assert first > 20
    assert all(run(count()) == first for _ in range(5))


def test_a_callback_can_be_placed_between_two_steps():
    async def watch():
        loop, seen = virtual_loop(), []
        now = loop.steps
        loop.at_step(now + 2, lambda: seen.append("between"))
        loop.call_soon(seen.append, "first")
        loop.call_soon(seen.append, "second")
        await asyncio.sleep(1)
        return seen

    assert run(watch()) == ["first", "between", "second"]


def test_a_step_that_is_past_is_refused():
    async def watch():
        loop = virtual_loop()
        loop.at_step(loop.steps, print)

    with pytest.raises(ValueError, match="step 1 is past"):
        run(watch())


# Cancelling at every step.


def test_a_scenario_is_cancelled_at_every_step_until_it_completes():
    endings = []

    async def three_turns():
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            endings.append("completed")
        except asyncio.CancelledError:
            endings.append("cancelled")
            raise

    # Its task has four steps. It never begins if it is cancelled before the first one.
    assert cancel_at_every_step(three_turns) == 4
    assert endings == ["cancelled", "cancelled", "cancelled", "completed"]


def test_a_scenario_is_cancelled_while_it_waits_and_at_the_moment_when_its_time_is_up():
    moments = []

    async def scenario():
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            moments.append(loop_time())
            raise

    cancel_at_every_step(scenario)
    assert moments[0] == 0
    assert moments[-1] == 5


def test_every_cancellation_has_a_loop_of_its_own_that_starts_at_zero():
    loops = []

    async def scenario():
        assert loop_time() == 0
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(5)

    tried = cancel_at_every_step(scenario)
    assert len(set(loops)) == len(loops) == tried  # plus the run that completes, minus the one that never begins


def test_what_must_hold_is_checked_after_every_run_on_the_same_loop():
    checked = []

    async def scenario():
        await asyncio.sleep(5)

    async def after():
        await asyncio.sleep(1)
        checked.append(loop_time())

    tried = cancel_at_every_step(scenario, after=after)
    assert len(checked) == tried + 1
    assert set(checked) == {1, 6}


def test_a_check_that_fails_tells_at_which_step_and_where_the_scenario_was_cancelled():
    held = []

    async def careless():
        held.append("slot")
        await asyncio.sleep(5)
        held.clear()

    async def after():
        assert not held

    with pytest.raises(AssertionError) as caught:
        cancel_at_every_step(careless, after=after)
    (note,) = caught.value.__notes__
    assert "cancelled at step 2, at 0 s" in note
    assert "careless → sleep" in note


def test_the_turn_of_a_waiter_that_is_lost_by_a_cancellation_is_found():
    # The waiter has got the item, and is cancelled before it runs. In this race pools lose slots.
    async def scenario():
        future = asyncio.get_running_loop().create_future()
        scenario.lost = True
        asyncio.get_running_loop().call_later(1, future.set_result, "slot")
        try:
            await future
            scenario.lost = False
        except asyncio.CancelledError:
            scenario.lost = future.done() and not future.cancelled()
            raise

    async def after():
        assert not scenario.lost

    scenario.lost = False
    with pytest.raises(AssertionError) as caught:
        cancel_at_every_step(scenario, after=after)
    assert "at 1 s" in caught.value.__notes__[0]


def test_tasks_that_a_cancelled_scenario_leaves_behind_are_found():
    async def scenario():
        task = asyncio.create_task(asyncio.sleep(60), name="the other")
        await asyncio.sleep(5)
        task.cancel()

    with pytest.raises(LeftoverError, match="the other") as caught:
        cancel_at_every_step(scenario)
    assert "was cancelled at step" in caught.value.__notes__[-1]


def test_a_scenario_that_hangs_once_cancelled_is_found():
    async def scenario():
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            await asyncio.Event().wait()

    with pytest.raises(DeadlockError) as caught:
        cancel_at_every_step(scenario)
    assert "was cancelled at step 2" in caught.value.__notes__[-1]


def test_a_scenario_may_end_well_though_it_was_cancelled():
    async def scenario():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(5)

    assert cancel_at_every_step(scenario) > 1


def test_a_scenario_that_fails_by_itself_is_no_cancellation():
    async def scenario():
        await asyncio.sleep(0)
        raise LookupError("of mine")

    with pytest.raises(LookupError) as caught:
        cancel_at_every_step(scenario)
    assert "it ended before step 3" in caught.value.__notes__[-1]


def test_a_scenario_that_is_cancelled_by_itself_is_an_error():
    async def scenario():
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        cancel_at_every_step(scenario)
