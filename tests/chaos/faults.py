"""Doing harm to the processes of a run, by a plan that a seed makes, and measuring how long each takes to be made good."""

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
ALL = tuple(itertools.product((MODEL_PROCESS, AGENT, BROKER), (EXIT, KILL, STOP)))
_RECOVERY_S = 120.0


@dataclass(frozen=True)
class Harm:
    """One deed: to whom, how, after how many answers since the last was made good."""

    victim: str
    how: str
    after_answers: int


def plan(kinds: Sequence[tuple[str, str]], count: int, most_answers: int, seed: int) -> list[Harm]:
    """So many deeds, each kind as often as the others, in an order and at moments that the seed makes."""
    chance = random.Random(seed)
    chosen = [kinds[number % len(kinds)] for number in range(count)]
    chance.shuffle(chosen)
    return [Harm(victim, how, chance.randint(1, most_answers)) for victim, how in chosen]


class Answers(CacheHook):
    """Every answer, as it is delivered."""

    def __init__(self) -> None:
        super().__init__(None)
        self.seen: dict[tuple[str, ...], list[Any]] = {}
        self.count = 0

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        self.seen.setdefault((attr, *map(str, req)), []).append(res)
        self.count += 1

    @property
    def duplicates(self) -> int:
        """How many answers came more than once."""
        return sum(len(answers) - 1 for answers in self.seen.values())


class Evildoer:
    """Carries out a plan against a run's own processes, one deed after another, each once the last is made good.

    A deed is made good when a new process has taken the victim's place and an answer has come after that.

    Args:
        lm: The run.
        answers: Where its answers are counted.
        deeds: The plan.
        exit_file: What makes the model process exit by itself, see tests/model_files/faulty.py.
    """

    def __init__(self, lm: BirdieZMQ, answers: Answers, deeds: Sequence[Harm], exit_file: Path | None = None) -> None:
        self._lm = lm
        self._answers = answers
        self._deeds = deeds
        self._exit_file = exit_file
        self._is_over = threading.Event()
        self.done: list[tuple[Harm, float]] = []
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Evildoer:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._is_over.set()
        self._thread.join()

    def report(self) -> str:
        """Each deed and the seconds until it was made good, then the median and the worst."""
        lines = [
            f"  {deed.victim:13}  {deed.how:7}  after {deed.after_answers:3} answers  {seconds:6.1f} s"
            for deed, seconds in self.done
        ]
        seconds = [seconds for _, seconds in self.done]
        lines.append(
            f"  {len(seconds)} deeds, made good in {statistics.median(seconds):.1f} s (median), {max(seconds):.1f} s (worst)"
        )
        for how in (EXIT, KILL, STOP):
            of_it = [seconds for deed, seconds in self.done if deed.how == how]
            if of_it:
                lines.append(f"    {how}: {statistics.median(of_it):.1f} s (median), {max(of_it):.1f} s (worst)")
        return "\n".join(lines)

    def _run(self) -> None:
        try:
            for deed in self._deeds:
                before = self._answers.count
                if not self._wait(lambda: self._answers.count >= before + deed.after_answers):  # noqa: B023
                    return
                victim = self._find(deed.victim)
                began = time.monotonic()
                self._do(deed.how, victim, deed.victim)
                if not self._wait(lambda: not _runs(victim) and self._is_there(deed.victim, victim)):  # noqa: B023
                    return
                answered = self._answers.count
                if not self._wait(lambda: self._answers.count > answered):  # noqa: B023
                    return
                self.done.append((deed, time.monotonic() - began))
        except BaseException as error:  # noqa: BLE001 - the test raises it
            self.error = error

    def _do(self, how: str, victim: psutil.Process, role: str) -> None:
        if how == KILL:
            victim.kill()
        elif how == STOP:
            victim.send_signal(signal.SIGSTOP)
        elif role == MODEL_PROCESS and self._exit_file is not None:
            self._exit_file.touch()
        else:
            victim.terminate()

    def _find(self, role: str) -> psutil.Process:
        self._wait(lambda: bool(self._processes(role)))
        return self._processes(role)[0]

    def _is_there(self, role: str, other_than: psutil.Process) -> bool:
        return any(process.pid != other_than.pid for process in self._processes(role))

    def _processes(self, role: str) -> list[psutil.Process]:
        embedded = self._lm._embedded
        assert embedded is not None
        broker, agent = (child.process.pid for child in embedded._children)
        try:
            if role != MODEL_PROCESS:
                return [psutil.Process(broker if role == BROKER else agent)]
            below: list[psutil.Process] = psutil.Process(agent).children()
            return [process for process in below if _runs(process)]
        except psutil.NoSuchProcess:
            return []

    def _wait(self, true: Callable[[], bool]) -> bool:
        """Wait until something is true; False where the run is over before."""
        end = time.monotonic() + _RECOVERY_S
        while not true():
            if self._is_over.is_set():
                return False
            if time.monotonic() > end:
                raise TimeoutError(f"not made good within {_RECOVERY_S:.0f} s; done so far:\n{self.done}")
            time.sleep(0.01)
        return True


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
