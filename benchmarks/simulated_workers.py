"""A broker and pinned workers for benchmarks, and the time and CPU time that a pass over jobs takes in each of them.

A worker is started with the CPU affinity of one core, which its model process inherits: XLA and the tokenizers create
one thread per core that they may use. Broker and client are not pinned and may use all cores.
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
from birdie_zmq.client.actions import Deliver
from birdie_zmq.client.client import Liveness
from birdie_zmq.client.collector import AnswerCollector
from birdie_zmq.client.job import Job
from birdie_zmq.harness.model_args import parse_model_args
from birdie_zmq.types import Answer

_HEARTBEAT_S = 1.0
_SNAPSHOT_S = 0.5
_POLL_S = 0.05
_START_S = 120.0


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Pin processes that are started inside this context to one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_seconds(process_id: int) -> float:
    """Return the CPU seconds of a process and all its threads, from Linux's per-process clock (nanoseconds)."""
    return time.clock_gettime((~process_id << 3) | 2)


@dataclass(frozen=True)
class Share:
    """The work of one worker in a pass: answers it gave first, tokens with padding, CPU and compile seconds."""

    answers: int
    tokens: int
    cpu_s: float
    compile_s: float


@dataclass(frozen=True)
class Pass:
    """One pass: wall seconds, answers in order, each worker's share, CPU seconds of broker and client, and retries."""

    wall_s: float
    answers: Sequence[Answer]
    shares: Sequence[Share]
    broker_s: float
    client_s: float
    retries: int

    @property
    def tokens(self) -> int:
        """Tokens computed by all workers that are still connected."""
        return sum(share.tokens for share in self.shares)

    @property
    def compiled(self) -> bool:
        """Whether an executable was compiled during the pass, so that its time is not representative."""
        return any(share.compile_s for share in self.shares)

    @property
    def cpu_s(self) -> float:
        """CPU seconds of workers, broker and client."""
        return sum(share.cpu_s for share in self.shares) + self.broker_s + self.client_s


class Worker:
    """A worker process with its model process."""

    def __init__(self, process: subprocess.Popen[bytes], core: int) -> None:
        self.process = process
        self.core = core
        self.is_killed = False

    def cpu_s(self) -> float:
        """Return the CPU seconds of both processes, 0 after they have ended."""
        with contextlib.suppress(OSError, psutil.Error):
            children = psutil.Process(self.process.pid).children()
            return sum(cpu_seconds(pid) for pid in (self.process.pid, *(each.pid for each in children)))
        return 0.0

    def threads(self) -> int:
        """Return the number of XLA compute threads in the model process."""
        tasks = (Path(f"/proc/{each.pid}/task") for each in psutil.Process(self.process.pid).children())
        names = [file.read_text().strip() for folder in tasks for file in folder.glob("*/comm")]
        return names.count("tf_XLAEigen")


class WorkerPool:
    """A broker with a status page, its workers and a client.

    Args:
        folder: An empty folder for the broker's socket and the logs.
        model_args: Model arguments, with ``model_tag``.
        cores: One core for each worker.
    """

    def __init__(self, folder: Path, model_args: Mapping[str, Any], cores: Sequence[int]) -> None:
        self._folder = folder
        self._endpoint = f"ipc://{folder / 'broker'}"
        self.workers: list[Worker] = []
        self._last_status: dict[str, Any] | None = None
        self._broker = self._start("broker", "broker", "--bind", self._endpoint, "--status-port", "0")
        try:
            self._status_url = self._wait_for("broker", self._broker, r"status page at (\S+)")
            for core in cores:
                self.join(core)
            self.client = Client(self._endpoint, parse_model_args(dict(model_args)).model, supervisor=self)
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.client.close()
        self._stop()

    def join(self, core: int) -> Worker:
        """Start another worker on a core and wait until it is registered; it loads the model with its first lease."""
        name = f"worker{len(self.workers)}"
        with pinned(core):
            process = self._start(name, "worker", "--connect", self._endpoint, "--built-in", "--device", "cpu")
        worker = Worker(process, core)
        self.workers.append(worker)
        self._wait_for(name, process, r"(registered) with the broker")
        return worker

    def kill(self, worker: Worker) -> None:
        """Kill a worker with SIGKILL; its model process ends with it."""
        worker.is_killed = True
        worker.process.kill()

    def check(self, liveness: Liveness) -> None:
        """Check, as the client's supervisor, that all processes run.

        Raises:
            SystemExit: A process has ended that was not killed by `kill`.
        """
        del liveness
        expected = [worker.process for worker in self.workers if not worker.is_killed]
        for process in (self._broker, *expected):
            if (status := process.poll()) is not None:
                raise SystemExit(f"process {process.pid} of the benchmark ended with status {status}")

    def status(self) -> dict[str, Any]:
        """Return the broker's status as its JSON page shows it."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self._status_url}status.json", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def _settled_status(self) -> dict[str, Any]:
        """Return the status after each worker has reported all that it has computed."""
        time.sleep(_HEARTBEAT_S + _SNAPSHOT_S + 0.2)
        return self.status()

    def run_pass(self, jobs: Sequence[Job], on_answer: Callable[[int], None] | None = None) -> Pass:
        """Run all jobs once.

        Args:
            jobs: The requests.
            on_answer: Called after answers with the number of answers received so far.
        """
        count = sum(len(job.items) for job in jobs)
        collector = AnswerCollector(count)
        received = 0
        before = self._last_status or self.status()
        cpu_before = [worker.cpu_s() for worker in self.workers]
        broker_s, client_s, began = cpu_seconds(self._broker.pid), time.process_time(), time.monotonic()
        with contextlib.closing(self.client.stream(jobs)) as events:
            for event in events:
                collector.add(event)
                received += len(event.items) if isinstance(event, Deliver) else 0
                if on_answer is not None:
                    on_answer(received)
        answers = collector.result()
        wall_s = time.monotonic() - began
        broker_s, client_s = cpu_seconds(self._broker.pid) - broker_s, time.process_time() - client_s
        cpu_before += [0.0] * (len(self.workers) - len(cpu_before))
        cpu_s = [worker.cpu_s() - then for worker, then in zip(self.workers, cpu_before, strict=True)]
        after = self._last_status = self._settled_status()
        shares = [
            _share(before, after, worker.process.pid, seconds)
            for worker, seconds in zip(self.workers, cpu_s, strict=True)
        ]
        retries = after["totals"]["retries"] - before["totals"]["retries"]
        return Pass(wall_s, answers, shares, broker_s, client_s, retries)

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen([sys.executable, "-m", "birdie_zmq", *arguments], stdout=log, stderr=log)

    def _wait_for(self, name: str, process: subprocess.Popen[bytes], pattern: str) -> str:
        end = time.monotonic() + _START_S
        while (found := re.search(pattern, (self._folder / f"{name}.log").read_text(errors="replace"))) is None:
            if time.monotonic() > end or process.poll() is not None:
                raise SystemExit(f"the {name} did not start; its log:\n{(self._folder / f'{name}.log').read_text()}")
            time.sleep(_POLL_S)
        return found[1]

    def _stop(self) -> None:
        for process in (*(worker.process for worker in self.workers), self._broker):
            if process.poll() is None:
                process.terminate()
            process.wait(60)


def _share(before: Mapping[str, Any], after: Mapping[str, Any], process_id: int, cpu_s: float) -> Share:
    """Return a worker's share from the difference of two statuses; a worker that has ended has no answers."""
    rows = [
        next((row for row in status["workers"] if row["process_id"] == process_id), None) for status in (before, after)
    ]
    then, now = rows
    if now is None:
        return Share(0, 0, cpu_s, 0.0)

    def difference(name: str) -> Any:
        return now[name] - (0 if then is None else then[name])

    return Share(difference("requests_answered"), difference("tokens_computed"), cpu_s, difference("compile_seconds"))
