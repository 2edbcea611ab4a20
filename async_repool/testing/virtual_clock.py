"""An event loop whose clock jumps: hours of a pool's life in milliseconds, and a hung task becomes an error.

Here are the loop, ways to run a coroutine on it, and the systematic cancellation of a scenario at every step. Nothing
in here knows pools, connectors or pytest; time that is read from anywhere but ``loop.time()`` (``time.monotonic()``,
``datetime.now()``) is not virtual.

*The clock* stands still while callbacks run. When none is ready, it jumps to the next timer at once. When there is no
timer either, nothing will ever happen again, and the loop raises :class:`DeadlockError` where an ordinary one would
hang.

*The outside world* cannot be hurried. As long as it may still call in, the clock runs like a real one, the loop waits
for real, and a deadlock is not detected. That is so while a socket (or another file descriptor) is watched, while work
runs in an executor, and inside :meth:`VirtualClockLoop.waiting_for_threads`. So sockets work, at their own pace; but
this loop is made for scripted connectors, which need none. A thread of your own that calls ``call_soon_threadsafe`` is
not seen unless you say so with ``waiting_for_threads()``: without it the clock may jump past what the thread would
have done.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import math
import os
import selectors
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple, Unpack

__all__ = ["DeadlockError", "LeftoverError", "UnhandledError", "VirtualClockLoop", "cancel_at_every_step", "run"]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

# Steps after which a test that does not end is called hung: some seconds of real time.
_MAX_STEPS = 500_000

# asyncio runs timers up to one clock resolution early. A callback that finds its deadline not quite reached, and asks
# for the rest of the time, would then be called again at the same instant for ever, since this clock moves only when
# nothing is ready. So no timer is closer than this; there is no other rounding.
_RESOLUTION_SECONDS = time.get_clock_info("monotonic").resolution
_SHORTEST_WAIT_SECONDS = max(1e-6, 2 * _RESOLUTION_SECONDS)

# Turns of the loop in which a task that only has to finish, such as one just cancelled, may do so before it counts as
# left over.
_SETTLING_TURNS = 10

# What the tasks that are left over may take to end, once cancelled.
_CLEANUP_SECONDS = 10.0
_CLEANUP_STEPS = 100_000


class DeadlockError(AssertionError):
    """Nothing will ever happen on this loop again, or it goes round without end. The message lists who waits."""


class LeftoverError(AssertionError):
    """Tasks were still there when the coroutine that was run had ended. The message lists them; they were cancelled."""


class UnhandledError(AssertionError):
    """An error that asyncio would only have logged, such as one raised in a callback. ``__cause__`` is that error."""


_Found = list[tuple[selectors.SelectorKey, int]]


class _Selector(selectors.BaseSelector):
    """The real selector; but `select` decides how long to wait. The loop asks it once in each of its turns."""

    def __init__(self, select: Callable[[selectors.BaseSelector, float | None], _Found]) -> None:
        self._real = selectors.DefaultSelector()
        self._select = select

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()

    def select(self, timeout: float | None = None) -> _Found:
        return self._select(self._real, timeout)


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time. Use it through :func:`run`, or like any other loop, as in ``asyncio.Runner``.

    :param start: what ``time()`` says at first, in seconds.
    :param max_steps: after so many steps :class:`DeadlockError` is raised: a task that waits for ever beside one that
        wakes up every second is as hung as one that waits alone. ``None``: no limit.
    """

    def __init__(self, *, start: float = 0.0, max_steps: int | None = _MAX_STEPS) -> None:
        self.steps = 0
        """Callbacks run so far, and jumps of the clock. One step of a task is one callback.

        What a watched socket calls is not counted, nor are real waits.
        """
        self.max_steps = max_steps
        self.unhandled: list[dict[str, Any]] = []
        """What asyncio had nobody to tell: the contexts given to the default exception handler, in order."""
        self._now = start
        # Every moment that a timer was ever set for and that has not come yet: the clock jumps exactly there, not to a
        # sum of floats beside it. The set is there so that a thousand timers at one moment take one place.
        self._moments: list[float] = []
        self._known_moments: set[float] = set()
        self._hooks: dict[int, list[Callable[[], object]]] = {}
        self._expected_calls = 0
        self._own_descriptors = 0
        virtual_selector = _Selector(self._poll)
        super().__init__(virtual_selector)
        self._descriptors = virtual_selector.get_map()
        self._own_descriptors = len(self._descriptors)

    # ------------------------------------------------------------------ time

    def time(self) -> float:
        """Virtual seconds. Moves only when nothing is ready to run."""
        return self._now

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """As in asyncio. Between now and a microsecond from now counts as a microsecond from now."""
        if when > self._now:
            when = max(when, self._now + _SHORTEST_WAIT_SECONDS)
            if when not in self._known_moments:
                self._known_moments.add(when)
                heapq.heappush(self._moments, when)
        return super().call_at(when, self._step, callback, args, context=context)

    def _poll(self, selector: selectors.BaseSelector, timeout: float | None) -> _Found:
        if self.max_steps is not None and self.steps >= self.max_steps:
            raise DeadlockError(self._with_tasks(f"no end after {self.steps} steps, at {self._now:g} s"))
        found = selector.select(0)
        if found or timeout == 0:
            return found
        if self._may_be_called_from_outside():
            return self._wait_for_real(selector, timeout)
        if self._begin_step():
            return []  # there may be something ready now
        if timeout is None:
            raise DeadlockError(self._with_tasks(f"nothing will ever happen, at {self._now:g} s"))
        self._jump(self._now + timeout)
        return []

    def _wait_for_real(self, selector: selectors.BaseSelector, timeout: float | None) -> _Found:
        began = time.monotonic()
        found = selector.select(timeout)
        elapsed = time.monotonic() - began
        if timeout is None or (found and elapsed < timeout):
            self._now += elapsed
        else:
            self._jump(self._now + timeout)
        return found

    def _jump(self, target: float) -> None:
        tolerance = 4 * math.ulp(target)
        while self._moments and self._moments[0] < target - tolerance:
            self._known_moments.discard(heapq.heappop(self._moments))
        if self._moments and self._moments[0] <= target + tolerance:
            target = self._moments[0]
        if target + _RESOLUTION_SECONDS == target:
            # After months a float is too coarse for asyncio, which runs what is due before now plus the resolution.
            target = math.nextafter(target, math.inf)
        self._now = max(self._now, target)

    # ------------------------------------------------------------------ steps

    def at_step(self, step: int, callback: Callable[[], object]) -> None:
        """Call `callback` when :attr:`steps` becomes `step`: just before that callback runs, or the clock jumps.

        Does not wait. Raises :class:`ValueError` where that step is past already.
        """
        if step <= self.steps:
            raise ValueError(f"step {step} is past: the loop has done {self.steps}")
        self._hooks.setdefault(step, []).append(callback)

    def call_soon(
        self, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As in asyncio."""
        return super().call_soon(self._step, callback, args, context=context)

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As in asyncio."""
        return super().call_soon_threadsafe(self._step, callback, args, context=context)

    def _step(self, callback: Callable[[Unpack[_Ts]], object], args: tuple[*_Ts]) -> None:
        self._begin_step()
        try:
            callback(*args)
        finally:
            # A failed task's traceback leads to this frame, and so back to the task: the cycle would put off asyncio's
            # complaint that nobody asked for the error.
            del callback, args

    def _begin_step(self) -> bool:
        """Count one step, and call the hooks that are due before it. Returns whether there were any."""
        self.steps += 1
        hooks = self._hooks.pop(self.steps, ())
        for hook in hooks:
            hook()
        return bool(hooks)

    # ------------------------------------------------------------------ the outside world

    @contextlib.contextmanager
    def waiting_for_threads(self) -> Iterator[None]:
        """Inside, another thread is going to use ``call_soon_threadsafe``: wait for it, on a real clock."""
        self._expected_calls += 1
        try:
            yield
        finally:
            self._expected_calls -= 1

    def run_in_executor(self, executor: Any, func: Callable[[Unpack[_Ts]], _T], *args: *_Ts) -> asyncio.Future[_T]:
        """As in asyncio. While the work is under way, the clock is a real one."""
        future = super().run_in_executor(executor, func, *args)
        self._expected_calls += 1
        future.add_done_callback(self._work_ended)
        return future

    async def shutdown_default_executor(self, *arguments: Any, **named: Any) -> None:
        """As in asyncio. Its threads are waited for, on a real clock."""
        with self.waiting_for_threads():
            await super().shutdown_default_executor(*arguments, **named)

    def _work_ended(self, _: object) -> None:
        self._expected_calls -= 1

    def _may_be_called_from_outside(self) -> bool:
        return self._expected_calls > 0 or len(self._descriptors) > self._own_descriptors

    # ------------------------------------------------------------------ errors that nobody catches

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Log as asyncio does, and remember it in :attr:`unhandled`."""
        self.unhandled.append(context)
        super().default_exception_handler(context)

    def _with_tasks(self, what: str) -> str:
        return _listing(f"{what}: {{}} waiting", _unfinished(self)) + "".join(
            f"\n  unhandled: {_said(c)}" for c in self.unhandled
        )


# ---------------------------------------------------------------------- running


def run(coroutine: Coroutine[Any, Any, _T], *, start: float = 0.0, max_steps: int | None = _MAX_STEPS) -> _T:
    """Run a coroutine on a fresh :class:`VirtualClockLoop`, end the loop properly, and return what the coroutine
    returned.

    Raises what the coroutine raised; :class:`DeadlockError` if it hung; :class:`LeftoverError` if it ended but left
    tasks behind; :class:`UnhandledError` if something failed where nobody could notice. A task that ends within a few
    turns of the loop, such as one that was just cancelled, is not left behind. Cannot be called from a running loop.

    :param start: what ``loop.time()`` says at first, in seconds.
    :param max_steps: see :class:`VirtualClockLoop`.
    """
    if _is_in_running_loop():
        coroutine.close()
        raise RuntimeError("run() starts a loop of its own, so it cannot be called where a loop is running")
    loop = VirtualClockLoop(start=start, max_steps=max_steps)
    with _ended_properly(loop):
        return loop.run_until_complete(coroutine)


def cancel_at_every_step(
    scenario: Callable[[], Coroutine[Any, Any, object]],
    *,
    after: Callable[[], Awaitable[object]] | None = None,
    max_steps: int | None = _MAX_STEPS,
) -> int:
    """Cancel `scenario` at its first step, at its second, and so on until it completes before it can be cancelled.

    Each time `scenario()` is run afresh, on a loop of its own whose clock starts at 0, and its task is cancelled once:
    just before the loop's step number 1, 2, 3, …, be it a callback of whatever task or a jump of the clock. So the
    cancellation comes in the midst of waiting, and also between a wake-up and the step of the task that was woken,
    which is where things get lost. Then `after()` is awaited on the same loop, whether or not the scenario was
    cancelled: assert there that nothing was lost, and close what should be closed.

    Returns how many steps the scenario was cancelled at. That a cancelled scenario ends without
    :exc:`asyncio.CancelledError` is allowed. Any other error is raised, and so are those of :func:`run`, with a note
    that says at which step it was. Cannot be called from a running loop; takes time proportional to the square of the
    number of steps.

    :param scenario: an async callable. What it builds must be built inside, for the loop is another each time.
    :param after: an async callable; ``None``: no more than the checks of :func:`run`.
    :param max_steps: the most steps for one run, see :class:`VirtualClockLoop`.
    """
    if _is_in_running_loop():
        raise RuntimeError(
            "cancel_at_every_step() starts loops of its own, so it cannot be called where a loop is running"
        )
    for step in itertools.count(1):
        if not _was_cancelled_at(step, scenario, after, max_steps):
            return step - 1
    raise AssertionError("unreachable")  # pragma: no cover


def _was_cancelled_at(
    step: int,
    scenario: Callable[[], Coroutine[Any, Any, object]],
    after: Callable[[], Awaitable[object]] | None,
    max_steps: int | None,
) -> bool:
    loop = VirtualClockLoop(max_steps=max_steps)
    where = ""

    def cancel() -> None:
        nonlocal where
        whereabouts = _whereabouts(task)
        if task.cancel():
            where = f"the scenario was cancelled at step {step}, at {loop.time():g} s, {whereabouts}"

    async def check() -> None:
        if after is not None:
            await after()

    try:
        with _ended_properly(loop):
            task = loop.create_task(scenario(), name="scenario")
            loop.at_step(step, cancel)
            try:
                loop.run_until_complete(task)
            except asyncio.CancelledError:
                if not where:
                    raise
            loop.run_until_complete(check())
    except BaseException as error:
        error.add_note(where or f"the scenario was not cancelled: it ended before step {step}")
        raise
    return bool(where)


@contextlib.contextmanager
def _ended_properly(loop: VirtualClockLoop) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        # What the failure left behind follows from the failure, so that goes into notes. A deadlock lists them itself.
        for trouble in _end(loop):
            if not isinstance(error, DeadlockError):
                error.add_note(f"also: {trouble}")
        raise
    troubles = _end(loop)
    if troubles:
        for other in troubles[1:]:
            troubles[0].add_note(f"also: {other}")
        raise troubles[0]


def _end(loop: VirtualClockLoop) -> list[AssertionError]:
    """Cancel what is left and close the loop. Raises nothing of its own: returns what was not as it should be."""
    troubles: list[AssertionError] = []
    loop.max_steps = loop.steps + _CLEANUP_STEPS
    try:
        troubles += _cancel_leftovers(loop)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    except DeadlockError as error:
        troubles.append(error)
    finally:
        loop.close()
    for context in loop.unhandled:
        unhandled = UnhandledError(_said(context))
        unhandled.__cause__ = context.get("exception")
        troubles.append(unhandled)
    return troubles


def _cancel_leftovers(loop: VirtualClockLoop) -> Iterator[LeftoverError]:
    if _unfinished(loop):
        loop.run_until_complete(_settle())
    left = _unfinished(loop)
    if not left:
        return
    yield LeftoverError(_listing("{} left over", left))
    loop.run_until_complete(_cancel(left))
    stubborn = [task for task in left if not task.done()]
    if stubborn:
        yield LeftoverError(_listing("{} impossible to cancel", stubborn))
    for task in left:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            trouble = LeftoverError(f"task {task.get_name()} failed when it was cancelled: {error!r}")
            trouble.__cause__ = error
            yield trouble


async def _settle() -> None:
    for _ in range(_SETTLING_TURNS):
        await asyncio.sleep(0)


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=_CLEANUP_SECONDS)


def _is_in_running_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


# ---------------------------------------------------------------------- telling what waits where


def _unfinished(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    # In the order of their automatic names, which is that of their creation: all_tasks() returns a set.
    return sorted(asyncio.all_tasks(loop), key=lambda task: (len(task.get_name()), task.get_name()))


def _listing(headline: str, tasks: Iterable[asyncio.Task[Any]]) -> str:
    lines = [f"{task.get_name()}: {_whereabouts(task)}" for task in tasks]
    count = "1 task is" if len(lines) == 1 else f"{len(lines)} tasks are"
    return "\n  ".join([headline.format(count), *lines])


def _whereabouts(task: asyncio.Task[Any]) -> str:
    """Such as ``test_it → Pool.acquire (pool.py:88)``: the coroutines from the task's own to where it waits."""
    names: list[str] = []
    place = ""
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = next((f for name in ("cr_frame", "ag_frame", "gi_frame") if (f := getattr(awaited, name, None))), None)
        if frame is not None:
            names.append(frame.f_code.co_qualname)
            place = f" ({os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno})"
        awaited = next(
            (a for name in ("cr_await", "ag_await", "gi_yieldfrom") if (a := getattr(awaited, name, None))), None
        )
    return f"in {' → '.join(names)}{place}" if names else "ended"


def _said(context: Mapping[str, Any]) -> str:
    error = context.get("exception")
    return f"{context.get('message')}: {error!r}" if error is not None else str(context.get("message"))
