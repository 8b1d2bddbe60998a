"""The engine torch, compared to NumPy in float64, and its errors for wrong outputs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from birdie_zmq.engine.backend import SamplingMetadata, TokenChoice
from birdie_zmq.engine.logits_processing import LogitsProcessing
from birdie_zmq.engine.model_api import Model, resolve
from birdie_zmq.engine.planning.pair_planner import PairGroup
from birdie_zmq.engine.planning.shape_buckets import Buckets
from birdie_zmq.engine.planning.steps import Dense, ScoredSequence, Step
from birdie_zmq.engine.torch.backend import TorchBackend, make_backend
from birdie_zmq.errors import ModelCallError, ModelLoadError, ModelOutputError, OutOfDeviceMemory
from birdie_zmq.types import SamplingParams
from harness_model import BirdieZMQ
from tests.instances import instance
from tests.model_files.numpy_engine import NumpyBackend

pytestmark = pytest.mark.torch

VOCABULARY = 11
TABLE = np.random.default_rng(0).normal(scale=4.0, size=(VOCABULARY, VOCABULARY)).astype(np.float32)
WEIGHTS = torch.from_numpy(TABLE)
TOKENS = np.random.default_rng(1).integers(VOCABULARY, size=(4, 16), dtype=np.int32)


class Bigram(torch.nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(WEIGHTS.to(dtype))
        self.dropout = torch.nn.Dropout(0.5)
        self.called: list[dict[str, Any]] = []

    def forward(self, tokens: Any, use_cache: bool = True) -> Any:
        assert tokens.dtype == torch.int64
        assert torch.is_inference_mode_enabled()
        self.called.append({"use_cache": use_cache, "shape": tuple(tokens.shape)})
        return SimpleNamespace(logits=self.dropout(self.table[tokens]))


def bigram(params: Any, tokens: Any) -> Any:
    return params[tokens]


FORMS: dict[str, Any] = {
    "module": Bigram,
    "method": lambda: Bigram().eval().forward,
    "callable": lambda: lambda tokens: WEIGHTS[tokens],
    "pair": lambda: (bigram, WEIGHTS),
    "pair of NumPy": lambda: (lambda params, tokens: params["layers"][0][tokens], {"layers": [TABLE]}),
    "module as params": lambda: (lambda module, tokens: module(tokens), Bigram()),
    "parts": lambda: Model(
        params=WEIGHTS,
        hidden=lambda params, tokens: torch.eye(VOCABULARY)[tokens],
        unembed=lambda params, hidden: hidden @ params,
    ),
    "padded": lambda: Model(
        logits=bigram, params=torch.nn.functional.pad(WEIGHTS, (0, 5), value=50.0), vocab_size=VOCABULARY
    ),
}


def backend_of(returned: object, max_length: int = 64) -> TorchBackend:
    return make_backend(resolve(returned), max_length)


def step_of(count: int) -> Step:
    random = np.random.default_rng(count)
    rows, positions = (random.integers(size, size=count, dtype=np.int32) for size in TOKENS.shape)
    targets = random.integers(VOCABULARY, size=count, dtype=np.int32)
    return Step(TOKENS, TOKENS.size, Dense(), rows, positions, targets, np.zeros_like(targets))


@pytest.mark.parametrize("form", FORMS)
def test_scores_and_next_tokens_equal_those_of_numpy_in_every_form(form: str) -> None:
    backend, step = backend_of(FORMS[form]()), step_of(50)

    scores, chosen = backend.submit(step).result(), backend.next_tokens(step)

    at = TABLE[TOKENS[step.rows, step.positions]].astype(np.float64)
    logprobs = at - np.log(np.exp(at).sum(axis=-1, keepdims=True))
    assert scores.logprobs.dtype == np.float32
    np.testing.assert_allclose(scores.logprobs, logprobs[np.arange(50), step.targets], atol=1e-5, rtol=0)
    np.testing.assert_array_equal(scores.greedy, at.argmax(axis=-1) == step.targets)
    np.testing.assert_array_equal(chosen.tokens, at.argmax(axis=-1))
    assert scores.finite.all()
    assert chosen.finite.all()
    assert backend.makes_logits == (form != "parts")
    assert backend.vocab_size == VOCABULARY


def test_the_first_of_equally_likely_tokens_is_the_greedy_one() -> None:
    step = step_of(VOCABULARY)
    step = Step(TOKENS, 64, Dense(), step.rows * 0, step.rows * 0, np.arange(VOCABULARY, dtype=np.int32), step.owners)
    backend = backend_of((bigram, WEIGHTS * 0))
    assert np.flatnonzero(backend.submit(step).result().greedy).tolist() == [0]
    assert not backend.next_tokens(step).tokens.any()


def test_logits_in_bfloat16_are_normalised_in_float32() -> None:
    backend, step = backend_of(Bigram(torch.bfloat16)), step_of(30)
    at = WEIGHTS.bfloat16().double().numpy()[TOKENS[step.rows, step.positions]]
    expected = (at - np.log(np.exp(at).sum(axis=-1, keepdims=True)))[np.arange(30), step.targets]
    np.testing.assert_allclose(backend.submit(step).result().logprobs, expected, atol=1e-5, rtol=0)
    assert backend.dtype == "bfloat16"
    assert backend.num_parameters == VOCABULARY**2


def test_a_module_is_called_once_per_step_without_a_cache() -> None:
    module = Bigram()
    backend_of(module).submit(step_of(9)).result()
    assert module.called == [{"use_cache": False, "shape": (1, 16)}, {"use_cache": False, "shape": (4, 16)}]


def test_weights_in_the_closure_of_a_callable_are_not_reported() -> None:
    backend = backend_of(FORMS["callable"]())
    assert backend.num_parameters is None
    assert backend.dtype is None
    assert backend.versions["torch"] == torch.__version__
    assert backend.devices[0].startswith("cpu:0" if not torch.cuda.is_available() else "cuda:0")


def test_sampled_tokens_equal_those_of_numpy() -> None:
    step = step_of(60)
    metadata = SamplingMetadata(
        TokenChoice(SamplingParams(temperature=2.0, top_p=0.9)), list(range(60)), np.zeros(60, np.int32)
    )
    first, second = backend_of(Bigram()), backend_of((bigram, TABLE))
    tokens = first.next_tokens(step, metadata).tokens
    np.testing.assert_array_equal(tokens, second.next_tokens(step, metadata).tokens)
    assert tokens.tolist() != first.next_tokens(step).tokens.tolist()


@pytest.mark.parametrize("sampling", [None, SamplingParams(temperature=2.0)])
def test_tokens_of_changed_logits_equal_those_of_numpy(sampling: SamplingParams | None) -> None:
    how = LogitsProcessing(bias=((3, 2.0),), forbidden=(1,), repetition_penalty=1.5, frequency_penalty=0.5)
    step = step_of(60)
    texts = [TOKENS[row, : position + 1] for row, position in zip(step.rows, step.positions, strict=True)]
    metadata = SamplingMetadata(TokenChoice(sampling, how), list(range(60)), np.minimum(step.positions, 2), texts)
    table = np.asarray(WEIGHTS)
    tokens = backend_of((bigram, TABLE)).next_tokens(step, metadata).tokens
    expected = NumpyBackend(resolve(lambda tokens: table[tokens]), 64).next_tokens(step, metadata).tokens
    np.testing.assert_array_equal(tokens, expected)
    assert 1 not in tokens


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_only_a_position_with_nan_or_infinity_is_flagged(value: float) -> None:
    table = WEIGHTS.clone()
    table[3, 7] = value
    where = np.arange(3, dtype=np.int32)
    step = Step(np.array([[2, 3, 4]], np.int32), 3, Dense(), where * 0, where, where * 0 + 5, where * 0)
    assert backend_of((bigram, table)).submit(step).result().finite.tolist() == [True, False, True]
    assert backend_of((bigram, table)).next_tokens(step).finite.tolist() == [True, False, True]


def test_an_excluded_target_scores_minus_infinity_and_a_row_of_excluded_tokens_is_flagged() -> None:
    table = WEIGHTS.clone()
    table[3, 7] = table[4] = -torch.inf
    targets, zeros = np.array([5, 7, 5], np.int32), np.zeros(3, np.int32)
    step = Step(np.array([[3, 4]], np.int32), 2, Dense(), zeros, np.array([0, 0, 1], np.int32), targets, zeros)

    scores = backend_of((bigram, table)).submit(step).result()

    logits = np.delete(TABLE[3].astype(np.float64), 7)
    assert scores.logprobs[0] == pytest.approx(TABLE[3, 5] - np.log(np.exp(logits).sum()), abs=1e-5)
    assert scores.logprobs[1] == -np.inf
    assert not scores.greedy[1]
    assert scores.finite.tolist() == [True, True, False]
    assert backend_of((bigram, table)).next_tokens(step).finite.tolist() == [True, True, False]


WRONG: dict[str, tuple[Any, str]] = {
    "two dimensions": (lambda tokens: WEIGHTS, r"must return logits .* returned torch.float32\[11, 11\]"),
    "integers": (lambda tokens: WEIGHTS[tokens].int(), r"floating-point logits, but returned torch.int32\[1, 16, 11\]"),
    "a tuple": (lambda tokens: (WEIGHTS[tokens], None), "a tuple of 2; .* return the logits alone"),
    "nothing": (lambda tokens: None, "but returned a NoneType"),
    "JAX": (lambda tokens: jnp.zeros((1, 16, 11)), r"returned float32\[1, 16, 11\] .* a JAX model, set engine=jax"),
    "hidden states": (
        Model(hidden=lambda params, tokens: tokens, unembed=bigram),
        r"hidden states float\[1, 16, width\], but returned torch.int64\[1, 16\]",
    ),
}


@pytest.mark.parametrize("returned", WRONG)
def test_an_output_of_the_wrong_shape_or_dtype_is_rejected(returned: str) -> None:
    model, message = WRONG[returned]
    with pytest.raises(ModelOutputError, match=message):
        backend_of(model)


def test_an_error_of_the_model_is_reported_with_the_shape() -> None:
    def function(tokens: Any) -> Any:
        raise KeyError("layer_13")

    with pytest.raises(ModelCallError, match=r"failed on tokens int32\[1, 16\]: KeyError: 'layer_13'"):
        backend_of(function)


def test_jax_models_are_rejected() -> None:
    with pytest.raises(ModelLoadError, match=r"a JAX model .* is torch; set engine=jax .* workers.jax_worker"):
        backend_of((bigram, jnp.asarray(TABLE)))


def raise_cuda_out_of_memory() -> None:
    raise torch.cuda.OutOfMemoryError("Tried to allocate 2 GiB")


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**50), raise_cuda_out_of_memory], ids=["cpu", "gpu"])
def test_a_failed_allocation_is_out_of_device_memory(allocate: Any) -> None:
    def function(tokens: Any) -> Any:
        if len(tokens) > 1:
            allocate()
        return WEIGHTS[tokens]

    backend = backend_of(function)
    with pytest.raises(OutOfDeviceMemory, match=r"out of memory for tokens int32\[4, 16\]: "):
        backend.submit(step_of(3))
    before = backend.budget.tokens
    assert backend.halve_budget()
    assert backend.budget.tokens == before // 2


def own_score(params: Any, input_ids: Any, label_ids: Any, loss_mask: Any) -> Any:
    """The bigram's score, and one nat more for each token of the context."""
    assert input_ids.dtype == label_ids.dtype == loss_mask.dtype == torch.int64
    scores = torch.log_softmax(params[input_ids], -1)
    of_labels = scores.gather(-1, label_ids[..., None])[..., 0]
    context = loss_mask.argmax(1) + 1
    return (of_labels * loss_mask).sum(1) + context, ((scores.argmax(-1) == label_ids) | (loss_mask == 0)).all(1)


def test_the_models_own_score_is_called_with_tensors() -> None:
    backend = backend_of(Model(params=WEIGHTS, score=own_score))
    items = [ScoredSequence(np.array(tokens, np.int32), count) for tokens, count in (([1, 2, 3, 4], 2), ([5, 6], 1))]
    (step,) = PairGroup(items).plan(Buckets(64, 0, backend.budget), {})
    found = backend.submit(step).result()
    logprobs = np.log(np.exp(TABLE.astype(np.float64)) / np.exp(TABLE.astype(np.float64)).sum(-1, keepdims=True))
    expected = {0: logprobs[2, 3] + logprobs[3, 4] + 2, 1: logprobs[5, 6] + 1}
    np.testing.assert_allclose(found.logprobs, [expected[owner] for owner in step.owners.tolist()], atol=1e-5)
    with pytest.raises(ModelOutputError, match="score must return"):
        backend_of(Model(params=WEIGHTS, score=lambda params, *ids: torch.zeros(len(ids[0]))))


class Digits:
    bos_token_id = 10

    def encode(self, text: str) -> list[int]:
        return list(map(int, text))

    def decode(self, ids: list[int]) -> str:
        return "".join(map(str, ids))


def test_a_module_in_this_process_is_evaluated_during_training() -> None:
    module = Bigram()
    request = instance("loglikelihood", ("12", "34"), 0)

    def expected() -> float:
        logprobs = torch.log_softmax(module.table.detach().double(), -1)
        return float(logprobs[2, 3] + logprobs[3, 4])

    with BirdieZMQ(model=module, tokenizer=Digits(), engine="torch") as lm:
        ((before, _),) = lm.loglikelihood([request], disable_tqdm=True)
        assert before == pytest.approx(expected(), abs=1e-5)
        with torch.no_grad():
            module.table.add_(torch.eye(VOCABULARY))
        lm.update()
        ((after, _),) = lm.loglikelihood([request], disable_tqdm=True)
        assert after == pytest.approx(expected(), abs=1e-5)
        assert abs(after - before) > 0.01
        assert lm.get_model_info()["model_engine"] == "torch"
