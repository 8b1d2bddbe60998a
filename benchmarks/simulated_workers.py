"""A broker and workers for a benchmark, each worker on a core of its own, and what a pass over some jobs takes of each.

A worker is started with the affinity of one core, which its model process inherits: XLA and the tokenizers make as many threads
as there are cores that they may use. Broker and client are pinned to nothing and take what they need from all cores.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from birdie_zmq.client import Client
from birdie_zmq.client.client import Answer, Pulse
from birdie_zmq.client.core import Job
from birdie_zmq.harness.model_args import read_arguments

_HEARTBEAT_S = 1.0
_SNAPSHOT_S = 0.5
_POLL_S = 0.05
_START_S = 120.0


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started meanwhile runs on one core alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(process_id: int) -> float:
    """CPU seconds of a process with all its threads, to the nanosecond: Linux's clock of that process."""
    return time.clock_gettime((~process_id << 3) | 2)


@dataclass(frozen=True)
class Share:
    """What one worker did in a pass: answers that came from it first, tokens with padding, CPU and compile seconds."""

    answers: int
    tokens: int
    cpu_s: float
    compile_s: float


@dataclass(frozen=True)
class Pass:
    """One pass: seconds, the answers by number, each worker's share, and the CPU seconds of broker and client."""

    wall_s: float
    answers: Sequence[Answer]
    shares: Sequence[Share]
    broker_s: float
    client_s: float
    losses: int

    @property
    def tokens(self) -> int:
        """Of all workers that are still there."""
        return sum(share.tokens for share in self.shares)

    @property
    def compiled(self) -> bool:
        """Whether a program was made meanwhile, so that its time says nothing."""
        return any(share.compile_s for share in self.shares)

    @property
    def cpu_s(self) -> float:
        """Of everybody."""
        return sum(share.cpu_s for share in self.shares) + self.broker_s + self.client_s


class Worker:
    """A worker process, and the model process that it has."""

    def __init__(self, process: subprocess.Popen[bytes], core: int) -> None:
        self.process = process
        self.core = core
        self.is_killed = False

    def cpu_s(self) -> float:
        """CPU seconds of both, 0 once they are gone."""
        with contextlib.suppress(OSError, psutil.Error):
            below = psutil.Process(self.process.pid).children()
            return sum(cpu_seconds(pid) for pid in (self.process.pid, *(each.pid for each in below)))
        return 0.0

    def threads(self) -> int:
        """In how many threads XLA computes in the model process."""
        tasks = (Path(f"/proc/{each.pid}/task") for each in psutil.Process(self.process.pid).children())
        names = [file.read_text().strip() for folder in tasks for file in folder.glob("*/comm")]
        return names.count("tf_XLAEigen")


class WorkerPool:
    """A broker with a status page, its workers, and a client.

    Args:
        folder: An empty folder, for the broker's socket and the logs.
        words: The model_args, with ``model_tag``.
        cores: One for each worker.
    """

    def __init__(self, folder: Path, words: Mapping[str, Any], cores: Sequence[int]) -> None:
        self._folder = folder
        self._endpoint = f"ipc://{folder / 'broker'}"
        self.workers: list[Worker] = []
        self._told: dict[str, Any] | None = None
        self._broker = self._start("broker", "broker", "--bind", self._endpoint, "--status-port", "0")
        try:
            self._page = self._wait_for("broker", self._broker, r"status page at (\S+)")
            for core in cores:
                self.join(core)
            self.client = Client(self._endpoint, read_arguments(dict(words)).model, supervisor=self)
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.client.close()
        self._end()

    def join(self, core: int) -> Worker:
        """Start another worker on a core, and wait until it is registered; it loads its model with its first work."""
        name = f"worker{len(self.workers)}"
        with pinned(core):
            process = self._start(name, "worker", "--connect", self._endpoint, "--built-in", "--device", "cpu")
        worker = Worker(process, core)
        self.workers.append(worker)
        self._wait_for(name, process, r"(registered) with the broker")
        return worker

    def kill(self, worker: Worker) -> None:
        """Kill a worker by SIGKILL; its model process ends with it."""
        worker.is_killed = True
        worker.process.kill()

    def check(self, pulse: Pulse) -> None:
        """Do not wait for processes that have ended, as the client's supervisor.

        Raises:
            SystemExit: One has, which was not killed here.
        """
        del pulse
        missed = [worker.process for worker in self.workers if not worker.is_killed]
        for process in (self._broker, *missed):
            if (status := process.poll()) is not None:
                raise SystemExit(f"process {process.pid} of the benchmark ended with status {status}")

    def status(self) -> dict[str, Any]:
        """What the broker's page shows."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self._page}status.json", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def _settled_status(self) -> dict[str, Any]:
        """The same, once each worker has told all that it has computed."""
        time.sleep(_HEARTBEAT_S + _SNAPSHOT_S + 0.2)
        return self.status()

    def passed(self, jobs: Sequence[Job], meanwhile: Callable[[int], None] | None = None) -> Pass:
        """Ask for everything once.

        Args:
            jobs: What is asked.
            meanwhile: Called with the number of answers that are there, as each one comes.
        """
        count = sum(len(job.items) for job in jobs)
        there = 0

        def answered(item: int, answer: Answer) -> None:
            nonlocal there
            del item, answer
            there += 1
            if meanwhile is not None:
                meanwhile(there)

        before = self._told or self.status()
        cpu_before = [worker.cpu_s() for worker in self.workers]
        broker_s, client_s, began = cpu_seconds(self._broker.pid), time.process_time(), time.monotonic()
        answers = self.client.run(jobs, count, answered)
        wall_s = time.monotonic() - began
        broker_s, client_s = cpu_seconds(self._broker.pid) - broker_s, time.process_time() - client_s
        cpu_before += [0.0] * (len(self.workers) - len(cpu_before))
        cpu_s = [worker.cpu_s() - then for worker, then in zip(self.workers, cpu_before, strict=True)]
        after = self._told = self._settled_status()
        shares = [
            _share(before, after, worker.process.pid, seconds)
            for worker, seconds in zip(self.workers, cpu_s, strict=True)
        ]
        losses = after["totals"]["losses"] - before["totals"]["losses"]
        return Pass(wall_s, answers, shares, broker_s, client_s, losses)

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen([sys.executable, "-m", "birdie_zmq", *arguments], stdout=log, stderr=log)

    def _wait_for(self, name: str, process: subprocess.Popen[bytes], pattern: str) -> str:
        end = time.monotonic() + _START_S
        while (found := re.search(pattern, (self._folder / f"{name}.log").read_text(errors="replace"))) is None:
            if time.monotonic() > end or process.poll() is not None:
                raise SystemExit(f"the {name} did not start:\n{(self._folder / f'{name}.log').read_text()}")
            time.sleep(_POLL_S)
        return found[1]

    def _end(self) -> None:
        for process in (*(worker.process for worker in self.workers), self._broker):
            if process.poll() is None:
                process.terminate()
            process.wait(60)


def _share(before: Mapping[str, Any], after: Mapping[str, Any], process_id: int, cpu_s: float) -> Share:
    """What the status says of one worker, by its difference; a worker that is gone has its answers no more."""
    rows = [
        next((row for row in status["workers"] if row["process_id"] == process_id), None) for status in (before, after)
    ]
    then, now = rows
    if now is None:
        return Share(0, 0, cpu_s, 0.0)

    def difference(name: str) -> Any:
        return now[name] - (0 if then is None else then[name])

    return Share(difference("requests_answered"), difference("tokens_computed"), cpu_s, difference("compile_seconds"))
