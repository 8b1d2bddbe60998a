"""Compare generation with lm_eval's own hf backend: ``python -m benchmarks.generation --model DIR``.

Both backends generate greedily from the same prompts, in float32 and with the same number of threads. They run in turn:
hf in a child process (`benchmarks.torch_peer`), the evaluator in this one. The first run of each is not timed. Texts
are compared, and prompts whose texts differ are listed. Apart from the tasks, it measures the time of a decode step
with eight rows and the time to read all weights once.

Each time is compared with a floor: the seconds in which the same process scores one token after each prompt, plus, for
each decode step of the run, the seconds to read all weights and the filled part of the states once, at the rate at
which it reads the weights.
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
from typing import Any, NamedTuple

import jax
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.utils import normalize_gen_kwargs

from benchmarks.answers import answers_to_jobs
from benchmarks.decode_counts import CountingBackend
from benchmarks.scoring import INCLUDE_PATH, SETTINGS, Recorder, table, threads
from benchmarks.torch_peer import Timed, TorchPeer
from birdie_zmq.client.batching import Prompt, generate_jobs, loglikelihood_jobs
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.planning.prompt_planner import plan_prompts
from birdie_zmq.engine.planning.shape_buckets import Buckets
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.models import load_model, load_tokenizer
from birdie_zmq.types import GenerationParams, RunStatistics

SHORT_ANSWERS: dict[str, Any] = {"until": ["\n", ".", ","], "max_gen_toks": 256, "do_sample": False}
"""The gen_kwargs of the second task."""

ROWS = 8
"""Rows of the decode step that is timed."""

Request = tuple[str, dict[str, Any]]
"""A prompt and its generation_kwargs."""


class Generations(Recorder):
    """A recorder that also records generation requests."""

    def __init__(self) -> None:
        super().__init__()
        self.generations: list[Request] = []

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Record the requests and answer nothing of use."""
        self.generations.extend((request.args[0], request.args[1]) for request in requests)
        return [""] * len(requests)


def record_generations(task: str, include_path: Path, limit: int | None) -> Generations:
    """Return the requests that lm_eval makes for a task."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    recorder = Generations()
    manager = TaskManager(include_path=str(include_path))
    simple_evaluate(
        model=recorder, tasks=[task], task_manager=manager, limit=limit, bootstrap_iters=0, verbosity="ERROR"
    )
    return recorder


def record_tasks(include_path: Path, limit: int | None) -> dict[str, list[Request]]:
    """Return long answers after five few-shot examples, and short ones of uneven length to arc_easy_real questions."""
    questions = dict.fromkeys(
        context for context, _ in record_generations("arc_easy_real", include_path, limit).requests["loglikelihood"]
    )
    return {
        "gsm8k_real, 5-shot": record_generations("gsm8k_real", include_path, limit).generations,
        "short answers, 0-shot": [(question, SHORT_ANSWERS) for question in questions],
    }


class Floor(NamedTuple):
    """The least seconds of a run: of prefilling its prompts, and of its decode steps."""

    prefill: float
    decode: float

    @property
    def seconds(self) -> float:
        """The seconds of both."""
        return self.prefill + self.decode


class InProcessModel:
    """The model in this process.

    Attributes:
        report: Statistics of the last run.

    Args:
        model: A Hugging Face directory.
    """

    def __init__(self, model: str) -> None:
        loaded = load_model(model, dtype="float32")
        assert loaded.max_length is not None
        self._params = loaded.params
        self._max_length = loaded.max_length
        self._tokenizer = TokenizerAdapter(load_tokenizer(model, dtype="float32"))
        self._backend = CountingBackend(resolve(loaded), loaded.max_length)
        self.report = RunStatistics()

    @property
    def decode_steps(self) -> int:
        """The number of decode steps of the last run."""
        return self._backend.decode_steps

    @property
    def devices(self) -> str:
        """The devices of the model, comma-separated."""
        return ", ".join(self._backend.devices)

    def answer(self, requests: Sequence[Request]) -> Timed:
        """Generate texts without cached prefixes; compiled executables are reused."""
        self._backend._prefix_cache.clear()
        self._backend.decode_steps = self._backend.tokens_read = 0
        prompts = [Prompt(prompt, greedy_params(gen_kwargs)) for prompt, gen_kwargs in requests]
        began = time.perf_counter()
        evaluator = Evaluator(self._tokenizer, self._backend, self._max_length)
        texts = answers_to_jobs(evaluator, generate_jobs(prompts, SETTINGS), len(prompts))
        seconds = time.perf_counter() - began
        self.report = evaluator.report
        return Timed(seconds, texts)

    def floor(self, requests: Sequence[Request]) -> Floor:
        """Return the least seconds of the last run of `answer`, with these requests."""
        self._backend._prefix_cache.clear()
        jobs = loglikelihood_jobs([(prompt, " a") for prompt, _ in requests], SETTINGS)
        began = time.perf_counter()
        answers_to_jobs(Evaluator(self._tokenizer, self._backend, self._max_length), jobs, len(requests))
        prefill, step = time.perf_counter() - began, self.weights_seconds()
        weights_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._params))
        read_bytes = self._backend.tokens_read * self._backend.token_bytes()
        return Floor(prefill, step * (self._backend.decode_steps + read_bytes / weights_bytes))

    def weights_seconds(self) -> float:
        """Return the seconds to read all weights once."""
        total = jax.jit(lambda params: sum(leaf.sum() for leaf in jax.tree.leaves(params)))
        total(self._params).block_until_ready()
        return min(_seconds(lambda: total(self._params).block_until_ready()) for _ in range(5))

    def decode_seconds(self, length: int = 128) -> float:
        """Return the seconds to decode one token for each of `ROWS` rows after prompts of this length."""
        prompts = [np.full(length, 1 + row, np.int32) for row in range(ROWS)]
        buckets = Buckets(self._max_length, 0, self._backend.budget)
        assert self._backend.generation_mode is not None
        steps = plan_prompts(self._backend.generation_mode, prompts, buckets, {})
        self._backend.start_plan(steps, 4 * length)
        decoding = self._backend.decoding(ROWS, 4 * length)
        for step in steps:
            chosen = decoding.prefill(step)
            for position, (owner, token) in enumerate(zip(step.owners, chosen.tokens, strict=True)):
                decoding.put(owner, position, np.append(prompts[owner], token), sampled=1)
        active = np.ones(ROWS, np.bool_)
        decoded = decoding.decode(active).tokens.shape[1]
        fastest = min(_seconds(lambda: decoding.decode(active)) for _ in range(20))
        return fastest / int(decoded)


def _seconds(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def greedy_params(gen_kwargs: dict[str, Any]) -> GenerationParams:
    """Return greedy generation parameters as the lm_eval model class makes them from gen_kwargs."""
    normalized: dict[str, Any] = dict(normalize_gen_kwargs(gen_kwargs, 256))
    return GenerationParams(until=tuple(normalized["until"]), max_gen_toks=normalized["max_gen_toks"])


def compare_with_hf(requests: list[Request], peer: TorchPeer, ours: InProcessModel, pairs: int) -> dict[str, str]:
    """Measure one task and return its figures as text, by label."""
    peer.answer("generate_until", requests[:1])
    ours.answer(requests)  # all of them, so that every shape is compiled
    ours.floor(requests)
    seconds: tuple[list[float], list[float]] = ([], [])
    floors: list[Floor] = []
    texts: list[list[str]] = [[], []]
    for number in range(pairs):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            timed = ours.answer(requests) if which else peer.answer("generate_until", requests)
            seconds[which].append(timed.seconds)
            texts[which] = timed.answers
            if which:
                floors.append(ours.floor(requests))
    ratios = [their / our for their, our in zip(*seconds, strict=True)]
    different = [str(i) for i, (theirs, our) in enumerate(zip(*texts, strict=True)) if theirs != our]
    over_floor = [second / floor.seconds for second, floor in zip(seconds[1], floors, strict=True)]
    report = ours.report
    decoded = report.tokens_generated + report.tokens_thrown_away
    return {
        "prompts": f"{len(requests):,}",
        "texts that differ": ", ".join(different) or "none",
        "hf, s (median)": f"{statistics.median(seconds[0]):.2f}",
        "birdie_zmq, s (median)": f"{statistics.median(seconds[1]):.2f}",
        "time ratio, hf / birdie_zmq": f"{statistics.median(ratios):.2f}",
        "  range of pairs": f"{min(ratios):.2f} to {max(ratios):.2f}",
        "floor, s (prefill + decode)": " + ".join(
            f"{statistics.median(part):.2f}" for part in zip(*floors, strict=True)
        ),
        "time / floor": f"{statistics.median(over_floor):.2f}",
        "  range of pairs ": f"{min(over_floor):.2f} to {max(over_floor):.2f}",
        "decode steps": f"{ours.decode_steps:,}",
        "prompt tokens": f"{report.tokens_requested - report.tokens_generated:,}",
        "tokens generated": f"{report.tokens_generated:,}",
        "  decoded and discarded": f"{report.tokens_thrown_away / decoded:.1%}",
        "tokens computed": f"{report.tokens_computed:,}",
        "  padding, empty rows included": f"{report.tokens_padding / report.tokens_computed:.1%}",
    }


def main() -> None:
    """Measure all tasks and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face directory that both backends load")
    parser.add_argument("--include-path", type=Path, default=INCLUDE_PATH, help="a folder with lm_eval tasks")
    parser.add_argument("--pairs", type=int, default=3, help="timed runs of each backend, in turn; default: 3")
    parser.add_argument("--hf-batch-size", type=int, default=8, help="batch size of hf; default: 8")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--limit", type=int, help="documents of each task; default: all")
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")  # the other process needs the rest
    if options.device == "cpu":
        jax.config.update("jax_platforms", "cpu")  # type: ignore[no-untyped-call]
    elif jax.default_backend() == "cpu":
        raise SystemExit("--device gpu: JAX finds no GPU on this machine")
    requests_by_task = record_tasks(options.include_path, options.limit)
    ours = InProcessModel(options.model)
    weights_s, decode_s = ours.weights_seconds(), ours.decode_seconds()
    results: dict[str, dict[str, str]] = {}
    with TorchPeer(options.model, options.device, threads(), options.hf_batch_size) as peer:
        for task, requests in requests_by_task.items():
            results[task] = compare_with_hf(requests, peer, ours, options.pairs)
            print(f"{task}: {results[task]}", file=sys.stderr, flush=True)
        versions = peer.versions
    print(f"$ {shlex.join(['python', '-m', 'benchmarks.generation', *sys.argv[1:]])}")
    print(
        f"{ours.devices}; {threads()} threads; Python {platform.python_version()}, jax {jax.__version__}; hf: {versions}"
    )
    print(
        f"float32; hf with batch_size={options.hf_batch_size}; {options.pairs} pairs in turn; ratios are medians of pairs"
    )
    print(f"\n{table(results)}\n")
    print(
        f"decode step of {ROWS} rows: {decode_s * 1e3:.1f} ms, {decode_s / weights_s:.2f} times the "
        f"{weights_s * 1e3:.1f} ms to read all weights once"
    )


if __name__ == "__main__":
    main()
