"""The job script of examples/slurm without Slurm: what it would run, and what it does when it is told to stop.

Commands of Slurm, and our own that would go on, only write down how they are called; keys are made. tests/slurm runs it all.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from birdie_zmq.cli import broker as broker_command
from birdie_zmq.cli import worker as worker_command
from birdie_zmq.harness import model_args
from birdie_zmq.protocol.endpoints import check_bindable, parse_endpoint
from tests.integration.conftest import ROOT, wait_until

SCRIPT = ROOT / "examples" / "slurm" / "evaluate.sbatch"

NOTES = 'echo "$(basename "$0") $*" >> "$CALLS"\n'
STAND_INS = {
    "birdie-zmq": f'if [ "$1" = keys ]; then exec "{sys.executable}" -m birdie_zmq "$@"; fi\n{NOTES}'
    'if [ "$1" = broker ]; then exec sleep 60; fi',
    "srun": f'{NOTES}while [ "$1" != bash ]; do shift; done\nSLURM_LOCALID=3 "$@"',
    "lm_eval": f'trap "echo told >> $CALLS; exit 143" TERM\n{NOTES}'
    'until grep -q " broker " "$CALLS" && grep -q " worker " "$CALLS"; do sleep 0.1; done\n'
    'while [ -n "${LASTS:-}" ]; do sleep 0.1; done',
    "scancel": NOTES,
    "scontrol": NOTES,
}


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in STAND_INS.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}\n")
        (commands / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CALLS": str(tmp_path / "calls"),
        "SLURM_JOB_ID": "712345",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }


def calls(job: dict[str, str]) -> dict[str, list[str]]:
    """How each command was called, and each of birdie-zmq by its own name."""
    lines = Path(job["CALLS"]).read_text().splitlines() if Path(job["CALLS"]).exists() else []
    return {words[words[0] == "birdie-zmq"]: words[1 + (words[0] == "birdie-zmq") :] for words in map(str.split, lines)}


def test_every_command_of_the_job_is_one_that_there_is(job: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "birdie-zmq-712345"
    folder.mkdir()
    (folder / "worker.key").write_text("of a time that was killed")

    subprocess.run(["bash", SCRIPT], env=job, cwd=ROOT, check=True, timeout=60)

    called = calls(job)
    broker = broker_command.parser("broker").parse_args(called["broker"])
    check_bindable(parse_endpoint(broker.bind), has_keys=broker.keys == folder / "keys")
    worker = worker_command.parser("worker").parse_args(called["worker"])
    assert worker.device == "3"
    assert worker.key_file == folder / "worker.key"
    words = dict(
        word.split("=", 1) for word in called["lm_eval"][called["lm_eval"].index("--model_args") + 1].split(",")
    )
    assert set(words) <= {word.name for word in model_args.MODEL_ARGS}
    assert words["endpoint"] == worker.connect
    assert worker.connect.rpartition(":")[2] == broker.bind.rpartition(":")[2]
    assert words["resume"] == str(folder / "answers.journal")
    assert not list(folder.rglob("*key*")), "keys of a job that has ended"
    assert "scontrol" not in called


def test_a_job_that_is_told_to_stop_ends_its_run_and_is_queued_again(job: dict[str, str]) -> None:
    process = subprocess.Popen(["bash", SCRIPT], env={**job, "LASTS": "yes"}, cwd=ROOT)
    wait_until(lambda: "lm_eval" in calls(job), "the start of lm_eval")

    process.send_signal(signal.SIGTERM)

    assert process.wait(30) == 0
    assert "told" in calls(job)
    assert calls(job)["scontrol"] == ["requeue", "712345"]


def test_what_slurm_is_asked_for_stands_before_the_first_command() -> None:
    lines = SCRIPT.read_text().splitlines()

    asked = [number for number, line in enumerate(lines) if line.startswith("#SBATCH ")]
    assert asked
    assert all(line.startswith("#") for line in lines[: asked[-1]])
