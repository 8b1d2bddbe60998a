"""Models that score a continuation after its context by a function of their own, through the whole path."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from lm_eval.api.instance import Instance

from birdie_zmq.errors import UnsupportedRequest
from harness_model import BirdieZMQ
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


def chosen(logits: Any, targets: list[int]) -> tuple[float, bool]:
    """By logits [n, v] for n targets, in float64 on the host."""
    rows = np.asarray(logits, np.float64)
    scores = (
        rows - np.log(np.exp(rows - rows.max(-1, keepdims=True)).sum(-1, keepdims=True)) - rows.max(-1, keepdims=True)
    )
    return float(scores[np.arange(len(targets)), targets].sum()), bool((rows.argmax(-1) == targets).all())


def read(params: Any, tokens: list[int], sees: Any, memory: Any = None) -> Any:
    """masked_transformer.read for one text [t], in float64 of NumPy, with its mask bool[t, t] written down."""

    def norm(x: Any) -> Any:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)

    def attend(weights: Any, x: Any, seen: Any, mask: Any) -> Any:
        query, key, value, output = weights
        q, k, v = (y.reshape(len(y), 4, -1).swapaxes(0, 1) for y in (x @ query, seen @ key, seen @ value))
        scores = np.where(mask, q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]), -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        taken = (shares / shares.sum(-1, keepdims=True)) @ v
        return taken.swapaxes(0, 1).reshape(x.shape) @ output

    def gelu(x: Any) -> Any:
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    x = params["embedding"][tokens] + params["positions"][: len(tokens)]
    for layer in params["layers"]:
        x = x + attend(layer["attention"], norm(x), norm(x), sees)
        if memory is not None:
            x = x + attend(layer["crossing"], norm(x), memory, np.ones((len(x), len(memory)), bool))
        x = x + gelu(norm(x) @ layer["up"]) @ layer["down"]
    return norm(x)


def prefix_lm(module: ModuleType, params: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """One text at a time, whose context sees all of itself."""
    row = context + continuation[:-1]
    sees = np.tri(len(row), dtype=bool)
    sees[:, : len(context)] = True
    return chosen(read(params, row, sees)[len(context) - 1 :] @ params["head"], continuation)


def encoder_decoder(module: ModuleType, params: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """The context alone through the encoder, the continuation alone through the decoder."""
    memory = read(params["encoder"], context, np.ones((len(context), len(context)), bool))
    reads = [256, *continuation[:-1]]
    hidden = read(params["decoder"], reads, np.tri(len(reads), dtype=bool), memory)
    return chosen(hidden @ params["decoder"]["head"], continuation)


def masked_lm(module: ModuleType, params: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """A text for each token of the continuation, with that one masked."""
    text = context + continuation
    logits = []
    for place in range(len(context), len(text)):
        masked = [*text[:place], module.MASK, *text[place + 1 :]]
        logits.append(read(params, masked, np.ones((len(text), len(text)), bool))[place] @ params["head"])
    return chosen(np.stack(logits), continuation)


Direct = Callable[[ModuleType, Any, list[int], list[int]], tuple[float, bool]]


@pytest.mark.parametrize("direct", [prefix_lm, encoder_decoder, masked_lm])
def test_scores_are_those_of_each_pair_computed_directly(direct: Direct, example: Callable[[str], Any]) -> None:
    name = direct.__name__
    module = example(name)
    params = jax.tree.map(lambda array: np.asarray(array, np.float64), module.load_model(name).params)
    expected = [direct(module, params, *encoded(*pair)) for pair in PAIRS]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(PAIRS)]

    with BirdieZMQ(model_tag=name, api=str(EXAMPLES / f"{name}.py"), device="cpu") as lm:
        answers = lm.loglikelihood(requests, disable_tqdm=True)
        with pytest.raises(UnsupportedRequest, match=r"gives score alone.*needs logits"):
            lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("A text",), 0)], disable_tqdm=True)
        with pytest.raises(UnsupportedRequest, match=r"gives score alone.*needs logits"):
            lm.generate_until([Instance("generate_until", {}, ("A prompt", {"until": ["."]}), 0)], disable_tqdm=True)
        steps = lm.get_model_info()["model_steps"]

    np.testing.assert_allclose([score for score, _ in answers], [score for score, _ in expected], atol=1e-4)
    assert [greedy for _, greedy in answers] == [greedy for _, greedy in expected]
    rows = [len(context) + len(continuation) - 1 for context, continuation in (encoded(*pair) for pair in PAIRS)]
    assert steps["tokens_distinct"] == sum(rows) - rows[5], "equal pairs are computed once, and nothing else is shared"


def test_the_prefix_model_read_as_a_causal_one_would_score_otherwise(example: Callable[[str], Any]) -> None:
    module = example("prefix_lm")
    params = jax.tree.map(lambda array: np.asarray(array, np.float64), module.load_model("prefix").params)
    differences = []
    for context, continuation in (encoded(*pair) for pair in PAIRS):
        row = context + continuation[:-1]
        hidden = read(params, row, np.tri(len(row), dtype=bool))
        causal, _ = chosen(hidden[len(context) - 1 :] @ params["head"], continuation)
        differences.append(abs(causal - prefix_lm(module, params, context, continuation)[0]))
    assert sorted(differences)[0] < 1e-4, "behind a context of one token both are one"
    assert sorted(differences)[1] > 0.01
