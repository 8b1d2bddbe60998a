"""What would make a model faster, by what was measured and by what its page gives. Pure.

Each piece of advice names the figures that it follows from; where they say nothing, nothing is advised.
"""

from __future__ import annotations

from collections.abc import Sequence

from birdie_zmq.tools.bench.figures import Measured
from birdie_zmq.types import ModelDescription, StepLimits

_MUCH_SHARED = 1.25
"""Positions computed for each distinct token, above which sharing would be felt."""
_MUCH_IDLE = 0.1
_MUCH_PADDING = 0.25
_LONG_PATH = 1.25
_MUCH_COMPILING = 0.5
"""Seconds of compiling for each second of the timed passes."""
_FEW_STEPS = 8
_SHORT_STEP_S = 0.005
_LARGE_VOCABULARY = 32_000
_PAGE = "docs/how_to/your_model.md"


def advise(description: ModelDescription, limits: StepLimits, measured: Sequence[Measured]) -> list[str]:
    """Sentences for a person, the most that is to be gained first; empty where nothing stands out.

    Args:
        description: The model, with what it gives.
        limits: What was said of the rows of a step.
        measured: All workloads.
    """
    return [
        *_sharing(description, measured),
        *_generation(description, measured),
        *_compiling(description, measured),
        *_padding(limits, measured),
        *_waiting(measured),
    ]


def _sharing(description: ModelDescription, measured: Sequence[Measured]) -> list[str]:
    scored = [each for each in measured if each.excess]
    if not scored:
        return []
    worst = max(scored, key=lambda each: each.excess)
    report = worst.report
    seen = f"of {worst.title}, {report.tokens_computed:,} tokens were computed where {report.tokens_distinct:,} are distinct"
    given = set(description.provides)
    if description.engine == "torch":
        if worst.excess < _MUCH_SHARED:
            return []
        return [
            (
                f"{seen}, since the engine torch reads whole rows: for a checkpoint of a family that is built in, engine=jax "
                f"would compute about the {report.tokens_distinct:,} ({_PAGE})"
            )
        ]
    found = []
    if description.engine == "jax" and worst.excess >= _MUCH_SHARED and "branch" not in given:
        found.append(_by_gift(given, seen, report.tokens_distinct))
    if description.engine == "jax" and given <= {"logits", "callable"}:
        found.append(
            "the model gives logits alone, so its head runs at all tokens that are computed, also where none is scored: "
            f"give hidden and unembed, and it runs where one is ({_PAGE}, Hidden states and the head)"
        )
    large = (description.vocab_size or 0) >= _LARGE_VOCABULARY
    if large and "unembed" in given and "unembed_part" not in given:
        found.append(
            f"logits of all {description.vocab_size:,} tokens of the vocabulary are made where texts are scored: with "
            f"unembed_part they are made in parts, which takes less memory ({_PAGE})"
        )
    return found


def _by_gift(given: set[str], seen: str, distinct: int) -> str:
    """What a model in JAX that does not give branch would gain by giving more."""
    if "extend" in given:
        return f"{seen}: with branch, whole trees of texts are one step, and it would be about the {distinct:,} ({_PAGE}, Trees)"
    if given == {"score"} or given == {"score", "callable"}:
        return (
            f"{seen}: a model that gives score alone reads each pair anew; if yours is a plain causal decoder, give it as "
            f"one, with init_state, extend, unembed and branch, and it would be about the {distinct:,} ({_PAGE})"
        )
    return (
        f"{seen}: with init_state and extend, what texts share would be read once, and with branch too it would be about "
        f"the {distinct:,} ({_PAGE}, A state and Trees)"
    )


def _generation(description: ModelDescription, measured: Sequence[Measured]) -> list[str]:
    for each in measured:
        report = each.report
        if not report.tokens_generated or "extend" in description.provides:
            continue
        anew = report.tokens_computed / report.tokens_generated
        if description.engine == "jax":
            return [
                (
                    f"of {each.title}, {anew:,.0f} tokens were computed for each that was generated, since every token reads the "
                    f"text before it anew: with init_state and extend it would read one ({_PAGE}, A state)"
                )
            ]
        if description.engine == "torch":
            return [
                (
                    f"of {each.title}, {anew:,.0f} tokens were computed for each that was generated, since the engine torch "
                    "reads the text before it anew: for a family that is built in, engine=jax reads one"
                )
            ]
    return []


def _compiling(description: ModelDescription, measured: Sequence[Measured]) -> list[str]:
    compiling = sum(each.compile_s for each in measured)
    timed = sum(each.wall_s for each in measured)
    shapes = sum(each.new_shapes for each in measured)
    if description.provides == ["callable"] and description.engine == "jax":
        return [
            (
                "load_model returns a bare function, which is called as it is: return (apply, params), and it is compiled for "
                f"the few shapes of steps ({_PAGE})"
            )
        ]
    if compiling < _MUCH_COMPILING * timed:
        return []
    return [
        (
            f"compiling took {compiling:.1f} s for {shapes} shapes, beside {timed:.1f} s of timed passes: programs are kept on "
            "disk, so a run with the same model and the same lengths does not compile again; each compiles faster where equal layers "
            f"are stacked and scanned (jax.lax.scan), and a smaller max_length= has fewer shapes ({_PAGE}, Steps and memory)"
        )
    ]


def _padding(limits: StepLimits, measured: Sequence[Measured]) -> list[str]:
    found = []
    for each in measured:
        if each.padding_share < _MUCH_PADDING:
            continue
        seen = f"{each.padding_share:.0%} of what {each.title} computed was padding"
        if limits.rows:
            found.append(f"{seen}: batch_rows={limits.rows} forces the rows of every step; leave it out")
        elif each.report.tokens_generated:
            found.append(
                f"{seen}: rows were empty when no prompt was left, of {each.documents:,} altogether; more prompts in one "
                "run fill them"
            )
        elif each.report.steps < _FEW_STEPS:
            found.append(
                f"{seen}: it took {each.report.steps} steps only, and the last of a length is filled up; a longer run pads "
                "less (--seconds)"
            )
        else:
            found.append(
                f"{seen}: rows are as long as the next of few lengths, and the last step of a batch has empty rows; trees "
                f"(branch) fill rows of any length, and a smaller --batch_size has fewer empty ones ({_PAGE})"
            )
    return found


def _waiting(measured: Sequence[Measured]) -> list[str]:
    found = []
    idle = [each for each in measured if each.idle_share >= _MUCH_IDLE and each.report.steps]
    if idle:
        worst = max(idle, key=lambda each: each.idle_share)
        a_step = worst.report.step_seconds / worst.report.steps
        seen = f"the device was idle for {worst.idle_share:.0%} of {worst.title}"
        if a_step < _SHORT_STEP_S:
            found.append(
                f"{seen}: its steps take {a_step * 1e3:.1f} ms each, less than what stands between them (planning, messages); "
                "nothing of the page mends that, and a larger model will not feel it"
            )
        else:
            found.append(
                f"{seen}, with steps of {a_step * 1e3:.0f} ms: it waits for texts to be encoded and planned; a tokenizer in "
                "Python is the first suspect (the package tokenizers is faster), then other work on this machine's cores"
            )
    slow = [each for each in measured if each.path_ratio >= _LONG_PATH]
    if slow:
        worst = max(slow, key=lambda each: each.path_ratio)
        found.append(
            f"{worst.title} took {worst.path_ratio:.2f} times the time of its steps: the rest lies before the first step and "
            "behind the last, and in client, broker and worker; a longer pass (--seconds) says whether it stays"
        )
    return found
