"""Changes of logits, in NumPy and JAX, compared with loops over the formulae of transformers and vLLM."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from birdie_zmq.engine.logits_processing import (
    LogitsProcessing,
    ProcessingArrays,
    ProcessingState,
    process_logits,
    processing_arrays,
    step_state,
    token_history,
)

VOCABULARY = 7
PROMPTS = [[1, 2, 2], [3], [0, 5, 5, 1]]
ANSWERS = [[2, 4, 4], [], [6]]

PROCESSINGS = {
    "bias": LogitsProcessing(bias=((1, 2.5), (4, -3.0), (1, 0.5))),
    "forbidden": LogitsProcessing(forbidden=(0, 3)),
    "forbidden_first": LogitsProcessing(forbidden_first=(2, 5)),
    "min_new_tokens": LogitsProcessing(end_tokens=(6, 2), min_new_tokens=2),
    "min_length": LogitsProcessing(end_tokens=(6,), min_length=5),
    "both_minima": LogitsProcessing(end_tokens=(6,), min_length=5, min_new_tokens=1),
    "repetition": LogitsProcessing(repetition_penalty=1.7),
    "reward": LogitsProcessing(repetition_penalty=0.6),
    "presence": LogitsProcessing(presence_penalty=1.2),
    "frequency": LogitsProcessing(frequency_penalty=-0.7),
    "all": LogitsProcessing(
        bias=((4, -3.0), (2, 1.0)),
        forbidden=(3, 1),
        forbidden_first=(5,),
        end_tokens=(6,),
        min_new_tokens=2,
        repetition_penalty=1.3,
        presence_penalty=0.4,
        frequency_penalty=0.9,
    ),
}


def naive(logits: npt.NDArray[np.float32], prompt: list[int], answer: list[int], how: LogitsProcessing) -> list[float]:
    """Process the logits of one position, token by token."""
    values = [float(value) for value in logits]
    for token, bias in how.bias:
        values[token] += bias
    for token in set(prompt + answer):
        factor = how.repetition_penalty
        values[token] = values[token] * factor if values[token] < 0 else values[token] / factor
    for token in set(answer):
        values[token] -= how.frequency_penalty * answer.count(token) + how.presence_penalty
    forbidden = set(how.forbidden)
    forbidden |= set(how.forbidden_first) if not answer else set()
    if len(answer) < how.min_new_tokens or len(prompt) + len(answer) < how.min_length:
        forbidden |= set(how.end_tokens)
    return [-np.inf if token in forbidden else value for token, value in enumerate(values)]


def expected(logits: npt.NDArray[np.float32], how: LogitsProcessing) -> npt.NDArray[np.float64]:
    return np.array([naive(*row, how) for row in zip(logits, PROMPTS, ANSWERS, strict=True)])


def state_of(how: LogitsProcessing) -> ProcessingState:
    rows = [
        token_history(np.array(prompt, np.int32), np.array(answer, np.int32), VOCABULARY)
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
    ]
    generated = np.array([len(answer) for answer in ANSWERS], np.int32)
    minimum = how.minimum([len(prompt) for prompt in PROMPTS])
    return ProcessingState(generated, minimum, np.stack(rows) if how.needs_history else None)


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
@pytest.mark.parametrize("name", PROCESSINGS)
def test_logits_equal_those_of_loops(name: str, xp: ModuleType) -> None:
    how = PROCESSINGS[name]
    logits = np.random.default_rng(0).normal(scale=2.0, size=(3, VOCABULARY)).astype(np.float32)
    arrays = ProcessingArrays(*map(xp.asarray, processing_arrays(how, VOCABULARY)))
    state = ProcessingState(*(None if part is None else xp.asarray(part) for part in state_of(how)))

    found: Any = process_logits(xp, xp.asarray(logits), arrays, state)

    assert found.dtype == np.float32
    np.testing.assert_allclose(np.asarray(found), expected(logits, how), rtol=1e-6, atol=1e-6)
    assert not np.array_equal(np.asarray(found), logits)


def test_a_masked_logit_stays_masked_and_nan_stays_nan() -> None:
    how = PROCESSINGS["all"]
    logits = np.zeros((3, VOCABULARY), np.float32)
    logits[:, 4], logits[:, 0] = -np.inf, np.nan

    found = process_logits(np, logits, processing_arrays(how, VOCABULARY), state_of(how))

    assert np.isneginf(found[:, 4]).all()
    assert np.isnan(found[:, 0]).all()


def test_only_penalties_need_a_history() -> None:
    needing = {name for name, how in PROCESSINGS.items() if how.needs_history}

    assert needing == {"repetition", "reward", "presence", "frequency", "all"}


def test_a_minimum_is_never_negative_and_fits_into_int32() -> None:
    how = LogitsProcessing(end_tokens=(0,), min_length=2**40, min_new_tokens=1)

    np.testing.assert_array_equal(how.minimum([1, 2**50]), [2**31 - 1, 1])
    np.testing.assert_array_equal(LogitsProcessing().minimum([3]), [0])


def test_the_state_of_positions_is_read_from_their_texts() -> None:
    how = PROCESSINGS["all"]
    order = np.array([2, 0, 1], np.int32)
    texts = [np.array(PROMPTS[number] + ANSWERS[number], np.int32) for number in order]
    generated = np.array(list(map(len, ANSWERS)), np.int32)[order]

    wanted = state_of(how)
    for begin, end in itertools.pairwise([0, 2, 3]):
        at = slice(begin, end)
        found = step_state(how, texts[at], generated[at], VOCABULARY)
        for part, whole in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(part, whole[order[at]])
