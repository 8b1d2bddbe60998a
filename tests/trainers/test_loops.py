"""The callbacks in the loops of Tunix and Levanter: the examples, run in the environments of these trainers."""

from __future__ import annotations

import json
import re
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
