"""The base class of row backends, with an engine in NumPy, compared to NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from birdie_zmq.engine.backend import SamplingMetadata, TokenChoice
from birdie_zmq.engine.model_api import Model, resolve
from birdie_zmq.engine.numpy import row_backend
from birdie_zmq.engine.planning.steps import Dense, Step, Tokens
from birdie_zmq.errors import ModelCallError, ModelLoadError, ModelOutputError, OutOfDeviceMemory
from birdie_zmq.types import SamplingParams
from tests.model_files.numpy_engine import NumpyBackend

VOCABULARY = 11
TABLE = np.random.default_rng(0).normal(scale=4.0, size=(VOCABULARY, VOCABULARY)).astype(np.float32)
TOKENS = np.random.default_rng(1).integers(VOCABULARY, size=(4, 16), dtype=np.int32)


def bigram(params: Any, tokens: Any) -> Any:
    return params[tokens]


FORMS: dict[str, object] = {
    "pair": (bigram, TABLE),
    "callable": lambda tokens: TABLE[tokens],
    "parts": Model(
        params=TABLE,
        hidden=lambda params, tokens: np.eye(VOCABULARY, dtype=np.float32)[tokens],
        unembed=lambda params, hidden: hidden @ params,
    ),
    "padded": Model(logits=bigram, params=np.pad(TABLE, ((0, 0), (0, 5)), constant_values=50.0), vocab_size=VOCABULARY),
}


def backend_of(returned: object, max_length: int = 64) -> NumpyBackend:
    return NumpyBackend(resolve(returned), max_length)


def step_of(count: int, tokens: Tokens = TOKENS) -> Step:
    """Return a step with random targets at this number of positions."""
    random = np.random.default_rng(count)
    rows, positions = (random.integers(size, size=count, dtype=np.int32) for size in tokens.shape)
    targets = random.integers(VOCABULARY, size=count, dtype=np.int32)
    return Step(tokens, tokens.size, Dense(), rows, positions, targets, np.zeros_like(targets))


def logits_of(step: Step, table: npt.NDArray[np.float32] = TABLE) -> npt.NDArray[np.float64]:
    return table[step.tokens[step.rows, step.positions]].astype(np.float64)


# Fewer positions than a chunk has, exactly as many, one more, and none.
@pytest.mark.parametrize("count", [1, 32, 33, 0])
@pytest.mark.parametrize("form", FORMS)
def test_scores_and_next_tokens_equal_those_of_numpy(form: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_backend, "_MAX_LOGITS_BYTES", 1)
    backend, step = backend_of(FORMS[form]), step_of(count)

    scores = backend.submit(step).result()

    at = logits_of(step)
    logprobs = at - np.log(np.exp(at).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(scores.logprobs, logprobs[np.arange(count), step.targets], atol=1e-5, rtol=0)
    np.testing.assert_array_equal(scores.greedy, at.argmax(axis=-1) == step.targets)
    assert scores.finite.all()
    assert backend.vocab_size == VOCABULARY
    assert backend.makes_logits == (form != "parts")
    assert backend.probe_shapes == {(1, 16)}
    if count:
        chosen = backend.next_tokens(step)
        np.testing.assert_array_equal(chosen.tokens, at.argmax(axis=-1))
        assert chosen.tokens.dtype == np.int32


def test_sampling_depends_on_each_rows_key_and_not_on_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend, step = backend_of(FORMS["pair"]), step_of(70)
    metadata = SamplingMetadata(
        TokenChoice(SamplingParams(temperature=3.0)), list(range(70)), np.arange(70, dtype=np.int32)
    )
    expected = backend.next_tokens(step, metadata)
    monkeypatch.setattr(row_backend, "_MAX_LOGITS_BYTES", 1)

    np.testing.assert_array_equal(backend.next_tokens(step, metadata).tokens, expected.tokens)
    assert expected.tokens.tolist() != backend.next_tokens(step).tokens.tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_only_a_position_with_nan_or_infinity_is_flagged(value: float) -> None:
    table = TABLE.copy()
    table[3, 7] = value
    where = np.arange(3, dtype=np.int32)
    step = Step(np.array([[2, 3, 4]], np.int32), 3, Dense(), where * 0, where, where * 0 + 5, where * 0)

    assert backend_of((bigram, table)).submit(step).result().finite.tolist() == [True, False, True]
    assert backend_of((bigram, table)).next_tokens(step).finite.tolist() == [True, False, True]


def test_an_excluded_target_scores_minus_infinity_and_is_not_flagged() -> None:
    table = TABLE.copy()
    table[3, 7] = -np.inf
    targets = np.array([5, 7], np.int32)
    step = Step(np.array([[3]], np.int32), 1, Dense(), targets * 0, targets * 0, targets, targets * 0)

    scores = backend_of((bigram, table)).submit(step).result()
    assert scores.finite.all()
    assert np.isfinite(scores.logprobs).tolist() == [True, False]
    assert scores.logprobs[1] == -np.inf
    assert not scores.greedy[1]
    assert backend_of((bigram, table)).next_tokens(step).finite.all()


def test_a_position_where_all_tokens_are_excluded_is_flagged() -> None:
    step = step_of(3)
    backend = backend_of((bigram, np.full_like(TABLE, -np.inf)))

    assert not backend.submit(step).result().finite.any()
    assert not backend.next_tokens(step).finite.any()


WRONG: dict[str, tuple[Any, str]] = {
    "two dimensions": (lambda tokens: np.zeros((1, VOCABULARY)), r"must return logits .* returned float64\[1, 11\]"),
    "another batch": (lambda tokens: np.zeros((3, 16, VOCABULARY)), r"int32\[1, 16\] .* float64\[3, 16, 11\]"),
    "integers": (lambda tokens: np.zeros((1, 16, VOCABULARY), int), "floating-point logits, but returned int64"),
    "a tuple": (lambda tokens: (TABLE[tokens], None), "a tuple of 2; .* return the logits alone"),
    "nothing": (lambda tokens: None, "but returned a NoneType"),
    "hidden states": (
        Model(hidden=lambda params, tokens: tokens, unembed=bigram),
        r"hidden states float\[1, 16, width\], but returned int32\[1, 16\]",
    ),
    "a smaller vocabulary": (
        Model(logits=bigram, params=TABLE, vocab_size=12),
        "declares vocab_size 12, but its logits have 11",
    ),
}


@pytest.mark.parametrize("returned", WRONG)
def test_an_output_of_the_wrong_shape_or_dtype_is_rejected(returned: str) -> None:
    model, message = WRONG[returned]
    with pytest.raises(ModelOutputError, match=message):
        backend_of(model)


def test_an_output_that_is_wrong_only_in_a_larger_step_is_rejected_there() -> None:
    backend = backend_of(lambda tokens: TABLE[tokens[:1]])
    with pytest.raises(ModelOutputError, match=r"int32\[4, 16\] .* but returned float32\[1, 16, 11\]"):
        backend.submit(step_of(3))


def test_a_model_without_a_function_for_rows_is_rejected() -> None:
    states = Model(init_state=bigram, extend=bigram, unembed=bigram)
    with pytest.raises(
        ModelLoadError, match=r"engine numpy computes whole rows, .* provide logits, or hidden and unembed"
    ):
        backend_of(states)


def failing(error: Exception) -> Any:
    def function(tokens: Any) -> Any:
        if len(tokens) > 1:
            raise error
        return TABLE[tokens]

    return function


def test_an_error_of_the_model_is_reported_with_the_shape() -> None:
    backend = backend_of(failing(KeyError("layer_13")))
    with pytest.raises(ModelCallError, match=r"failed on tokens int32\[4, 16\]: KeyError: 'layer_13'") as caught:
        backend.submit(step_of(3))
    assert isinstance(caught.value.__cause__, KeyError)


def test_out_of_memory_is_recognised_and_steps_are_halved_to_the_minimum() -> None:
    backend = backend_of(failing(MemoryError()))
    with pytest.raises(OutOfDeviceMemory, match=r"out of memory for tokens int32\[4, 16\]: MemoryError"):
        backend.next_tokens(step_of(3))
    budgets = [backend.budget.tokens]
    while backend.halve_budget():
        budgets.append(backend.budget.tokens)
    assert budgets == [1024 >> n for n in range(7)]
