"""Contents of the wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
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
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, with the files that a build needs."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in FILES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, checkout / name)
        else:
            shutil.copyfile(ROOT / name, checkout / name)
    return checkout


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """Build a wheel from a checkout in which an earlier version was built, and open it."""
    folder = tmp_path_factory.mktemp("wheel")
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


@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_editable_install_registers_the_model(mode: str, checkout: Path, tmp_path: Path) -> None:
    """A new environment has this install, and sees the other packages of this one without their .pth files."""
    venv.create(tmp_path, symlinks=True, with_pip=True)
    (site_packages,) = tmp_path.glob("lib/python*/site-packages")
    (site_packages / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    python = str(tmp_path / "bin" / "python")
    options = ["--quiet", "--no-deps", "--config-settings", f"editable_mode={mode}"]
    subprocess.run([python, "-m", "pip", "install", *options, "-e", str(checkout)], check=True, timeout=250)
    script = (
        "import lm_eval.models; from lm_eval.api.registry import get_model; print(get_model('birdie_zmq').__module__)"
    )

    done = subprocess.run([python, "-P", "-c", script], capture_output=True, check=True, text=True, cwd=tmp_path)

    assert done.stdout == "birdie_zmq.harness.model\n"
