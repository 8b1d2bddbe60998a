"""Training runs in the environments of trainers: the callbacks in the loops of Tunix and Levanter, and a run of Keras that is
followed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.trainers.environments import run_in_environment

pytestmark = [pytest.mark.trainers, pytest.mark.timeout(3000)]


def run_example(name: str, tmp_path: Path, *arguments: str) -> dict[int, float]:
    """Run the example of a trainer, and return the perplexity that it logs at each step."""
    program = str(ROOT / "examples" / "trainers" / f"{name}_training.py")
    done = run_in_environment(name, tmp_path, program, *arguments, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-4000:]
    print(name, arguments, done.stdout)  # noqa: T201 - the figures of the documentation
    return {
        int(step): float(value) for step, value in re.findall(r"^step (\d+): byte_perplexity (.*)$", done.stdout, re.M)
    }


def statuses(folder: Path) -> list[dict[str, Any]]:
    """Return what a watch has recorded of each step."""
    lines = map(json.loads, (folder / "curve" / "results.jsonl").read_text().splitlines())
    return [line for line in lines if "status" in line]


def test_tunix_evaluates_in_its_process_and_in_a_worker_alike(tmp_path: Path) -> None:
    here = run_example("tunix", tmp_path)
    there = run_example("tunix", tmp_path, "--worker", "evaluation", "--python", sys.executable)

    assert list(here) == list(there) == [20, 40]
    assert here[40] < here[20]
    assert there == pytest.approx(here, abs=0.02)
    recorded = statuses(tmp_path / "evaluation")
    assert [line["status"] for line in recorded] == ["evaluated", "evaluated"]
    assert recorded[1]["compile_seconds"] == 0.0


def test_levanter_evaluates_in_a_worker_of_another_environment(tmp_path: Path) -> None:
    values = run_example("levanter", tmp_path, "evaluation", "--python", sys.executable)

    assert list(values) == [20, 40]
    assert values[40] < values[20]
    recorded = statuses(tmp_path / "evaluation")
    assert [line["status"] for line in recorded] == ["evaluated", "evaluated"]
    assert recorded[1]["compile_seconds"] == 0.0


def test_a_run_of_keras_is_followed(tmp_path: Path) -> None:
    run, curve = tmp_path / "run", tmp_path / "curve"
    demo = ROOT / "birdie_zmq" / "models" / "demo"
    options = ["--tasks", "demo_rolling", "--include_path", str(ROOT / "examples" / "tasks"), "--limit", "4"]
    options += ["--device", "cpu", "--settle-seconds", "1", "--poll-seconds", "0.5", "--until-step", "3"]
    watch = [sys.executable, "-m", "birdie_zmq", "watch", f"{run}/*.weights.h5", "--output", str(curve), *options]
    with subprocess.Popen([*watch, "--model_args", f"tokenizer={demo}"], cwd=ROOT) as watching:
        try:
            done = run_in_environment("keras", tmp_path, "-m", "trainers.train_keras", str(run))
            assert done.returncode == 0, done.stderr[-4000:]
            assert watching.wait(1200) == 0
        finally:
            watching.kill()

    recorded = statuses(tmp_path)
    assert [(line["step"], line["status"]) for line in recorded] == [(step, "evaluated") for step in (1, 2, 3)]
    assert [line["compile_seconds"] > 0.0 for line in recorded] == [True, False, False]
    assert len({line["identity"] for line in recorded}) == 3
