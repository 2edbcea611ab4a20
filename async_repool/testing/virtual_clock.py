"""An event loop with a virtual clock: hours pass in milliseconds, and a task that hangs becomes an error.

This module has the loop, functions that run a coroutine on it, and a function that cancels a scenario at every step. It
does not know pools, connectors or pytest. Only ``loop.time()`` is virtual: ``time.monotonic()`` and ``datetime.now()``
are not.

*The clock* does not move while callbacks run. If no callback is ready, it jumps to the next timer at once. If there is
no timer either, nothing will ever happen again. Then the loop raises :class:`DeadlockError`, and an ordinary loop would
hang.

*Sockets and threads* need real time. While one of them may still call the loop, the clock runs like a real clock, and
the loop does not detect deadlocks. This is so while a socket (or another file descriptor) is watched, while an executor
works, and inside :meth:`VirtualClockLoop.waiting_for_threads`. The loop is made for scripted connectors, which use no
sockets. It does not know a thread of your own that calls ``call_soon_threadsafe``: use ``waiting_for_threads()`` around
it, or the clock may jump too far.
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

# A test that takes more steps counts as hung. So many steps take some seconds of real time.
_MAX_STEPS = 500_000

# asyncio runs timers up to one clock resolution early. A callback that runs too early may ask for the rest of the time.
# This clock moves only if nothing is ready, so asyncio would call it again at the same instant, without end. Therefore
# no timer is closer than this. There is no other rounding.
_RESOLUTION_SECONDS = time.get_clock_info("monotonic").resolution
_SHORTEST_WAIT_SECONDS = max(1e-6, 2 * _RESOLUTION_SECONDS)

# A task that is about to finish, such as a cancelled one, gets so many turns of the loop before it counts as left over.
_SETTLING_TURNS = 10

# The most that cancelled tasks may take to end.
_CLEANUP_SECONDS = 10.0
_CLEANUP_STEPS = 100_000


class DeadlockError(AssertionError):
    """Nothing will ever happen on this loop again, or it never comes to an end. The message lists the waiting tasks."""


class LeftoverError(AssertionError):
    """Tasks were left over at the end of the coroutine. The message lists them. They were cancelled."""


class UnhandledError(AssertionError):
    """An error that asyncio only logs, such as an error in a callback. ``__cause__`` is that error."""


_Found = list[tuple[selectors.SelectorKey, int]]


class _Selector(selectors.BaseSelector):
    """The real selector, but `select` decides how long to wait. The loop calls it once in each turn."""

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
    """An event loop on virtual time. Use it with :func:`run`, or like any other loop, as in ``asyncio.Runner``.

    :param start: the first value of ``time()``, in seconds.
    :param max_steps: the loop raises :class:`DeadlockError` after so many steps. This finds a task that hangs while
        another one wakes up every second. ``None``: no limit.
    """

    def __init__(self, *, start: float = 0.0, max_steps: int | None = _MAX_STEPS) -> None:
        self.steps = 0
        """The number of callbacks and of jumps of the clock so far. One step of a task is one callback.

        Callbacks of watched sockets and real waits do not count.
        """
        self.max_steps = max_steps
        self.unhandled: list[dict[str, Any]] = []
        """The errors that no code caught: the contexts given to the default exception handler, in order."""
        self._now = start
        # All moments in the future that a timer was set for. The clock jumps exactly there, not to a sum of floats
        # close to it. The set keeps each moment once, however many timers it has.
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
        """Virtual seconds. They pass only if nothing is ready to run."""
        return self._now

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """As in asyncio. A time less than a microsecond from now becomes a microsecond from now."""
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
            return []  # something may be ready now
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
            # asyncio runs timers that are due before now plus the resolution. After months, floats are too coarse for
            # that.
            target = math.nextafter(target, math.inf)
        self._now = max(self._now, target)

    # ------------------------------------------------------------------ steps

    def at_step(self, step: int, callback: Callable[[], object]) -> None:
        """Call `callback` when :attr:`steps` becomes `step`, just before that step.

        Does not wait. Raises :class:`ValueError` if that step is past.
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
            # The traceback of a failed task refers to this frame. Without this line the frame would refer to the task,
            # and asyncio would report the unhandled error only after the next garbage collection.
            del callback, args

    def _begin_step(self) -> bool:
        """Count one step, and call its hooks. Returns whether there were any."""
        self.steps += 1
        hooks = self._hooks.pop(self.steps, ())
        for hook in hooks:
            hook()
        return bool(hooks)

    # ------------------------------------------------------------------ sockets and threads

    @contextlib.contextmanager
    def waiting_for_threads(self) -> Iterator[None]:
        """Run the clock in real time inside of the block, because another thread will use ``call_soon_threadsafe``."""
        self._expected_calls += 1
        try:
            yield
        finally:
            self._expected_calls -= 1

    def run_in_executor(self, executor: Any, func: Callable[[Unpack[_Ts]], _T], *args: *_Ts) -> asyncio.Future[_T]:
        """As in asyncio. The clock runs in real time until the work is done."""
        future = super().run_in_executor(executor, func, *args)
        self._expected_calls += 1
        future.add_done_callback(self._work_ended)
        return future

    async def shutdown_default_executor(self, *arguments: Any, **named: Any) -> None:
        """As in asyncio. The clock runs in real time until the threads have ended."""
        with self.waiting_for_threads():
            await super().shutdown_default_executor(*arguments, **named)

    def _work_ended(self, _: object) -> None:
        self._expected_calls -= 1

    def _may_be_called_from_outside(self) -> bool:
        return self._expected_calls > 0 or len(self._descriptors) > self._own_descriptors

    # ------------------------------------------------------------------ unhandled errors

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Log as asyncio does, and add to :attr:`unhandled`."""
        self.unhandled.append(context)
        super().default_exception_handler(context)

    def _with_tasks(self, what: str) -> str:
        return _listing(f"{what}: {{}} waiting", _unfinished(self)) + "".join(
            f"\n  unhandled: {_said(c)}" for c in self.unhandled
        )


# ---------------------------------------------------------------------- running


def run(coroutine: Coroutine[Any, Any, _T], *, start: float = 0.0, max_steps: int | None = _MAX_STEPS) -> _T:
    """Run a coroutine on a new :class:`VirtualClockLoop`, close the loop, and return the coroutine's result.

    Raises the coroutine's own error; :class:`DeadlockError` if it hung; :class:`LeftoverError` if it left tasks over;
    :class:`UnhandledError` if an error occurred that no code caught. A task that ends within a few turns of the loop,
    such as a cancelled one, is not left over. Cannot be called from a running loop.

    :param start: the first value of ``loop.time()``, in seconds.
    :param max_steps: see :class:`VirtualClockLoop`.
    """
    if _is_in_running_loop():
        coroutine.close()
        raise RuntimeError("run() starts its own loop and cannot be called from a running one")
    loop = VirtualClockLoop(start=start, max_steps=max_steps)
    with _ended_properly(loop):
        return loop.run_until_complete(coroutine)


def cancel_at_every_step(
    scenario: Callable[[], Coroutine[Any, Any, object]],
    *,
    after: Callable[[], Awaitable[object]] | None = None,
    max_steps: int | None = _MAX_STEPS,
) -> int:
    """Cancel `scenario` at its first step, then at its second, and so on, until it completes before that step.

    Each run calls `scenario()` on a new loop whose clock starts at 0, and cancels its task once, just before the loop's
    step number 1, 2, 3, …. A step is a callback of any task, or a jump of the clock. So a cancellation arrives while
    the scenario waits, and also between a wake-up and the step of the woken task, where things get lost most easily.
    After that, `after()` runs on the same loop, whether or not the scenario was cancelled. Check there that nothing was
    lost, and close what is still open.

    Returns the number of steps at which the scenario was cancelled. A cancelled scenario may end without
    :exc:`asyncio.CancelledError`. Raises any other error, and the errors of :func:`run`, with a note that names the
    step. Cannot be called from a running loop. The time grows with the square of the number of steps.

    :param scenario: an async callable. It must create everything itself, because each run has another loop.
    :param after: an async callable. ``None``: only the checks of :func:`run`.
    :param max_steps: the most steps of one run, see :class:`VirtualClockLoop`.
    """
    if _is_in_running_loop():
        raise RuntimeError("cancel_at_every_step() starts its own loops and cannot be called from a running one")
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
        # Tasks that are left over after a failure only follow from it, so they become notes. A deadlock lists them
        # itself.
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
    """Cancel the tasks that are left over and close the loop. Returns the problems; raises nothing itself."""
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


# ---------------------------------------------------------------------- describing tasks


def _unfinished(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    # all_tasks() returns a set. The automatic names give the order of creation.
    return sorted(asyncio.all_tasks(loop), key=lambda task: (len(task.get_name()), task.get_name()))


def _listing(headline: str, tasks: Iterable[asyncio.Task[Any]]) -> str:
    lines = [f"{task.get_name()}: {_whereabouts(task)}" for task in tasks]
    count = "1 task is" if len(lines) == 1 else f"{len(lines)} tasks are"
    return "\n  ".join([headline.format(count), *lines])


def _whereabouts(task: asyncio.Task[Any]) -> str:
    """For example ``in test_it → Pool.acquire (pool.py:88)``: all coroutines down to the place where the task waits."""
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
