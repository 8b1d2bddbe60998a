"""The adapters of examples/models through the whole path, against the framework's own call on each text alone."""

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
from lm_eval.api.instance import Instance

from harness_model import BirdieZMQ
from tests.integration.conftest import EXAMPLES, ROOT

Logits = Callable[[list[int]], npt.NDArray[np.float64]]
"""The logits [t, v] of the tokens of one text."""

BOS = 256
TEXT = "The mill of Oldbrook was built of grey stone."
BEGINNING = TEXT[:19]
PAIRS = [
    (TEXT, " Una lives there."),
    (TEXT, " Una lives in it."),
    (TEXT[:15], "brook"),
    (TEXT[:15], "tower"),
    ("", BEGINNING),
]
"""Of few lengths, for each of which the framework's own call is compiled; steps have others."""


def on_host(apply: Any) -> Logits:
    """A jitted function of tokens int32[1, t] as one of a list."""
    jitted = jax.jit(apply)
    return lambda tokens: np.asarray(jitted(jnp.array([tokens], jnp.int32))[0], np.float64)


def log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def causal(tokens: Any) -> Any:
    return jnp.tril(jnp.ones((1, 1, tokens.shape[1], tokens.shape[1]), bool))


# Each gives a tag for its page, the model's logits by the framework's own call, and its weights.


def of_nnx(page: Any, folder: Path) -> tuple[str, Logits, Any]:
    model = page.Transformer(nnx.Rngs(0))
    model.eval()
    return "nnx", on_host(lambda tokens: model(tokens, causal(tokens))), nnx.state(model, nnx.Param)


def of_linen(page: Any, folder: Path) -> tuple[str, Logits, Any]:
    model, params = page.Transformer(), page.initial(seed=1)
    page.save(folder / "checkpoint", params)

    def logits(tokens: Any) -> Any:
        return model.apply(params, tokens, jnp.arange(tokens.shape[1])[None], deterministic=True)

    return str(folder / "checkpoint"), on_host(logits), params


def of_equinox(page: Any, folder: Path) -> tuple[str, Logits, Any]:
    model = eqx.nn.inference_mode(page.Transformer(jax.random.key(0)))
    return "equinox", on_host(lambda tokens: model(tokens[0])[None]), eqx.filter(model, eqx.is_array)


def of_haiku(page: Any, folder: Path) -> tuple[str, Logits, Any]:
    model = hk.transform(lambda tokens: page.forward(tokens, jnp.ones_like(tokens), is_training=False))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    return "haiku", on_host(lambda tokens: model.apply(params, None, tokens)), params


def of_plain(page: Any, folder: Path) -> tuple[str, Logits, Any]:
    params = page.initial(seed=0)
    return "plain", on_host(lambda tokens: page.head(params, page.trunk(params, tokens))), params


def greedy_pair(logits: Logits) -> tuple[str, str]:
    """A text and the token that the model finds most likely behind it, where that is a character."""
    context, continuation = PAIRS[0]
    text = (context + continuation)[:-1]
    chosen = logits(list(text.encode())).argmax(axis=-1)
    ends = [i for i, token in enumerate(chosen) if token < 128 and text[i] != " "]
    return text[: ends[-1] + 1], chr(chosen[ends[-1]])


def alone(logits: Logits, context: str, continuation: str) -> tuple[float, bool]:
    """What a continuation scores, and whether it is greedy."""
    prefix = list(context.encode()) or [BOS]
    targets = list(continuation.encode())
    logprobs = log_softmax(logits([*prefix, *targets][:-1]))[len(prefix) - 1 :]
    return float(logprobs[np.arange(len(targets)), targets].sum()), bool((logprobs.argmax(axis=-1) == targets).all())


def continued(logits: Logits, prompt: str, count: int) -> str:
    """The prompt's most likely continuation by so many tokens."""
    tokens = list(prompt.encode())
    for _ in range(count):
        tokens.append(int(logits(tokens)[-1].argmax()))
    return bytes(tokens[-count:]).decode(errors="replace")


@pytest.mark.parametrize(
    ("name", "of_framework"),
    [
        ("flax_nnx", of_nnx),
        ("flax_linen", of_linen),
        ("equinox_model", of_equinox),
        ("haiku_model", of_haiku),
        ("plain_functions", of_plain),
    ],
)
def test_answers_are_those_of_the_frameworks_own_call(
    name: str,
    of_framework: Callable[[Any, Path], tuple[str, Logits, Any]],
    example: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    tag, logits, weights = of_framework(example(name), tmp_path)
    pairs = [*PAIRS, greedy_pair(logits)]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    whole = Instance("loglikelihood_rolling", {}, (BEGINNING,), 0)
    prompt = Instance("generate_until", {}, (BEGINNING, {"until": [], "max_gen_toks": 2}), 0)

    with BirdieZMQ(model_tag=tag, api=str(EXAMPLES / f"{name}.py"), device="cpu") as model:
        answers = model.loglikelihood(requests, disable_tqdm=True)
        (rolled,) = model.loglikelihood_rolling([whole], disable_tqdm=True)
        (answer,) = model.generate_until([prompt], disable_tqdm=True)
        info = model.get_model_info()

    scores, greedy = zip(*[alone(logits, *pair) for pair in pairs], strict=True)
    np.testing.assert_allclose([score for score, _ in answers], scores, atol=1e-4, rtol=0)
    assert tuple(is_greedy for _, is_greedy in answers) == greedy
    assert greedy[-1]  # the pair that was made to be
    assert rolled == pytest.approx(alone(logits, "", BEGINNING)[0], abs=1e-4)
    assert answer == continued(logits, BEGINNING, 2)
    assert info["model_num_parameters"] == sum(leaf.size for leaf in jax.tree.leaves(weights))
    assert info["model_dtype"] == "float32"


def test_the_plain_command_takes_a_page_of_the_folder() -> None:
    program = "import _birdie_zmq_hook, lm_eval.__main__ as main; main.cli_evaluate()"
    command = [sys.executable, "-c", program, "--model", "birdie_zmq"]
    command += ["--model_args", "model_tag=nnx,api=examples/models/flax_nnx.py"]
    command += ["--include_path", "examples/tasks", "--tasks", "demo_choice", "--limit", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)

    assert done.returncode == 0, done.stderr
    assert re.search(r"\|demo_choice *\|.*\|acc +\|", done.stdout)
