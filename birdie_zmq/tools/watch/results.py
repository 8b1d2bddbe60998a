"""The results of a watch: a JSONL file that survives the death of the watch at any time.

The first line holds the settings of the evaluation. Then each checkpoint adds, in one write that is synced to disk, a line for
each metric and a last line with its status::

    {"settings": {"tasks": ["demo_choice"], …}}
    {"step": 100, "task": "demo_choice", "metric": "acc", "filter": "none", "value": 0.5, "stderr": 0.05}
    {"step": 100, "checkpoint": "/run/step_100", "status": "evaluated", "state": "…", "seconds": 3.2, …}

Lines behind the last status or settings are the rest of a write that was cut off; they are removed when the file is opened.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat, TypeGuard, get_args

from birdie_zmq.errors import UsageError
from birdie_zmq.tools.watch.core import Outcome, Sighting, Status

RESULTS_FILE = "results.jsonl"


@dataclass(frozen=True)
class Metric:
    """A metric of a task at a step; `stderr` is None if lm_eval computes none."""

    step: int
    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None


@dataclass(frozen=True)
class Measured:
    """The evaluation of one checkpoint.

    Attributes:
        metrics: Its metrics.
        details: What the status line holds besides: identity, seconds and compilations.
    """

    metrics: Sequence[Metric]
    details: Mapping[str, Any]


class ResultsFile:
    """The results of one run, open for this process alone.

    Args:
        folder: The output folder, which is created if necessary.
        settings: What all checkpoints of the file have in common, as JSON values.

    Attributes:
        metrics: All metrics so far, in the order of their evaluation.
        outcomes: The last status of each step.

    Raises:
        UsageError: The file cannot be written, another watch has it open, it was made with other settings, or it is not a
            results file.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path = folder / RESULTS_FILE
        self.metrics: list[Metric] = []
        self.outcomes: dict[int, Outcome] = {}
        with contextlib.ExitStack() as resources:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
                resources.callback(os.close, self._file)
                self._lock(folder)
                self._recover(settings)
            except OSError as error:
                raise UsageError(f"cannot write the results to {self.path}: {error.strerror}") from error
            self._resources = resources.pop_all()

    def close(self) -> None:
        """Close the file, so that another watch may open it; a second call does nothing."""
        self._resources.close()

    def _lock(self, folder: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"another birdie-zmq watch writes to {folder}; end it first, or give another --output"
            ) from error

    def _recover(self, settings: Mapping[str, Any]) -> None:
        """Read the complete records, and cut off the rest of an incomplete one."""
        content = self.path.read_bytes()
        end = position = 0
        pending: list[Metric] = []
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            position += len(line)
            record = _parse(line)
            if record is None and position < len(content):
                raise UsageError(
                    f"line {number} of {self.path} is not JSON; move the file away, or give another --output"
                )
            if record is None:
                break
            if "settings" in record:
                self._check_settings(record["settings"], settings)
            elif "metric" in record:
                pending.append(read_metric(record))
                continue
            elif record.get("status") in get_args(Status):
                self.metrics += pending
                self.outcomes[int(record["step"])] = Outcome(record["status"], str(record.get("state", "")))
            else:
                raise UsageError(
                    f"line {number} of {self.path} is not a result of birdie-zmq watch; give another --output"
                )
            pending, end = [], position
        if end < len(content):
            os.ftruncate(self._file, end)
        if end == 0:
            self._append([{"settings": settings}])

    def _check_settings(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        differing = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        if differing:
            texts = [f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in differing]
            raise UsageError(
                f"{self.path} was made with other settings, and one curve must not mix two: {'; '.join(texts)}. Give another "
                "--output"
            )

    def add(
        self, sighting: Sighting, status: Status, measured: Measured | None = None, error: str | None = None
    ) -> None:
        """Append what became of a checkpoint; when this returns, it survives a crash of the machine.

        Raises:
            UsageError: The file cannot be written, for example because the disk is full.
        """
        metrics = () if measured is None else measured.metrics
        last = {"step": sighting.step, "checkpoint": sighting.path, "status": status, "state": sighting.state}
        last |= {} if error is None else {"error": error}
        last |= {} if measured is None else measured.details
        try:
            self._append([*map(_record, metrics), last])
        except OSError as failure:
            raise UsageError(f"cannot write the results to {self.path}: {failure.strerror}") from failure
        self.metrics += metrics
        self.outcomes[sighting.step] = Outcome(status, sighting.state)

    def _append(self, records: Sequence[Mapping[str, Any]]) -> None:
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode()
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, lines) != len(lines):
                raise OSError(None, "the disk is full")
            os.fsync(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)
            raise


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line; None for an incomplete or damaged one."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _record(metric: Metric) -> dict[str, Any]:
    return {
        "step": metric.step,
        "task": metric.task,
        "metric": metric.metric,
        "filter": metric.filter,
        "value": _to_json(metric.value),
        "stderr": None if metric.stderr is None else _to_json(metric.stderr),
    }


def read_metric(record: Mapping[str, Any]) -> Metric:
    """Return the metric of a line of the results."""
    stderr = record["stderr"]
    return Metric(
        int(record["step"]),
        str(record["task"]),
        str(record["metric"]),
        str(record["filter"]),
        float(record["value"]),
        None if stderr is None else float(stderr),
    )


def scalars(metrics: Sequence[Metric]) -> dict[str, float]:
    """Return metrics and their standard errors by name, as trackers take them: ``task/metric`` and ``task/metric_stderr``."""
    found = {}
    for metric in metrics:
        suffix = "" if metric.filter == "none" else f",{metric.filter}"
        found[f"{metric.task}/{metric.metric}{suffix}"] = metric.value
        if metric.stderr is not None:
            found[f"{metric.task}/{metric.metric}_stderr{suffix}"] = metric.stderr
    return found


def _to_json(value: float) -> float | str:
    """Return a number as JSON has it: infinities and NaN are strings, which `float` reads."""
    return value if math.isfinite(value) else str(value)


def metrics_of(step: int, results: Mapping[str, Mapping[str, Any]]) -> list[Metric]:
    """Return the numbers in the ``results`` of lm_eval, with their standard errors.

    Args:
        step: The step of the checkpoint.
        results: For each task, values under ``metric,filter`` and standard errors under ``metric_stderr,filter``.
    """
    found = []
    for task, values in results.items():
        for key, value in values.items():
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            stderr = values.get(f"{metric}_stderr,{name}")
            found.append(Metric(step, task, metric, name, float(value), float(stderr) if _is_number(stderr) else None))
    return found


def _is_number(value: object) -> TypeGuard[SupportsFloat]:
    """Return whether a value is a number, of Python or of NumPy; lm_eval writes "N/A" where there is none."""
    return hasattr(value, "__float__") and not isinstance(value, bool)
