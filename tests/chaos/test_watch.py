"""``birdie-zmq watch`` follows a real training run while it is killed, and checkpoints are deleted and half-written.

docs/explanation/faults.md quotes the printed figures.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.conftest import ROOT, Program, Programs, descendants, wait_until

CHECKPOINTS, EVERY = 20, 25
LAST = CHECKPOINTS * EVERY
HALF_WRITTEN, DELETED = 25, 325
BY_HAND = (HALF_WRITTEN, 250, LAST)
EVALUATION = (
    "--tasks",
    "demo_choice,demo_rolling",
    "--include_path",
    "examples/tasks",
    "--limit",
    "24",
    "--device",
    "cpu",
)

DEADLINE_S = float(os.environ.get("BIRDIE_CHAOS_DEADLINE_S", "600"))
"""The longest wait for one event. lm_eval takes long to find its tasks on a busy machine."""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3 * DEADLINE_S)]


class Watched:
    """A watch of a run, which can be killed and started again.

    Args:
        programs: Starts the processes.
        run: The folder of the checkpoints.
        output: The output folder.
    """

    def __init__(self, programs: Programs, run: Path, output: Path) -> None:
        self._programs = programs
        self._command = [
            *("-m", "birdie_zmq", "watch", f"{run}/*", "--output", str(output), "--until-step", str(LAST)),
            *("--settle-seconds", "1", "--poll-seconds", "0.2", *EVALUATION),
        ]
        self.output = output
        self.program = self._start()

    def _start(self) -> Program:
        # JAX then logs each compilation, on the standard error that the processes share.
        return self._programs.start(*self._command, JAX_LOG_COMPILES="1")

    def wait_for(self, pattern: str) -> None:
        """Wait until the output of the watch matches a pattern."""
        wait_until(lambda: re.search(pattern, self.program.output) is not None, pattern, DEADLINE_S)

    def kill_and_restart(self) -> None:
        """Kill the watch alone with SIGKILL, wait until its broker and worker have ended, and start it again."""
        children = descendants(self.program.process.pid)
        self.program.stop(signal.SIGKILL)
        psutil.wait_procs(children, timeout=60)
        self.program = self._start()

    def model_process(self) -> psutil.Process | None:
        """Return the model process, None while there is none."""
        for process in descendants(self.program.process.pid):
            try:
                if "birdie_zmq.worker.model_server" in process.cmdline():
                    return process
            except psutil.Error:
                continue
        return None

    def lines(self) -> list[dict[str, Any]]:
        """Return the complete lines of the results."""
        path = self.output / "results.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def done(self) -> list[int]:
        """Return the steps with a status, in order."""
        return [line["step"] for line in self.lines() if "status" in line]


def evaluate_by_hand(checkpoint: Path, output: Path) -> dict[str, dict[str, Any]]:
    """Return the results of the lm_eval command on a checkpoint."""
    command = ["-m", "birdie_zmq", "lm_eval", "--model", "birdie_zmq", "--model_args", f"pretrained={checkpoint}"]
    subprocess.run(
        [sys.executable, *command, *EVALUATION, "--output_path", str(output)], cwd=ROOT, check=True, timeout=DEADLINE_S
    )
    (written,) = output.rglob("results_*.json")
    results: dict[str, dict[str, Any]] = json.loads(written.read_text())["results"]
    return results


def test_each_remaining_checkpoint_of_a_run_is_evaluated_once(programs: Programs, tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "curve"
    run.mkdir()
    watched = Watched(programs, run, output)
    watched.wait_for("watching")
    trainer = programs.start(
        *("-m", "tests.chaos.small_run", str(run), "--checkpoints", str(CHECKPOINTS), "--every", str(EVERY)),
        *("--half-written", str(HALF_WRITTEN), "--pause", "5"),
    )

    watched.wait_for(r"evaluating step 100\b")
    watched.kill_and_restart()
    first_killed = watched.done()

    wait_until(lambda: len(watched.done()) >= 6 and watched.model_process() is not None, "six checkpoints", DEADLINE_S)
    model_process = watched.model_process()
    assert model_process is not None
    model_process.kill()

    watched.wait_for(rf"evaluating step {DELETED}\b")
    shutil.rmtree(run / f"step_{DELETED}")

    watched.wait_for(rf"evaluating step {DELETED + 2 * EVERY}\b")
    watched.kill_and_restart()
    second_killed = watched.done()

    assert watched.program.process.wait(DEADLINE_S) == 0, watched.program.output
    assert trainer.process.wait(60) == 0, trainer.output
    print("\n" + watched.program.output[-3000:])

    lines = watched.lines()
    statuses = {line["step"]: line for line in lines if "status" in line}
    evaluated = [line for line in lines if line.get("status") == "evaluated"]
    assert [line["step"] for line in lines if line.get("status") not in (None, "evaluated")] == [DELETED]
    assert statuses[DELETED]["status"] == "deleted"
    assert sorted(line["step"] for line in evaluated) == [s for s in range(EVERY, LAST + 1, EVERY) if s != DELETED]
    keys = [(line["step"], line["task"], line["metric"]) for line in lines if "metric" in line]
    assert len(keys) == len(set(keys)), "a metric of a step was written twice"
    assert f"step {HALF_WRITTEN} is not complete: it lacks the rest of model.safetensors" in "".join(
        log.read_text(errors="replace") for log in tmp_path.glob("*.log")
    )
    compiled = [line["step"] for line in evaluated if line["compile_seconds"] > 0]
    # One at the start, one after each of the two kills, one after the death of the model process, and one after the failed
    # load of the deleted checkpoint.
    assert len(compiled) <= 5, (
        f"more than the first checkpoint of each of the five model processes was compiled: {compiled}"
    )

    for step in BY_HAND:
        expected = evaluate_by_hand(run / f"step_{step}", tmp_path / f"by_hand_{step}")
        for line in lines:
            if line.get("step") == step and "metric" in line:
                assert line["value"] == expected[line["task"]][f"{line['metric']},{line['filter']}"], line
    print(
        f"killed after {first_killed} and {second_killed}; compiled at {compiled}, else 0 s of compilation; lm_eval by hand "
        f"gave the same numbers at steps {', '.join(map(str, BY_HAND))}"
    )
    for line in evaluated:
        print(f"step {line['step']}: {line['seconds']:.1f} s, compilation {line['compile_seconds']:.1f} s")
    assert (output / "curve.html").stat().st_size > 10_000
    log = watched.program.output
    last = [m.start() for m in re.finditer(r"evaluating step \d+", log)]
    after_second = log[last[1] :]
    assert "Finished XLA compilation" not in after_second, "something was compiled after the first checkpoint"
