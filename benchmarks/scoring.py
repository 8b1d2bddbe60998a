"""Compare scoring with lm_eval's own hf backend: ``python -m benchmarks.scoring --model DIR``.

Both backends score the same requests, which lm_eval makes once per task, in float32 and with the same number of
threads. They run in turn: hf in a child process (`benchmarks.torch_peer`), the evaluator in this one on the batches
that the client would send. While one runs, the other waits. The first run of each is not timed. With ``--path``, the
whole path of client, broker and worker is measured instead of hf.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from benchmarks.answers import answers_to_jobs
from benchmarks.torch_peer import Timed, TorchPeer
from birdie_zmq.client.batching import loglikelihood_jobs, rolling_jobs
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.request_encoding import encode_pairs, encode_rolling
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.models import load_model, load_tokenizer
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import RunStatistics
from harness_model import BirdieZMQ

TASKS = ("mmlu_real:5", "arc_easy_real", "mmlu_real", "boolq_real", "lambada_real", "wikitext_real")
INCLUDE_PATH = Path(__file__).parents[2] / "shared/data/tasks"
SETTINGS = ClientSettings()
WARM_UP_REQUESTS = 64

RequestType = Literal["loglikelihood", "loglikelihood_rolling"]
REQUEST_TYPES: tuple[RequestType, ...] = ("loglikelihood", "loglikelihood_rolling")
Requests = Mapping[RequestType, Sequence[tuple[str, ...]]]
"""The arguments of a task's requests, by request type: the method of lm_eval's LM that answers them."""


class Recorder(LM):
    """An lm_eval model that records requests and answers nothing of use."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: dict[RequestType, list[tuple[str, ...]]] = {}

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Record the requests."""
        self.requests.setdefault("loglikelihood", []).extend(request.args for request in requests)
        return [(0.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Record the requests."""
        self.requests.setdefault("loglikelihood_rolling", []).extend(request.args for request in requests)
        return [0.0] * len(requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Reject generation requests."""
        raise SystemExit(
            f"a task has {len(requests)} generation requests; benchmarks.scoring measures scoring tasks only, see benchmarks.generation"
        )


def record_requests(tasks: Sequence[str], include_path: Path, limit: int | None) -> dict[str, Requests]:
    """Return the requests that lm_eval makes for each task, which is named ``NAME`` or ``NAME:SHOTS``."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(include_path))
    results: dict[str, Requests] = {}
    for task in tasks:
        name, _, shots = task.partition(":")
        recorder = Recorder()
        simple_evaluate(
            model=recorder,
            tasks=[name],
            task_manager=manager,
            num_fewshot=int(shots) if shots else None,
            limit=limit,
            bootstrap_iters=0,
            verbosity="ERROR",
        )
        results[task] = recorder.requests
    return results


@dataclass(frozen=True)
class TokenCounts:
    """Token counts of a task.

    Attributes:
        requests: Number of requests.
        requested: Sum of the input tokens of all requests.
        distinct: Distinct tokens: the minimum that a causal model must compute for the whole task.
        computed_by_hf: Tokens that hf computes, without padding: it scores one-token continuations together if
            everything before them is equal.
        scored: Number of tokens that need a log-probability.
        visible: Sum over the distinct tokens of the tokens visible to each, itself included: the minimum work of
            attention.
    """

    requests: int
    requested: int
    distinct: int
    computed_by_hf: int
    scored: int
    visible: int


def count_tokens(requests: Requests, tokenizer: TokenizerAdapter, max_length: int) -> TokenCounts:
    """Count the tokens of a task independently of the engine's planner."""
    pairs, texts = _pairs(requests), _texts(requests)
    items = [item for item in encode_pairs(tokenizer, pairs, max_length) if item is not None]
    items += [window for windows in encode_rolling(tokenizer, texts, max_length) for window in windows]
    rows = [(tuple(item.row.tolist()), item.count) for item in items]
    distinct = visible = 0
    previous: tuple[int, ...] = ()
    for row in sorted({row for row, _ in rows}):
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(row, previous, strict=False)))
        distinct += len(row) - shared
        visible += sum(range(shared + 1, len(row) + 1))
        previous = row
    return TokenCounts(
        requests=len(pairs) + len(texts),
        requested=sum(len(row) for row, _ in rows),
        distinct=distinct,
        computed_by_hf=sum(len(row) for row, scored in rows if scored != 1)
        + sum(len(row) for row in {row for row, scored in rows if scored == 1}),
        scored=sum(scored for _, scored in rows),
        visible=visible,
    )


def _pairs(requests: Requests) -> list[tuple[str, str]]:
    return [(context, continuation) for context, continuation in requests.get("loglikelihood", ())]


def _texts(requests: Requests) -> list[str]:
    return [text for (text,) in requests.get("loglikelihood_rolling", ())]


class InProcessModel:
    """The model in this process.

    Attributes:
        report: Statistics of the last run.
        has_compiled: Whether the last run compiled executables.

    Args:
        model: A Hugging Face directory.
    """

    def __init__(self, model: str) -> None:
        loaded = load_model(model, dtype="float32")
        self._stacks: tuple[dict[str, jax.Array], ...] = loaded.params.layers
        assert loaded.max_length is not None
        self.max_length = loaded.max_length
        self.tokenizer = TokenizerAdapter(load_tokenizer(model, dtype="float32"))
        self._backend = JaxBackend(resolve(loaded), self.max_length)
        self._width: int = loaded.params.outer["embedding"].shape[-1]
        self.report = RunStatistics()
        self.has_compiled = False

    @property
    def devices(self) -> str:
        """The devices of the model, comma-separated."""
        return ", ".join(self._backend.devices)

    @property
    def cached_prefixes(self) -> int:
        """Number of shared prefixes that the last run left in the prefix cache."""
        return len(self._backend._prefix_cache)

    def score(self, requests: Requests) -> Timed:
        """Score requests without cached prefixes; compiled executables are reused."""
        # A second run of the same task would start from the prefixes that the first one cached. That would be cheaper
        # than what a user waits for, because a user runs a task once.
        self._backend._prefix_cache.clear()
        compiled = self._backend.compile_seconds
        pairs, texts = _pairs(requests), _texts(requests)
        began = time.perf_counter()
        evaluator = Evaluator(self.tokenizer, self._backend, self.max_length)
        with evaluator.clock.work():
            scored = answers_to_jobs(evaluator, loglikelihood_jobs(pairs, SETTINGS), len(pairs))
            scores = [loglikelihood for loglikelihood, _ in scored]
            scores += answers_to_jobs(evaluator, rolling_jobs(texts, SETTINGS), len(texts))
        seconds = time.perf_counter() - began
        self.report = evaluator.report
        self.has_compiled = self._backend.compile_seconds > compiled
        return Timed(seconds, scores)

    def matrix_operations(self, tokens: int, scored: int, visible: int) -> float:
        """Return the floating-point operations of matrix products.

        Counted are the products with weights, of the layers at ``tokens`` and of the head at ``scored`` tokens, and
        those of attention (queries with keys, attention weights with values) at ``visible`` tokens.
        """
        in_layers: int = sum(leaf.size for leaf in self._matrices())
        # The heads of all layers, concatenated.
        of_queries: int = sum(math.prod(stack["output"].shape[:2]) for stack in self._stacks)
        return 2.0 * (in_layers * tokens + self._width * self._backend.vocab_size * scored + 2 * of_queries * visible)

    def _matrices(self) -> list[jax.Array]:
        """Return the stacked matrices [layer, in, out]."""
        return [leaf for stack in self._stacks for leaf in stack.values() if leaf.ndim == 3]

    def matrix_rate(self) -> float:
        """Return the peak rate in FLOP/s of float32 products as large as the largest product of a step."""
        _, inputs, outputs = max((leaf.shape for leaf in self._matrices()), key=math.prod)
        rows, repeats = self._backend.budget.tokens, 8
        keys = jax.random.split(jax.random.key(0), 3)
        # Unit variance keeps values finite, and large enough to avoid the slow handling of subnormal numbers on CPUs.
        x = jax.random.normal(keys[0], (rows, inputs))
        there = jax.random.normal(keys[1], (inputs, outputs)) / math.sqrt(inputs)
        back = jax.random.normal(keys[2], (outputs, inputs)) / math.sqrt(outputs)
        _products(x, there, back, repeats).block_until_ready()
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            _products(x, there, back, repeats).block_until_ready()
            seconds.append(time.perf_counter() - began)
        return 4.0 * repeats * rows * inputs * outputs / min(seconds)


def _chain(x: jax.Array, there: jax.Array, back: jax.Array, repeats: int) -> jax.Array:
    for _ in range(repeats):
        x = jnp.matmul(jnp.matmul(x, there, precision="highest"), back, precision="highest")
    return x


_products: Callable[..., jax.Array] = jax.jit(_chain, static_argnames="repeats")


@dataclass(frozen=True)
class Pairs:
    """Seconds of two backends that scored the same requests in turn, and the largest difference of scores."""

    theirs: list[float]
    ours: list[float]
    difference: float

    @property
    def ratios(self) -> list[float]:
        """Their seconds divided by ours, for each pair."""
        return [their / our for their, our in zip(self.theirs, self.ours, strict=True)]


def take_turns(theirs: Callable[[], Timed], ours: Callable[[], Timed], pairs: int) -> Pairs:
    """Time both in turn, with alternating order, so that a slow phase of the machine affects both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    scores: list[list[float]] = [[], []]
    for number in range(pairs):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            timed = (theirs, ours)[which]()
            seconds[which].append(timed.seconds)
            scores[which] = timed.answers
    difference = float(np.abs(np.array(scores[0]) - np.array(scores[1])).max())
    return Pairs(*seconds, difference)


def compare_with_hf(task: str, requests: Requests, peer: TorchPeer, ours: InProcessModel, pairs: int) -> dict[str, str]:
    """Measure one task and return its figures as text, by label."""
    counts = count_tokens(requests, ours.tokenizer, ours.max_length)

    def hf(some_requests: Requests) -> Timed:
        timed = [peer.answer(kind, some_requests[kind]) for kind in REQUEST_TYPES if kind in some_requests]
        return Timed(sum(one.seconds for one in timed), [x for one in timed for x in one.answers])

    hf({kind: some[:: max(1, len(some) // WARM_UP_REQUESTS)] for kind, some in requests.items()})
    ours.score(requests)  # all of them, so that every shape is compiled
    rates = []

    def measured() -> Timed:
        rates.append(ours.matrix_rate())
        return ours.score(requests)

    timed = take_turns(lambda: hf(requests), measured, pairs)
    if ours.has_compiled:
        print(f"{task}: the last timed run compiled an executable, so its time includes compilation", file=sys.stderr)
    report, seconds = ours.report, statistics.median(timed.ours)
    token_ratio, ratio = counts.computed_by_hf / counts.distinct, statistics.median(timed.ratios)
    with_weights = ours.matrix_operations(report.tokens_computed, counts.scored, 0)
    operations = ours.matrix_operations(report.tokens_computed, counts.scored, counts.visible)
    return {
        "requests": f"{counts.requests:,}",
        "tokens requested": f"{counts.requested:,}",
        "tokens computed by hf": f"{counts.computed_by_hf:,}",
        "distinct tokens": f"{counts.distinct:,}",
        "token ratio, hf / distinct": f"{token_ratio:.2f}",
        "hf, s (median)": f"{statistics.median(timed.theirs):.2f}",
        "birdie_zmq, s (median)": f"{seconds:.2f}",
        "time ratio, hf / birdie_zmq": f"{ratio:.2f}",
        "  range of pairs": f"{min(timed.ratios):.2f} to {max(timed.ratios):.2f}",
        "time ratio / token ratio": f"{ratio / token_ratio:.2f}",
        "tokens computed": f"{report.tokens_computed:,}",
        "  computed / distinct": f"{report.tokens_computed / counts.distinct:.3f}",
        "  padding": f"{report.tokens_padding / max(1, report.tokens_computed):.1%}",
        "steps": f"{report.steps:,}",
        "device idle": f"{ours.report.idle_seconds / timed.ours[-1]:.1%}",
        "largest difference, nats": f"{timed.difference:.1e}",
        "peak rate of matrix products, GFLOP/s": f"{max(rates) / 1e9:.1f}",
        "rate of matrix products in the run, GFLOP/s": f"{operations / seconds / 1e9:.1f}",
        "  share of the peak rate": f"{operations / seconds / max(rates):.1%}",
        "  share without attention": f"{with_weights / seconds / max(rates):.1%}",
    }


def compare_with_path(requests: Requests, lm: BirdieZMQ, ours: InProcessModel, pairs: int) -> dict[str, str]:
    """Measure one task through broker and worker and in process; return its figures as text, by label."""

    def through() -> Timed:
        instances = {
            kind: [Instance(kind, {}, one, i) for i, one in enumerate(some)] for kind, some in requests.items()
        }
        began = time.perf_counter()
        scores = []
        if "loglikelihood" in instances:
            scores += [score for score, _ in lm.loglikelihood(instances["loglikelihood"], disable_tqdm=True)]
        if "loglikelihood_rolling" in instances:
            scores += lm.loglikelihood_rolling(instances["loglikelihood_rolling"], disable_tqdm=True)
        return Timed(time.perf_counter() - began, scores)

    through()
    ours.score(requests)
    timed = take_turns(through, lambda: ours.score(requests), pairs)
    path_s, in_process_s = statistics.median(timed.theirs), statistics.median(timed.ours)
    return {
        "requests": f"{sum(map(len, requests.values())):,}",
        "through broker and worker, s (median)": f"{path_s:.2f}",
        "in process, s (median)": f"{in_process_s:.2f}",
        "ratio of medians": f"{path_s / in_process_s:.3f}",
        "  range of pairs": f"{min(timed.ratios):.3f} to {max(timed.ratios):.3f}",
        "largest difference, nats": f"{timed.difference:.1e}",
        "cached prefixes": f"{ours.cached_prefixes}",
    }


def table(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Return text with a column per task and a line per figure."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    left = max(map(len, names))
    widths = {task: max(map(len, (task, *column.values()))) for task, column in columns.items()}
    lines = ["  ".join([" " * left, *(task.rjust(widths[task]) for task in columns)])]
    lines += [
        "  ".join([name.ljust(left), *(column.get(name, "").rjust(widths[task]) for task, column in columns.items())])
        for name in names
    ]
    return "\n".join(lines)


def threads() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    """Measure all tasks and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face directory that both backends load")
    parser.add_argument("--tasks", nargs="+", metavar="NAME[:SHOTS]", help=f"lm_eval tasks; default: {' '.join(TASKS)}")
    parser.add_argument("--include-path", type=Path, default=INCLUDE_PATH, help="a folder with lm_eval tasks")
    parser.add_argument("--pairs", type=int, default=5, help="timed runs of each, in turn; default: 5")
    parser.add_argument("--hf-batch-size", type=int, default=8, help="batch size of hf; default: 8")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--limit", type=int, help="documents of each task; default: all")
    parser.add_argument(
        "--path",
        action="store_true",
        help="measure client, broker and worker instead of hf; default task: arc_easy_real",
    )
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    # By default JAX reserves most of a GPU and would leave too little memory for the other process.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")
    if options.device == "cpu":
        jax.config.update("jax_platforms", "cpu")  # type: ignore[no-untyped-call]
    elif jax.default_backend() == "cpu":
        raise SystemExit("--device gpu: JAX finds no GPU on this machine")
    tasks = options.tasks or (("arc_easy_real",) if options.path else TASKS)
    recorded = record_requests(tasks, options.include_path, options.limit)
    ours = InProcessModel(options.model)
    results: dict[str, dict[str, str]] = {}
    header = [
        f"$ {shlex.join(['python', '-m', 'benchmarks.scoring', *sys.argv[1:]])}",
        f"{ours.devices}; {threads()} threads; Python {platform.python_version()}, jax {jax.__version__}",
    ]

    def measure(measure_task: Callable[[str, Requests], dict[str, str]]) -> None:
        for task, requests in recorded.items():
            results[task] = measure_task(task, requests)
            print(f"{task}: {results[task]}", file=sys.stderr, flush=True)

    if options.path:
        arguments: dict[str, Any] = {"model_tag": options.model, "dtype": "float32"}
        with BirdieZMQ(device="cpu" if options.device == "cpu" else None, **arguments) as lm:
            measure(lambda _, requests: compare_with_path(requests, lm, ours, options.pairs))
        header.append(
            f"float32; {options.pairs} pairs in turn. The worker reuses prefixes that its earlier runs cached; in "
            "process they are computed again. Where 'cached prefixes' is 0, both compute the same."
        )
    else:
        with TorchPeer(options.model, options.device, threads(), options.hf_batch_size) as peer:
            header[-1] += f"; hf: {peer.versions}"
            measure(lambda task, requests: compare_with_hf(task, requests, peer, ours, options.pairs))
        header.append(
            f"float32; hf with batch_size={options.hf_batch_size}; {options.pairs} pairs in turn; ratios are medians of pairs"
        )
    print("\n".join([*header, "", table(results)]))


if __name__ == "__main__":
    main()
