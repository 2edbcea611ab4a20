"""What a child of fork() must leave alone: it shares sockets, and the selector that watches them, with its parent."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["Disownable", "register"]


class Disownable(Protocol):
    """What can be inherited over fork(), but not used by the child."""

    def disown(self) -> None:
        """Called in the child: this belongs to the parent. Must neither raise nor touch a socket or the event loop."""


_registered: weakref.WeakSet[Disownable] = weakref.WeakSet()


def register(inheritable: Disownable) -> None:
    """Call ``inheritable.disown()`` in each child of fork(). The object is held weakly."""
    _registered.add(inheritable)


def _disown_all() -> None:
    for inheritable in list(_registered):
        inheritable.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
