"""The bounds of `benchmarks.accelerators`; compiling for accelerators needs their compilers (tox -e accelerators)."""

import dataclasses
from typing import Any

import pytest

from benchmarks.accelerators.architectures import ARCHITECTURES
from benchmarks.accelerators.checks import CHECKS, MIB, Check
from benchmarks.accelerators.compiling import Facts
from benchmarks.accelerators.program_cost import Program
from benchmarks.accelerators.steps import StepShape
from benchmarks.accelerators.topologies import CHIPS

GOOD = Facts(1.0, 90 * MIB, 1000 * MIB, 2000 * MIB, True, 2, 0, True, "")
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


PROGRAM = """
HloModule jit_f

%fused_slice (param_0.1: f32[10,1000], param_1.1: s32[]) -> f32[1,1000] {
  %param_0.1 = f32[10,1000]{1,0} parameter(0)
  %param_1.1 = s32[] parameter(1)
  ROOT %dynamic_slice.1 = f32[1,1000]{1,0} dynamic-slice(%param_0.1, %param_1.1), dynamic_slice_sizes={1,1000}
}

%body (arg: (s32[], f32[10,1000])) -> (s32[], f32[10,1000]) {
  %arg = (s32[], f32[10,1000]{1,0}) parameter(0)
  %number = s32[] get-tuple-element(%arg), index=0
  %all = f32[10,1000]{1,0} get-tuple-element(%arg), index=1
  %slice_fusion = f32[1,1000]{1,0} fusion(%all, %number), kind=kLoop, calls=%fused_slice
  ROOT %tuple = (s32[], f32[10,1000]{1,0}) tuple(%number, %all)
}

ENTRY %main (x: f32[10,1000], y: bf16[8,64], z: bf16[64,16]) -> f32[10,1000] {
  %x = f32[10,1000]{1,0} parameter(0)
  %y = bf16[8,64]{1,0} parameter(1)
  %z = bf16[64,16]{1,0} parameter(2)
  %product = (bf16[8,16]{1,0}, s8[4]{0}) custom-call(%y, %z), custom_call_target="__cublas$lt$matmul", backend_config={"lhs_contracting_dimensions":["1"]}
  %while.1 = (s32[], f32[10,1000]{1,0}) while(%start), condition=%less, body=%body, backend_config={"known_trip_count":{"n":"7"}}
}
"""


def test_the_cost_of_a_program_counts_turns_slices_and_products() -> None:
    cost = Program(PROGRAM, flops=1e3, bandwidth=1e3).cost()
    product = 2 * (8 * 64 + 64 * 16 + 8 * 16)
    slices = 7 * (4000 + 4 + 4000)  # a row and its number are read, and the row is written
    assert cost.operations == 2 * 8 * 16 * 64
    assert cost.bytes == product + slices
    assert cost.seconds == pytest.approx(2 * 8 * 16 * 64 / 1e3 + slices / 1e3)
