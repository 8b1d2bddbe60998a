"""The bounds of `benchmarks.accelerators`; compiling for accelerators needs their compilers (tox -e accelerators)."""

import dataclasses
from typing import Any

import pytest

from benchmarks.accelerators.checks import CHECKS, MIB, Check
from benchmarks.accelerators.compiling import Facts
from benchmarks.accelerators.steps import ARCHITECTURES, StepShape
from benchmarks.accelerators.topologies import CHIPS

GOOD = Facts(1.0, 90 * MIB, 1000 * MIB, True, 2, 0, True, "")
DECODE = Check("h200", "1b", "bfloat16", "decode:64@2048")


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_every_check_is_of_a_chip_a_model_and_a_step(check: Check) -> None:
    assert str(check.step) == check.shape
    assert check.model in ARCHITECTURES
    assert check.devices <= CHIPS[check.chip].devices


def test_a_shape_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="'extent:1' is not the shape of a step"):
        StepShape.parse("extent:1")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"temporary_bytes": 101 * MIB}, "temporary memory of 101 MiB, more than 100"),
        ({"unknown_loops": 2}, "2 loops of unknown length"),
        ({"flash": False}, "no flash attention"),
        ({"in_place": False}, "the state is copied"),
    ],
)
def test_each_fault_of_a_decode_step_is_found(change: dict[str, Any], fault: str) -> None:
    assert DECODE.faults(GOOD) == []
    assert DECODE.faults(dataclasses.replace(GOOD, **change)) == [fault]


def test_a_step_without_a_state_has_a_bound_of_its_own() -> None:
    check = Check("h200", "1b", "bfloat16", "trees:16x1024", 50)
    facts = dataclasses.replace(GOOD, state_bytes=0, in_place=False)
    assert check.faults(facts) == ["temporary memory of 90 MiB, more than 50"]
