"""Real brokers and workers, started as a person starts them, and a way to see that nothing of them is left."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples" / "models"
DEADLINE_S = 120.0


def wait_until(true: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Poll until something is true; fail the test by its name when it is not in time."""
    end = time.monotonic() + deadline_s
    while not true():
        if time.monotonic() > end:
            pytest.fail(f"{what} did not happen within {deadline_s:.0f} s")
        time.sleep(0.02)


def descendants(pid: int) -> list[psutil.Process]:
    """All processes below one, at this moment."""
    try:
        below: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
        return below
    except psutil.NoSuchProcess:
        return []


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a zombie has ended."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@dataclass
class Program:
    """A started program and the file that its output goes to."""

    process: subprocess.Popen[bytes]
    log: Path
    seen: list[psutil.Process] = field(default_factory=list)

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the output matches."""
        wait_until(lambda: re.search(pattern, self.output) is not None, f"{pattern!r} in the output:\n{self.output}\n")
        match = re.search(pattern, self.output)
        assert match is not None
        return match

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal and give its exit status."""
        self.seen = descendants(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


class Programs:
    """Starts programs from the checkout and ends what is left of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Program] = []

    def start(self, *command: str, cwd: Path = ROOT, prefix: Sequence[str] = (), **environment: str) -> Program:
        """Start ``python COMMAND``, behind the words of a command that runs another in its place."""
        log = self._folder / f"{len(self._started)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*prefix, sys.executable, *command],
                cwd=cwd,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        program = Program(process, log)
        self._started.append(program)
        return program

    def broker(self, bind: str = "tcp://127.0.0.1:*", *options: str) -> tuple[Program, str]:
        """A broker on a free port, and its endpoint."""
        program = self.start("broker.py", "--bind", bind, *options)
        return program, program.wait_for(r"broker at ([^\s,]+)")[1]

    def worker(self, endpoint: str, page: Path, *options: str, face: str = "workers.jax_worker") -> Program:
        """A worker that has registered."""
        command = ["-m", face, "--connect", endpoint, "--api", str(page), "--device", "cpu", *options]
        program = self.start(*command)
        program.wait_for("registered with the broker")
        return program

    def end(self) -> None:
        """End all, the last one first."""
        for program in reversed(self._started):
            if program.process.poll() is None:
                program.process.send_signal(signal.SIGCONT)
            program.stop()


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Programs of one test."""
    started = Programs(tmp_path)
    yield started
    started.end()


@dataclass(frozen=True)
class Served:
    """A broker and a worker that many tests share."""

    endpoint: str
    broker: Program
    worker: Program


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, pages: Path) -> Iterator[Served]:
    """A broker and a worker with the page ``letters.py``, for all tests of the session.

    Afterwards both must have lived through everything and end in good order, with nothing left behind.
    """
    started = Programs(tmp_path_factory.mktemp("served"))
    broker, endpoint = started.broker()
    worker = started.worker(endpoint, pages / "letters.py")
    yield Served(endpoint, broker, worker)
    assert broker.process.poll() is None, f"the broker has ended:\n{broker.output}"
    assert worker.process.poll() is None, f"the worker has ended:\n{worker.output}"
    assert worker.stop() == 0
    wait_until(lambda: not alive(worker.seen), "the end of the model process")
    assert broker.stop(signal.SIGINT) == 0


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a page of examples/models by its name, with what lies beside it, as a worker does."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def page(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return page
