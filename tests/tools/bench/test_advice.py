"""What follows from figures: of two reports, of a workload, and for the person."""

from __future__ import annotations

import json
from typing import Any

import pytest

from birdie_zmq.tools.bench.advice import advise
from birdie_zmq.tools.bench.figures import Measured, difference
from birdie_zmq.types import ChatTemplates, ModelDescription, ModelSpec, RunStatistics, StepLimits

EVERYTHING = ["hidden", "unembed", "unembed_part", "init_state", "extend", "branch"]
QUIET: dict[str, Any] = {
    "requests": 40,
    "steps": 100,
    "tokens_requested": 4_000,
    "tokens_distinct": 1_000,
    "tokens_computed": 1_100,
    "tokens_padding": 100,
    "step_seconds": 10.0,
    "idle_seconds": 0.1,
}


def described(gives: list[str], engine: str = "jax", vocab_size: int = 1_000) -> ModelDescription:
    return ModelDescription(
        model=ModelSpec(tag="m"),
        identity="i",
        api="page.py",
        api_sha256="0",
        num_parameters=1,
        dtype="float32",
        vocab_size=vocab_size,
        max_length=512,
        bos_token_id=None,
        eos_token_id=None,
        engine=engine,
        devices=["cpu:0"],
        versions={},
        chat=ChatTemplates(),
        report=RunStatistics(),
        process_id=1,
        start_count=1,
        provides=gives,
    )


def measured(wall_s: float = 10.2, compile_s: float = 0.0, **counts: Any) -> Measured:
    warming = RunStatistics(compile_seconds=compile_s, shapes=[(1, 16), (2, 16)])
    return Measured("choice", "choice, 0-shot", 10, 40, wall_s, RunStatistics(**{**QUIET, **counts}), warming)


def advice(gives: list[str], each: Measured, limits: StepLimits = StepLimits(), **how: Any) -> str:
    return "\n".join(advise(described(gives, **how), limits, [each]))


def test_the_difference_of_two_reports_has_what_came_between() -> None:
    before = RunStatistics(requests=3, steps=2, step_seconds=1.5, shapes=[(1, 16)], shape_bound=9, idle_seconds=0.5)
    after = RunStatistics(
        requests=10, steps=5, step_seconds=4.0, shapes=[(1, 16), (4, 32)], shape_bound=9, idle_seconds=1.0
    )

    between = difference(before, after)

    assert (between.requests, between.steps, between.step_seconds, between.idle_seconds) == (7, 3, 2.5, 0.5)
    assert between.shapes == [(4, 32)]
    assert difference(after, after) == RunStatistics(shape_bound=9)


def test_ratios_are_of_the_counts() -> None:
    each = measured(wall_s=12.0, compile_s=3.0)

    assert each.requests_per_s == pytest.approx(40 / 12)
    assert each.sharing_gain == pytest.approx(4_000 / 1_100)
    assert each.excess == pytest.approx(1.1)
    assert each.path_ratio == pytest.approx(1.2)
    assert each.padding_share == pytest.approx(1 / 11)
    assert each.thousand_s == pytest.approx(1_200)
    assert (each.compile_s, each.new_shapes) == (3.0, 2)
    record = json.loads(json.dumps(each.as_record()))
    assert record["steps"]["tokens_computed"] == 1_100
    assert record["path_ratio"] == pytest.approx(1.2)


def test_nothing_is_advised_where_nothing_stands_out() -> None:
    assert advice(EVERYTHING, measured()) == ""


@pytest.mark.parametrize(
    ("gives", "words"),
    [
        (["logits"], "with init_state and extend"),
        (["hidden", "unembed"], "with init_state and extend"),
        (["init_state", "extend", "unembed"], "with branch, whole trees"),
        (["score"], "if yours is a plain causal decoder"),
    ],
)
def test_a_model_that_shares_little_is_told_what_it_could_give(gives: list[str], words: str) -> None:
    text = advice(gives, measured(tokens_computed=4_000))

    assert words in text
    assert "4,000 tokens were computed where 1,000 are distinct" in text
    assert "docs/how_to/your_model.md" in text
    assert words not in advice(gives, measured(tokens_computed=1_100))
    assert words not in advice(EVERYTHING, measured(tokens_computed=4_000))


def test_logits_alone_are_told_of_the_head_and_a_bare_function_of_its_params() -> None:
    assert "give hidden and unembed" in advice(["logits"], measured())
    assert "give hidden and unembed" not in advice(["hidden", "unembed"], measured())
    assert "return (apply, params)" in advice(["callable"], measured())


def test_a_large_vocabulary_wants_its_head_in_parts() -> None:
    given = [name for name in EVERYTHING if name != "unembed_part"]

    assert "unembed_part" in advice(given, measured(), vocab_size=128_000)
    assert advice(given, measured(), vocab_size=1_000) == ""
    assert advice(EVERYTHING, measured(), vocab_size=128_000) == ""


def test_torch_is_told_of_jax_and_an_engine_of_ones_own_of_nothing() -> None:
    shared = measured(tokens_computed=4_000)

    assert "engine=jax" in advice(["logits"], shared, engine="torch")
    assert "hidden" not in advice(["logits"], shared, engine="torch")
    assert advice(["logits"], shared, engine="numpy") == ""


def test_generation_without_a_state_is_told_what_each_token_took() -> None:
    each = measured(tokens_distinct=0, tokens_generated=10, tokens_computed=4_000)

    assert "400 tokens were computed for each" in advice(["logits"], each)
    assert "for each that was generated" not in advice(EVERYTHING, each)


def test_much_compiling_is_named_with_its_shapes() -> None:
    assert "compiling took 6.0 s for 2 shapes" in advice(EVERYTHING, measured(compile_s=6.0))
    assert advice(EVERYTHING, measured(compile_s=4.0)) == ""


@pytest.mark.parametrize(
    ("limits", "counts", "words"),
    [
        (StepLimits(rows=8), {}, "batch_rows=8 forces"),
        (StepLimits(), {"steps": 3}, "a longer run pads less"),
        (StepLimits(), {}, "trees (branch) fill rows"),
        (StepLimits(), {"tokens_generated": 5}, "rows were empty"),
    ],
)
def test_padding_is_explained(limits: StepLimits, counts: dict[str, int], words: str) -> None:
    text = advice(EVERYTHING, measured(tokens_padding=600, **counts), limits)

    assert "55% of what choice, 0-shot computed was padding" in text
    assert words in text


def test_an_idle_device_is_explained_by_how_long_its_steps_are() -> None:
    assert "idle for 50%" in advice(EVERYTHING, measured(idle_seconds=5.1))
    assert "a tokenizer in Python" in advice(EVERYTHING, measured(idle_seconds=5.1))
    assert "1.0 ms each" in advice(EVERYTHING, measured(idle_seconds=5.1, steps=10_000))
    assert advice(EVERYTHING, measured(idle_seconds=0.9)) == ""


def test_a_path_that_takes_much_is_named() -> None:
    assert "took 1.60 times the time of its steps" in advice(EVERYTHING, measured(wall_s=16.0))
