"""Fixtures that start real brokers and workers as a user does, and check that no process is left behind."""

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

LM_EVAL = "import _birdie_zmq_hook, lm_eval.__main__ as main; main.cli_evaluate()"
"""The lm_eval command of a checkout."""

LM_EVAL_WITHOUT_ITS_TASKS = """
import _birdie_zmq_hook, functools, lm_eval.__main__ as main, lm_eval.tasks as tasks
tasks.TaskManager = functools.partial(tasks.TaskManager, include_defaults=False)
main.cli_evaluate()
"""
"""The same, but lm_eval does not look for its own tasks, which takes seconds."""


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Poll until the condition is true; fail the test and name the missing event ``what`` after the deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"{what} did not happen within {deadline_s:.0f} s")
        time.sleep(0.02)


def descendants(pid: int) -> list[psutil.Process]:
    """Return all processes that currently descend from a process."""
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
        return found
    except psutil.NoSuchProcess:
        return []


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return the processes that still run; a zombie has exited."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@dataclass
class Program:
    """A started program, its log file, and its descendants at the time of ``stop``."""

    process: subprocess.Popen[bytes]
    log: Path
    seen: list[psutil.Process] = field(default_factory=list)

    @property
    def output(self) -> str:
        """The output so far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the output matches the pattern, and return the match."""
        wait_until(lambda: re.search(pattern, self.output) is not None, f"{pattern!r} in the output:\n{self.output}\n")
        match = re.search(pattern, self.output)
        assert match is not None
        return match

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the exit and return the exit status."""
        self.seen = descendants(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        return self.process.wait(DEADLINE_S)


class Programs:
    """Starts programs from the checkout, and stops those that still run at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Program] = []

    def start(self, *command: str, cwd: Path = ROOT, prefix: Sequence[str] = (), **environment: str) -> Program:
        """Start ``python COMMAND``; ``prefix`` is a command that replaces itself with the command after it, as ``env`` does."""
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
        """Start a broker on a free port; return it and its endpoint."""
        program = self.start("broker.py", "--bind", bind, *options)
        return program, program.wait_for(r"broker at ([^\s,]+)")[1]

    def worker(
        self, endpoint: str, model_file: Path, *options: str, command_module: str = "workers.jax_worker"
    ) -> Program:
        """Start a worker and wait until it has registered with the broker."""
        command = ["-m", command_module, "--connect", endpoint, "--api", str(model_file), "--device", "cpu", *options]
        program = self.start(*command)
        program.wait_for("registered with the broker")
        return program

    def end(self) -> None:
        """Stop all programs, the newest first."""
        for program in reversed(self._started):
            if program.process.poll() is None:
                program.process.send_signal(signal.SIGCONT)
            program.stop()


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Provide the programs of one test and stop them after it."""
    started = Programs(tmp_path)
    yield started
    started.end()


@dataclass(frozen=True)
class Served:
    """A broker and a worker that several tests share."""

    endpoint: str
    broker: Program
    worker: Program


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, model_files: Path) -> Iterator[Served]:
    """Start a broker and a worker with ``letters.py`` for all tests of the session.

    After the last test, both must still run, exit with status 0, and leave no process behind.
    """
    started = Programs(tmp_path_factory.mktemp("served"))
    broker, endpoint = started.broker()
    worker = started.worker(endpoint, model_files / "letters.py")
    yield Served(endpoint, broker, worker)
    assert broker.process.poll() is None, f"the broker has ended:\n{broker.output}"
    assert worker.process.poll() is None, f"the worker has ended:\n{worker.output}"
    assert worker.stop() == 0
    wait_until(lambda: not alive(worker.seen), "the end of the model process")
    assert broker.stop(signal.SIGINT) == 0


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Return a function that imports a model file of examples/models by name; as in a worker, its folder is importable."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
