"""Finds the files of a run: the newest samples of each task, and the metrics in its results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from birdie_zmq.errors import UsageError
from birdie_zmq.tools.compare.samples import Sample, read_sample

_SAMPLES = re.compile(r"samples_(?P<task>.+)_(?P<time>\d{4}-\d\d-\d\dT[\d.:-]+)\.jsonl")
_RESULTS = re.compile(r"results_(?P<time>\d{4}-\d\d-\d\dT[\d.:-]+)\.json")


@dataclass(frozen=True)
class Run:
    """The files of a run on disk.

    Attributes:
        folder: The folder that the user named.
        samples: The newest samples file of each task.
        metrics: The metrics of each task, by name.
        notes: Messages about ignored files.
    """

    folder: Path
    samples: dict[str, Path]
    metrics: dict[str, dict[str, float]]
    notes: list[str]


def find_run(folder: Path) -> Run:
    """Find the newest files in a run's folder and its subfolders.

    Raises:
        UsageError: There are no samples, or the results cannot be read.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; pass the --output_path of the run")
    found: dict[str, list[tuple[str, Path]]] = {}
    for path in folder.rglob("samples_*.jsonl"):
        if match := _SAMPLES.fullmatch(path.name):
            found.setdefault(match["task"], []).append((match["time"], path))
    if not found:
        raise UsageError(
            f"{folder} has no samples_TASK_TIME.jsonl; run lm_eval with --log_samples --output_path {folder}"
        )
    samples, notes = {}, []
    for task, files in sorted(found.items()):
        samples[task] = max(files)[1]
        if len(files) > 1:
            notes.append(f"{folder} has {len(files)} results of {task}; using the newest: {samples[task].name}")
    metrics: dict[str, dict[str, float]] = {}
    results = [
        (match["time"], path) for path in folder.rglob("results_*.json") if (match := _RESULTS.fullmatch(path.name))
    ]
    for _, path in sorted(results):  # A newer file overwrites an older one, task by task.
        metrics.update(_metrics(path))
    return Run(folder, samples, metrics, notes)


def read_samples(path: Path) -> Iterator[Sample]:
    """Yield the samples of a file.

    Raises:
        UsageError: A line is not a sample as lm_eval writes it; the message has the line number.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        yield read_sample(line)
                    except UsageError as error:
                        raise UsageError(f"{path}, line {number}: {error.message}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def _metrics(path: Path) -> dict[str, dict[str, float]]:
    """Return the metrics of each task, without standard errors; names keep the filter unless it is ``none``."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(task): {
                str(name).removesuffix(",none"): float(value)
                for name, value in values.items()
                if isinstance(value, int | float) and "," in name and "_stderr," not in name
            }
            for task, values in found["results"].items()
        }
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(f"{path} is not a results file of lm_eval: {type(error).__name__}: {error}") from error
