"""Real models through plans, states and halved steps, against the same models asked for one request at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from birdie_zmq import Model
from birdie_zmq.engine.backend import ExecutionMode
from birdie_zmq.engine.counters import Counters
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.planning.shape_buckets import Buckets, StepBudget
from birdie_zmq.engine.planning.steps import ScoredSequence, Step, Tokens
from birdie_zmq.engine.scoring import IdleClock, NonFiniteScore, plan_for, possible_shapes, score
from birdie_zmq.errors import OutOfDeviceMemory
from birdie_zmq.models.decoder import model_of
from birdie_zmq.models.llama import Llama
from birdie_zmq.types import StepLimits
from tests.engine.recurrent import VOCABULARY, recurrent
from tests.engine.recurrent import logits as recurrent_logits
from tests.engine.replay import Knows, replay, tokens_of

MAX_LENGTH = 64
TOLERANCE_NATS = 2e-4
SMALL = StepBudget(tokens=16, call_tokens=4)
"""Small enough that texts of some dozens of tokens are read in pieces and behind states."""
PAIRS = StepLimits(rows=2)
"""With few shapes little has to be compiled."""


# --- Models ----------------------------------------------------------------------------------------------------------


def llama() -> Model:
    architecture = Llama(
        vocab_size=VOCABULARY, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=32, max_length=MAX_LENGTH
    )
    return model_of(architecture, architecture.init_params(jax.random.key(0)))


WAYS: dict[str, Callable[[], Model]] = {
    "branches": llama,
    "forks": lambda: dataclasses.replace(llama(), branch=None),
    "hidden": lambda: dataclasses.replace(llama(), branch=None, extend=None, init_state=None),
    "recurrent": recurrent,
}


@dataclass(frozen=True)
class Way:
    """A way in which a model can be given, and the model's logits with nothing of the engine between."""

    backend: JaxBackend
    logits: Callable[[npt.NDArray[np.int32]], jax.Array]

    @classmethod
    def of(cls, name: str) -> Way:
        model = WAYS[name]()
        logits = model.logits or recurrent_logits
        return cls(JaxBackend(resolve(model), MAX_LENGTH), jax.jit(partial(logits, model.params)))

    def logprobs(self, row: Sequence[int]) -> npt.NDArray[np.float32]:
        """Log-probabilities float32[n, v] of what follows each token; all rows are padded to one length."""
        padded = np.zeros((1, MAX_LENGTH), np.int32)
        padded[0, : len(row)] = row
        return np.asarray(jax.nn.log_softmax(self.logits(padded)))[0, : len(row)]

    def alone(self, items: Sequence[ScoredSequence]) -> list[float]:
        """Each request's score from its own row."""
        return [
            float(self.logprobs(item.row.tolist())[list(item.positions), item.targets].sum(dtype=np.float64))
            for item in items
        ]


@pytest.fixture(scope="module", params=WAYS)
def compiled(request: pytest.FixtureRequest) -> Way:
    """Each way; its programs are compiled once for all tests."""
    return Way.of(request.param)


@pytest.fixture
def way(compiled: Way) -> Way:
    """Each way, with a small budget, and nothing read yet."""
    compiled.backend.halve_budget()  # forgets all states
    compiled.backend.budget = SMALL
    return compiled


# --- Running ---------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What came of scoring once."""

    loglikelihoods: npt.NDArray[np.float64]
    greedy: npt.NDArray[np.bool_]
    steps: list[Step] = field(default_factory=list)
    finished: list[list[int]] = field(default_factory=list)
    errors: list[OutOfDeviceMemory] = field(default_factory=list)
    tally: Counters = field(default_factory=Counters)

    @property
    def computed(self) -> int:
        return sum(step.tokens.size for step in self.steps)


def run(backend: JaxBackend, items: Sequence[ScoredSequence], limits: StepLimits = PAIRS) -> Run:
    done = Run(np.full(len(items), np.nan), np.zeros(len(items), np.bool_))

    def buckets() -> Buckets:
        return Buckets(MAX_LENGTH, backend.vocab_size if backend.makes_logits else 0, backend.budget, limits)

    def counted(step: Step) -> AbstractContextManager[None]:
        assert step.shape in possible_shapes(backend.ability, buckets())
        done.steps.append(step)
        return nullcontext()

    for numbers, loglikelihoods, greedy in score(
        backend, items, buckets, counted, done.tally, IdleClock(), done.errors.append
    ):
        assert np.isnan(done.loglikelihoods[numbers]).all(), "a request is finished once"
        done.loglikelihoods[numbers], done.greedy[numbers] = loglikelihoods, greedy
        done.finished.append(numbers)
    assert done.tally.remaining == 0
    assert done.errors or done.tally.done == done.tally.planned, "all that was planned is done"
    return done


def batch(seed: int, prefix: Tokens, count: int = 5) -> list[ScoredSequence]:
    """Questions with three answers each, behind a common prefix."""
    random = np.random.default_rng(seed)
    items = []
    for _ in range(count):
        question = random.integers(1, VOCABULARY, size=8)
        for _ in range(3):
            answer = random.integers(1, VOCABULARY, size=random.integers(1, 6))
            items.append(ScoredSequence(tokens_of([*prefix, *question, *answer]), len(answer)))
    return items


PREFIX = np.random.default_rng(0).integers(1, VOCABULARY, size=40, dtype=np.int32)
NOTHING = tokens_of([])


def test_scores_are_those_of_each_request_alone_batch_after_batch(way: Way) -> None:
    whole = ScoredSequence(tokens_of(np.random.default_rng(9).integers(1, VOCABULARY, size=60)), 59)
    within_the_prefix = ScoredSequence(PREFIX, 20)
    likely = PREFIX[:10].tolist()
    for _ in range(4):
        likely.append(int(way.logprobs(likely)[-1].argmax()))
    unlikely = [*likely[:-1], (likely[-1] + 1) % VOCABULARY]

    more = [whole, within_the_prefix, ScoredSequence(tokens_of(likely), 4), ScoredSequence(tokens_of(unlikely), 4)]

    for seed, others in enumerate(([], more)):
        items = batch(seed, PREFIX) + others

        done = run(way.backend, items)

        assert done.loglikelihoods.tolist() == pytest.approx(way.alone(items), abs=TOLERANCE_NATS)
        assert sorted(number for numbers in done.finished for number in numbers) == list(range(len(items)))
        if way.backend.ability != "rows":
            assert PREFIX.tobytes() in way.backend.known(len(PREFIX))
    assert done.greedy[-2:].tolist() == [True, False]


def test_nothing_to_score_needs_no_step(way: Way) -> None:
    assert run(way.backend, []).steps == []


def test_with_a_beginning_that_is_there_the_next_batch_computes_less() -> None:
    backend = Way.of("recurrent").backend
    backend.budget = SMALL
    items = batch(6, PREFIX)

    first, second = run(backend, items), run(backend, items)

    used = [sum(step.used_tokens for step in done.steps) for done in (first, second)]
    assert used[0] - used[1] >= len(PREFIX)
    assert second.loglikelihoods.tolist() == pytest.approx(first.loglikelihoods.tolist(), abs=TOLERANCE_NATS)


@pytest.mark.parametrize("ability", ["branches", "forks"])
def test_a_state_that_takes_the_place_of_one_without_slots_has_them_itself(ability: ExecutionMode) -> None:
    """From the longer state the last piece ends at the 127th slot; from the shorter one it would at the 129th."""
    text = tokens_of(range(1, 124))
    states = {text[:1].tobytes(): 128, text[:7].tobytes(): 8}
    buckets = Buckets(128, vocab_size=0, budget=StepBudget(tokens=64, call_tokens=8))

    steps = plan_for(Knows(ability, states).as_backend, [ScoredSequence(text, 1)], buckets)

    assert replay([ScoredSequence(text, 1)], steps, ability, buckets, states).used >= 122 - 7


# --- What cannot be scored -------------------------------------------------------------------------------------------


def stumbling(params: Any, tokens: Any) -> Any:
    """NaN behind token 3."""
    return jnp.where((tokens == 3)[..., None], jnp.nan, jnp.zeros((*tokens.shape, VOCABULARY)))


def test_a_request_whose_logits_are_not_finite_is_named_by_its_number() -> None:
    backend = JaxBackend(resolve((stumbling, 0.0)), MAX_LENGTH)
    items = [ScoredSequence(tokens_of(text), 1) for text in ([1, 2], [1, 3, 4, 5], [1, 3, 5], [1, 2, 3])]

    with pytest.raises(NonFiniteScore) as caught:
        run(backend, items)

    assert caught.value.number == 2


TOO_LARGE = (1, 1 << 25, 1 << 25)
"""A shape of more bytes than addresses have room for."""


def hungry(most: int, params: Any, tokens: Any) -> Any:
    """A table's rows; more than so many tokens at once ask for more memory than any device has."""
    hidden = params[tokens]
    if tokens.size > most:
        first = tokens[0, 0]
        # What is sorted must be there as a whole.
        huge = jax.lax.sort(jax.lax.broadcasted_iota(jnp.uint8, TOO_LARGE, 2) + first.astype(jnp.uint8))
        hidden = hidden + huge[0, first, first]
    return hidden


TABLE = np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32)


def hungry_backend(most: int, budget: int) -> JaxBackend:
    """A model whose steps have so many tokens at first, and which has room for so many."""
    model = Model(hidden=partial(hungry, most), unembed=lambda params, hidden: hidden, params=TABLE)
    backend = JaxBackend(resolve(model), MAX_LENGTH)
    backend.budget = StepBudget(tokens=budget)
    return backend


def test_steps_for_which_the_device_has_no_room_are_halved_until_it_has() -> None:
    items = batch(7, NOTHING, count=30)
    backend = hungry_backend(most=50, budget=128)

    done = run(backend, items, StepLimits())

    logprobs = np.asarray(jax.nn.log_softmax(TABLE))
    direct = [float(logprobs[item.row[list(item.positions)], item.targets].sum()) for item in items]
    assert done.loglikelihoods.tolist() == pytest.approx(direct, abs=1e-5)
    assert backend.budget.tokens == 32
    assert len(done.errors) == 2
    assert "the device has no room for" in done.errors[0].message
    assert sorted(number for numbers in done.finished for number in numbers) == list(range(len(items)))


def test_what_is_scored_before_the_device_has_no_room_is_not_computed_again() -> None:
    # At first a step of 2 rows of 24 and then 4 of 16, for which there is no room.
    items = [ScoredSequence(tokens_of([first, *[length] * length]), 1) for length in (20, 10) for first in range(2, 6)]
    backend = hungry_backend(most=48, budget=64)

    done = run(backend, items, StepLimits())

    assert len(done.errors) == 1
    assert [step.shape for step in done.steps] == [(2, 24), (2, 24), (4, 16), (2, 16), (2, 16)]
    assert not np.isnan(done.loglikelihoods).any()


def test_where_even_the_smallest_step_has_no_room_the_error_says_so() -> None:
    backend = hungry_backend(most=0, budget=64)

    with pytest.raises(OutOfDeviceMemory, match="the device has no room for"):
        run(backend, batch(8, NOTHING))

    assert backend.budget.tokens == 16


# --- Idleness --------------------------------------------------------------------------------------------------------


@dataclass
class Watch:
    """A clock that is set by hand."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_idle_seconds_are_those_between_the_end_of_a_step_and_the_next() -> None:
    watch = Watch()
    clock = IdleClock(watch)
    for happens, passed in [
        (clock.busy, 5.0),  # before the first step nothing was awaited
        (clock.busy, 3.0),
        (clock.idle, 1.0),
        (clock.busy, 0.25),
        (clock.idle, 4.0),
        (clock.busy, 0.5),
        (clock.busy, 8.0),
    ]:
        watch.now += passed
        happens()

    assert clock.seconds == 0.25 + 0.5


def test_rest_is_not_idleness() -> None:
    watch = Watch()
    clock = IdleClock(watch)
    clock.busy()
    clock.idle()
    clock.rest()
    watch.now += 60
    clock.busy()

    assert clock.seconds == 0.0
