"""Which facts may come next in the life of a core, and how such a life ends. For random lives, and for all lives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from async_repool._core.orders import AwaitReaders, Close, Open, Prepare
from async_repool._core.slots import GONE, SHARED
from core_kit import FEED, LEASE, QUERY, Need, Shell

__all__ = ["Fact", "finish", "perform", "possible_facts", "say", "serve_out"]

Fact: TypeAlias = tuple[Any, ...]
"""The name of a method of :class:`Shell`, its arguments, and keyword arguments as a last dict, if any."""

NEEDS = (LEASE, QUERY, FEED)


def perform(shell: Shell, fact: Fact) -> Any:
    method, *arguments = fact
    keywords = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
    return getattr(shell, method)(*arguments, **keywords)


def say(fact: Fact) -> str:
    """As it would stand in a test."""
    method, *arguments = fact
    keywords = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
    words = [argument.name if isinstance(argument, Need) else repr(argument) for argument in arguments]
    return f"{method}({', '.join([*words, *(f'{key}={value!r}' for key, value in keywords.items())])})"


def possible_facts(shell: Shell, needs: tuple[Need, ...] = NEEDS) -> Iterator[tuple[str, Fact]]:
    """All facts that may come next, each with its kind. A fact that must come sooner or later has the kind ``""``;
    the others may come or not, and a caller limits how often each kind does.
    """
    core = shell.core
    for need in needs:
        yield "come", ("ask", _free_name(shell), need)
    for name, ticket in shell.waiting.items():
        if ticket.is_done:
            yield "", ("leave", name)
        else:
            yield "give up", ("cancel", name)
            yield "time up", ("expire", name)
    seen = set()
    for name, use in shell.uses.items():
        slot = use.slot
        if (slot, use.need, use.is_over) in seen:  # it makes no difference which of these it is
            continue
        seen.add((slot, use.need, use.is_over))
        yield "", ("release", name)
        if use.is_over:
            continue
        if use.need is LEASE and slot.connection.is_read:
            yield "", ("release", name, {"is_read_on": True})
        yield "unseen", ("release", name, {"was_used": False})
        if not slot.connection.is_read and not slot.connection.is_dead:
            yield "read", ("read", name)
        if not slot.beside and use.need is not QUERY:
            yield "" if use.need is FEED else "aside", ("step_aside", name)
        if slot.state is SHARED and slot.takes_more:
            yield "doubt", ("doubt", name)
    for slot, order in shell.work.items():
        number = slot.number
        if isinstance(order, Open):
            yield "", ("opened", number)
            yield "failure", ("open_failed", number)
            yield "failure", ("open_failed", number, {"is_hopeless": True})
        elif isinstance(order, Prepare):
            if not slot.connection.is_dead:
                yield "", ("prepared", number)
            yield "" if slot.connection.is_dead else "unfit", ("prepared", number, {"is_fit": False})
        elif isinstance(order, AwaitReaders):
            yield "", ("read_out", number)
            if order.grace is not None:
                yield "", ("read_out", number, {"is_time_over": True})
        elif isinstance(order, Close):
            yield "", ("closed", number)
    for slot in core.slots:
        if slot.connection is not None and not slot.connection.is_dead:
            yield "loss", ("die", slot.number)
        elif slot.connection is not None and not slot.connection.is_reported:
            yield "", ("lost", slot.number)
    if core.wake_at <= shell.now:
        yield "", ("tick",)
    yield "drain", ("drain",)


def _free_name(shell: Shell) -> str:
    return next(name for name in "abcdefghijklmnopqrstuvwxyz" if name not in shell.waiting and name not in shell.uses)


def finish(shell: Shell, *, is_patient: bool) -> None:
    """Close the pool, and let everything end. A patient one lets its users go on until they are done. At the end
    nothing is left.
    """
    shell.close()
    shell.verify()
    for name in list(shell.waiting):  # cancelled before the pool was closed
        shell.leave(name)
    if not is_patient:
        end_uses(shell)
    for name in list(shell.uses):
        shell.release(name)
    end_work(shell)
    if shell.work:  # a drained connection may be read for ever
        end_uses(shell)
        end_work(shell)
    assert not shell.work, f"{shell.work} is under way in a closed pool"
    assert not list(shell.core.slots), f"{list(shell.core.slots)} are left of a closed pool"
    assert shell.opened_total == shell.closed_total, "what was opened was not closed"


def end_uses(shell: Shell) -> None:
    shell.end_uses()
    left = [order for order in shell.work.values() if not isinstance(order, (Open, Close))]
    assert not left, f"{left} go on though the time of all users is over"


def end_work(shell: Shell) -> None:
    """All that is under way ends well, and what follows from that, too."""
    for _ in range(100):
        if not shell.work:
            return
        slot, order = next(iter(shell.work.items()))
        if isinstance(order, Open):
            shell.opened(slot.number)
        elif isinstance(order, Prepare):
            shell.prepared(slot.number)
        elif isinstance(order, AwaitReaders):
            shell.read_out(slot.number)
        else:
            shell.closed(slot.number)
    raise AssertionError(f"{shell.work} does not end")


def serve_out(shell: Shell) -> None:
    """Everything goes well from here on. Then everybody who waits is served, or refused."""
    for name in [name for name, ticket in shell.waiting.items() if ticket.is_done]:
        shell.leave(name)
    for slot in list(shell.core.slots):
        connection = slot.connection
        is_left = slot.state is not GONE  # the loss of another one may have ended it
        if is_left and connection is not None and connection.is_dead and not connection.is_reported:
            shell.lost(slot.number)
    for _ in range(100):
        if not shell.waiting:
            return
        for name in list(shell.uses):
            shell.release(name)
        end_work(shell)
        if shell.core.wake_at > shell.now and not shell.work and not shell.uses and shell.waiting:
            assert shell.core.wake_at < float("inf"), f"{shell.waiting} wait for nothing"
            shell.wait(shell.core.wake_at - shell.now)
        elif shell.core.wake_at <= shell.now:
            shell.tick()
    raise AssertionError(f"{shell.waiting} are never served")
