"""The tests of the core are good: they catch each of a list of deliberate faults, in two ways."""

from __future__ import annotations

import inspect

import pytest
from explore import SMALL, Violation, explore
from faults import FAULTS, Fault

from core_lives import live

MOST_LIVES = 400


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_all_states_of_a_small_pool_show_a_fault(fault: Fault) -> None:
    with fault.in_place(), pytest.raises(Violation) as caught:
        explore(SMALL[fault.pool], depth=100)
    what = str(caught.value).splitlines()[-1]
    print(f"{fault}: after {len(caught.value.facts)} facts ({fault.pool}): {what}")


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_random_lives_show_a_fault(fault: Fault) -> None:
    with fault.in_place():
        for seed in range(MOST_LIVES):
            try:
                live(seed)
            except AssertionError as error:
                print(f"{fault}: in life {seed}: {str(error).splitlines()[-1]}")
                return
    pytest.fail(f"{fault} is not shown by {MOST_LIVES} random lives")


def test_a_fault_is_gone_afterwards() -> None:
    fault = FAULTS[0]
    owner = getattr(inspect.getmodule(fault.method), fault.method.__qualname__.split(".")[0])
    with fault.in_place():
        assert getattr(owner, fault.method.__name__) is not fault.method
    assert getattr(owner, fault.method.__name__) is fault.method
    live(1)
