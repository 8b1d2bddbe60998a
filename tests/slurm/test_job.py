"""The job of examples/slurm on a real Slurm cluster: one of two demo workers is killed, and a job is stopped.

sbatch reads the partition and similar options from ``SBATCH_*`` variables.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

DEADLINE_S = 400.0


@dataclass
class Job:
    """A submitted job with two workers on one node."""

    number: str
    folder: Path
    log: Path

    @property
    def journal(self) -> bytes:
        path = self.folder / "answers.journal"
        return path.read_bytes() if path.exists() else b""

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def state(self) -> str:
        shown = slurm("scontrol", "show", "job", self.number)
        found = re.search(r"JobState=(\w+)", shown)
        assert found is not None, shown
        return found[1]

    def wait_for_answers(self) -> None:
        wait_until(lambda: self.journal.count(b"\n") > 60, f"answers in {self.output}", DEADLINE_S)

    def results(self) -> dict[str, float]:
        wait_until(lambda: self.state not in {"RUNNING", "COMPLETING", "PENDING"}, "the job's end", DEADLINE_S)
        assert self.state == "COMPLETED", self.output
        (path,) = (self.folder / "results").rglob("results_*.json")
        tasks = json.loads(path.read_text())["results"].items()
        return {f"{task} {name}": value for task, of in tasks for name, value in of.items() if isinstance(value, float)}


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def submit(folder: Path) -> Job:
    options = ["--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=0", "--time=10"]
    environment = {**os.environ, "FOLDER": str(folder / "job"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [
            "sbatch",
            "--parsable",
            *options,
            f"--output={folder}/log",
            str(ROOT / "examples" / "slurm" / "evaluate.sbatch"),
        ],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return Job(done.stdout.strip(), folder / "job", folder / "log")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The scores of an undisturbed job."""
    return submit(tmp_path_factory.mktemp("undisturbed")).results()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    submitted = submit(tmp_path)
    yield submitted
    subprocess.run(["scancel", submitted.number], check=False)


def test_killed_worker_is_restarted_and_scores_are_unchanged(job: Job, undisturbed: dict[str, float]) -> None:
    job.wait_for_answers()
    workers = re.findall(r"jax worker (\d+) on .* is ready", job.output)

    os.kill(int(workers[0]), signal.SIGKILL)

    assert job.results() == pytest.approx(undisturbed, abs=1e-4)
    assert len(re.findall(r"jax worker \d+ on .* is ready", job.output)) == len(workers) + 1
    assert not list(job.folder.rglob("*.key"))


def test_stopped_job_resumes_from_its_journal(job: Job, undisturbed: dict[str, float]) -> None:
    job.wait_for_answers()

    slurm("scancel", "--batch", "--signal=TERM", job.number)

    wait_until(lambda: job.state == "PENDING", "its return to the queue", DEADLINE_S)
    assert "is requeued and resumes from" in job.output
    # Slurm holds the job for two minutes: an earlier start fails, since its nodes still know the job number.
    assert job.results() == pytest.approx(undisturbed, abs=1e-4)
    resumed = [int(count) for count in re.findall(r"(\d+) of 400 answers are in", job.output)]
    assert resumed[0] == 0
    assert resumed[-1] > 0
