"""A model's own `score`: the layout of its rows, and the use of its results."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from birdie_zmq import Model
from birdie_zmq.engine.events import ItemFailed
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.errors import (
    ModelCallError,
    ModelLoadError,
    ModelOutputError,
    NonFiniteLogits,
    OutOfDeviceMemory,
    UnsupportedRequest,
)
from birdie_zmq.types import StepLimits
from tests.engine.test_evaluator import (
    BOS,
    MAX_LENGTH,
    TOLERANCE_NATS,
    VOCABULARY,
    Letters,
    evaluator_for,
    evaluator_of,
    generate,
    loglikelihood,
    rolling,
)
from tests.model_files.numpy_engine import NumpyBackend

TABLE = np.asarray(jax.random.normal(jax.random.key(0), (VOCABULARY, VOCABULARY)), np.float32)
PAIRS = [("ab", "cd"), ("ab", "c"), ("ab", "cd"), ("a", "bcd"), ("", "abc"), ("xyz" * 30, "w"), ("q", "")]


def logits(params: Any, tokens: jax.Array) -> Any:
    return params[tokens]


def score(params: Any, input_ids: jax.Array, label_ids: jax.Array, loss_mask: jax.Array) -> Any:
    """Score as by `logits`, plus one nat for each token of the context, which no causal model would do."""
    scores = jax.nn.log_softmax(params[input_ids])
    of_labels = jnp.take_along_axis(scores, label_ids[..., None], -1)[..., 0]
    is_context = jnp.arange(input_ids.shape[1]) <= loss_mask.argmax(1)[:, None]
    greedy = ((scores.argmax(-1) == label_ids) | (loss_mask == 0)).all(1)
    return (of_labels * loss_mask).sum(1) + is_context.sum(1), greedy


def expected_score(context: str, continuation: str, has_own_score: bool) -> tuple[float, bool]:
    """Return the score computed in float64, one token at a time."""
    ids = [BOS] if not context else list(context.encode())
    whole = (ids + list(continuation.encode()))[-MAX_LENGTH - 1 :]
    count = len(continuation)
    if not count:
        return 0.0, True
    rows = TABLE[whole[-count - 1 : -1]].astype(np.float64)
    chosen = rows[np.arange(count), whole[-count:]] - np.log(np.exp(rows).sum(-1))
    return float(chosen.sum()) + has_own_score * (len(whole) - count), bool((rows.argmax(-1) == whole[-count:]).all())


@pytest.mark.parametrize("limits", [StepLimits(), StepLimits(rows=1), StepLimits(rows=3)])
def test_each_pair_gets_the_score_of_the_model(limits: StepLimits) -> None:
    likely = chr(int(TABLE[ord("a"), :128].argmax()))
    table = TABLE.copy()
    table[ord("a"), ord(likely)] += 50  # one pair is greedy
    recording = loglikelihood(evaluator_for(Model(params=TABLE, score=score, vocab_size=VOCABULARY)), PAIRS, limits)
    expected = [expected_score(*pair, has_own_score=True) for pair in PAIRS]
    np.testing.assert_allclose(
        [value for value, _ in recording.in_order], [value for value, _ in expected], atol=TOLERANCE_NATS
    )
    assert [greedy for _, greedy in recording.in_order] == [greedy for _, greedy in expected]
    (greedy,) = loglikelihood(evaluator_for(Model(params=table, score=score)), [("xa", likely)]).in_order
    assert greedy[1]


def test_score_handles_pairs_and_logits_handle_other_requests() -> None:
    both = evaluator_for(Model(params=TABLE, score=score, logits=logits))
    text = "a text"
    assert loglikelihood(both, [("ab", "cd")]).in_order[0][0] == pytest.approx(
        expected_score("ab", "cd", True)[0], abs=1e-4
    )
    assert rolling(both, [text]).in_order == pytest.approx([expected_score("", text, False)[0]], abs=1e-4)
    follows = [int(TABLE[ord("a")].argmax())]
    assert generate(both, ["a"], max_gen_toks=1).in_order == [Letters().decode(follows)]


def test_model_with_score_alone_rejects_other_requests_and_names_the_missing_functions() -> None:
    alone = evaluator_for(Model(params=TABLE, score=score))
    with pytest.raises(UnsupportedRequest, match=r"whole texts.*needs logits, or hidden and unembed"):
        rolling(alone, ["a text"])
    with pytest.raises(UnsupportedRequest, match=r"continu.*needs logits, or hidden and unembed"):
        generate(alone, ["a"])


def test_equal_pairs_are_computed_and_counted_once() -> None:
    evaluator = evaluator_for(Model(params=TABLE, score=score, vocab_size=VOCABULARY))
    loglikelihood(evaluator, [("ab", "cd"), ("ab", "cd"), ("abc", "d"), ("ab", "cde")])
    report = evaluator.report
    assert (report.tokens_requested, report.tokens_distinct) == (3 + 3 + 3 + 4, 3 + 3 + 4)


def model_returning(returned: Any) -> Model:
    return Model(params=TABLE, score=lambda params, input_ids, label_ids, loss_mask: returned(input_ids.shape[0]))


@pytest.mark.parametrize(
    "returned",
    [
        lambda b: jnp.zeros(b),
        lambda b: (jnp.zeros(b), jnp.zeros(b)),
        lambda b: (jnp.zeros(b), jnp.zeros((b, 2), bool)),
        lambda b: (jnp.zeros((b, 1)), jnp.zeros(b, bool)),
        lambda b: (jnp.zeros(b, int), jnp.zeros(b, bool)),
        lambda b: (jnp.zeros(b), jnp.zeros(b, bool), jnp.zeros(b)),
        lambda b: None,
    ],
)
def test_malformed_score_output_is_rejected_at_load(returned: Any) -> None:
    with pytest.raises(
        ModelOutputError, match=r"score must return \(loglikelihood float\[1\], is_greedy bool\[1\]\), but"
    ):
        evaluator_for(model_returning(returned))


def test_score_that_raises_is_a_model_call_error() -> None:
    def fails(b: int) -> Any:
        raise ValueError("no such layer")

    with pytest.raises(ModelCallError, match="ValueError"):
        evaluator_for(model_returning(fails))


def test_nan_score_fails_its_pair() -> None:
    def nan_for_b(params: Any, input_ids: jax.Array, label_ids: jax.Array, loss_mask: jax.Array) -> Any:
        scores, greedy = score(params, input_ids, label_ids, loss_mask)
        return jnp.where(input_ids[:, 0] == ord("b"), jnp.nan, scores), greedy

    with pytest.raises(ItemFailed) as failure:
        loglikelihood(evaluator_for(Model(params=TABLE, score=nan_for_b)), [("ax", "c"), ("b", "c")])
    assert failure.value.index == 1
    assert isinstance(failure.value.error, NonFiniteLogits)


def test_step_that_exceeds_device_memory_is_halved() -> None:
    class Small(JaxBackend):
        """A device with memory for two rows."""

        def submit(self, step: Any, top: int = 0) -> Any:
            if step.shape[0] > 2:
                raise OutOfDeviceMemory("out of memory")
            return super().submit(step, top)

    backend = Small(resolve(Model(params=TABLE, score=score, vocab_size=VOCABULARY)), MAX_LENGTH)
    recording = loglikelihood(evaluator_of(backend), PAIRS)
    assert len(recording.in_order) == len(PAIRS)
    assert recording.in_order[0][0] == pytest.approx(
        expected_score(*PAIRS[0], has_own_score=True)[0], abs=TOLERANCE_NATS
    )
    assert any("retrying with steps of at most" in notice for notice in recording.notices)


def test_model_without_any_way_to_compute_is_rejected() -> None:
    with pytest.raises(ModelLoadError, match="init_state, extend and unembed; or score"):
        resolve(Model(params=TABLE))


# --- Row backends -----------------------------------------------------------------------------------------------------


def numpy_score(params: Any, input_ids: Any, label_ids: Any, loss_mask: Any) -> Any:
    columns = score(params, *map(jnp.asarray, (input_ids, label_ids, loss_mask)))
    return tuple(map(np.asarray, columns))


def test_row_backend_supports_score() -> None:
    backend = NumpyBackend(resolve(Model(params=TABLE, score=numpy_score, vocab_size=VOCABULARY)), MAX_LENGTH)
    recording = loglikelihood(evaluator_of(backend), PAIRS)
    expected = [expected_score(*pair, has_own_score=True) for pair in PAIRS]
    np.testing.assert_allclose(
        [value for value, _ in recording.in_order], [value for value, _ in expected], atol=TOLERANCE_NATS
    )
    with pytest.raises(UnsupportedRequest, match="needs logits"):
        rolling(evaluator_of(backend), ["a text"])


@pytest.mark.parametrize("columns", [2, 3])
def test_row_backend_rejects_malformed_score_output(columns: int) -> None:
    wrong = Model(
        params=TABLE, score=lambda params, ids, labels, mask: tuple(np.zeros(len(ids)) for _ in range(columns))
    )
    with pytest.raises(ModelOutputError, match=r"score must return .*, but returned float64\[1\], float64\[1\]"):
        NumpyBackend(resolve(wrong), MAX_LENGTH)
