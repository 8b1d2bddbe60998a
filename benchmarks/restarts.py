"""Measure the cost of killing a run repeatedly and resuming it with ``resume=``: ``python -m benchmarks.restarts``.

One broker and one worker serve all runs. lm_eval first runs undisturbed. Then it runs with a new journal and is killed
(SIGKILL) ``--kills`` times, each time when a seeded share of the answers is in the journal, and finally runs to its
end. The benchmark compares the metrics of both, their samples one by one, and the tokens that the worker computed for
each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from birdie_zmq.client import Client
from birdie_zmq.harness.model_args import parse_model_args
from birdie_zmq.types import RunStatistics

ROOT = Path(__file__).resolve().parent.parent
DEMO_TASKS = ROOT / "examples" / "tasks"
_TOLERANCE = 1e-4


@contextmanager
def broker_and_worker(folder: Path, *options: str) -> Iterator[str]:
    """Run a broker and a worker with these options; yield the broker's endpoint."""
    endpoint = f"ipc://{folder / 'broker'}"
    log = (folder / "served.log").open("wb")
    command = [sys.executable, "-m", "birdie_zmq"]
    with log:
        broker = subprocess.Popen([*command, "broker", "--bind", endpoint], stdout=log, stderr=log)
        worker = subprocess.Popen([*command, "worker", "--connect", endpoint, *options], stdout=log, stderr=log)
        try:
            while not (folder / "broker").exists() and broker.poll() is None:
                time.sleep(0.05)
            yield endpoint
        finally:
            for process in (worker, broker):
                process.terminate()
                process.wait(60)


@dataclass(frozen=True)
class Options:
    """Arguments of the lm_eval runs."""

    model: str
    tasks: str
    include_path: Path
    endpoint: str


def start_run(options: Options, journal: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start an lm_eval run with a journal."""
    arguments = f"{options.model},endpoint={options.endpoint},resume={journal}"
    command = [sys.executable, "-m", "birdie_zmq", "lm_eval", "--model", "birdie_zmq", "--model_args", arguments]
    command += ["--include_path", str(options.include_path), "--tasks", options.tasks]
    command += ["--log_samples", "--output_path", str(output)]
    with (output.parent / "runs.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def wait_for_run(run: subprocess.Popen[bytes], output: Path) -> None:
    """Wait for a run to end.

    Raises:
        SystemExit: It failed.
    """
    if run.wait() != 0:
        raise SystemExit(f"lm_eval failed:\n{(output.parent / 'runs.log').read_text(errors='replace')[-3000:]}")


def count_answers(journal: Path) -> int:
    """Return the number of answers in a journal."""
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


def worker_statistics(options: Options) -> RunStatistics:
    """Return the statistics of the worker since its start."""
    model_args = dict(argument.split("=", 1) for argument in options.model.split(","))
    with Client(options.endpoint, parse_model_args(model_args).model) as client:
        return client.describe().report


def results_of(output: Path) -> tuple[dict[str, Any], dict[tuple[str, int, str], Any]]:
    """Return the metrics of a run by task, and the responses of its samples by task, document and filter."""
    (results,) = output.rglob("results_*.json")
    metrics = json.loads(results.read_text())["results"]
    samples = {}
    for file in output.rglob("samples_*.jsonl"):
        for line in file.read_text().splitlines():
            sample = json.loads(line)
            task = file.name.removeprefix("samples_").rpartition("_")[0]
            samples[task, sample["doc_id"], sample["filter"]] = sample["resps"]
    return metrics, samples


def largest_difference(one: Any, other: Any) -> float:
    """Return the largest difference of numbers in two nested values; infinite if anything else differs."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max((largest_difference(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((largest_difference(one[key], other[key]) for key in one), default=0.0)
    try:
        return abs(float(one) - float(other))
    except (TypeError, ValueError):
        return 0.0 if one == other else float("inf")


def main() -> None:
    """Run, kill, resume, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="model_tag=demo", help="model_args; default: %(default)s")
    parser.add_argument("--tasks", default="demo_choice,demo_rolling,demo_generate")
    parser.add_argument("--include_path", type=Path, default=DEMO_TASKS)
    parser.add_argument("--kills", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)  # noqa: S311 - the seed matters, not the secrecy
    with (
        tempfile.TemporaryDirectory(prefix="birdie-") as name,
        broker_and_worker(Path(name), "--built-in", "--device", arguments.device) as endpoint,
    ):
        folder = Path(name)
        options = Options(arguments.model, arguments.tasks, arguments.include_path, endpoint)
        began = time.monotonic()
        wait_for_run(start_run(options, folder / "undisturbed", folder / "A"), folder / "A")
        undisturbed_s = time.monotonic() - began
        first = worker_statistics(options)
        total = count_answers(folder / "undisturbed")

        began = time.monotonic()
        journal = folder / "journal"
        stored_answers = []
        for number in range(arguments.kills):
            target = int(total * (number + rng.random()) / arguments.kills)
            run = start_run(options, journal, folder / "B")
            while count_answers(journal) <= target and run.poll() is None:
                time.sleep(0.005)
            if run.poll() is not None:
                raise SystemExit("a run ended before it could be killed; use more documents or fewer --kills")
            run.kill()
            run.wait()
            stored_answers.append(count_answers(journal))
        wait_for_run(start_run(options, journal, folder / "B"), folder / "B")
        disturbed_s = time.monotonic() - began
        second = worker_statistics(options)

        metrics, samples = results_of(folder / "A")
        metrics_again, samples_again = results_of(folder / "B")
        metric = largest_difference(metrics, metrics_again)
        differences = [largest_difference(samples[key], samples_again[key]) for key in samples]
        tokens, tokens_again = first.tokens_computed, second.tokens_computed - first.tokens_computed
        print(
            f"{total} answers; killed after {', '.join(map(str, stored_answers))} in the journal (seed {arguments.seed})"
        )
        print(f"samples missing: {len(samples.keys() ^ samples_again.keys())} of {len(samples)}")
        print(f"largest difference between answers: {max(differences):.1e}")
        print(f"largest difference between metrics: {metric:.1e}")
        print(f"duplicate answers in the journal: {count_answers(journal) - total}")
        print(f"tokens computed: {tokens:,} undisturbed, {tokens_again:,} with kills: {tokens_again / tokens - 1:+.1%}")
        print(
            f"seconds: {undisturbed_s:.0f} undisturbed, {disturbed_s:.0f} with kills (each start of lm_eval included)"
        )
        if metric > _TOLERANCE or samples.keys() != samples_again.keys() or max(differences) > _TOLERANCE:
            raise SystemExit("the disturbed run differs from the undisturbed one")


if __name__ == "__main__":
    main()
