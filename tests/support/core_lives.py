"""Random lives of a pool: any fact that may come, in any order, under any options. Not one is a test by itself."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from core_facts import Fact, finish, perform, possible_facts, say, serve_out
from core_kit import Shell, hook

WEIGHTS = {"": 9.0, "come": 6.0, "give up": 3.0, "time up": 2.0, "time": 2.0, "doubt": 2.0, "read": 0.5}
WEIGHTS |= {"loss": 0.3, "unfit": 0.5, "drain": 0.3, "resize": 0.4}
"""How likely each kind of fact is; the others 1. What must come sooner or later is the likeliest."""

MOST_CALLERS = 10


def live(seed: int, facts: int = 120) -> int:
    """One life, then its end. Returns how many facts it had. Raises an AssertionError that names the facts."""
    dice = random.Random(seed)
    options = random_options(dice)
    shell = Shell(is_started=False, random=dice.random, **options)
    told: list[Fact] = []
    try:
        for _ in range(facts):
            fact = random_fact(dice, shell)
            told.append(fact)
            perform(shell, fact)
        told.append(("the end",))
        if dice.random() < 0.5:
            serve_out(shell)
        finish(shell, is_patient=dice.random() < 0.5)
    except Exception as error:
        lines = "\n".join(f"    {say(fact)}" for fact in told)
        raise AssertionError(f"seed {seed}, {options}:\n{lines}\n{type(error).__name__}: {error}") from error
    return len(told)


def random_options(dice: random.Random) -> dict[str, Any]:
    size = dice.choice([1, 1, 2, 3])  # a small pool shows more, and a resize may make it larger
    return {
        "pool_size": size,
        "min_size": dice.randint(0, size),
        "connection_ttl": dice.choice([0, 20, 200]),
        "max_idle": dice.choice([None, 0, 7]),
        "ping_interval": dice.choice([0, 3]),
        "check_idle": dice.choice([0, 4]),
        "max_in_flight": dice.choice([1, 2, 3, 5]),
        "max_feed_connections": dice.choice([None, 1, 1, 0]),
        "check": dice.choice([None, hook]),
        "reset": dice.choice([None, hook]),
        "max_waiting": dice.choice([0, 0, 2]),
        "reconnect_timeout": dice.choice([None, 5]),
    }


def random_fact(dice: random.Random, shell: Shell) -> Fact:
    kinds: dict[str, list[Fact]] = {}
    for kind, fact in (*possible_facts(shell), *other_facts(dice, shell)):
        kinds.setdefault(kind, []).append(fact)
    if len(shell.waiting) + len(shell.uses) >= MOST_CALLERS:
        del kinds["come"]
    names = list(kinds)
    (kind,) = dice.choices(names, [WEIGHTS.get(name, 1.0) for name in names])
    return dice.choice(kinds[kind])


def other_facts(dice: random.Random, shell: Shell) -> Iterator[tuple[str, Fact]]:
    for name, ticket in shell.waiting.items():
        if not ticket.is_done:
            yield "give up", ("leave", name)  # cancelled, and gone at once
    seconds = dice.choice([0.01, 1, 6, 60])
    yield "time", ("wait", seconds)
    yield "time", ("wait_unnoticed", seconds)
    size = dice.randint(1, 5)
    yield "resize", ("resize", {"pool_size": size, "min_size": dice.randint(0, size)})
