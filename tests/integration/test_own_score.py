"""End-to-end tests of models that provide their own ``score`` function for a context and a continuation."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

from birdie_zmq.errors import UnsupportedRequest
from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.conftest import EXAMPLES

CONTEXT = "The mill of Oldbrook was built of grey stone."
PAIRS = [
    *((f"{CONTEXT} Who built mill {number}?", f" {name}") for number in range(2) for name in ("Una", "Mira's")),
    (CONTEXT, " It stands."),
    (CONTEXT, " It stands."),
    ("Short", "er"),
    ("", "Nothing before it"),
]


def encoded(context: str, continuation: str) -> tuple[list[int], list[int]]:
    return list(context.encode()) or [256], list(continuation.encode())


def score_targets(logits: Any, targets: list[int]) -> tuple[float, bool]:
    """Return the log-likelihood of n targets by their logits [n, v], and whether they are greedy, in float64 on the host."""
    rows = np.asarray(logits, np.float64)
    scores = (
        rows - np.log(np.exp(rows - rows.max(-1, keepdims=True)).sum(-1, keepdims=True)) - rows.max(-1, keepdims=True)
    )
    return float(scores[np.arange(len(targets)), targets].sum()), bool((rows.argmax(-1) == targets).all())


def forward(params: Any, tokens: list[int], self_mask: Any, memory: Any = None) -> Any:
    """Compute masked_transformer.forward for one text [t] in float64 with NumPy, with an explicit mask bool[t, t]."""

    def norm(x: Any) -> Any:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)

    def attend(weights: Any, x: Any, source: Any, mask: Any) -> Any:
        query, key, value, output = weights
        q, k, v = (y.reshape(len(y), 4, -1).swapaxes(0, 1) for y in (x @ query, source @ key, source @ value))
        scores = np.where(mask, q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]), -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        attended = (shares / shares.sum(-1, keepdims=True)) @ v
        return attended.swapaxes(0, 1).reshape(x.shape) @ output

    def gelu(x: Any) -> Any:
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    x = params["embedding"][tokens] + params["positions"][: len(tokens)]
    for layer in params["layers"]:
        x = x + attend(layer["attention"], norm(x), norm(x), self_mask)
        if memory is not None:
            x = x + attend(layer["cross_attention"], norm(x), memory, np.ones((len(x), len(memory)), bool))
        x = x + gelu(norm(x) @ layer["up"]) @ layer["down"]
    return norm(x)


def prefix_lm(module: ModuleType, params: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Score one text at a time, with bidirectional attention within the context."""
    row = context + continuation[:-1]
    mask = np.tri(len(row), dtype=bool)
    mask[:, : len(context)] = True
    return score_targets(forward(params, row, mask)[len(context) - 1 :] @ params["head"], continuation)


def encoder_decoder(module: ModuleType, params: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Score with the context in the encoder and the continuation in the decoder."""
    memory = forward(params["encoder"], context, np.ones((len(context), len(context)), bool))
    decoder_input = [256, *continuation[:-1]]
    hidden = forward(params["decoder"], decoder_input, np.tri(len(decoder_input), dtype=bool), memory)
    return score_targets(hidden @ params["decoder"]["head"], continuation)


def masked_lm(module: ModuleType, params: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Score with one masked text per token of the continuation."""
    text = context + continuation
    logits = []
    for position in range(len(context), len(text)):
        masked = [*text[:position], module.MASK, *text[position + 1 :]]
        logits.append(forward(params, masked, np.ones((len(text), len(text)), bool))[position] @ params["head"])
    return score_targets(np.stack(logits), continuation)


Reference = Callable[[ModuleType, Any, list[int], list[int]], tuple[float, bool]]


@pytest.mark.parametrize("reference", [prefix_lm, encoder_decoder, masked_lm])
def test_scores_equal_a_reference_computation_of_each_pair(reference: Reference, example: Callable[[str], Any]) -> None:
    name = reference.__name__
    module = example(name)
    params = jax.tree.map(lambda array: np.asarray(array, np.float64), module.load_model(name).params)
    expected = [reference(module, params, *encoded(*pair)) for pair in PAIRS]
    requests = [instance("loglikelihood", pair, number) for number, pair in enumerate(PAIRS)]

    with BirdieZMQ(model_tag=name, api=str(EXAMPLES / f"{name}.py"), device="cpu") as lm:
        answers = lm.loglikelihood(requests, disable_tqdm=True)
        with pytest.raises(UnsupportedRequest, match=r"provides only score.*needs logits"):
            lm.loglikelihood_rolling([instance("loglikelihood_rolling", ("A text",), 0)], disable_tqdm=True)
        with pytest.raises(UnsupportedRequest, match=r"provides only score.*needs logits"):
            lm.generate_until([instance("generate_until", ("A prompt", {"until": ["."]}), 0)], disable_tqdm=True)
        steps = lm.get_model_info()["model_steps"]

    np.testing.assert_allclose([score for score, _ in answers], [score for score, _ in expected], atol=1e-4)
    assert [greedy for _, greedy in answers] == [greedy for _, greedy in expected]
    rows = [len(context) + len(continuation) - 1 for context, continuation in (encoded(*pair) for pair in PAIRS)]
    assert steps["tokens_distinct"] == sum(rows) - rows[5], "equal pairs are computed once; nothing else is shared"


def test_causal_mask_would_change_the_scores_of_the_prefix_model(example: Callable[[str], Any]) -> None:
    module = example("prefix_lm")
    params = jax.tree.map(lambda array: np.asarray(array, np.float64), module.load_model("prefix").params)
    differences = []
    for context, continuation in (encoded(*pair) for pair in PAIRS):
        row = context + continuation[:-1]
        hidden = forward(params, row, np.tri(len(row), dtype=bool))
        causal, _ = score_targets(hidden[len(context) - 1 :] @ params["head"], continuation)
        differences.append(abs(causal - prefix_lm(module, params, context, continuation)[0]))
    assert sorted(differences)[0] < 1e-4, "after a context of one token, both masks are equal"
    assert sorted(differences)[1] > 0.01
