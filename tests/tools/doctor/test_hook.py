"""Problems that keep the lm_eval command from finding birdie_zmq, each reproduced in a new Python process."""

from __future__ import annotations

import os
import sys
import venv
from pathlib import Path

import pytest

from birdie_zmq.tools.doctor import hook
from birdie_zmq.tools.doctor.child import run_probe
from birdie_zmq.tools.doctor.finding import Finding

ROOT = Path(__file__).resolve().parent.parent.parent.parent


def finding(python: str, *flags: str, path: list[Path | str], **environment: str) -> Finding:
    """Return the finding for a Python that imports from these folders first, then from those of this process."""
    folders = os.pathsep.join(map(str, [*path, *filter(None, sys.path)]))
    child = {**os.environ, "PYTHONPATH": folders, "BIRDIE_ZMQ_NO_HOOK": "", **environment}
    result = run_probe([python, *flags, "-P", "-c", hook.PROBE_SCRIPT], child, 120.0)
    return hook.hook_finding(hook.parse_facts(result), result, bool(child["BIRDIE_ZMQ_NO_HOOK"]))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python interpreter with an empty site-packages folder."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=True)
    return str(folder / "bin" / "python")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A folder as ``pip install --target`` writes it."""
    for path in ("birdie_zmq", "harness_model.py", "lm_eval_hook/_birdie_zmq_hook.py", f"lm_eval_hook/{hook.PTH}"):
        (tmp_path / Path(path).name).symlink_to(ROOT / path)
    return tmp_path


def test_active_hook_is_ok(empty: str, target: Path) -> None:
    """The site module reads the .pth file in site-packages."""
    packages = next(Path(empty).parent.parent.rglob("site-packages"))
    (packages / hook.PTH).symlink_to(ROOT / "lm_eval_hook" / hook.PTH)

    one = finding(empty, path=[target])
    off = finding(empty, path=[target], BIRDIE_ZMQ_NO_HOOK="1")
    (packages / hook.PTH).unlink()

    assert one.level == "ok"
    assert (off.level, off.fix) == ("wrong", "unset BIRDIE_ZMQ_NO_HOOK")


def test_pth_file_in_a_target_folder_is_not_read(empty: str, target: Path) -> None:
    one = finding(empty, path=[target])

    assert one.level == "wrong"
    assert f"no .pth files in {target}" in one.text
    assert one.fix.startswith("python -m birdie_zmq lm_eval")


def test_missing_pth_file_names_the_reinstall_command(empty: str, target: Path) -> None:
    (target / hook.PTH).unlink()

    one = finding(empty, path=[target])

    assert one.level == "wrong"
    assert one.fix == "pip install --force-reinstall --no-deps birdie-zmq"


def test_python_without_site_is_reported(target: Path) -> None:
    one = finding(sys.executable, "-S", path=[target])

    assert (one.level, "-S" in one.text) == ("wrong", True)
    assert one.fix.startswith("python -m birdie_zmq lm_eval")


def test_missing_package_names_the_install_command(empty: str, tmp_path: Path) -> None:
    ours = ("birdie_zmq", "harness_model", "_birdie_zmq_hook", "__editable__")
    for folder in filter(os.path.isdir, filter(None, sys.path)):
        if "site-packages" in folder:
            for path in Path(folder).iterdir():
                if not path.name.startswith(ours) and not (tmp_path / path.name).exists():
                    (tmp_path / path.name).symlink_to(path)
    child = {**os.environ, "PYTHONPATH": str(tmp_path), "BIRDIE_ZMQ_NO_HOOK": ""}
    result = run_probe([empty, "-P", "-c", hook.PROBE_SCRIPT], child, 120.0)

    one = hook.hook_finding(hook.parse_facts(result), result, False)

    assert (one.level, one.fix) == ("wrong", "pip install birdie-zmq")


def test_failing_lm_eval_import_is_reported(empty: str, target: Path) -> None:
    (target / "lm_eval").mkdir()
    (target / "lm_eval" / "__init__.py").write_text("raise ImportError('half of it is missing')")

    one = finding(empty, path=[target])

    assert (one.level, one.fix) == ("wrong", "pip install --force-reinstall lm_eval")
    assert "ImportError: half of it is missing" in one.text


def test_crashing_python_is_reported(empty: str, target: Path) -> None:
    (target / "lm_eval").mkdir()
    (target / "lm_eval" / "__init__.py").write_text("import os; os.abort()")

    one = finding(empty, path=[target])

    assert (one.level, one.fix) == ("wrong", "python -c 'import lm_eval'")
    assert "SIGABRT" in one.text


def test_shadowed_package_is_a_warning(tmp_path: Path) -> None:
    installed, checkout = tmp_path / "installed" / "birdie_zmq", tmp_path / "checkout" / "birdie_zmq"
    for folder in (installed, checkout):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()

    shadowed = hook.shadow_finding(installed, installed, checkout.parent)
    shadows = hook.shadow_finding(checkout, installed, checkout.parent)

    assert hook.shadow_finding(checkout, checkout, checkout.parent).level == "ok"
    assert hook.shadow_finding(installed, installed, tmp_path).level == "ok"
    assert (shadowed.level, shadows.level) == ("warning", "warning")
    assert "the checkout in this directory is not used" in shadowed.text
    assert f"lm_eval imports {installed}" in shadows.text
    assert shadows.fix.startswith("pip install -e .")
