"""The job script of examples/slurm without Slurm: the commands that it runs, and its behaviour on SIGTERM.

The commands of Slurm, and the long-running ones of birdie-zmq, are replaced by scripts that record their calls. Keys are
really made. tests/slurm runs the script on Slurm.
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

RECORD_CALL = 'echo "$(basename "$0") $*" >> "$CALLS"\n'
FAKE_COMMANDS = {
    "birdie-zmq": f'if [ "$1" = keys ]; then exec "{sys.executable}" -m birdie_zmq "$@"; fi\n{RECORD_CALL}'
    'if [ "$1" = broker ]; then exec sleep 60; fi',
    "srun": f'{RECORD_CALL}while [ "$1" != bash ]; do shift; done\nSLURM_LOCALID=3 "$@"',
    "lm_eval": f'trap "echo terminated >> $CALLS; exit 143" TERM\n{RECORD_CALL}'
    'until grep -q " broker " "$CALLS" && grep -q " worker " "$CALLS"; do sleep 0.1; done\n'
    'while [ -n "${KEEP_RUNNING:-}" ]; do sleep 0.1; done',
    "scancel": RECORD_CALL,
    "scontrol": RECORD_CALL,
}


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in FAKE_COMMANDS.items():
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
    """Return the arguments of each recorded command; subcommands of birdie-zmq are under their own names."""
    lines = Path(job["CALLS"]).read_text().splitlines() if Path(job["CALLS"]).exists() else []
    return {call[call[0] == "birdie-zmq"]: call[1 + (call[0] == "birdie-zmq") :] for call in map(str.split, lines)}


def test_every_command_of_the_job_is_valid(job: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "birdie-zmq-712345"
    folder.mkdir()
    (folder / "worker.key").write_text("of a killed attempt")

    subprocess.run(["bash", SCRIPT], env=job, cwd=ROOT, check=True, timeout=60)

    called = calls(job)
    broker = broker_command.parser("broker").parse_args(called["broker"])
    check_bindable(parse_endpoint(broker.bind), has_keys=broker.keys == folder / "keys")
    worker = worker_command.parser("worker").parse_args(called["worker"])
    assert worker.device == "3"
    assert worker.key_file == folder / "worker.key"
    arguments = dict(
        argument.split("=", 1) for argument in called["lm_eval"][called["lm_eval"].index("--model_args") + 1].split(",")
    )
    assert set(arguments) <= {argument.name for argument in model_args.MODEL_ARGS}
    assert arguments["endpoint"] == worker.connect
    assert worker.connect.rpartition(":")[2] == broker.bind.rpartition(":")[2]
    assert arguments["resume"] == str(folder / "answers.journal")
    assert not list(folder.rglob("*key*")), "the job left keys behind"
    assert "scontrol" not in called


def test_stopped_job_ends_its_run_and_is_requeued(job: dict[str, str]) -> None:
    process = subprocess.Popen(["bash", SCRIPT], env={**job, "KEEP_RUNNING": "yes"}, cwd=ROOT)
    wait_until(lambda: "lm_eval" in calls(job), "the start of lm_eval")

    process.send_signal(signal.SIGTERM)

    assert process.wait(30) == 0
    assert "terminated" in calls(job)
    assert calls(job)["scontrol"] == ["requeue", "712345"]


def test_sbatch_directives_precede_the_first_command() -> None:
    lines = SCRIPT.read_text().splitlines()

    directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH ")]
    assert directives
    assert all(line.startswith("#") for line in lines[: directives[-1]])
