"""The JAX backend, compared with NumPy in float64, and its errors for invalid models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from birdie_zmq.engine.backend import NextTokens, TokenScores
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import LoadedModel, Model, resolve
from birdie_zmq.engine.planning.steps import Dense, Step, Tokens
from birdie_zmq.errors import ModelCallError, ModelLoadError, ModelOutputError

VOCABULARY = 11
MAX_LENGTH = 64
TABLE = np.random.default_rng(0).normal(scale=4.0, size=(VOCABULARY, VOCABULARY)).astype(np.float32)
"""The weights of a model whose next token depends on the last one only."""


def bigram(params: Any, tokens: Any) -> Any:
    return params[tokens]


def backend_of(returned: object, max_length: int = MAX_LENGTH) -> JaxBackend:
    return JaxBackend(resolve(returned), max_length)


def tokens_of(rows: int, length: int) -> Tokens:
    return np.random.default_rng(rows + length).integers(VOCABULARY, size=(rows, length), dtype=np.int32)


@dataclass(frozen=True)
class Positions:
    """Positions in the rows of a step, int32[q] each."""

    rows: Tokens
    positions: Tokens


def step_of(tokens: Tokens, scored: Positions, targets: Tokens) -> Step:
    """Return a step of whole rows, all for request 0."""
    return Step(tokens, tokens.size, Dense(), scored.rows, scored.positions, targets, np.zeros_like(targets))


def score(backend: JaxBackend, tokens: Tokens, scored: Positions, targets: Tokens) -> TokenScores:
    return backend.submit(step_of(tokens, scored, targets)).result()


def next_tokens(backend: JaxBackend, tokens: Tokens, scored: Positions) -> NextTokens:
    return backend.next_tokens(step_of(tokens, scored, np.zeros_like(scored.rows)))


def positions_of(*scored: tuple[int, int]) -> Positions:
    rows, positions = zip(*scored, strict=True)
    return Positions(np.array(rows, dtype=np.int32), np.array(positions, dtype=np.int32))


def random_positions(count: int, tokens: Tokens) -> tuple[Positions, Tokens]:
    """Return random positions of a step, and random targets."""
    random = np.random.default_rng(count)
    rows, positions = (random.integers(size, size=count, dtype=np.int32) for size in tokens.shape)
    return Positions(rows, positions), random.integers(VOCABULARY, size=count, dtype=np.int32)


def log_softmax(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    wide = np.asarray(logits, dtype=np.float64)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)))


def int32(values: npt.ArrayLike) -> Tokens:
    return np.array(values, dtype=np.int32)


# --- Scores -----------------------------------------------------------------------------------------------------------


# Fewer positions than the smallest chunk, exactly as many, one more, and more than fit in one call.
@pytest.mark.parametrize("count", [1, 32, 33, 5000])
def test_scores_equal_numpy_for_any_number_of_positions(count: int) -> None:
    tokens = tokens_of(4, 16)
    scored, targets = random_positions(count, tokens)

    scores = score(backend_of((bigram, TABLE)), tokens, scored, targets)

    logits = TABLE[tokens[scored.rows, scored.positions]]
    np.testing.assert_allclose(scores.logprobs, log_softmax(logits)[np.arange(count), targets], atol=1e-5, rtol=0)
    np.testing.assert_array_equal(scores.greedy, logits.argmax(axis=-1) == targets)
    assert scores.finite.all()


def test_unembed_part_is_used_where_the_logits_are_large() -> None:
    table = np.random.default_rng(0).normal(size=(5000, 8)).astype(np.float32)
    sizes: list[int] = []

    def unembed_part(params: Any, hidden: Any, begin: Any, size: int) -> Any:
        sizes.append(size)
        return hidden @ jax.lax.dynamic_slice_in_dim(params, begin, size).T

    model = Model(
        params=table,
        hidden=lambda params, tokens: params[tokens],
        unembed=lambda params, hidden: hidden @ params.T,
        unembed_part=unembed_part,
    )
    backend = backend_of(model)
    tokens = tokens_of(4, 16)
    scored, targets = random_positions(1100, tokens)

    scores = score(backend, tokens, scored, targets)

    logits = (table @ table.T)[tokens[scored.rows, scored.positions]]
    assert sizes  # the 76 positions that do not fill a large chunk are scored from whole logits
    assert max(sizes) < 5000
    np.testing.assert_allclose(scores.logprobs, log_softmax(logits)[np.arange(1100), targets], atol=1e-4, rtol=0)
    np.testing.assert_array_equal(scores.greedy, logits.argmax(axis=-1) == targets)


def test_only_the_most_likely_token_is_greedy() -> None:
    scored = positions_of(*[(0, 0)] * VOCABULARY)

    scores = score(backend_of((bigram, TABLE)), int32([[3]]), scored, np.arange(VOCABULARY, dtype=np.int32))

    assert np.flatnonzero(scores.greedy).tolist() == [TABLE[3].argmax()]
    assert np.exp(scores.logprobs.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("count", [1, 32, 33, 5000])
def test_next_tokens_are_the_most_likely_for_any_number_of_positions(count: int) -> None:
    tokens = tokens_of(4, 16)
    scored, _ = random_positions(count, tokens)

    chosen = next_tokens(backend_of((bigram, TABLE)), tokens, scored)

    expected = TABLE[tokens[scored.rows, scored.positions]].argmax(axis=-1)
    np.testing.assert_array_equal(chosen.tokens, expected)
    assert chosen.finite.all()


def test_large_logits_do_not_overflow() -> None:
    tokens, scored = int32([[3]]), positions_of((0, 0))

    scores = score(backend_of((bigram, TABLE + np.float32(1000))), tokens, scored, int32([5]))

    assert scores.logprobs[0] == pytest.approx(log_softmax(TABLE[3])[5], abs=1e-3)


def test_logits_in_bfloat16_are_normalised_in_float32() -> None:
    rounded = jnp.asarray(TABLE, jnp.bfloat16)
    tokens = tokens_of(2, 16)
    scored, targets = random_positions(32, tokens)

    scores = score(backend_of((bigram, rounded)), tokens, scored, targets)

    expected = log_softmax(np.asarray(rounded, np.float32)[tokens[scored.rows, scored.positions]])
    assert scores.logprobs.dtype == np.float32
    np.testing.assert_allclose(scores.logprobs, expected[np.arange(32), targets], atol=1e-5, rtol=0)


# --- Return values of load_model --------------------------------------------------------------------------------------


def test_callable_pair_and_model_give_equal_scores() -> None:
    tokens = tokens_of(2, 16)
    scored, targets = random_positions(20, tokens)
    weights = jnp.asarray(TABLE)
    forms: list[object] = [
        lambda tokens: weights[tokens],
        (bigram, TABLE),
        Model(logits=bigram, params=TABLE, max_length=MAX_LENGTH, vocab_size=VOCABULARY),
    ]

    first, *others = [score(backend_of(form), tokens, scored, targets).logprobs for form in forms]

    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-6, rtol=0)


def test_padded_vocabulary_columns_are_ignored() -> None:
    """Heads are padded to a round number of columns, whose logits are arbitrary."""
    head = np.concatenate([TABLE, np.full((VOCABULARY, 5), 50.0, np.float32)], axis=1)
    backend = backend_of(Model(logits=bigram, params=head, vocab_size=VOCABULARY))
    tokens, scored, targets = int32([[3, 4]]), positions_of((0, 0), (0, 1)), int32([5, TABLE[4].argmax()])

    scores = score(backend, tokens, scored, targets)

    assert backend.vocab_size == VOCABULARY
    assert scores.logprobs[0] == pytest.approx(log_softmax(TABLE[3])[5], abs=1e-5)
    assert scores.greedy[1]
    assert next_tokens(backend, tokens, scored).tokens.tolist() == TABLE[[3, 4]].argmax(axis=-1).tolist()


def test_vocab_size_defaults_to_the_size_of_the_logits() -> None:
    assert backend_of((bigram, TABLE)).vocab_size == VOCABULARY


def test_vocab_size_above_the_size_of_the_logits_is_rejected() -> None:
    with pytest.raises(ModelOutputError, match="declares vocab_size 12, but its logits have 11"):
        backend_of(Model(logits=bigram, params=TABLE, vocab_size=12))


def test_parameters_are_counted_and_dtype_is_that_of_most_bytes() -> None:
    params = {"embedding": jnp.asarray(TABLE, jnp.bfloat16), "norm": np.ones(7, np.float32), "steps": jnp.array([3])}

    backend = backend_of((lambda params, tokens: params["embedding"][tokens], params))

    assert backend.num_parameters == VOCABULARY**2 + 7
    assert backend.dtype == "bfloat16"


def test_leaves_that_are_not_weights_are_passed_on_and_not_counted() -> None:
    def logits(params: Any, tokens: Any) -> Any:
        random = jax.random.normal(params["key"], (VOCABULARY,))
        return (params["table"][tokens] + random) * params["count"] + params["number"]

    params = {"table": TABLE, "key": jax.random.key(3), "count": jnp.array(2, jnp.int32), "number": 0.5}
    backend = backend_of((logits, params))
    tokens = tokens_of(2, 16)
    scored = positions_of((0, 3), (1, 9))

    scores = score(backend, tokens, scored, int32([1, 2]))

    expected = log_softmax(np.asarray(logits(params, tokens)))[[0, 1], [3, 9], [1, 2]]
    np.testing.assert_allclose(scores.logprobs, expected, atol=1e-5, rtol=0)
    assert (backend.num_parameters, backend.dtype) == (TABLE.size, "float32")


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (jax.eval_shape(lambda: jnp.zeros(2)), r"a ShapeDtypeStruct at \['layers'\]\[1\], .* no values; restore"),
        (jax.nn.gelu, r"at \['layers'\]\[1\], which is not an array; .* eqx\.partition"),
        ("gelu", r"a str at \['layers'\]\[1\], which is not an array"),
    ],
)
def test_invalid_params_leaf_is_rejected_with_its_path(leaf: object, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        backend_of((bigram, {"layers": [TABLE, leaf]}))


def test_weights_of_a_bare_callable_are_unknown() -> None:
    weights = jnp.asarray(TABLE)
    backend = backend_of(lambda tokens: weights[tokens])

    assert backend.num_parameters is None
    assert backend.dtype is None


# --- Calls ------------------------------------------------------------------------------------------------------------


def test_jitted_function_is_traced_once_per_shape() -> None:
    traced: list[tuple[int, ...]] = []

    def counted(params: Any, tokens: Any) -> Any:
        traced.append(tokens.shape)
        return bigram(params, tokens)

    backend = backend_of((counted, TABLE))
    shapes = [(1, 16), (2, 16), (2, 24), (2, 16), (1, 16), (2, 24)]
    for rows, length in shapes:
        tokens = tokens_of(rows, length)
        score(backend, tokens, *random_positions(rows, tokens))
        next_tokens(backend, tokens, positions_of((0, 0)))

    # The first trace is the probe at load, which is never compiled.
    assert traced == [(1, 16), (1, 16), (2, 16), (2, 24)]
    assert backend.probe_shapes == frozenset()


def test_bare_callable_is_called_untraced_once_per_step() -> None:
    weights = jnp.asarray(TABLE)
    called: list[tuple[int, ...]] = []

    def counted(tokens: Any) -> Any:
        assert not isinstance(tokens, jax.core.Tracer)
        assert tokens.dtype == jnp.int32
        called.append(tokens.shape)
        return weights[tokens]

    backend = backend_of(counted)
    tokens = tokens_of(2, 24)
    for _ in range(2):
        score(backend, tokens, *random_positions(50, tokens))

    assert called == [(1, 16), (2, 24), (2, 24)]
    assert backend.probe_shapes == {(1, 16)}


def test_probe_row_is_at_most_max_length() -> None:
    weights = jnp.asarray(TABLE)

    assert backend_of(lambda tokens: weights[tokens], max_length=5).probe_shapes == {(1, 5)}


# --- Non-finite logits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_position_with_nan_or_infinity_is_flagged_alone(value: float) -> None:
    table = TABLE.copy()
    table[3, 7] = value
    backend = backend_of((bigram, table))
    tokens, scored = int32([[2, 3, 4]]), positions_of((0, 0), (0, 1), (0, 2))

    assert score(backend, tokens, scored, int32([5, 5, 5])).finite.tolist() == [True, False, True]
    assert next_tokens(backend, tokens, scored).finite.tolist() == [True, False, True]


def test_excluded_token_does_not_affect_other_tokens() -> None:
    table = TABLE.copy()
    table[3, 7] = -np.inf
    backend = backend_of((bigram, table))
    tokens, position = int32([[3]]), positions_of((0, 0))

    scores = score(backend, tokens, position, int32([5]))

    assert scores.finite.all()
    assert scores.logprobs[0] == pytest.approx(log_softmax(table[3])[5], abs=1e-5)
    assert next_tokens(backend, tokens, position).finite.all()
    excluded = score(backend, tokens, position, int32([7]))
    assert (excluded.logprobs.tolist(), excluded.greedy.tolist(), excluded.finite.tolist()) == (
        [-np.inf],
        [False],
        [True],
    )


def test_row_that_excludes_all_tokens_is_flagged() -> None:
    backend = backend_of((bigram, np.full_like(TABLE, -np.inf)))

    assert not next_tokens(backend, int32([[3]]), positions_of((0, 0))).finite.any()
    assert not score(backend, int32([[3]]), positions_of((0, 0)), int32([5])).finite.any()


# --- Invalid models ---------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "two dimensions": (lambda tokens: jnp.zeros((1, VOCABULARY)), r"but returned float32\[1, 11\]"),
    "another batch": (lambda tokens: jnp.zeros((3, 16, VOCABULARY)), r"but returned float32\[3, 16, 11\]"),
    "another length": (lambda tokens: jnp.zeros((1, 15, VOCABULARY)), r"but returned float32\[1, 15, 11\]"),
    "no vocabulary": (lambda tokens: jnp.zeros((1, 16, 0)), r"but returned float32\[1, 16, 0\]"),
    "NumPy of a wrong shape": (lambda tokens: np.zeros((16, VOCABULARY)), r"but returned float64\[16, 11\]"),
}


@pytest.mark.parametrize("returned", WRONG)
@pytest.mark.parametrize("is_pair", [False, True])
def test_logits_of_a_wrong_shape_are_rejected_with_both_shapes(returned: str, is_pair: bool) -> None:
    function, found = WRONG[returned]
    model = (lambda params, tokens: function(tokens), TABLE) if is_pair else function
    if is_pair and returned.startswith("NumPy"):
        found = r"but returned float32\[16, 11\]"  # jit turns them into JAX arrays

    with pytest.raises(ModelOutputError, match=found) as caught:
        backend_of(model)

    assert "for tokens int32[1, 16] the model must return logits float[1, 16, vocabulary]" in caught.value.message


@pytest.mark.parametrize("is_pair", [False, True])
def test_integer_logits_are_rejected(is_pair: bool) -> None:
    def function(*arguments: Any) -> Any:
        return jnp.zeros((*arguments[-1].shape, VOCABULARY), jnp.int32)

    with pytest.raises(ModelOutputError, match=r"floating-point logits, but returned int32\[1, 16, 11\]"):
        backend_of((function, TABLE) if is_pair else function)


@pytest.mark.parametrize("is_pair", [False, True])
def test_tuple_with_logits_is_rejected_with_advice(is_pair: bool) -> None:
    def function(*arguments: Any) -> Any:
        return jnp.zeros((*arguments[-1].shape, VOCABULARY)), {"cache": jnp.zeros(1)}

    with pytest.raises(ModelOutputError, match=r"returned a tuple of 2; .* return the logits alone"):
        backend_of((function, TABLE) if is_pair else function)


def test_none_is_rejected_as_logits() -> None:
    with pytest.raises(ModelOutputError, match="must return an array of logits, but returned a NoneType"):
        backend_of(lambda tokens: None)


def test_wrong_shape_of_a_larger_step_is_rejected_at_that_step() -> None:
    backend = backend_of(lambda tokens: jnp.zeros((1, tokens.shape[1], VOCABULARY)))

    both_shapes = r"int32\[2, 16\] .* float\[2, 16, vocabulary\], but returned float32\[1, 16, 11\]"
    with pytest.raises(ModelOutputError, match=both_shapes):
        score(backend, tokens_of(2, 16), positions_of((0, 0)), int32([0]))


@pytest.mark.parametrize("is_pair", [False, True])
def test_error_of_a_function_names_its_shape_and_cause(is_pair: bool) -> None:
    def function(*arguments: Any) -> Any:
        raise KeyError("layer_13")

    with pytest.raises(ModelCallError, match=r"failed on tokens int32\[1, 16\]: KeyError: 'layer_13'") as caught:
        backend_of((function, TABLE) if is_pair else function)

    assert isinstance(caught.value.__cause__, KeyError)


def test_error_in_a_step_names_the_shape_of_that_step() -> None:
    def function(params: Any, tokens: Any) -> Any:
        if tokens.shape[0] > 1:
            raise ValueError("one row at a time")
        return bigram(params, tokens)

    backend = JaxBackend(LoadedModel(Model(logits=function, params=TABLE), jit=True), MAX_LENGTH)

    with pytest.raises(ModelCallError, match=r"int32\[2, 24\]: ValueError: one row at a time") as caught:
        next_tokens(backend, tokens_of(2, 24), positions_of((0, 0)))

    assert isinstance(caught.value.__cause__, ValueError)
