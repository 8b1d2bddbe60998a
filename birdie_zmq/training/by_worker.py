"""Hands the params of a training loop to ``birdie-zmq watch``, which evaluates them in other processes.

This module needs neither lm_eval nor jax, so it can be used in the environment of a trainer.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from birdie_zmq.errors import UnavailableError, UsageError
from birdie_zmq.processes.spawn import module_command, package_environment, start
from birdie_zmq.tools.watch.results import RESULTS_FILE, Metric, read_metric, scalars
from birdie_zmq.training.common import Log, check_every

logger = logging.getLogger("birdie_zmq.training")

_POLL_S = 0.5


class WorkerEvaluation:
    """Hands the params of every N-th step to ``birdie-zmq watch`` and goes on; its results are logged when they are there.

    A step that has results in the folder already, from an earlier loop, is not evaluated again.

    A call takes as long as saving the params does. The watch is a process of its own: it evaluates one checkpoint after
    another, with an embedded worker or at a broker, and ends with this object or with this process. Each checkpoint is
    deleted when it has been evaluated; results, curve and lm_eval's files stay in the folder.

    Args:
        folder: Where checkpoints and results are written. Results of an earlier loop in it are continued.
        save: Writes params into an empty directory, in a form that the worker reads: a Hugging Face directory with its
            tokenizer, the format of a JAX trainer, or what the ``api.py`` of the worker reads.
        log: Receives the metrics, in the thread of the loop.
        options: The options of ``birdie-zmq watch`` and ``lm_eval run``, such as ``["--tasks", "demo_rolling", "--device",
            "cuda:1"]``; ``--any-format`` if the directories have a form of your own.
        every: Number of steps between two evaluations.
        python: The Python of the environment in which birdie-zmq is installed with all that it needs; by default this
            one. Some trainers need other versions of jax or transformers than birdie-zmq.

    Raises:
        UsageError: `every` is not above 0, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        save: Callable[[Path, Any], None],
        log: Log,
        options: Sequence[str],
        *,
        every: int,
        python: str | Path = sys.executable,
    ) -> None:
        self._every = check_every(every)
        self._save = save
        self._log = log
        self._checkpoints = folder.absolute() / "checkpoints"
        self._output = folder.absolute() / "curve"
        try:
            self._checkpoints.mkdir(parents=True, exist_ok=True)
            self._output.mkdir(exist_ok=True)
            self._stop_file.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"{folder} cannot be written: {error.strerror}") from error
        self._done, self._reported_bytes = _recorded(self._results)
        self._waiting: set[int] = set()
        self._metrics: list[Metric] = []
        # Renamed directories are complete, so they need not settle.
        _, *arguments = module_command("birdie_zmq", "watch", f"{self._checkpoints}/step_*")
        command = [str(python), *arguments, "--output", str(self._output)]
        command += ["--lifeline", "--settle-seconds", "0.001", "--poll-seconds", "0.5", *options]
        self._process = start(command, package_environment(os.environ), stdin=subprocess.PIPE)

    @property
    def _results(self) -> Path:
        return self._output / RESULTS_FILE

    @property
    def _stop_file(self) -> Path:
        return self._output / "stop"

    def __call__(self, step: int, params: Any = None) -> None:
        """Save the params if it is time, and log what has been evaluated meanwhile.

        Args:
            step: The step.
            params: What `save` takes.

        Raises:
            UnavailableError: The watch has ended; its output says why.
        """
        if step % self._every == 0 and step not in self._done:
            temporary, final = self._checkpoints / f"step_{step}.tmp", self._checkpoints / f"step_{step}"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            self._save(temporary, params)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            self._waiting.add(step)
        self.poll()

    def poll(self) -> None:
        """Log what has been evaluated since the last call.

        Raises:
            UnavailableError: The watch has ended although checkpoints wait.
        """
        ended = self._process.poll()
        if self._results.exists():
            with self._results.open("rb") as file:
                file.seek(self._reported_bytes)
                content = file.read()
            complete = content[: content.rfind(b"\n") + 1]
            self._reported_bytes += len(complete)
            for line in complete.splitlines():
                self._read(json.loads(line))
        if ended is not None and self._waiting:
            raise UnavailableError(
                f"birdie-zmq watch ended with exit status {ended}; its output is in this process's standard error. Steps "
                f"without results: {', '.join(map(str, sorted(self._waiting)))}"
            )

    def _read(self, record: Mapping[str, Any]) -> None:
        if "metric" in record:
            self._metrics.append(read_metric(record))
        elif "status" in record:
            step, metrics, self._metrics = int(record["step"]), self._metrics, []
            self._waiting.discard(step)
            self._done.add(step)
            if record["status"] == "evaluated":
                self._log(step, scalars(metrics))
            else:
                logger.warning("step %d is %s: %s", step, record["status"], record.get("error", ""))
            shutil.rmtree(self._checkpoints / f"step_{step}", ignore_errors=True)

    def close(self, timeout_s: float = 3600.0) -> None:
        """Wait until all saved checkpoints are evaluated, log them, and end the watch; a second call does nothing.

        Args:
            timeout_s: Seconds to wait. Checkpoints that are left then stay in the folder, and the next loop continues.

        Raises:
            UnavailableError: The watch has ended although checkpoints wait.
        """
        try:
            end = time.monotonic() + timeout_s
            while self._waiting and time.monotonic() < end:
                self.poll()
                time.sleep(_POLL_S if self._waiting else 0.0)
        finally:
            self._end()

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._stop_file.touch()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._end()


def _recorded(path: Path) -> tuple[set[int], int]:
    """Return the evaluated steps in a results file, and its size up to the last complete checkpoint; 0 without a file."""
    done: set[int] = set()
    size = position = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        position += len(line)
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the rest of a write that was cut off
        if "metric" not in record:
            size = position
        if record.get("status") == "evaluated":
            done.add(int(record["step"]))
    return done, size
