"""Whether answers depend on how they are computed: ``python -m benchmarks.agreement --model DIR``.

Real requests are scored as the engine plans them, and again: each by itself outside the engine, whole text by whole text;
with other numbers of rows; in another order. Prompts are continued with other numbers of rows and in another order,
greedily and drawn, and greedily by the same model when it gives logits alone. What is printed is the largest difference
in nats, and how many texts differ.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from benchmarks.generation import Collect as Texts
from benchmarks.generation import recorded, settings_of
from benchmarks.scoring import INCLUDE_PATH, Collect, record, table
from birdie_zmq import Model
from birdie_zmq.client.batching import keyed
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.request_encoding import encode_pairs
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.models import load_model, load_tokenizer
from birdie_zmq.types import GenerateWork, GenerationParams, LogLikelihoodWork, SamplingParams, StepLimits

TASKS = ("arc_easy_real", "mmlu_real:5", "lambada_real")
LENGTH_STEP = 64
"""Texts outside the engine are padded to a multiple of this, so that not every length is compiled."""

DRAWN = SamplingParams(temperature=0.8, top_p=0.95, top_k=50)

Pairs = Sequence[tuple[str, str]]


class Ours:
    """The model in this process, anew for each way of asking but for the compiled programs.

    Args:
        model: A Hugging Face directory.
    """

    def __init__(self, model: str) -> None:
        self.model: Model = load_model(model, dtype="float32")
        assert self.model.max_length is not None
        self._max_length = self.model.max_length
        self._tokenizer = TokenizerAdapter(load_tokenizer(model, dtype="float32"))
        self._backend = JaxBackend(resolve(self.model), self._max_length)
        logits_alone = Model(logits=self.model.logits, params=self.model.params, vocab_size=self.model.vocab_size)
        self._rereading = JaxBackend(resolve(logits_alone), self._max_length)

    def score(self, pairs: Pairs, limits: StepLimits) -> npt.NDArray[np.float64]:
        """Log-likelihoods float64[n] in nats."""
        self._backend._states.clear()
        collect = Collect(len(pairs))
        collect.items = list(range(len(pairs)))
        work = LogLikelihoodWork(pairs=list(pairs))
        Evaluator(self._tokenizer, self._backend, self._max_length).loglikelihood(work, limits, collect)
        return collect.scores

    def score_alone(self, pairs: Pairs) -> npt.NDArray[np.float64]:
        """Log-likelihoods float64[n] in nats of each request by itself, from the logits of its whole text."""
        read = jax.jit(partial(_logprobs, self.model))
        found = []
        for item in encode_pairs(self._tokenizer, list(pairs), self._max_length):
            assert item is not None
            tokens = np.zeros((1, -(-len(item.row) // LENGTH_STEP) * LENGTH_STEP), np.int32)
            tokens[0, : len(item.row)] = item.row
            targets = np.zeros_like(tokens)
            targets[0, item.positions.start : item.positions.stop] = item.targets
            logprobs = np.asarray(read(self.model.params, tokens, targets), np.float64)
            found.append(logprobs[0, item.positions.start : item.positions.stop].sum())
        return np.array(found)

    def continue_(
        self,
        prompts: Sequence[tuple[str, GenerationParams]],
        limits: StepLimits,
        *,
        by_logits_alone: bool = False,
    ) -> list[str]:
        """The texts."""
        self._backend._states.clear()
        backend = self._rereading if by_logits_alone else self._backend
        collect = Texts(len(prompts))
        collect.items = list(range(len(prompts)))
        asked = keyed(prompts, seed=1)
        keys = [prompt.key for prompt in asked if prompt.key is not None]
        work = GenerateWork(prompts=[prompt.text for prompt in asked], settings=asked[0].settings, keys=keys)
        Evaluator(self._tokenizer, backend, self._max_length).generate(work, limits, collect)
        return collect.texts


def _logprobs(model: Model, params: Any, tokens: jax.Array, targets: jax.Array) -> jax.Array:
    assert model.logits is not None
    logprobs = jax.nn.log_softmax(model.logits(params, tokens).astype(jnp.float32), axis=-1)
    return jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]


def scoring(ours: Ours, pairs: Pairs) -> dict[str, str]:
    """The largest difference in nats from the plan that the engine makes by itself, by what is changed."""
    planned = ours.score(pairs, StepLimits())

    def difference(other: npt.NDArray[np.float64]) -> str:
        return f"{np.abs(other - planned).max():.1e}"

    shuffled = np.random.default_rng(0).permutation(len(pairs))
    in_another_order = np.empty_like(planned)
    in_another_order[shuffled] = ours.score([pairs[i] for i in shuffled], StepLimits())
    half = len(pairs) // 2
    in_two = np.concatenate([ours.score(part, StepLimits()) for part in (pairs[:half], pairs[half:]) if part])
    return {
        "requests": f"{len(pairs):,}",
        "each by itself": difference(ours.score_alone(pairs)),
        "one row a step": difference(ours.score(pairs, StepLimits(rows=1))),
        "four rows a step": difference(ours.score(pairs, StepLimits(rows=4))),
        "in another order": difference(in_another_order),
        "in two batches": difference(in_two),
    }


def generating(ours: Ours, prompts: Sequence[tuple[str, GenerationParams]], *, rereads: int) -> dict[str, str]:
    """How many texts differ from those with the rows that the engine takes by itself, by what is changed."""
    planned = ours.continue_(prompts, StepLimits())

    def differ(other: Sequence[str], than: Sequence[str] = planned) -> str:
        return str(sum(one != text for one, text in zip(other, than, strict=True)))

    return {
        "prompts": f"{len(prompts):,}",
        **{f"{n} rows": differ(ours.continue_(prompts, StepLimits(rows=n))) for n in (1, 4, 16)},
        "in another order": differ(ours.continue_(prompts[::-1], StepLimits())[::-1]),
        f"by logits alone, {rereads} prompts": differ(
            ours.continue_(prompts[:rereads], StepLimits(), by_logits_alone=True), planned[:rereads]
        ),
    }


def main() -> None:
    """Compute and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face directory")
    parser.add_argument("--include-path", type=Path, default=INCLUDE_PATH, help="lm_eval's folder of tasks")
    parser.add_argument("--limit", type=int, default=10, help="documents of each task that is scored")
    parser.add_argument("--prompts", type=int, default=8, help="documents of gsm8k_real that are continued")
    parser.add_argument("--rereads", type=int, default=3, help="how many of them by logits alone, which takes long")
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    ours = Ours(options.model)
    print(f"$ {shlex.join(['python', '-m', 'benchmarks.agreement', *sys.argv[1:]])}")
    print(
        f"{jax.devices()[0].device_kind}; float32; Python {platform.python_version()}, jax {jax.__version__}",
        flush=True,
    )
    found = {}
    for task, requests in record(TASKS, options.include_path, options.limit).items():
        found[task] = scoring(ours, [(context, continuation) for context, continuation in requests["loglikelihood"]])
    print(f"\nlargest difference, nats\n{table(found)}", flush=True)
    asked = recorded("gsm8k_real", options.include_path, options.prompts).generations
    greedy = [(prompt, settings_of(how)) for prompt, how in asked]
    drawn = [(prompt, GenerationParams(until=how.until, max_gen_toks=32, sampling=DRAWN)) for prompt, how in greedy]
    texts = {"gsm8k_real, greedy": generating(ours, greedy, rereads=options.rereads)}
    texts["gsm8k_real, drawn"] = generating(ours, drawn, rereads=options.rereads)
    print(f"\ntexts that differ\n{table(texts)}")


if __name__ == "__main__":
    main()
