"""Scoring tasks, against lm_eval's own hf backend: ``python -m benchmarks.scoring --model DIR``.

Both score the same requests, which lm_eval makes once for each task, in float32 and with as many threads. They take
turns, hf in a child process (`benchmarks.torch_peer`) and the evaluator in this one, on the batches that the client
would send; while one runs the other waits. Neither is timed on its first run. With ``--path`` the whole path of client,
broker and worker takes the place of hf.
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

from benchmarks import path_cost
from benchmarks.torch_peer import Timed, TorchPeer
from birdie_zmq.client.batching import loglikelihood_jobs, rolling_jobs
from birdie_zmq.engine.backend import PendingScores
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.planning.steps import Step
from birdie_zmq.engine.request_encoding import encode_pairs, encode_rolling
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.models import load_model, load_tokenizer
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import Answers, LogLikelihoodWork, RollingScores, RollingWork, RunStatistics, Scores, StepLimits
from harness_model import BirdieZMQ

TASKS = ("mmlu_real:5", "arc_easy_real", "mmlu_real", "boolq_real", "lambada_real", "wikitext_real")
INCLUDE_PATH = Path(__file__).parents[2] / "shared/data/tasks"
SETTINGS = ClientSettings()
WARM_UP_REQUESTS = 64

Kind = Literal["loglikelihood", "loglikelihood_rolling"]
KINDS: tuple[Kind, ...] = ("loglikelihood", "loglikelihood_rolling")
Requests = Mapping[Kind, Sequence[tuple[str, ...]]]
"""The arguments of a task's requests, by the name of the method of lm_eval's LM that answers them."""


class Recorder(LM):
    """Takes note of requests, and answers nothing of use."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: dict[Kind, list[tuple[str, ...]]] = {}

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Record them."""
        self.requests.setdefault("loglikelihood", []).extend(request.args for request in requests)
        return [(0.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Record them."""
        self.requests.setdefault("loglikelihood_rolling", []).extend(request.args for request in requests)
        return [0.0] * len(requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Refuse them."""
        raise SystemExit(f"only tasks that score are measured here, and this one has {len(requests)} generations")


def record(tasks: Sequence[str], include_path: Path, limit: int | None) -> dict[str, Requests]:
    """The requests that lm_eval makes of each task, named ``NAME`` or ``NAME:SHOTS``."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(include_path))
    found: dict[str, Requests] = {}
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
        found[task] = recorder.requests
    return found


@dataclass(frozen=True)
class Counts:
    """What a task asks, in tokens.

    Attributes:
        requests: How many.
        asked: The input tokens of each request by itself.
        distinct: The least that a causal model must compute, over all of the task.
        by_hf: What hf computes without its padding: it scores continuations of one token together where all before
            them is the same.
        scored: How many tokens have a log-probability each.
        seen: How many tokens the distinct ones see, themselves included: what attention cannot do without.
    """

    requests: int
    asked: int
    distinct: int
    by_hf: int
    scored: int
    seen: int


def count(requests: Requests, tokenizer: TokenizerAdapter, max_length: int) -> Counts:
    """Count a task's tokens, without the engine's own planner."""
    pairs, texts = _pairs(requests), _texts(requests)
    items = [item for item in encode_pairs(tokenizer, pairs, max_length) if item is not None]
    items += [window for windows in encode_rolling(tokenizer, texts, max_length) for window in windows]
    rows = [(tuple(item.row.tolist()), item.count) for item in items]
    distinct = seen = 0
    before: tuple[int, ...] = ()
    for row in sorted({row for row, _ in rows}):
        shared = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(row, before, strict=False)))
        distinct += len(row) - shared
        seen += sum(range(shared + 1, len(row) + 1))
        before = row
    return Counts(
        requests=len(pairs) + len(texts),
        asked=sum(len(row) for row, _ in rows),
        distinct=distinct,
        by_hf=sum(len(row) for row, scored in rows if scored != 1)
        + sum(len(row) for row in {row for row, scored in rows if scored == 1}),
        scored=sum(scored for _, scored in rows),
        seen=seen,
    )


def _pairs(requests: Requests) -> list[tuple[str, str]]:
    return [(context, continuation) for context, continuation in requests.get("loglikelihood", ())]


def _texts(requests: Requests) -> list[str]:
    return [text for (text,) in requests.get("loglikelihood_rolling", ())]


class Collect(path_cost.Collect):
    """Keeps what the evaluator says, of whole texts too."""

    def answered(self, indices: Sequence[int], answers: Answers) -> None:
        """Put scores where they belong."""
        assert isinstance(answers, Scores | RollingScores)
        self.scores[[self.items[i] for i in indices]] = answers.loglikelihoods


class Watched(JaxBackend):
    """Notes when the first step is submitted; NaN stands for none."""

    first = math.nan

    def submit(self, step: Step) -> PendingScores:
        """As the backend does it."""
        pending = super().submit(step)
        if math.isnan(self.first):
            self.first = time.perf_counter()
        return pending


class Ours:
    """The model in this process.

    Attributes:
        report: What the last run computed.
        idle_seconds: How long the device had no work in it: until the first step, and between batches.
        has_compiled: Whether the last run compiled programs.

    Args:
        model: A Hugging Face directory.
    """

    def __init__(self, model: str) -> None:
        loaded = load_model(model, dtype="float32")
        self._layers: dict[str, jax.Array] = loaded.params.layers
        assert loaded.max_length is not None
        self.max_length = loaded.max_length
        self.tokenizer = TokenizerAdapter(load_tokenizer(model, dtype="float32"))
        self._backend = Watched(resolve(loaded), self.max_length)
        self._width: int = loaded.params.outer["embedding"].shape[-1]
        self.report = RunStatistics()
        self.idle_seconds = 0.0
        self.has_compiled = False

    @property
    def devices(self) -> str:
        """Where it runs."""
        return ", ".join(self._backend.devices)

    @property
    def states_kept(self) -> int:
        """How many states of shared beginnings the last run left, for a next one to start from."""
        return len(self._backend._states)

    def score(self, requests: Requests) -> Timed:
        """Score requests, computing everything anew but the compiled programs."""
        # A second run of the same task would start from the states that the first has left, which makes it cheaper
        # than what a user waits for: a task is run once.
        self._backend._states.clear()
        self._backend.first = math.nan
        compiled = self._backend.compile_seconds
        pairs, texts = _pairs(requests), _texts(requests)
        began = time.perf_counter()
        evaluator = Evaluator(self.tokenizer, self._backend, self.max_length)
        scores = []
        if pairs:
            collect = Collect(len(pairs))
            for job in loglikelihood_jobs(pairs, SETTINGS):
                assert isinstance(job.work, LogLikelihoodWork)
                collect.items = job.items
                evaluator.loglikelihood(job.work, StepLimits(), collect)
            scores += collect.scores.tolist()
        if texts:
            collect = Collect(len(texts))
            for job in rolling_jobs(texts, SETTINGS):
                assert isinstance(job.work, RollingWork)
                collect.items = job.items
                evaluator.rolling(job.work, StepLimits(), collect)
            scores += collect.scores.tolist()
        seconds = time.perf_counter() - began
        self.report = evaluator.report
        self.idle_seconds = self._backend.first - began + self.report.idle_seconds
        self.has_compiled = self._backend.compile_seconds > compiled
        return Timed(seconds, scores)

    def matrix_operations(self, tokens: int, scored: int, seen: int) -> float:
        """Floating-point operations of matrix products.

        Those with weights: of the layers at tokens, of the head where scored; and those of attention, queries with keys
        and weights with values, where a token is seen.
        """
        in_layers: int = sum(leaf.size for leaf in self._layers.values() if leaf.ndim == 3)  # [layer, in, out]
        of_queries: int = math.prod(self._layers["query"].shape[::2])  # all layers' heads, one beside the other
        return 2.0 * (in_layers * tokens + self._width * self._backend.vocab_size * scored + 2 * of_queries * seen)

    def matrix_rate(self) -> float:
        """The most floating-point operations a second of float32 products as large as the largest of a step."""
        _, inputs, outputs = max((leaf.shape for leaf in self._layers.values() if leaf.ndim == 3), key=math.prod)
        rows, repeats = self._backend.budget.tokens, 8
        keys = jax.random.split(jax.random.key(0), 3)
        # Of unit variance throughout: neither infinite nor so small that a CPU takes its slow way.
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
    """Two that scored the same requests in turn: their seconds, run by run, and the last scores of each."""

    theirs: list[float]
    ours: list[float]
    difference: float

    @property
    def ratios(self) -> list[float]:
        """Their seconds over ours, of each pair."""
        return [their / our for their, our in zip(self.theirs, self.ours, strict=True)]


def take_turns(theirs: Callable[[], Timed], ours: Callable[[], Timed], pairs: int) -> Pairs:
    """Time both in turn; which is first changes, so that what slows the machine for a while slows both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    scores: list[list[float]] = [[], []]
    for number in range(pairs):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            timed = (theirs, ours)[which]()
            seconds[which].append(timed.seconds)
            scores[which] = timed.answers
    difference = float(np.abs(np.array(scores[0]) - np.array(scores[1])).max())
    return Pairs(*seconds, difference)


def against_hf(task: str, requests: Requests, peer: TorchPeer, ours: Ours, pairs: int) -> dict[str, str]:
    """Measure one task: what is found, as text, by what it is."""
    counts = count(requests, ours.tokenizer, ours.max_length)

    def hf(part: Requests) -> Timed:
        timed = [peer.answer(kind, part[kind]) for kind in KINDS if kind in part]
        return Timed(sum(one.seconds for one in timed), [x for one in timed for x in one.answers])

    hf({kind: some[:: max(1, len(some) // WARM_UP_REQUESTS)] for kind, some in requests.items()})
    ours.score(requests)  # in full: each shape is compiled
    rates = []

    def measured() -> Timed:
        rates.append(ours.matrix_rate())
        return ours.score(requests)

    timed = take_turns(lambda: hf(requests), measured, pairs)
    if ours.has_compiled:
        print(f"{task}: the last timed run compiled something", file=sys.stderr)
    report, seconds = ours.report, statistics.median(timed.ours)
    token_ratio, ratio = counts.by_hf / counts.distinct, statistics.median(timed.ratios)
    with_weights = ours.matrix_operations(report.tokens_computed, counts.scored, 0)
    operations = ours.matrix_operations(report.tokens_computed, counts.scored, counts.seen)
    return {
        "requests": f"{counts.requests:,}",
        "tokens asked": f"{counts.asked:,}",
        "tokens that hf computes": f"{counts.by_hf:,}",
        "distinct tokens": f"{counts.distinct:,}",
        "token ratio, hf / distinct": f"{token_ratio:.2f}",
        "hf, s (median)": f"{statistics.median(timed.theirs):.2f}",
        "birdie_zmq, s (median)": f"{seconds:.2f}",
        "time ratio, hf / birdie_zmq": f"{ratio:.2f}",
        "  least to most of the pairs": f"{min(timed.ratios):.2f} to {max(timed.ratios):.2f}",
        "time ratio / token ratio": f"{ratio / token_ratio:.2f}",
        "tokens computed": f"{report.tokens_computed:,}",
        "  over distinct tokens": f"{report.tokens_computed / counts.distinct:.3f}",
        "  padding": f"{report.tokens_padding / max(1, report.tokens_computed):.1%}",
        "steps": f"{report.steps:,}",
        "device idle": f"{ours.idle_seconds / timed.ours[-1]:.1%}",
        "largest difference, nats": f"{timed.difference:.1e}",
        "matrix products alone, GFLOP/s": f"{max(rates) / 1e9:.1f}",
        "matrix products of the run, GFLOP/s": f"{operations / seconds / 1e9:.1f}",
        "  of the rate alone": f"{operations / seconds / max(rates):.1%}",
        "  those with weights alone": f"{with_weights / seconds / max(rates):.1%}",
    }


def along_the_path(requests: Requests, lm: BirdieZMQ, ours: Ours, pairs: int) -> dict[str, str]:
    """Measure one task through client, broker and worker, and in process: what is found, as text, by what it is."""

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
    path, alone = statistics.median(timed.theirs), statistics.median(timed.ours)
    return {
        "requests": f"{sum(map(len, requests.values())):,}",
        "through broker and worker, s (median)": f"{path:.2f}",
        "in process, s (median)": f"{alone:.2f}",
        "ratio of the medians": f"{path / alone:.3f}",
        "  least to most of the pairs": f"{min(timed.ratios):.3f} to {max(timed.ratios):.3f}",
        "largest difference, nats": f"{timed.difference:.1e}",
        "states kept": f"{ours.states_kept}",
    }


def table(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Text in aligned columns, a line for each thing that was measured."""
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
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face directory, which both load")
    parser.add_argument("--tasks", nargs="+", metavar="NAME[:SHOTS]", help=f"default: {' '.join(TASKS)}")
    parser.add_argument("--include-path", type=Path, default=INCLUDE_PATH, help="lm_eval's folder of tasks")
    parser.add_argument("--pairs", type=int, default=5, help="how often both are timed in turn")
    parser.add_argument("--hf-batch-size", type=int, default=8, help="the rows of hf's steps; default: 8")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--limit", type=int, help="documents of each task; default: all")
    parser.add_argument("--path", action="store_true", help="client, broker and worker instead of hf; arc_easy_real")
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    # JAX would take most of a GPU for itself, and leave too little for the other process.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")
    if options.device == "cpu":
        jax.config.update("jax_platforms", "cpu")  # type: ignore[no-untyped-call]
    elif jax.default_backend() == "cpu":
        raise SystemExit("JAX finds no GPU here")
    tasks = options.tasks or (("arc_easy_real",) if options.path else TASKS)
    recorded = record(tasks, options.include_path, options.limit)
    ours = Ours(options.model)
    found: dict[str, dict[str, str]] = {}
    about = [
        f"$ {shlex.join(['python', '-m', 'benchmarks.scoring', *sys.argv[1:]])}",
        f"{ours.devices}; {threads()} threads; Python {platform.python_version()}, jax {jax.__version__}",
    ]

    def measure(one: Callable[[str, Requests], dict[str, str]]) -> None:
        for task, requests in recorded.items():
            found[task] = one(task, requests)
            print(f"{task}: {found[task]}", file=sys.stderr, flush=True)

    if options.path:
        arguments: dict[str, Any] = {"model_tag": options.model, "dtype": "float32"}
        with BirdieZMQ(device="cpu" if options.device == "cpu" else None, **arguments) as lm:
            measure(lambda _, requests: along_the_path(requests, lm, ours, options.pairs))
        about.append(
            f"float32; {options.pairs} pairs in turn. The worker starts from the states that its earlier runs have "
            "kept, in process they are computed anew: where 'states kept' is 0, both compute the same."
        )
    else:
        with TorchPeer(options.model, options.device, threads(), options.hf_batch_size) as peer:
            about[-1] += f"; hf: {peer.versions}"
            measure(lambda task, requests: against_hf(task, requests, peer, ours, options.pairs))
        about.append(
            f"float32; hf with batch_size={options.hf_batch_size}; {options.pairs} pairs in turn, ratios are their medians"
        )
    print("\n".join([*about, "", table(found)]))


if __name__ == "__main__":
    main()
