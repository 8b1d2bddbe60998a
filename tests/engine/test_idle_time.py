"""The time in which an evaluator has requests is computing or idle, by a clock that only model and tokenizer advance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from birdie_zmq.engine.backend import Backend
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.planning.steps import Tokens
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.types import GenerateWork, GenerationParams, LogLikelihoodWork, RollingWork, StepLimits, Work
from tests.engine.test_evaluator import Letters
from tests.model_files.numpy_engine import NumpyBackend

MAX_LENGTH = 48
VOCABULARY = 258
TOKENIZER_S, STEP_S = 2.0, 1.0
TEXTS = ["the cat sat", "a dog"]
GENERATION = GenerationParams(max_gen_toks=3)


class SlowLetters(Letters):
    """A tokenizer that takes two seconds for each text."""

    clock: list[float]

    def encode(self, text: str) -> list[int]:
        self.clock[0] += TOKENIZER_S
        return super().encode(text)


def uniform(tokens: Any) -> Any:
    return np.zeros((*tokens.shape, VOCABULARY), np.float32)


def jax_backend(clock: list[float]) -> Backend:
    import jax.numpy as jnp

    class Timed(JaxBackend):
        # Real seconds, which do not belong to this clock.
        compile_seconds = tracing_seconds = 0.0

        def submit(self, step: Any, top: int = 0) -> Any:
            clock[0] += STEP_S
            return super().submit(step, top)

        def next_tokens(self, step: Any, metadata: Any = None) -> Any:
            clock[0] += STEP_S
            return super().next_tokens(step, metadata)

    return Timed(resolve((lambda params, tokens: jnp.zeros((*tokens.shape, VOCABULARY)), 0.0)), MAX_LENGTH)


def numpy_backend(clock: list[float]) -> Backend:
    class Timed(NumpyBackend):
        def forward(self, tokens: Tokens) -> Any:
            clock[0] += STEP_S
            return super().forward(tokens)

    return Timed(resolve((lambda params, tokens: uniform(tokens), 0.0)), MAX_LENGTH)


@pytest.fixture(params=[jax_backend, numpy_backend], ids=["jax", "numpy"])
def timed(request: pytest.FixtureRequest) -> tuple[Evaluator, list[float]]:
    """Provide an evaluator of each engine, and its clock."""
    clock = [0.0]
    make_backend: Callable[[list[float]], Backend] = request.param
    backend = make_backend(clock)
    tokenizer = SlowLetters()
    tokenizer.clock = clock
    adapter = TokenizerAdapter(tokenizer)
    clock[0] = 0.0
    return Evaluator(adapter, backend, MAX_LENGTH, clock=lambda: clock[0]), clock


def answer(evaluator: Evaluator, work: Any, encoded: Any = None) -> None:
    for _ in evaluator.answer(work, StepLimits(), encoded):
        pass


@pytest.mark.parametrize(
    "work",
    [
        RollingWork(texts=TEXTS),
        LogLikelihoodWork(pairs=[("a cat", " sat"), ("a cat", " ran")]),
        GenerateWork(prompts=TEXTS, settings=GENERATION),
    ],
    ids=lambda work: type(work).__name__,
)
def test_the_device_is_idle_while_texts_are_encoded_also_before_the_first_step(
    timed: tuple[Evaluator, list[float]], work: Work
) -> None:
    evaluator, clock = timed
    answer(evaluator, work)
    clock[0] += 100.0  # without requests
    answer(evaluator, work)

    report = evaluator.report
    assert report.idle_seconds == report.tokenizer_seconds >= 2 * 2 * TOKENIZER_S
    assert report.step_seconds == report.steps * STEP_S > 0
    assert report.idle_seconds + report.step_seconds == clock[0] - 100.0


def test_a_request_that_is_known_makes_the_device_idle_until_it_is_encoded(
    timed: tuple[Evaluator, list[float]],
) -> None:
    evaluator, clock = timed
    first, second = RollingWork(texts=TEXTS), RollingWork(texts=["an owl"])
    with evaluator.clock.work():
        answer(evaluator, first)
        clock[0] += 3.0
        encoded = evaluator.encode(second)
        answer(evaluator, second, encoded)
    clock[0] += 100.0

    report = evaluator.report
    assert report.idle_seconds == report.tokenizer_seconds + 3.0
    assert report.idle_seconds + report.step_seconds == clock[0] - 100.0


def test_work_that_is_given_up_ends_computing(timed: tuple[Evaluator, list[float]]) -> None:
    evaluator, clock = timed
    for work in (RollingWork(texts=TEXTS), GenerateWork(prompts=TEXTS, settings=GENERATION)):
        events = evaluator.answer(work, StepLimits())
        before = evaluator.report
        next(events)
        next(events)
        events.close()
        clock[0] += 100.0
        with evaluator.clock.work():
            clock[0] += 5.0
        report = evaluator.report
        encoding = report.tokenizer_seconds - before.tokenizer_seconds
        assert report.idle_seconds - before.idle_seconds == encoding + 5.0
