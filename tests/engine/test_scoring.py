"""Scoring of real models with plans, states and halved steps, compared with scoring one request at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from birdie_zmq import Model
from birdie_zmq.engine.backend import PendingScores, TokenScores
from birdie_zmq.engine.events import Answered, ItemFailed, Notice
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.model_runner import ModelRunner
from birdie_zmq.engine.planning.execution_mode import FORKS, TREES, ExecutionMode
from birdie_zmq.engine.planning.shape_buckets import Buckets, StepBudget
from birdie_zmq.engine.planning.steps import ScoredSequence, Step, Tokens
from birdie_zmq.engine.scoring import score
from birdie_zmq.errors import OutOfDeviceMemory
from birdie_zmq.models.decoder import build_model
from birdie_zmq.models.families.llama import plain_llama
from birdie_zmq.types import StepLimits
from tests.engine.recurrent import VOCABULARY, recurrent
from tests.engine.recurrent import logits as recurrent_logits
from tests.engine.replay import replay, tokens_of

MAX_LENGTH = 64
TOLERANCE_NATS = 2e-4
SMALL = StepBudget(tokens=16, call_tokens=4)
"""A budget so small that texts of a few dozen tokens are computed in chunks and after states."""
PAIRS = StepLimits(rows=2)
"""Limits that allow few shapes, so that few executables are compiled."""


# --- Models -----------------------------------------------------------------------------------------------------------


def llama() -> Model:
    architecture = plain_llama(
        vocab_size=VOCABULARY, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=32, max_length=MAX_LENGTH
    )
    return build_model(architecture, architecture.init_params(jax.random.key(0)))


MODELS: dict[str, Callable[[], Model]] = {
    "branches": llama,
    "forks": lambda: dataclasses.replace(llama(), branch=None, prefill=None, append=None, extend_after=None),
    "hidden": lambda: dataclasses.replace(
        llama(),
        **dict.fromkeys(("init_state", "extend", "extend_after", "resize", "branch", "prefill", "append")),
    ),
    "recurrent": recurrent,
}


@dataclass(frozen=True)
class Variant:
    """A backend for one set of functions of a model, and the model's logits without the engine."""

    backend: JaxBackend
    logits: Callable[[npt.NDArray[np.int32]], jax.Array]

    @classmethod
    def of(cls, name: str) -> Variant:
        model = MODELS[name]()
        logits = model.logits or recurrent_logits
        return cls(JaxBackend(resolve(model), MAX_LENGTH), jax.jit(partial(logits, model.params)))

    def logprobs(self, row: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return log-probabilities float32[n, v] after each token; all rows are padded to one length."""
        padded = np.zeros((1, MAX_LENGTH), np.int32)
        padded[0, : len(row)] = row
        return np.asarray(jax.nn.log_softmax(self.logits(padded)))[0, : len(row)]

    def alone(self, items: Sequence[ScoredSequence]) -> list[float]:
        """Return each request's score, computed from its own row."""
        return [
            float(self.logprobs(item.row.tolist())[list(item.positions), item.targets].sum(dtype=np.float64))
            for item in items
        ]


@pytest.fixture(scope="module", params=MODELS)
def compiled_variant(request: pytest.FixtureRequest) -> Variant:
    """Return each variant; it is compiled once for all tests."""
    return Variant.of(request.param)


@pytest.fixture
def variant(compiled_variant: Variant) -> Variant:
    """Return each variant, with a small budget and an empty prefix cache."""
    compiled_variant.backend.halve_budget()  # clears the prefix cache
    compiled_variant.backend.budget = SMALL
    return compiled_variant


# --- Running ----------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """The result of scoring once."""

    loglikelihoods: npt.NDArray[np.float64]
    greedy: npt.NDArray[np.bool_]
    steps: list[Step] = field(default_factory=list)
    finished: list[list[int]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def computed(self) -> int:
        return sum(step.tokens.size for step in self.steps)


def run(backend: JaxBackend, items: Sequence[ScoredSequence], limits: StepLimits = PAIRS) -> Run:
    done = Run(np.full(len(items), np.nan), np.zeros(len(items), np.bool_))
    runner = ModelRunner(backend, MAX_LENGTH)
    submit = backend.submit

    def recorded(step: Step) -> PendingScores:
        assert step.shape in runner.counters.possible_shapes
        done.steps.append(step)
        return submit(step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "submit", recorded)
        for event in score(runner, backend.pair_mode, [[item] for item in items], limits, with_greedy=True):
            match event:
                case Answered(indices=numbers, answers=answers):
                    assert np.isnan(done.loglikelihoods[numbers]).all(), "a request is finished once"
                    for number, answer in zip(numbers, answers, strict=True):
                        assert isinstance(answer, tuple)
                        done.loglikelihoods[number], done.greedy[number] = answer
                    done.finished.append(list(numbers))
                case Notice(text=text):
                    done.notices.append(text)
    return done


def batch(seed: int, prefix: Tokens, count: int = 5) -> list[ScoredSequence]:
    """Return questions with three answers each, after a common prefix."""
    random = np.random.default_rng(seed)
    items = []
    for _ in range(count):
        question = random.integers(1, VOCABULARY, size=8)
        for _ in range(3):
            answer = random.integers(1, VOCABULARY, size=random.integers(1, 6))
            items.append(ScoredSequence(tokens_of([*prefix, *question, *answer]), len(answer)))
    return items


PREFIX = np.random.default_rng(0).integers(1, VOCABULARY, size=40, dtype=np.int32)
EMPTY_PREFIX = tokens_of([])


def test_scores_equal_those_of_each_request_alone_batch_after_batch(variant: Variant) -> None:
    whole = ScoredSequence(tokens_of(np.random.default_rng(9).integers(1, VOCABULARY, size=60)), 59)
    within_the_prefix = ScoredSequence(PREFIX, 20)
    likely = PREFIX[:10].tolist()
    for _ in range(4):
        likely.append(int(variant.logprobs(likely)[-1].argmax()))
    unlikely = [*likely[:-1], (likely[-1] + 1) % VOCABULARY]

    more = [whole, within_the_prefix, ScoredSequence(tokens_of(likely), 4), ScoredSequence(tokens_of(unlikely), 4)]

    for seed, others in enumerate(([], more)):
        items = batch(seed, PREFIX) + others

        done = run(variant.backend, items)

        assert done.loglikelihoods.tolist() == pytest.approx(variant.alone(items), abs=TOLERANCE_NATS)
        assert sorted(number for numbers in done.finished for number in numbers) == list(range(len(items)))
        if variant.backend.pair_mode.decodes_with_cache:
            assert variant.backend.cached_prefixes()[PREFIX.tobytes()] >= len(PREFIX)
    assert done.greedy[-2:].tolist() == [True, False]


def test_nothing_to_score_needs_no_step(variant: Variant) -> None:
    assert run(variant.backend, []).steps == []


def test_a_cached_prefix_saves_computation_in_the_next_batch() -> None:
    backend = Variant.of("recurrent").backend
    backend.budget = SMALL
    items = batch(6, PREFIX)

    first, second = run(backend, items), run(backend, items)

    used = [sum(step.used_tokens for step in done.steps) for done in (first, second)]
    assert used[0] - used[1] >= len(PREFIX)
    assert second.loglikelihoods.tolist() == pytest.approx(first.loglikelihoods.tolist(), abs=TOLERANCE_NATS)


@pytest.mark.parametrize("mode", [TREES, FORKS])
def test_a_state_without_enough_capacity_is_replaced_by_one_with_it(mode: ExecutionMode) -> None:
    """From the longer state the last chunk ends at position 127; from the shorter one it would end at 129."""
    text = tokens_of(range(1, 124))
    states = {text[:1].tobytes(): 128, text[:7].tobytes(): 8}
    buckets = Buckets(128, vocab_size=0, budget=StepBudget(tokens=64, call_tokens=8))

    steps = mode.group([ScoredSequence(text, 1)]).plan(buckets, states)

    assert replay([ScoredSequence(text, 1)], steps, mode, buckets, states).used >= 122 - 7


# --- Steps that are submitted ahead -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [1, 2])
def test_the_scores_of_a_step_are_fetched_after_some_more_are_submitted(ahead: int) -> None:
    backend = limited_backend(limit=1000, budget=16)
    backend.budget = dataclasses.replace(backend.budget, steps_ahead=ahead)
    items = [ScoredSequence(tokens_of([first, *[length] * length]), 1) for length in (15, 14, 13) for first in (2, 3)]
    unfetched: list[int] = []
    most: list[int] = []
    submit = backend.submit

    class Pending:
        def __init__(self, scores: PendingScores) -> None:
            self._scores = scores
            unfetched.append(id(self))
            most.append(len(unfetched))

        def result(self) -> TokenScores:
            assert unfetched.pop(0) == id(self), "scores are fetched in the order of the steps"
            return self._scores.result()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "submit", lambda step: Pending(submit(step)))
        runner = ModelRunner(backend, MAX_LENGTH)
        events = list(
            score(runner, backend.pair_mode, [[item] for item in items], StepLimits(rows=1), with_greedy=True)
        )

    answers = [number for event in events if isinstance(event, Answered) for number in event.indices]
    assert sorted(answers) == list(range(len(items)))
    assert max(most) == ahead + 1
    assert not unfetched


# --- Requests that cannot be scored -----------------------------------------------------------------------------------


def nan_after_three(params: Any, tokens: Any) -> Any:
    """Return logits that are NaN after token 3."""
    return jnp.where((tokens == 3)[..., None], jnp.nan, jnp.zeros((*tokens.shape, VOCABULARY)))


def test_a_request_with_non_finite_logits_is_reported_by_its_number() -> None:
    backend = JaxBackend(resolve((nan_after_three, 0.0)), MAX_LENGTH)
    items = [ScoredSequence(tokens_of(text), 1) for text in ([1, 2], [1, 3, 4, 5], [1, 3, 5], [1, 2, 3])]

    with pytest.raises(ItemFailed) as caught:
        run(backend, items)

    assert caught.value.index == 2


TOO_LARGE = (1, 1 << 25, 1 << 25)
"""A shape with more bytes than there are addresses."""


def out_of_memory_above(limit: int, params: Any, tokens: Any) -> Any:
    """Return a table's rows; more than `limit` tokens at once need more memory than any device has."""
    hidden = params[tokens]
    if tokens.size > limit:
        first = tokens[0, 0]
        # The operand of a sort must be in memory as a whole.
        huge = jax.lax.sort(jax.lax.broadcasted_iota(jnp.uint8, TOO_LARGE, 2) + first.astype(jnp.uint8))
        hidden = hidden + huge[0, first, first]
    return hidden


TABLE = np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32)


def limited_backend(limit: int, budget: int) -> JaxBackend:
    """Return a model that runs out of memory above `limit` tokens per step; its steps have `budget` tokens at first."""
    model = Model(hidden=partial(out_of_memory_above, limit), unembed=lambda params, hidden: hidden, params=TABLE)
    backend = JaxBackend(resolve(model), MAX_LENGTH)
    backend.budget = StepBudget(tokens=budget)
    return backend


def test_steps_are_halved_until_they_fit_into_device_memory() -> None:
    items = batch(7, EMPTY_PREFIX, count=30)
    backend = limited_backend(limit=50, budget=128)

    done = run(backend, items, StepLimits())

    logprobs = np.asarray(jax.nn.log_softmax(TABLE))
    direct = [float(logprobs[item.row[list(item.positions)], item.targets].sum()) for item in items]
    assert done.loglikelihoods.tolist() == pytest.approx(direct, abs=1e-5)
    assert backend.budget.tokens == 32
    assert len(done.notices) == 2
    assert "the device is out of memory for" in done.notices[0]
    assert done.notices[0].endswith("; retrying with steps of at most 64 tokens")
    assert sorted(number for numbers in done.finished for number in numbers) == list(range(len(items)))


def test_scores_before_out_of_memory_are_not_computed_again() -> None:
    # At first a step of 2 rows of 24, and then one of 4 rows of 16, which is out of memory.
    items = [ScoredSequence(tokens_of([first, *[length] * length]), 1) for length in (20, 10) for first in range(2, 6)]
    backend = limited_backend(limit=48, budget=64)

    done = run(backend, items, StepLimits())

    assert len(done.notices) == 1
    assert [step.shape for step in done.steps] == [(2, 24), (2, 24), (4, 16), (2, 16), (2, 16)]
    assert not np.isnan(done.loglikelihoods).any()


def test_out_of_memory_in_the_smallest_step_is_raised() -> None:
    backend = limited_backend(limit=0, budget=64)

    with pytest.raises(OutOfDeviceMemory, match="the device is out of memory for"):
        run(backend, batch(8, EMPTY_PREFIX))

    assert backend.budget.tokens == 16
