"""Every state of a small pool: all facts that may come next, from all states that were seen, breadth first.

States that are equal up to numbering are kept once: it makes no difference what a connection or a caller is called, or
what the clock says, only how long ago things happened. In each state everything holds that ``Shell.verify()`` asserts.
From each state the pool is closed, in two ways: then nothing is left, and nobody waits. And from each state everybody
is served if all goes well. A violation is reported with the shortest list of facts that leads to it.

As a command: ``python tests/core/explore.py --depth 8 --size 2 --callers 3``.
"""

from __future__ import annotations

import argparse
import copyreg
import io
import pickle
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from async_repool._core.orders import AwaitReaders, Close, Open, Prepare
from async_repool._core.slots import Reason, Slot, State
from async_repool.config import PoolConfig
from core_facts import Fact, finish, perform, possible_facts, say, serve_out
from core_kit import FEED, LEASE, QUERY, Need, Shell, hook

NEVER = float("inf")

ONCE = ("give up", "time up", "unseen", "read", "aside", "doubt", "failure", "unfit", "loss", "drain", "time", "resize")
"""Kinds of facts that come once in a life, unless a pool says otherwise. Callers come up to three times."""

SECONDS = (20.0, 200.0)
"""A step of time: longer than ``check_idle`` and ``max_idle`` of a pool here, or also than ``connection_ttl``."""

HOOKS: dict[str, dict[str, Any]] = {
    "none": {},
    "check": {"check": hook},
    "reset": {"reset": hook},
    "both": {"check": hook, "reset": hook},
}


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A pool to explore, and how often each kind of fact comes at most."""

    size: int = 1
    min_size: int = 1  # so many are open already
    callers: int = 3
    needs: tuple[Need, ...] = (LEASE, QUERY, FEED)
    most: int = 2  # max_in_flight
    hooks: str = "none"
    max_feed_connections: int | None = None
    max_idle: float | None = None
    max_waiting: int = 0
    resized_to: int = 0  # pool_size after a resize; 0: the other of 1 and 2
    kinds: tuple[str, ...] = ONCE  # those that come at all
    seconds: tuple[float, ...] = SECONDS

    def start(self) -> Shell:
        return Shell(
            random=1.0,
            pool_size=self.size,
            min_size=self.min_size,
            max_in_flight=self.most,
            connection_ttl=100,
            check_idle=10,
            max_feed_connections=self.max_feed_connections,
            max_idle=self.max_idle,
            max_waiting=self.max_waiting,
            **HOOKS[self.hooks],
        )

    def limits(self) -> dict[str, int]:
        return {"come": self.callers, **dict.fromkeys(ONCE, 0), **dict.fromkeys(self.kinds, 1)}

    def facts(self, shell: Shell) -> Iterator[tuple[str, Fact]]:
        yield from possible_facts(shell, self.needs)
        for seconds in self.seconds:
            yield "time", ("wait_unnoticed", seconds)
        size = self.resized_to or 3 - self.size
        yield "resize", ("resize", {"pool_size": size, "min_size": min(self.min_size, size)})

    def __str__(self) -> str:
        return f"pool of {self.size}, {self.min_size} open, {self.callers} callers, hooks: {self.hooks}"


SMALL = {
    "leases and queries": Pool(needs=(LEASE, QUERY), kinds=("give up", "time up", "unseen")),
    "feeds": Pool(needs=(LEASE, FEED), kinds=("give up", "doubt")),
    "lane": Pool(size=2, min_size=0, callers=2, needs=(FEED,), max_feed_connections=1, kinds=("doubt", "drain")),
    "hooks": Pool(callers=2, needs=(LEASE,), kinds=("loss", "failure", "drain"), hooks="both"),
    "outages": Pool(min_size=0, callers=2, needs=(LEASE, QUERY), kinds=("failure", "give up")),
    "ends of outages": Pool(
        min_size=0, callers=2, needs=(LEASE,), kinds=("failure", "loss", "time", "give up"), seconds=(20.0,)
    ),
    "growth": Pool(size=2, min_size=0, callers=2, needs=(LEASE, QUERY), kinds=("failure", "drain")),
    "time": Pool(callers=2, needs=(LEASE, QUERY), kinds=("time",)),
    "losses": Pool(size=2, min_size=2, callers=2, needs=(LEASE, QUERY), kinds=("loss", "doubt", "unfit")),
    "readers": Pool(callers=2, needs=(LEASE,), kinds=("read", "aside", "time")),
    "sizes": Pool(size=2, min_size=2, callers=2, needs=(LEASE, QUERY), kinds=("resize", "drain")),
    "order of checks": Pool(size=2, min_size=2, callers=3, needs=(LEASE,), kinds=("give up",), hooks="check"),
    "order of use": Pool(size=2, min_size=2, callers=2, needs=(LEASE,), kinds=("time", "time up"), seconds=(20.0,)),
}
"""Pools that are so small that all their states are seen in a moment: each has a few kinds of facts."""


# ---- states that are equal up to numbering


def form(shell: Shell) -> tuple[Any, ...]:
    """What matters in this state: two states of the same form have the same future."""
    core, now = shell.core, shell.now
    shelf = core._shelf.oldest_first()
    shares = {slot: place for group in (core._queries, core._feeds) for place, slot in enumerate(group)}
    uses: dict[Slot, list[tuple[int, bool]]] = {}
    over = 0  # uses that the pool has ended: their release changes nothing
    for use in shell.uses.values():
        if use.is_over:
            over += 1
        else:
            uses.setdefault(use.slot, []).append(use.need)
    slots = []
    for slot in core.slots:
        connection = slot.connection
        work = shell.work.get(slot)
        slots.append(
            (
                slot.state,
                slot.beside,
                slot.in_lane,
                slot.load,
                slot.doom or "",
                slot.is_doubted,
                slot.is_new,
                slot.needs_reset,
                now - slot.opened_at,
                slot.expires_at - now,
                now - slot.used_at,
                now - slot.heard_at,
                -1 if slot.shares is None else int(slot.shares is core._feeds),
                shelf.index(slot) if slot in shelf else -1,
                shares.get(slot, -1),
                sorted(uses.get(slot, ())),
                form_of_work(work),
                slot in shell._drained,
                ()
                if connection is None
                else (
                    connection.is_dead,
                    connection.is_reported,
                    connection.is_read,
                    connection.is_drained,
                    connection.is_dirty,
                    now - connection.heard_at,
                    now - connection.checked_at,
                ),
            )
        )
    slots.sort()
    server = core._server
    return (
        slots,
        [(ticket.need, ticket.is_done) for ticket in shell.waiting.values()],
        over,
        shell.config.pool_size,
        max(core.wake_at - now, 0.0),
        (server.is_down, server.is_hopeless, server._has_lasted, server._is_resting),
        NEVER if server._since is None else now - server._since,
        max(server._over_at - now, 0.0),
        (server._backoff.failures, max(server.retry_at - now, 0.0)),
    )


def form_of_work(work: Any) -> tuple[Any, ...]:
    if isinstance(work, Prepare):
        return ("Prepare", work.is_reset)
    if isinstance(work, AwaitReaders):
        return ("AwaitReaders", work.grace is None)
    if isinstance(work, Close):
        return ("Close", work.reason)
    return ("Open",) if isinstance(work, Open) else ("",)


# ---- copies of states


CONFIGS: dict[int, PoolConfig] = {}
"""Those that copies share."""


def config_of(key: int) -> PoolConfig:
    return CONFIGS[key]


def reduce_config(config: PoolConfig) -> tuple[Any, tuple[int]]:
    CONFIGS[id(config)] = config
    return config_of, (id(config),)


def reduce_order(order: Any) -> tuple[Any, tuple[Any, ...]]:
    return type(order), tuple(getattr(order, name) for name in order.__slots__)


def reduce_member(member: Any) -> str:
    return f"{type(member).__name__}.{member.name}"


DISPATCH = {
    **copyreg.dispatch_table,
    PoolConfig: reduce_config,
    **dict.fromkeys((Open, Prepare, AwaitReaders, Close), reduce_order),
    **dict.fromkeys((State, Need, Reason), reduce_member),
}


def dump(shell: Shell) -> bytes:
    """A copy to be loaded many times. Three times as fast as ``copy.deepcopy()``, and as replaying six facts."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = DISPATCH
    pickler.dump(shell)
    return file.getvalue()


# ---- exploring


@dataclass
class Seen:
    """What an exploration has seen."""

    depth: int = 0
    states: int = 0
    steps: int = 0
    seconds: float = 0.0
    is_whole: bool = False  # there are no more states

    def __str__(self) -> str:
        end = "all there are" if self.is_whole else f"to depth {self.depth}"
        return f"{self.states:,} states and {self.steps:,} steps, {end}, in {self.seconds:.1f} s"


class Violation(AssertionError):
    """The shortest list of facts that leads to what must not be."""

    def __init__(self, pool: Pool, facts: list[Fact], what: BaseException) -> None:
        self.facts = facts
        lines = "\n".join(f"    shell.{say(fact)}" for fact in facts)
        super().__init__(f"{pool}:\n{lines}\n{type(what).__name__}: {what}")


def explore(pool: Pool, depth: int, *, states: int = sys.maxsize) -> Seen:
    """See all states that at most ``depth`` facts lead to, or so many. Raises :class:`Violation`."""
    began = time.perf_counter()
    seen = Seen()
    paths: list[tuple[int, Fact]] = [(0, ())]  # of each state: the state before it, and the fact between

    def facts_to(index: int) -> list[Fact]:
        facts = []
        while index:
            index, fact = paths[index]
            facts.append(fact)
        return facts[::-1]

    kinds = sorted(pool.limits())
    budget = tuple(pool.limits()[kind] for kind in kinds)
    place = {kind: number for number, kind in enumerate(kinds)}
    try:
        shell = pool.start()
        leave(dump(shell))
    except Exception as error:
        raise Violation(pool, [], error) from error
    forms = {hash_of((form(shell), budget))}
    frontier = [(0, budget, dump(shell))]
    while frontier and seen.depth < depth and len(forms) < states:
        seen.depth += 1
        following = []
        for index, budget, state in frontier:
            facts = pool.facts(pickle.loads(state))
            for kind, fact in facts:
                if kind and not budget[place[kind]]:
                    continue
                shell = pickle.loads(state)
                seen.steps += 1
                try:
                    perform(shell, fact)
                    left = budget
                    if kind:
                        at = place[kind]
                        left = (*budget[:at], budget[at] - 1, *budget[at + 1 :])
                    key = hash_of((form(shell), left))
                    if key in forms:
                        continue
                    forms.add(key)
                    copy = dump(shell)
                    leave(copy)
                except Exception as error:
                    raise Violation(pool, [*facts_to(index), fact], error) from error
                paths.append((index, fact))
                following.append((len(paths) - 1, left, copy))
        frontier = following
    seen.states, seen.is_whole = len(forms), not frontier
    seen.seconds = time.perf_counter() - began
    return seen


def leave(state: bytes) -> None:
    """Every way to end from this state: all goes well; or the pool is closed, patiently or not."""
    for end in (partial(finish, is_patient=True), partial(finish, is_patient=False), serve_out):
        shell = pickle.loads(state)
        shell.is_verified = False  # the states on the way are seen by themselves; only the end matters here
        end(shell)


def hash_of(key: Any) -> int:
    """64 bits stand for a state: of ten million, two are taken for one with a chance of 1 in 400,000."""
    return hash(repr(key))


def pools(sizes: Iterable[int], callers: int, hooks: Iterable[str]) -> list[Pool]:
    return [
        Pool(size=size, min_size=min_size, callers=callers, hooks=hook)
        for hook in hooks
        for size in sizes
        for min_size in (0, size)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="See every state of a small pool.")
    parser.add_argument("--depth", type=int, default=6, help="facts in a row")
    parser.add_argument("--size", type=int, choices=[1, 2], action="append", help="pool_size; default: 1 and 2")
    parser.add_argument("--callers", type=int, default=3)
    parser.add_argument("--hooks", choices=list(HOOKS), action="append", help="default: all")
    arguments = parser.parse_args()
    for pool in pools(arguments.size or [1, 2], arguments.callers, arguments.hooks or HOOKS):
        print(f"{pool}: {explore(pool, arguments.depth)}", flush=True)


if __name__ == "__main__":
    main()
