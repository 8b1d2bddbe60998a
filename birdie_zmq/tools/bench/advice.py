"""Advises how to make a model faster, from the figures and from the functions that the model provides. Pure.

Each piece of advice names the figures that it follows from. Figures that show no problem give no advice.
"""

from __future__ import annotations

from collections.abc import Sequence

from birdie_zmq.tools.bench.figures import Measurement
from birdie_zmq.types import ModelDescription, StepLimits

_HIGH_COMPUTED_PER_DISTINCT = 1.25
"""Computed tokens per distinct token above which more sharing would pay off."""
_HIGH_IDLE_SHARE = 0.1
_TOKENIZER_PER_IDLE = 0.5
"""Seconds of the tokenizer per second of idling from which the tokenizer is named as the cause."""
_HIGH_PADDING_SHARE = 0.25
_HIGH_PATH_RATIO = 1.25
_HIGH_COMPILE_RATIO = 0.5
"""Seconds of compilation per second of the timed passes."""
_FEW_STEPS = 8
_SHORT_STEP_S = 0.005
_LARGE_VOCABULARY = 32_000
_GUIDE = "docs/how_to/your_model.md"


def advise(description: ModelDescription, limits: StepLimits, measured: Sequence[Measurement]) -> list[str]:
    """Return advice in sentences, the largest gain first; empty if the figures show no problem.

    Args:
        description: The model, with the functions that it provides.
        limits: Limits of the rows per step.
        measured: The measurements of all workloads.
    """
    return [
        *_sharing(description, measured),
        *_generation(description, measured),
        *_compilation(description, measured),
        *_padding(limits, measured),
        *_overhead(measured),
    ]


def _sharing(description: ModelDescription, measured: Sequence[Measurement]) -> list[str]:
    scored = [each for each in measured if each.computed_per_distinct]
    if not scored:
        return []
    worst = max(scored, key=lambda each: each.computed_per_distinct)
    report = worst.report
    observation = (
        f"{worst.title} computed {report.tokens_computed:,} tokens for {report.tokens_distinct:,} distinct ones"
    )
    provided = set(description.provides)
    if description.engine == "torch":
        if worst.computed_per_distinct < _HIGH_COMPUTED_PER_DISTINCT:
            return []
        return [
            (
                f"{observation}, since the torch engine computes each row completely: for a checkpoint of a built-in family, "
                f"engine=jax would compute about {report.tokens_distinct:,} ({_GUIDE})"
            )
        ]
    advice = []
    if (
        description.engine == "jax"
        and worst.computed_per_distinct >= _HIGH_COMPUTED_PER_DISTINCT
        and "branch" not in provided
    ):
        advice.append(_jax_sharing_advice(provided, observation, report.tokens_distinct))
    if description.engine == "jax" and provided <= {"logits", "callable"}:
        advice.append(
            "the model provides only logits, so its head runs at every computed position: provide hidden and unembed, and the "
            f"head runs only at scored positions ({_GUIDE}, Hidden states and the head)"
        )
    large = (description.vocab_size or 0) >= _LARGE_VOCABULARY
    if large and "unembed" in provided and "unembed_part" not in provided:
        advice.append(
            f"scoring computes logits of all {description.vocab_size:,} tokens of the vocabulary at once: unembed_part computes "
            f"them in parts and needs less memory ({_GUIDE})"
        )
    return advice


def _jax_sharing_advice(provided: set[str], observation: str, distinct: int) -> str:
    """Return the advice for a JAX model without ``branch``: which functions would reduce the computed tokens."""
    if "extend" in provided:
        return (
            f"{observation}: with branch, a step computes whole trees of texts, and it would be about {distinct:,} "
            f"({_GUIDE}, Trees)"
        )
    if provided == {"score"} or provided == {"score", "callable"}:
        return (
            f"{observation}: a model that provides only score computes each pair from scratch; if it is a plain causal "
            f"decoder, provide init_state, extend, unembed and branch, and it would be about {distinct:,} ({_GUIDE})"
        )
    return (
        f"{observation}: with init_state and extend, shared prefixes would be computed once, and with branch too it would be "
        f"about {distinct:,} ({_GUIDE}, A state and Trees)"
    )


def _generation(description: ModelDescription, measured: Sequence[Measurement]) -> list[str]:
    for each in measured:
        report = each.report
        if not report.tokens_generated or "extend" in description.provides:
            continue
        per_token = report.tokens_computed / report.tokens_generated
        if description.engine == "jax":
            return [
                (
                    f"{each.title} computed {per_token:,.0f} tokens per generated token, since decoding without a cache recomputes "
                    f"the text before each token: with init_state and extend it would compute one ({_GUIDE}, A state)"
                )
            ]
        if description.engine == "torch":
            return [
                (
                    f"{each.title} computed {per_token:,.0f} tokens per generated token, since the torch engine recomputes the "
                    "text before each token: for a built-in family, engine=jax computes one"
                )
            ]
    return []


def _compilation(description: ModelDescription, measured: Sequence[Measurement]) -> list[str]:
    compile_s = sum(each.compile_s for each in measured)
    timed_s = sum(each.wall_s for each in measured)
    shapes = sum(each.new_shapes for each in measured)
    if description.provides == ["callable"] and description.engine == "jax":
        return [
            (
                "load_model returns a bare function, which is not compiled: return (apply, params), and it is compiled for the "
                f"few shapes of steps ({_GUIDE})"
            )
        ]
    if compile_s < _HIGH_COMPILE_RATIO * timed_s:
        return []
    return [
        (
            f"compilation took {compile_s:.1f} s for {shapes} shapes, compared with {timed_s:.1f} s of timed passes: executables "
            "are cached on disk, so a run with the same model and the same lengths does not compile again; stack equal layers "
            "and scan them (jax.lax.scan) to compile faster, or reduce max_length= to have fewer shapes "
            f"({_GUIDE}, Steps and memory)"
        )
    ]


def _padding(limits: StepLimits, measured: Sequence[Measurement]) -> list[str]:
    advice = []
    for each in measured:
        if each.padding_share < _HIGH_PADDING_SHARE:
            continue
        observation = f"{each.padding_share:.0%} of the tokens computed by {each.title} were padding"
        if limits.rows:
            advice.append(f"{observation}: batch_rows={limits.rows} fixes the rows of every step; remove it")
        elif each.report.tokens_generated:
            advice.append(
                f"{observation}: rows stay empty when no prompt is left, and there were {each.documents:,} prompts; more prompts "
                "per run fill them"
            )
        elif each.report.steps < _FEW_STEPS:
            advice.append(
                f"{observation}: there were only {each.report.steps} steps, and the last step of each length is padded; a longer "
                "run has less padding (--seconds)"
            )
        else:
            advice.append(
                f"{observation}: rows are padded to one of a few lengths, and the last step of a batch has empty rows; trees "
                f"(branch) fill rows of any length, and a smaller --batch_size leaves fewer rows empty ({_GUIDE})"
            )
    return advice


def _overhead(measured: Sequence[Measurement]) -> list[str]:
    advice = []
    idle = [each for each in measured if each.idle_share >= _HIGH_IDLE_SHARE and each.report.steps]
    if idle:
        worst = max(idle, key=lambda each: each.idle_share)
        step_s = worst.report.step_seconds / worst.report.steps
        observation = f"the device was idle for {worst.idle_share:.0%} of {worst.title}"
        tokenizer_s = worst.report.tokenizer_seconds
        if tokenizer_s >= _TOKENIZER_PER_IDLE * worst.report.idle_seconds:
            advice.append(
                f"{observation}: it waited for the tokenizer, which took {tokenizer_s:.1f} s of the pass's {worst.wall_s:.1f} s, "
                f"{tokenizer_s / worst.requests * 1e3:.1f} ms for each request; one of the package tokenizers is faster than one "
                "in Python, and other load on the CPU cores slows any"
            )
        elif step_s < _SHORT_STEP_S:
            advice.append(
                f"{observation}: a step takes {step_s * 1e3:.1f} ms, less than the work between steps (planning, messages); "
                "your api.py cannot change that, and a larger model is not affected"
            )
        else:
            advice.append(
                f"{observation}, with steps of {step_s * 1e3:.0f} ms, and the tokenizer took only {tokenizer_s:.1f} s: it waits for "
                "planning and messages, or for CPU cores that have other load"
            )
    slow = [each for each in measured if each.path_ratio >= _HIGH_PATH_RATIO]
    if slow:
        worst = max(slow, key=lambda each: each.path_ratio)
        advice.append(
            f"{worst.title} took {worst.path_ratio:.2f} times as long as the model process had requests: the rest is spent in "
            "client, broker and agent; a longer pass (--seconds) shows whether it remains"
        )
    return advice
