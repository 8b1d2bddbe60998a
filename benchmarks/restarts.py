"""What it costs to kill a run again and again and start it anew with ``resume=``: ``python -m benchmarks.restarts``.

A broker and a worker are started that outlive the runs. lm_eval is run once from beginning to end; then it is run with a
new journal and killed (SIGKILL) as often as asked, each time when a seeded share of the answers is in the journal, and
run to its end. The metrics of both, and their samples one by one, are held against each other, and what the worker
computed for the one against what it computed for the other.
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
from birdie_zmq.harness.model_args import read_arguments
from birdie_zmq.types import RunStatistics

ROOT = Path(__file__).resolve().parent.parent
DEMO_TASKS = ROOT / "examples" / "tasks"
_TOLERANCE = 1e-4


@contextmanager
def served(folder: Path, device: str) -> Iterator[str]:
    """A broker and a worker with the built-in page, and the broker's endpoint."""
    endpoint = f"ipc://{folder / 'broker'}"
    log = (folder / "served.log").open("wb")
    command = [sys.executable, "-m", "birdie_zmq"]
    with log:
        broker = subprocess.Popen([*command, "broker", "--bind", endpoint], stdout=log, stderr=log)
        worker = subprocess.Popen(
            [*command, "worker", "--connect", endpoint, "--built-in", "--device", device], stdout=log, stderr=log
        )
        try:
            yield endpoint
        finally:
            for process in (worker, broker):
                process.terminate()
                process.wait(60)


@dataclass(frozen=True)
class Options:
    """What is evaluated, and how."""

    model: str
    tasks: str
    include_path: Path
    endpoint: str


def start(options: Options, journal: Path, output: Path) -> subprocess.Popen[bytes]:
    """An lm_eval run with a journal."""
    arguments = f"{options.model},endpoint={options.endpoint},resume={journal}"
    command = [sys.executable, "-m", "birdie_zmq", "lm_eval", "--model", "birdie_zmq", "--model_args", arguments]
    command += ["--include_path", str(options.include_path), "--tasks", options.tasks]
    command += ["--log_samples", "--output_path", str(output)]
    with (output.parent / "runs.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def finish(run: subprocess.Popen[bytes], output: Path) -> None:
    """Wait for a run to end well."""
    if run.wait() != 0:
        raise SystemExit(f"lm_eval failed:\n{(output.parent / 'runs.log').read_text(errors='replace')[-3000:]}")


def answers_in(journal: Path) -> int:
    """How many answers a journal holds."""
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


def computed(options: Options) -> RunStatistics:
    """What the worker has computed so far."""
    words = dict(word.split("=", 1) for word in options.model.split(","))
    with Client(options.endpoint, read_arguments(words).model) as client:
        return client.describe().report


def results_of(output: Path) -> tuple[dict[str, Any], dict[tuple[str, int, str], Any]]:
    """The metrics of a run by task, and the answers of its samples by task, document and filter."""
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
    """The largest difference of the numbers in two nested answers; infinite where anything else differs."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max((largest_difference(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((largest_difference(one[key], other[key]) for key in one), default=0.0)
    try:
        return abs(float(one) - float(other))
    except (TypeError, ValueError):
        return 0.0 if one == other else float("inf")


def main() -> None:
    """Run, kill, start again, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="model_tag=demo", help="model_args; default: %(default)s")
    parser.add_argument("--tasks", default="demo_choice,demo_rolling,demo_generate")
    parser.add_argument("--include_path", type=Path, default=DEMO_TASKS)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    chance = random.Random(given.seed)  # noqa: S311 - the seed matters, not the secrecy
    with tempfile.TemporaryDirectory(prefix="birdie-") as name, served(Path(name), given.device) as endpoint:
        folder = Path(name)
        options = Options(given.model, given.tasks, given.include_path, endpoint)
        began = time.monotonic()
        finish(start(options, folder / "undisturbed", folder / "A"), folder / "A")
        undisturbed_s = time.monotonic() - began
        first = computed(options)
        total = answers_in(folder / "undisturbed")

        began = time.monotonic()
        journal = folder / "journal"
        kept = []
        for number in range(given.kills):
            target = int(total * (number + chance.random()) / given.kills)
            run = start(options, journal, folder / "B")
            while answers_in(journal) <= target and run.poll() is None:
                time.sleep(0.005)
            if run.poll() is not None:
                raise SystemExit("a run was over before it could be killed; take more documents or fewer kills")
            run.kill()
            run.wait()
            kept.append(answers_in(journal))
        finish(start(options, journal, folder / "B"), folder / "B")
        disturbed_s = time.monotonic() - began
        second = computed(options)

        metrics, samples = results_of(folder / "A")
        metrics_again, samples_again = results_of(folder / "B")
        metric = largest_difference(metrics, metrics_again)
        differences = [largest_difference(samples[key], samples_again[key]) for key in samples]
        tokens, tokens_again = first.tokens_computed, second.tokens_computed - first.tokens_computed
        print(f"{total} answers; killed when {', '.join(map(str, kept))} were in the journal (seed {given.seed})")
        print(f"samples missing: {len(samples.keys() ^ samples_again.keys())} of {len(samples)}")
        print(f"largest difference of an answer: {max(differences):.1e}")
        print(f"largest difference of a metric: {metric:.1e}")
        print(f"answers in the journal more than once: {answers_in(journal) - total}")
        print(f"tokens computed: {tokens:,} undisturbed, {tokens_again:,} with kills: {tokens_again / tokens - 1:+.1%}")
        print(
            f"seconds: {undisturbed_s:.0f} undisturbed, {disturbed_s:.0f} with kills (each start of lm_eval included)"
        )
        if metric > _TOLERANCE or samples.keys() != samples_again.keys() or max(differences) > _TOLERANCE:
            raise SystemExit("the runs differ")


if __name__ == "__main__":
    main()
