"""Generating, against lm_eval's own hf backend: ``python -m benchmarks.generation --model DIR``.

Both continue the same prompts greedily in float32 and with as many threads, in turn, hf in a child process
(`benchmarks.torch_peer`) and the evaluator in this one; neither is timed on its first run. Texts are compared: where they
differ the prompt is named. Beside the tasks it measures what a decoded token takes with eight rows side by side, against
what it takes to read all weights once.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.utils import normalize_gen_kwargs

from benchmarks.listener import Listener
from benchmarks.scoring import INCLUDE_PATH, SETTINGS, Recorder, table, threads
from benchmarks.torch_peer import Timed, TorchPeer
from birdie_zmq.client.batching import Prompt, generate_jobs
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.planning.prefill_planner import plan_prefills
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.models import load_model, load_tokenizer
from birdie_zmq.types import Answers, GenerateWork, GenerationParams, RunStatistics, StepLimits, Texts

SHORT_ANSWERS: dict[str, Any] = {"until": ["\n", ".", ","], "max_gen_toks": 256, "do_sample": False}
"""How the second task ends its answers."""

ROWS = 8
"""Side by side, where the time of a decoded token is measured."""

Request = tuple[str, dict[str, Any]]
"""A prompt and its generation_kwargs."""


class Generations(Recorder):
    """Takes note of requests to generate too."""

    def __init__(self) -> None:
        super().__init__()
        self.generations: list[Request] = []

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Record them."""
        self.generations.extend((request.args[0], request.args[1]) for request in requests)
        return [""] * len(requests)


def recorded(task: str, include_path: Path, limit: int | None) -> Generations:
    """The requests that lm_eval makes of a task."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    recorder = Generations()
    manager = TaskManager(include_path=str(include_path))
    simple_evaluate(
        model=recorder, tasks=[task], task_manager=manager, limit=limit, bootstrap_iters=0, verbosity="ERROR"
    )
    return recorder


def tasks(include_path: Path, limit: int | None) -> dict[str, list[Request]]:
    """Long answers behind five examples; and short ones, of uneven length, to the questions of arc_easy_real."""
    questions = dict.fromkeys(
        context for context, _ in recorded("arc_easy_real", include_path, limit).requests["loglikelihood"]
    )
    return {
        "gsm8k_real, 5-shot": recorded("gsm8k_real", include_path, limit).generations,
        "short answers, 0-shot": [(question, SHORT_ANSWERS) for question in questions],
    }


class Collect(Listener):
    """Keeps the texts."""

    def __init__(self, count: int) -> None:
        self.texts = [""] * count
        self.items: list[int] = []

    def answered(self, indices: Sequence[int], answers: Answers) -> None:
        """Put texts where they belong."""
        assert isinstance(answers, Texts)
        for index, text in zip(indices, answers.texts, strict=True):
            self.texts[self.items[index]] = text


class Ours:
    """The model in this process.

    Attributes:
        report: What the last run computed.

    Args:
        model: A Hugging Face directory.
    """

    def __init__(self, model: str) -> None:
        loaded = load_model(model, dtype="float32")
        assert loaded.max_length is not None
        self._params = loaded.params
        self._max_length = loaded.max_length
        self._tokenizer = TokenizerAdapter(load_tokenizer(model, dtype="float32"))
        self._backend = JaxBackend(resolve(loaded), loaded.max_length)
        self.report = RunStatistics()

    @property
    def devices(self) -> str:
        """Where it runs."""
        return ", ".join(self._backend.devices)

    def answer(self, requests: Sequence[Request]) -> Timed:
        """Continue prompts, computing everything anew but the compiled programs."""
        self._backend._states.clear()
        prompts = [Prompt(prompt, settings_of(how)) for prompt, how in requests]
        began = time.perf_counter()
        evaluator = Evaluator(self._tokenizer, self._backend, self._max_length)
        collect = Collect(len(prompts))
        for job in generate_jobs(prompts, SETTINGS):
            assert isinstance(job.work, GenerateWork)
            collect.items = job.items
            evaluator.generate(job.work, StepLimits(), collect)
        seconds = time.perf_counter() - began
        self.report = evaluator.report
        return Timed(seconds, collect.texts)

    def weights_seconds(self) -> float:
        """How long it takes to read all weights once."""
        total = jax.jit(lambda params: sum(leaf.sum() for leaf in jax.tree.leaves(params)))
        total(self._params).block_until_ready()
        return min(_seconds(lambda: total(self._params).block_until_ready()) for _ in range(5))

    def decode_seconds(self, length: int = 128) -> float:
        """How long it takes to decode a token for each of `ROWS` rows, behind prompts of this length."""
        decoding = self._backend.decoding(ROWS, 4 * length)
        prompts = [np.full(length, 1 + row, np.int32) for row in range(ROWS)]
        for number, pieces in plan_prefills(prompts, 0):
            decoding.put(number, prompts[number], pieces)
        active = np.ones(ROWS, np.bool_)
        decoded = decoding.decode(active).tokens.shape[1]
        fastest = min(_seconds(lambda: decoding.decode(active)) for _ in range(20))
        return fastest / int(decoded)


def _seconds(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def settings_of(gen_kwargs: dict[str, Any]) -> GenerationParams:
    """Greedy settings as the model class of lm_eval makes them."""
    normal: dict[str, Any] = dict(normalize_gen_kwargs(gen_kwargs, 256))
    return GenerationParams(until=tuple(normal["until"]), max_gen_toks=normal["max_gen_toks"])


def against_hf(requests: list[Request], peer: TorchPeer, ours: Ours, pairs: int) -> dict[str, str]:
    """Measure one task: what is found, as text, by what it is."""
    peer.answer("generate_until", requests[:1])
    ours.answer(requests)  # in full: each shape is compiled
    seconds: tuple[list[float], list[float]] = ([], [])
    texts: list[list[str]] = [[], []]
    for number in range(pairs):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            timed = ours.answer(requests) if which else peer.answer("generate_until", requests)
            seconds[which].append(timed.seconds)
            texts[which] = timed.answers
    ratios = [their / our for their, our in zip(*seconds, strict=True)]
    different = [str(i) for i, (theirs, our) in enumerate(zip(*texts, strict=True)) if theirs != our]
    report = ours.report
    decoded = report.tokens_generated + report.tokens_thrown_away
    return {
        "prompts": f"{len(requests):,}",
        "texts that differ": ", ".join(different) or "none",
        "hf, s (median)": f"{statistics.median(seconds[0]):.2f}",
        "birdie_zmq, s (median)": f"{statistics.median(seconds[1]):.2f}",
        "time ratio, hf / birdie_zmq": f"{statistics.median(ratios):.2f}",
        "  least to most of the pairs": f"{min(ratios):.2f} to {max(ratios):.2f}",
        "tokens of prompts": f"{report.tokens_requested - report.tokens_generated:,}",
        "tokens generated": f"{report.tokens_generated:,}",
        "  decoded and thrown away": f"{report.tokens_thrown_away / decoded:.1%}",
        "tokens computed": f"{report.tokens_computed:,}",
        "  padding, empty rows included": f"{report.tokens_padding / report.tokens_computed:.1%}",
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face directory, which both load")
    parser.add_argument("--include-path", type=Path, default=INCLUDE_PATH, help="lm_eval's folder of tasks")
    parser.add_argument("--pairs", type=int, default=3, help="how often both are timed in turn")
    parser.add_argument("--hf-batch-size", type=int, default=8, help="the rows of hf's steps; default: 8")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--limit", type=int, help="documents of each task; default: all")
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")  # the other process needs the rest
    if options.device == "cpu":
        jax.config.update("jax_platforms", "cpu")  # type: ignore[no-untyped-call]
    elif jax.default_backend() == "cpu":
        raise SystemExit("JAX finds no GPU here")
    asked = tasks(options.include_path, options.limit)
    ours = Ours(options.model)
    reading, decoding = ours.weights_seconds(), ours.decode_seconds()
    found: dict[str, dict[str, str]] = {}
    with TorchPeer(options.model, options.device, threads(), options.hf_batch_size) as peer:
        for task, requests in asked.items():
            found[task] = against_hf(requests, peer, ours, options.pairs)
            print(f"{task}: {found[task]}", file=sys.stderr, flush=True)
        versions = peer.versions
    print(f"$ {shlex.join(['python', '-m', 'benchmarks.generation', *sys.argv[1:]])}")
    print(
        f"{ours.devices}; {threads()} threads; Python {platform.python_version()}, jax {jax.__version__}; hf: {versions}"
    )
    print(
        f"float32; hf with batch_size={options.hf_batch_size}; {options.pairs} pairs in turn, ratios are their medians"
    )
    print(f"\n{table(found)}\n")
    print(
        f"a token decoded for each of {ROWS} rows: {decoding * 1e3:.1f} ms, {decoding / reading:.2f} times what reading "
        f"all weights once takes ({reading * 1e3:.1f} ms)"
    )


if __name__ == "__main__":
    main()
