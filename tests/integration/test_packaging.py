"""Contents of the wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Build a wheel from the checkout and return the names of its files."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=250)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_wheel_installs_no_other_top_level_names(wheel: list[str]) -> None:
    top_level = {Path(name).parts[0] for name in wheel}

    assert {name for name in top_level if not name.endswith(".dist-info")} == {
        "_birdie_zmq_hook.py",
        "birdie_zmq",
        "birdie_zmq_lm_eval.pth",
        "harness_model.py",
    }


def test_wheel_contains_the_demo_and_its_tasks(wheel: list[str]) -> None:
    assert {"birdie_zmq/models/demo/model.safetensors", "birdie_zmq/demo_tasks/demo_choice.yaml"} <= set(wheel)
    assert "birdie_zmq/demo_tasks/data/demo_choice.jsonl" in wheel
