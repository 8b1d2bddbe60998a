"""The files of a run: which there are, the newest of each task, and the metrics in its results."""

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
    """A run as it lies on the disk.

    Attributes:
        folder: What was given.
        samples: The newest file of samples of each task.
        metrics: Of each task, the metrics by their names.
        notes: What was passed over.
    """

    folder: Path
    samples: dict[str, Path]
    metrics: dict[str, dict[str, float]]
    notes: list[str]


def find_run(folder: Path) -> Run:
    """The newest files of a run's folder, or of folders in it.

    Raises:
        UsageError: There are no samples, or the results cannot be read.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; give what --output_path named")
    found: dict[str, list[tuple[str, Path]]] = {}
    for path in folder.rglob("samples_*.jsonl"):
        if match := _SAMPLES.fullmatch(path.name):
            found.setdefault(match["task"], []).append((match["time"], path))
    if not found:
        raise UsageError(
            f"{folder} holds no samples_TASK_TIME.jsonl; run lm_eval with --log_samples --output_path {folder}"
        )
    samples, notes = {}, []
    for task, files in sorted(found.items()):
        samples[task] = max(files)[1]
        if len(files) > 1:
            notes.append(f"{folder} holds {len(files)} results of {task}; the newest is taken: {samples[task].name}")
    metrics: dict[str, dict[str, float]] = {}
    results = [
        (match["time"], path) for path in folder.rglob("results_*.json") if (match := _RESULTS.fullmatch(path.name))
    ]
    for _, path in sorted(results):  # A newer file goes over an older one, task by task.
        metrics.update(_metrics(path))
    return Run(folder, samples, metrics, notes)


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of a file, one at a time.

    Raises:
        UsageError: A line is not what lm_eval writes; it is named.
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
    """Each task's metrics, without their standard errors; the filter's name stays where there is one."""
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
        raise UsageError(f"{path} is no file of results: {type(error).__name__}: {error}") from error
