"""What an installation puts where."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of the files in a wheel built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=250)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_only_our_own_names_are_importable_when_installed(wheel: list[str]) -> None:
    top = {Path(name).parts[0] for name in wheel}

    assert {name for name in top if not name.endswith(".dist-info")} == {
        "_birdie_zmq_hook.py",
        "birdie_zmq",
        "birdie_zmq_lm_eval.pth",
        "harness_model.py",
    }


def test_the_demo_and_its_tasks_come_along(wheel: list[str]) -> None:
    assert {"birdie_zmq/models/demo/model.safetensors", "birdie_zmq/demo_tasks/demo_choice.yaml"} <= set(wheel)
    assert "birdie_zmq/demo_tasks/data/demo_choice.jsonl" in wheel
