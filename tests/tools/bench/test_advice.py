"""Figures and advice that follow from the statistics of workloads."""

from __future__ import annotations

import json
from typing import Any

import pytest

from birdie_zmq.tools.bench.advice import advise
from birdie_zmq.tools.bench.figures import Measurement, difference
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


def described(provides: list[str], engine: str = "jax", vocab_size: int = 1_000) -> ModelDescription:
    return ModelDescription(
        model=ModelSpec(tag="m"),
        identity="i",
        api="api.py",
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
        provides=provides,
    )


def measured(wall_s: float = 10.2, compile_s: float = 0.0, **counts: Any) -> Measurement:
    warmup = RunStatistics(compile_seconds=compile_s, shapes=[(1, 16), (2, 16)])
    return Measurement("choice", "choice, 0-shot", 10, 40, wall_s, RunStatistics(**{**QUIET, **counts}), warmup)


def advice(provides: list[str], each: Measurement, limits: StepLimits = StepLimits(), **model: Any) -> str:
    return "\n".join(advise(described(provides, **model), limits, [each]))


def test_difference_of_two_reports() -> None:
    before = RunStatistics(requests=3, steps=2, step_seconds=1.5, shapes=[(1, 16)], shape_bound=9, idle_seconds=0.5)
    after = RunStatistics(
        requests=10, steps=5, step_seconds=4.0, shapes=[(1, 16), (4, 32)], shape_bound=9, idle_seconds=1.0
    )

    delta = difference(before, after)

    assert (delta.requests, delta.steps, delta.step_seconds, delta.idle_seconds) == (7, 3, 2.5, 0.5)
    assert delta.shapes == [(4, 32)]
    assert difference(after, after) == RunStatistics(shape_bound=9)


def test_ratios_follow_from_the_counts() -> None:
    each = measured(wall_s=12.0, compile_s=3.0)

    assert each.requests_per_s == pytest.approx(40 / 12)
    assert each.sharing_gain == pytest.approx(4_000 / 1_100)
    assert each.computed_per_distinct == pytest.approx(1.1)
    assert each.path_ratio == pytest.approx(12 / 10.1)
    assert each.padding_share == pytest.approx(1 / 11)
    assert each.seconds_per_1000_documents == pytest.approx(1_200)
    assert (each.compile_s, each.new_shapes) == (3.0, 2)
    record = json.loads(json.dumps(each.as_record()))
    assert record["steps"]["tokens_computed"] == 1_100
    assert record["path_ratio"] == pytest.approx(12 / 10.1)


def test_no_advice_for_good_figures() -> None:
    assert advice(EVERYTHING, measured()) == ""


@pytest.mark.parametrize(
    ("provides", "words"),
    [
        (["logits"], "with init_state and extend"),
        (["hidden", "unembed"], "with init_state and extend"),
        (["init_state", "extend", "unembed"], "with branch, a step computes whole trees"),
        (["score"], "if it is a plain causal decoder"),
    ],
)
def test_low_sharing_advises_the_missing_functions(provides: list[str], words: str) -> None:
    text = advice(provides, measured(tokens_computed=4_000))

    assert words in text
    assert "computed 4,000 tokens for 1,000 distinct ones" in text
    assert "docs/how_to/your_model.md" in text
    assert words not in advice(provides, measured(tokens_computed=1_100))
    assert words not in advice(EVERYTHING, measured(tokens_computed=4_000))


def test_advice_for_logits_only_and_bare_functions() -> None:
    assert "provide hidden and unembed" in advice(["logits"], measured())
    assert "provide hidden and unembed" not in advice(["hidden", "unembed"], measured())
    assert "return (apply, params)" in advice(["callable"], measured())


def test_large_vocabulary_advises_unembed_part() -> None:
    provided = [name for name in EVERYTHING if name != "unembed_part"]

    assert "unembed_part" in advice(provided, measured(), vocab_size=128_000)
    assert advice(provided, measured(), vocab_size=1_000) == ""
    assert advice(EVERYTHING, measured(), vocab_size=128_000) == ""


def test_torch_is_advised_jax_and_custom_engines_nothing() -> None:
    shared = measured(tokens_computed=4_000)

    assert "engine=jax" in advice(["logits"], shared, engine="torch")
    assert "hidden" not in advice(["logits"], shared, engine="torch")
    assert advice(["logits"], shared, engine="numpy") == ""


def test_generation_without_a_state_advises_extend() -> None:
    each = measured(tokens_distinct=0, tokens_generated=10, tokens_computed=4_000)

    assert "computed 400 tokens per generated token" in advice(["logits"], each)
    assert "per generated token" not in advice(EVERYTHING, each)


def test_long_compilation_is_reported_with_its_shapes() -> None:
    assert "compilation took 6.0 s for 2 shapes" in advice(EVERYTHING, measured(compile_s=6.0))
    assert advice(EVERYTHING, measured(compile_s=4.0)) == ""


@pytest.mark.parametrize(
    ("limits", "counts", "words"),
    [
        (StepLimits(rows=8), {}, "batch_rows=8 fixes"),
        (StepLimits(), {"steps": 3}, "a longer run has less padding"),
        (StepLimits(), {}, "trees (branch) fill rows"),
        (StepLimits(), {"tokens_generated": 5}, "rows stay empty"),
    ],
)
def test_padding_advice_names_the_cause(limits: StepLimits, counts: dict[str, int], words: str) -> None:
    text = advice(EVERYTHING, measured(tokens_padding=600, **counts), limits)

    assert "55% of the tokens computed by choice, 0-shot were padding" in text
    assert words in text


def test_idle_device_advice_depends_on_step_time() -> None:
    text = advice(EVERYTHING, measured(wall_s=15.1, idle_seconds=5.0, tokenizer_seconds=1.0))
    assert "idle for 33% of choice, 0-shot, with steps of 100 ms, and the tokenizer took only 1.0 s" in text
    short = advice(EVERYTHING, measured(wall_s=15.1, idle_seconds=5.0, tokenizer_seconds=1.0, steps=10_000))
    assert "a step takes 1.0 ms" in short
    assert advice(EVERYTHING, measured(idle_seconds=0.9)) == ""


@pytest.mark.parametrize("steps", [100, 10_000])
def test_a_slow_tokenizer_is_named_as_the_cause_of_an_idle_device(steps: int) -> None:
    text = advice(EVERYTHING, measured(wall_s=15.1, idle_seconds=5.0, tokenizer_seconds=4.0, steps=steps))

    assert "idle for 33% of choice, 0-shot: it waited for the tokenizer, which took 4.0 s of the pass's 15.1 s" in text
    assert "100.0 ms for each request" in text
    assert text.count("idle") == 1


def test_a_tokenizer_that_computing_hides_is_no_problem() -> None:
    assert advice(EVERYTHING, measured(tokenizer_seconds=9.0)) == ""


def test_overhead_outside_the_model_process_is_reported() -> None:
    text = advice(EVERYTHING, measured(wall_s=16.16))

    assert "took 1.60 times as long as the model process had requests" in text
    assert "times as long" not in advice(EVERYTHING, measured(wall_s=20.2, idle_seconds=10.0))
