"""Fault injection into the processes of a run by a seeded plan, with the recovery time of each fault."""

from __future__ import annotations

import itertools
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from lm_eval.api.model import CacheHook

from harness_model import BirdieZMQ

MODEL_PROCESS, AGENT, BROKER = "model process", "agent", "broker"
EXIT, KILL, STOP = "exit", "SIGKILL", "SIGSTOP"
ALL_KINDS = tuple(itertools.product((MODEL_PROCESS, AGENT, BROKER), (EXIT, KILL, STOP)))
_RECOVERY_S = 120.0


@dataclass(frozen=True)
class Fault:
    """One fault: its victim, its kind, and the number of answers between the last recovery and this fault."""

    victim: str
    kind: str
    after_answers: int


def plan(kinds: Sequence[tuple[str, str]], count: int, max_answers: int, seed: int) -> list[Fault]:
    """Plan ``count`` faults, each kind equally often, in an order and at times that depend on the seed."""
    rng = random.Random(seed)
    chosen = [kinds[number % len(kinds)] for number in range(count)]
    rng.shuffle(chosen)
    return [Fault(victim, kind, rng.randint(1, max_answers)) for victim, kind in chosen]


class Answers(CacheHook):
    """All answers as they are delivered."""

    def __init__(self) -> None:
        super().__init__(None)
        self.seen: dict[tuple[str, ...], list[Any]] = {}
        self.count = 0

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        self.seen.setdefault((attr, *map(str, req)), []).append(res)
        self.count += 1

    @property
    def duplicates(self) -> int:
        """Number of answers that were delivered again."""
        return sum(len(answers) - 1 for answers in self.seen.values())


class FaultInjector:
    """Injects the faults of a plan into the embedded processes of a run, each after the recovery from the last.

    A run has recovered when a new process has replaced the victim and an answer has arrived after that.

    Args:
        lm: The model of the run.
        answers: The counter of its answers.
        faults: The plan.
        exit_file: The file that makes the model process exit by itself, see tests/model_files/faulty.py.
    """

    def __init__(self, lm: BirdieZMQ, answers: Answers, faults: Sequence[Fault], exit_file: Path | None = None) -> None:
        self._lm = lm
        self._answers = answers
        self._faults = faults
        self._exit_file = exit_file
        self._run_ended = threading.Event()
        self.done: list[tuple[Fault, float]] = []
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> FaultInjector:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._run_ended.set()
        self._thread.join()

    def report(self) -> str:
        """Return a line per fault with its recovery time in seconds, then the median and the maximum."""
        lines = [
            f"  {fault.victim:13}  {fault.kind:7}  after {fault.after_answers:3} answers  {seconds:6.1f} s"
            for fault, seconds in self.done
        ]
        seconds = [seconds for _, seconds in self.done]
        lines.append(
            f"  {len(seconds)} faults, recovered in {statistics.median(seconds):.1f} s (median), {max(seconds):.1f} s (maximum)"
        )
        for kind in (EXIT, KILL, STOP):
            seconds_of_kind = [seconds for fault, seconds in self.done if fault.kind == kind]
            if seconds_of_kind:
                lines.append(
                    f"    {kind}: {statistics.median(seconds_of_kind):.1f} s (median), {max(seconds_of_kind):.1f} s (maximum)"
                )
        return "\n".join(lines)

    def _run(self) -> None:
        try:
            for fault in self._faults:
                before = self._answers.count
                if not self._wait(lambda: self._answers.count >= before + fault.after_answers):  # noqa: B023
                    return
                victim = self._find_process(fault.victim)
                began = time.monotonic()
                self._inject(fault.kind, victim, fault.victim)
                if not self._wait(lambda: not _is_running(victim) and self._is_replaced(fault.victim, victim)):  # noqa: B023
                    return
                answered = self._answers.count
                if not self._wait(lambda: self._answers.count > answered):  # noqa: B023
                    return
                self.done.append((fault, time.monotonic() - began))
        except BaseException as error:  # noqa: BLE001 - the test raises it
            self.error = error

    def _inject(self, kind: str, victim: psutil.Process, role: str) -> None:
        if kind == KILL:
            victim.kill()
        elif kind == STOP:
            victim.send_signal(signal.SIGSTOP)
        elif role == MODEL_PROCESS and self._exit_file is not None:
            self._exit_file.touch()
        else:
            victim.terminate()

    def _find_process(self, role: str) -> psutil.Process:
        self._wait(lambda: bool(self._processes(role)))
        return self._processes(role)[0]

    def _is_replaced(self, role: str, other_than: psutil.Process) -> bool:
        return any(process.pid != other_than.pid for process in self._processes(role))

    def _processes(self, role: str) -> list[psutil.Process]:
        embedded = self._lm._embedded
        assert embedded is not None
        broker, agent = (child.process.pid for child in embedded._children)
        try:
            if role != MODEL_PROCESS:
                return [psutil.Process(broker if role == BROKER else agent)]
            children: list[psutil.Process] = psutil.Process(agent).children()
            return [process for process in children if _is_running(process)]
        except psutil.NoSuchProcess:
            return []

    def _wait(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition; return False if the run ends before."""
        end = time.monotonic() + _RECOVERY_S
        while not condition():
            if self._run_ended.is_set():
                return False
            if time.monotonic() > end:
                raise TimeoutError(f"no recovery within {_RECOVERY_S:.0f} s; faults so far:\n{self.done}")
            time.sleep(0.01)
        return True


def _is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
