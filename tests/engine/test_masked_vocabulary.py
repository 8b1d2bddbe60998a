"""A vocabulary masked with minus infinity: scores as lm_eval's ``hf`` computes them, in every execution mode."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from birdie_zmq import Model
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.events import ItemFailed
from birdie_zmq.engine.jax import position_head
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.errors import NonFiniteLogits
from birdie_zmq.models import decoder
from birdie_zmq.models.families.llama import plain_llama
from birdie_zmq.types import GenerateWork, GenerationParams, SamplingParams, StepLimits
from tests.engine.test_evaluator import (
    BOS,
    MAX_LENGTH,
    VOCABULARY,
    Letters,
    Recording,
    evaluator_for,
    evaluator_of,
    generate,
    loglikelihood,
    rolling,
)
from tests.model_files.numpy_engine import NumpyBackend

CONTEXT = "Which bird builds no nest?"
PAIRS = [
    (CONTEXT, " the cuckoo"),
    (CONTEXT, " THE WREN"),
    (CONTEXT, " a"),
    (CONTEXT, " A"),
    ("x" * 40, "y"),
    ("", "abc"),
]
TEXTS = ["only small letters", "One capital", "x" * 100]

MASKED = np.array([chr(id).isupper() or chr(id) == "~" or id >= 256 for id in range(VOCABULARY)])
"""The masked tokens: capital letters, BOS and EOS, and the special token "~"."""

LLAMA = plain_llama(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64, max_length=128)


def full_model() -> Model:
    """Return a decoder with all functions; the logits of masked tokens are minus infinity."""
    built = decoder.build_model(LLAMA, LLAMA.init_params(jax.random.key(3)))
    unembed, unembed_part = built.unembed, built.unembed_part
    assert unembed is not None
    assert unembed_part is not None
    mask = jnp.asarray(MASKED)

    def masked_unembed(params: Any, hidden: Any) -> Any:
        return jnp.where(mask, -jnp.inf, unembed(params, hidden))

    def masked_part(params: Any, hidden: Any, begin: Any, size: int) -> Any:
        part = jax.lax.dynamic_slice_in_dim(mask, begin, size)
        return jnp.where(part, -jnp.inf, unembed_part(params, hidden, begin, size))

    return replace(built, unembed=masked_unembed, unembed_part=masked_part)


def rows_logits(params: Any, tokens: Any) -> Any:
    return jnp.where(jnp.asarray(MASKED), -jnp.inf, decoder.logits(LLAMA, params, tokens))


def own_score(params: Any, input_ids: Any, label_ids: Any, loss_mask: Any) -> Any:
    logprobs = jax.nn.log_softmax(rows_logits(params, input_ids))
    chosen = jnp.take_along_axis(logprobs, label_ids[..., None], -1)[..., 0]
    greedy = ((logprobs.argmax(-1) == label_ids) | (loss_mask == 0)).all(1)
    return jnp.where(loss_mask == 1, chosen, 0.0).sum(1), greedy


def numpy_logits(params: Any, tokens: Any) -> Any:
    return np.asarray(jax.jit(rows_logits)(params, jnp.asarray(tokens)))


FULL = full_model()
NAMES = FULL.functions()


def with_functions(**functions: Any) -> Model:
    """Return a model with the same params and only these functions."""
    return replace(FULL, **(dict.fromkeys(NAMES) | functions))


MODELS: dict[str, Callable[[], Evaluator]] = {
    "branches": lambda: evaluator_for(FULL),
    "forks": lambda: evaluator_for(replace(FULL, branch=None, prefill=None, append=None, extend_after=None)),
    "hidden": lambda: evaluator_for(
        with_functions(hidden=FULL.hidden, unembed=FULL.unembed, unembed_part=FULL.unembed_part)
    ),
    "logits": lambda: evaluator_for(with_functions(logits=rows_logits)),
    "score": lambda: evaluator_for(replace(FULL, score=own_score)),
    "NumPy": lambda: evaluator_of(NumpyBackend(resolve((numpy_logits, FULL.params)), MAX_LENGTH)),
}


@functools.cache
def evaluator_of_kind(kind: str) -> Evaluator:
    """Return the evaluator of a model, compiled once for all tests."""
    return MODELS[kind]()


REFERENCE = jax.jit(rows_logits)


def logits_after(tokens: list[int]) -> Any:
    """Return the masked logits float64[n, v] after each of n tokens."""
    padded = jnp.array([tokens + [0] * (MAX_LENGTH - len(tokens))], jnp.int32)
    return np.asarray(REFERENCE(FULL.params, padded), np.float64)[0, : len(tokens)]


every_model = pytest.mark.parametrize("kind", MODELS)


def expected_score(context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Return what ``hf`` computes: the sum of the log-softmax at the continuation, in float64."""
    tokens = [*context, *continuation][-MAX_LENGTH - 1 :]
    logits = logits_after(tokens[:-1])[-len(continuation) :]
    peak = logits.max(-1, keepdims=True)
    logprobs = logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))
    chosen = logprobs[np.arange(len(continuation)), continuation]
    return float(chosen.sum()), logprobs.argmax(-1).tolist() == continuation


@every_model
def test_a_continuation_with_a_masked_token_scores_minus_infinity_alone(kind: str) -> None:
    answers = loglikelihood(evaluator_of_kind(kind), PAIRS).in_order

    expected = [expected_score([*a.encode()] or [BOS], [*b.encode()]) for a, b in PAIRS]
    assert [score for score, _ in answers] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert [score == -np.inf for score, _ in answers] == [False, True, False, True, False, False]
    assert [greedy for _, greedy in answers] == [greedy for _, greedy in expected]


@every_model
def test_a_rolling_score_with_a_masked_token_is_minus_infinity(kind: str) -> None:
    scores = rolling(evaluator_of_kind(kind), TEXTS).in_order

    assert scores[1] == -np.inf
    assert scores[0] == pytest.approx(expected_score([BOS], [*TEXTS[0].encode()])[0], abs=1e-4)
    assert np.isfinite(scores[2])


@every_model
def test_masked_tokens_are_never_generated(kind: str) -> None:
    evaluator = evaluator_of_kind(kind)
    prompts = ["A", "BIRD", "nest", ""]

    greedy = generate(evaluator, prompts, max_gen_toks=6).in_order

    tokens = [*prompts[1].encode()]
    for _ in range(6):
        tokens.append(int(logits_after(tokens)[-1].argmax()))
    assert greedy[1] == Letters().decode(tokens[4:])
    for sampling in (
        SamplingParams(temperature=5.0),
        SamplingParams(temperature=5.0, top_k=250, top_p=0.999, min_p=1e-9),
    ):
        settings = GenerationParams(until=(), max_gen_toks=8, sampling=sampling)
        work = GenerateWork(prompts=prompts, settings=settings, keys=[1, 2, 3, 4])
        for text in Recording().record(evaluator.answer(work, StepLimits())).in_order:
            assert len(text) == 8  # none is EOS, which has no text
            assert not any(MASKED[ord(character)] for character in text)


def test_blocks_of_the_vocabulary_may_be_masked_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position_head, "_SMALLEST_BLOCK", 1)
    backend = JaxBackend(resolve(FULL), MAX_LENGTH)
    backend.budget = replace(backend.budget, head_bytes=4096)  # blocks of a few tokens

    answers = loglikelihood(evaluator_of(backend), PAIRS).in_order

    expected = [expected_score([*a.encode()] or [BOS], [*b.encode()]) for a, b in PAIRS]
    assert [score for score, _ in answers] == pytest.approx([score for score, _ in expected], abs=1e-4)


@pytest.mark.parametrize("kind", ["logits", "NumPy"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_plus_infinity_and_a_row_without_tokens_end_the_run(kind: str, value: float) -> None:
    def stumbles(params: Any, tokens: Any) -> Any:
        return jnp.where((tokens == ord("!"))[..., None], value, rows_logits(params, tokens))

    if kind == "NumPy":
        function = jax.jit(stumbles)
        given = (lambda params, tokens: np.asarray(function(params, jnp.asarray(tokens))), FULL.params)
        evaluator = evaluator_of(NumpyBackend(resolve(given), MAX_LENGTH))
    else:
        evaluator = evaluator_for((stumbles, FULL.params))

    calls: list[Callable[[], Recording]] = [
        lambda: loglikelihood(evaluator, [("a", "B"), ("a", "b"), ("a!", "b")]),
        lambda: rolling(evaluator, ["aB", "ab", "a!b"]),
        lambda: generate(evaluator, ["aB", "ab", "a!"], max_gen_toks=2),
    ]
    for call in calls:
        with pytest.raises(ItemFailed) as caught:
            call()
        assert caught.value.index == 2
        assert isinstance(caught.value.error, NonFiniteLogits)


@pytest.mark.parametrize(("engine", "dtype"), [("jax", "float32"), ("jax", "bfloat16"), ("NumPy", "float32")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_function_may_return_minus_infinity_only(engine: str, dtype: str, value: float) -> None:
    def by_first(params: Any, input_ids: Any, label_ids: Any, loss_mask: Any) -> Any:
        first = input_ids[:, 0]
        scores = jnp.where(first == ord("b"), -jnp.inf, jnp.where(first == ord("c"), value, -1.5))
        return scores.astype(dtype), first == ord("a")

    def in_numpy(*arguments: Any) -> Any:
        return tuple(map(np.asarray, by_first(*arguments)))

    if engine == "jax":
        evaluator = evaluator_for(Model(params=0.0, score=by_first))
    else:
        evaluator = evaluator_of(NumpyBackend(resolve(Model(params=0.0, score=in_numpy)), MAX_LENGTH))

    assert loglikelihood(evaluator, [("a", "x"), ("b", "x")]).in_order == [(-1.5, True), (-np.inf, False)]
    with pytest.raises(ItemFailed) as caught:
        loglikelihood(evaluator, [("a", "x"), ("b", "x"), ("c", "x")])
    assert caught.value.index == 2
    assert isinstance(caught.value.error, NonFiniteLogits)
