"""Contents of the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT

FILES = (
    "birdie_zmq",
    "lm_eval_hook",
    "examples",
    "harness_model.py",
    "setup.cfg",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """Build a wheel from a checkout in which an earlier version was built, and open it."""
    folder = tmp_path_factory.mktemp("wheel")
    checkout = folder / "checkout"
    checkout.mkdir()
    for name in FILES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, checkout / name)
    stale = checkout / "build" / "lib" / "birdie_zmq"
    stale.mkdir(parents=True)
    for name in ("removed_module.py", "_version.py"):
        (stale / name).write_text("__version__ = 'stale'\n")
        os.utime(stale / name, (4_000_000_000, 4_000_000_000))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(checkout)]
    subprocess.run(command, check=True, timeout=250)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_wheel_has_nothing_of_an_earlier_build(wheel: zipfile.ZipFile) -> None:
    assert "birdie_zmq/removed_module.py" not in wheel.namelist()
    assert b"stale" not in wheel.read("birdie_zmq/_version.py")


def test_wheel_installs_no_other_top_level_names(wheel: zipfile.ZipFile) -> None:
    top_level = {Path(name).parts[0] for name in wheel.namelist()}

    assert {name for name in top_level if not name.endswith(".dist-info")} == {
        "_birdie_zmq_hook.py",
        "birdie_zmq",
        "birdie_zmq_lm_eval.pth",
        "harness_model.py",
    }


def test_wheel_contains_the_demo_and_its_tasks(wheel: zipfile.ZipFile) -> None:
    assert {"birdie_zmq/models/demo/model.safetensors", "birdie_zmq/demo_tasks/demo_choice.yaml"} <= {*wheel.namelist()}
    assert "birdie_zmq/demo_tasks/data/demo_choice.jsonl" in wheel.namelist()
