"""The lm_eval command on PATH: which Python it runs, and whether that Python registers birdie_zmq."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from birdie_zmq.tools.doctor.child import ProbeResult
from birdie_zmq.tools.doctor.lm_eval_command import command_finding, python_of

RUN = "raise SystemExit('lm_eval itself was run')\n"


def script(folder: Path, head: str) -> Path:
    """Write a console script and return its path."""
    path = folder / "lm_eval"
    path.write_text(head + RUN)
    path.chmod(0o755)
    return path


def no_probe(python: str) -> ProbeResult:
    raise AssertionError(f"a probe of {python}")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The Python of another environment, which has nothing installed."""
    venv.create(tmp_path / "other", symlinks=True)
    return tmp_path / "other" / "bin" / "python"


def test_the_python_of_a_script_is_found_without_running_lm_eval(tmp_path: Path, other: Path) -> None:
    assert python_of(str(script(tmp_path, f"#!{other}\n"))) == str(other)


def test_a_script_that_starts_another_one_is_followed(tmp_path: Path, other: Path) -> None:
    """As pyenv's shims do, and the scripts that pip writes where the path of Python has a space."""
    path = tmp_path / "lm_eval"
    path.write_text(f"#!/bin/sh\n'''exec' \"{other}\" \"$0\" \"$@\"\n' '''\n{RUN}")
    path.chmod(0o755)

    assert python_of(str(path)) == str(other)


def test_a_command_that_is_no_python_program_does_not_tell(tmp_path: Path) -> None:
    path = tmp_path / "lm_eval"
    path.write_text("#!/bin/sh\necho usage\n")
    path.chmod(0o755)

    assert python_of(str(path)) is None
    assert command_finding(str(path), sys.executable, no_probe).level == "warning"
    assert command_finding(str(path), str(tmp_path / "python"), no_probe).level == "ok"


def test_the_script_of_this_python_needs_no_probe(tmp_path: Path) -> None:
    assert command_finding(str(script(tmp_path, f"#!{sys.executable}\n")), sys.executable, no_probe).level == "ok"


def test_another_name_of_this_python_needs_no_probe(tmp_path: Path, other: Path) -> None:
    path = script(tmp_path, f"#!{other.with_name('python3')}\n")

    assert command_finding(str(path), str(other), no_probe).level == "ok"


def test_no_command_is_a_warning() -> None:
    found = command_finding(None, sys.executable, no_probe)

    assert found.level == "warning"
    assert found.fix.startswith(f"{sys.executable} -m lm_eval")


def test_a_command_of_an_environment_that_was_moved_is_wrong(tmp_path: Path) -> None:
    path = script(tmp_path, f"#!{tmp_path / 'before' / 'bin' / 'python'}\n")

    found = command_finding(str(path), sys.executable, no_probe)

    assert found.level == "wrong"
    assert f"{path} cannot be started" in found.text
    assert found.fix == f"{sys.executable} -m pip install --force-reinstall --no-deps lm_eval"


def test_another_python_that_registers_the_model_is_a_warning(tmp_path: Path, other: Path) -> None:
    def registered(python: str) -> ProbeResult:
        assert python == str(other)
        facts = {"no_site": False, "package": "/p/birdie_zmq/__init__.py", "pth": [], "registered": True, "error": None}
        return ProbeResult(facts, 0, "")

    found = command_finding(str(script(tmp_path, f"#!{other}\n")), sys.executable, registered)

    assert found.level == "warning"
    assert f"runs another Python, {other}" in found.text


def test_the_command_of_an_environment_without_birdie_zmq_is_wrong(tmp_path: Path, other: Path) -> None:
    """A real environment that has lm_eval's modules and not this package, as when both were installed apart."""
    where = subprocess.run(
        [other, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, check=True, text=True
    )
    package = Path(where.stdout.strip(), "lm_eval")
    for folder in (package, package / "models", package / "api"):
        folder.mkdir()
        (folder / "__init__.py").touch()
    (package / "api" / "registry.py").write_text("model_registry = {}\n")
    path = script(tmp_path, f"#!{other}\n")

    found = command_finding(str(path), sys.executable)

    assert found.level == "wrong"
    assert f"{path} runs another Python, {other}: a new Python process does not find birdie_zmq" in found.text
    assert found.fix.startswith(f"{sys.executable} -m lm_eval")
