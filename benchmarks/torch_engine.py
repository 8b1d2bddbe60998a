"""Compare the engine torch with lm_eval's own hf backend: ``python -m benchmarks.torch_engine --model DIR``.

Both compute the same requests in PyTorch, with the same number of threads. They run in turn: hf in a child process
(`benchmarks.torch_peer`) for each of its batch sizes, the evaluator in this one. While one runs, the others wait. The
fastest batch size of hf counts; after the first pair, only that one is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

os.environ["BIRDIE_ZMQ_ENGINE"] = "torch"

from benchmarks.answers import answers_to_jobs
from benchmarks.generation import greedy_params, record_generations
from benchmarks.scoring import INCLUDE_PATH, SETTINGS, record_requests, table, threads
from benchmarks.torch_peer import Timed, TorchPeer
from birdie_zmq.client.batching import Prompt, generate_jobs, loglikelihood_jobs, rolling_jobs
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.engine.torch.backend import TorchBackend
from birdie_zmq.models import load_model, load_tokenizer
from birdie_zmq.types import RunStatistics

TASKS = ("mmlu_real:5", "arc_easy_real", "boolq_real", "gsm8k_real")
GENERATED = ("gsm8k_real",)
"""The tasks whose requests are prompts to continue."""

Requests = tuple[str, Sequence[Any]]
"""A request type, and the arguments of its requests."""


class InProcessModel:
    """The model in this process.

    Attributes:
        report: Statistics of the last run.

    Args:
        model: A Hugging Face directory.
        dtype: The dtype of the weights.
    """

    def __init__(self, model: str, dtype: str) -> None:
        loaded = load_model(model, dtype=dtype)
        assert loaded.max_length is not None
        self._max_length = loaded.max_length
        self._tokenizer = TokenizerAdapter(load_tokenizer(model))
        self._backend = TorchBackend(resolve(loaded), loaded.max_length)
        self.report = RunStatistics()

    def answer(self, requests: Requests) -> Timed:
        """Answer requests without cached prefixes."""
        self._backend._prefix_cache.clear()
        kind, arguments = requests
        began = time.perf_counter()
        match kind:
            case "loglikelihood":
                jobs = loglikelihood_jobs([(context, text) for context, text in arguments], SETTINGS)
            case "loglikelihood_rolling":
                jobs = rolling_jobs([text for (text,) in arguments], SETTINGS)
            case _:
                jobs = generate_jobs([Prompt(text, greedy_params(options)) for text, options in arguments], SETTINGS)
        evaluator = Evaluator(self._tokenizer, self._backend, self._max_length)
        found = answers_to_jobs(evaluator, jobs, len(arguments))
        seconds = time.perf_counter() - began
        self.report = evaluator.report
        return Timed(seconds, [one[0] if kind == "loglikelihood" else one for one in found])


def record(task: str, include_path: Path, limit: int | None) -> Requests:
    """Return the requests that lm_eval makes for a task, which is named ``NAME`` or ``NAME:SHOTS``."""
    if task in GENERATED:
        return "generate_until", record_generations(task, include_path, limit).generations
    ((kind, arguments),) = record_requests([task], include_path, limit)[task].items()
    return kind, arguments


def compare(requests: Requests, peers: Sequence[TorchPeer], ours: InProcessModel, pairs: int) -> dict[str, str]:
    """Measure one task and return its figures as text, by label."""
    kind, arguments = requests
    first = arguments[: 1 if kind == "generate_until" else 8]  # a text is generated in many steps
    for peer in peers:
        peer.answer(kind, first)
    ours.answer((kind, first))
    theirs: list[float] = []
    seconds: list[float] = []
    for _ in range(pairs):
        every = [peer.answer(kind, arguments) for peer in peers]
        if not theirs:
            times = [timed.seconds for timed in every]
            peers = [peers[times.index(min(times))]]
        found = min(every, key=lambda timed: timed.seconds)
        theirs.append(found.seconds)
        timed = ours.answer(requests)
        seconds.append(timed.seconds)
    ratios = [their / our for their, our in zip(theirs, seconds, strict=True)]
    if kind == "generate_until":
        different = [str(i) for i, (a, b) in enumerate(zip(found.answers, timed.answers, strict=True)) if a != b]
        agreement = {"texts that differ": ", ".join(different) or "none"}
    else:
        difference = max(abs(a - b) for a, b in zip(found.answers, timed.answers, strict=True))
        agreement = {"largest difference, nats": f"{difference:.1e}"}
    report = ours.report
    return {
        "requests": f"{len(arguments):,}",
        "hf, s (each batch size, first pair)": ", ".join(f"{time:.2f}" for time in times),
        "hf, s (median of the fastest)": f"{statistics.median(theirs):.2f}",
        "birdie_zmq, s (median)": f"{statistics.median(seconds):.2f}",
        "time ratio, fastest hf / birdie_zmq": f"{statistics.median(ratios):.2f}",
        "  range of pairs": f"{min(ratios):.2f} to {max(ratios):.2f}",
        "tokens computed": f"{report.tokens_computed:,}",
        "steps": f"{report.steps:,}",
        **agreement,
    }


def main() -> None:
    """Measure all tasks and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face directory that both backends load")
    parser.add_argument("--tasks", nargs="+", default=TASKS, metavar="NAME[:SHOTS]", help="lm_eval tasks")
    parser.add_argument("--include-path", type=Path, default=INCLUDE_PATH, help="a folder with lm_eval tasks")
    parser.add_argument("--pairs", type=int, default=3, help="timed runs of each, in turn; default: 3")
    parser.add_argument("--hf-batch-sizes", type=int, nargs="+", default=[1, 8], help="default: 1 8")
    parser.add_argument("--limit", type=int, help="documents of each task that is scored; default: all")
    parser.add_argument("--generated-limit", type=int, help="documents of each task with generation; default: all")
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    torch.set_num_threads(threads())
    limits = {task: options.generated_limit if task in GENERATED else options.limit for task in options.tasks}
    recorded = {task: record(task, options.include_path, limit) for task, limit in limits.items()}
    ours = InProcessModel(options.model, "float32")
    results: dict[str, dict[str, str]] = {}
    with contextlib.ExitStack() as stack:
        peers = [
            stack.enter_context(TorchPeer(options.model, "cpu", threads(), size)) for size in options.hf_batch_sizes
        ]
        for task, requests in recorded.items():
            results[task] = compare(requests, peers, ours, options.pairs)
            print(f"{task}: {results[task]}", file=sys.stderr, flush=True)
        versions = peers[0].versions
    print(f"$ {shlex.join(['python', '-m', 'benchmarks.torch_engine', *sys.argv[1:]])}")
    print(f"{platform.machine()}; {threads()} threads; Python {platform.python_version()}; {versions}; float32")
    print(f"hf with batch sizes {options.hf_batch_sizes}; {options.pairs} pairs in turn; ratios are medians of pairs")
    print(f"\n{table(results)}")


if __name__ == "__main__":
    main()
