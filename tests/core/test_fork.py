"""What must be left alone in a child of fork() is told so there, and nowhere else."""

from __future__ import annotations

import gc
import os
import weakref

import pytest

from async_repool import _fork

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


class Inheritable:
    def __init__(self) -> None:
        self.times = 0

    def disown(self) -> None:
        self.times += 1


def test_what_is_registered_is_disowned_once_in_the_child_only() -> None:
    inheritable = Inheritable()
    _fork.register(inheritable)
    _fork.register(inheritable)
    child = os.fork()
    if child == 0:
        os._exit(inheritable.times)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert inheritable.times == 0


def test_what_is_registered_can_be_collected() -> None:
    inheritable = Inheritable()
    _fork.register(inheritable)
    reference = weakref.ref(inheritable)
    del inheritable
    gc.collect()
    assert reference() is None
