"""End-to-end tests of the adapters in examples/models; the reference is the framework's own call on one text at a time."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from flax import nnx

from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.conftest import EXAMPLES, LM_EVAL_WITHOUT_ITS_TASKS, ROOT

Logits = Callable[[list[int]], npt.NDArray[np.float64]]
"""Return the logits [t, v] of the tokens of one text."""

BOS = 256
TEXT = "The mill of Oldbrook was built of grey stone."
PREFIX = TEXT[:19]
PAIRS = [
    (TEXT, " Una lives there."),
    (TEXT, " Una lives in it."),
    (TEXT[:15], "brook"),
    (TEXT[:15], "tower"),
    ("", PREFIX),
]
"""The pairs have few distinct lengths, because the reference is compiled once per length. Steps have other lengths."""


def on_host(apply: Any) -> Logits:
    """Jit a function of tokens int32[1, t] and return it as a function of a list of tokens."""
    jitted = jax.jit(apply)
    return lambda tokens: np.asarray(jitted(jnp.array([tokens], jnp.int32))[0], np.float64)


def log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def causal(tokens: Any) -> Any:
    return jnp.tril(jnp.ones((1, 1, tokens.shape[1], tokens.shape[1]), bool))


# Each function returns a tag for its model file, the logits by the framework's own call, and the weights.


def nnx_reference(module: Any, folder: Path) -> tuple[str, Logits, Any]:
    model = module.Transformer(nnx.Rngs(0))
    model.eval()
    return "nnx", on_host(lambda tokens: model(tokens, causal(tokens))), nnx.state(model, nnx.Param)


def linen_reference(module: Any, folder: Path) -> tuple[str, Logits, Any]:
    model, params = module.Transformer(), module.initial(seed=1)
    module.save(folder / "checkpoint", params)

    def logits(tokens: Any) -> Any:
        return model.apply(params, tokens, jnp.arange(tokens.shape[1])[None], deterministic=True)

    return str(folder / "checkpoint"), on_host(logits), params


def equinox_reference(module: Any, folder: Path) -> tuple[str, Logits, Any]:
    model = eqx.nn.inference_mode(module.Transformer(jax.random.key(0)))
    return "equinox", on_host(lambda tokens: model(tokens[0])[None]), eqx.filter(model, eqx.is_array)


def haiku_reference(module: Any, folder: Path) -> tuple[str, Logits, Any]:
    model = hk.transform(lambda tokens: module.forward(tokens, jnp.ones_like(tokens), is_training=False))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    return "haiku", on_host(lambda tokens: model.apply(params, None, tokens)), params


def plain_reference(module: Any, folder: Path) -> tuple[str, Logits, Any]:
    params = module.initial(seed=0)
    return "plain", on_host(lambda tokens: module.head(params, module.backbone(params, tokens))), params


def greedy_pair(logits: Logits) -> tuple[str, str]:
    """Return a context and its most likely next token; that token is an ASCII character."""
    context, continuation = PAIRS[0]
    text = (context + continuation)[:-1]
    most_likely = logits(list(text.encode())).argmax(axis=-1)
    ends = [i for i, token in enumerate(most_likely) if token < 128 and text[i] != " "]
    return text[: ends[-1] + 1], chr(most_likely[ends[-1]])


def expected_score(logits: Logits, context: str, continuation: str) -> tuple[float, bool]:
    """Return the log-likelihood of a continuation, and whether it is greedy."""
    prefix = list(context.encode()) or [BOS]
    targets = list(continuation.encode())
    logprobs = log_softmax(logits([*prefix, *targets][:-1]))[len(prefix) - 1 :]
    return float(logprobs[np.arange(len(targets)), targets].sum()), bool((logprobs.argmax(axis=-1) == targets).all())


def expected_continuation(logits: Logits, prompt: str, count: int) -> str:
    """Return the greedy continuation of a prompt by ``count`` tokens."""
    tokens = list(prompt.encode())
    for _ in range(count):
        tokens.append(int(logits(tokens)[-1].argmax()))
    return bytes(tokens[-count:]).decode(errors="replace")


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("flax_nnx", nnx_reference),
        ("flax_linen", linen_reference),
        ("equinox_model", equinox_reference),
        ("haiku_model", haiku_reference),
        ("plain_functions", plain_reference),
    ],
)
def test_answers_equal_the_frameworks_own_call(
    name: str,
    reference: Callable[[Any, Path], tuple[str, Logits, Any]],
    example: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    tag, logits, weights = reference(example(name), tmp_path)
    pairs = [*PAIRS, greedy_pair(logits)]
    requests = [instance("loglikelihood", pair, number) for number, pair in enumerate(pairs)]
    rolling_request = instance("loglikelihood_rolling", (PREFIX,), 0)
    prompt = instance("generate_until", (PREFIX, {"until": [], "max_gen_toks": 2}), 0)

    with BirdieZMQ(model_tag=tag, api=str(EXAMPLES / f"{name}.py"), device="cpu") as model:
        answers = model.loglikelihood(requests, disable_tqdm=True)
        (rolling_score,) = model.loglikelihood_rolling([rolling_request], disable_tqdm=True)
        (answer,) = model.generate_until([prompt], disable_tqdm=True)
        info = model.get_model_info()

    scores, greedy = zip(*[expected_score(logits, *pair) for pair in pairs], strict=True)
    np.testing.assert_allclose([score for score, _ in answers], scores, atol=1e-4, rtol=0)
    assert tuple(is_greedy for _, is_greedy in answers) == greedy
    assert greedy[-1]  # greedy by construction
    assert rolling_score == pytest.approx(expected_score(logits, "", PREFIX)[0], abs=1e-4)
    assert answer == expected_continuation(logits, PREFIX, 2)
    assert info["model_num_parameters"] == sum(leaf.size for leaf in jax.tree.leaves(weights))
    assert info["model_dtype"] == "float32"


def test_lm_eval_command_runs_an_example_model_file() -> None:
    command = [sys.executable, "-c", LM_EVAL_WITHOUT_ITS_TASKS, "--model", "birdie_zmq"]
    command += ["--model_args", "model_tag=nnx,api=examples/models/flax_nnx.py"]
    command += ["--include_path", "examples/tasks", "--tasks", "demo_choice", "--limit", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)

    assert done.returncode == 0, done.stderr
    assert re.search(r"\|demo_choice *\|.*\|acc +\|", done.stdout)
