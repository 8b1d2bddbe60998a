"""The lm_eval command on PATH: which Python it runs, and whether that Python registers birdie_zmq."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from birdie_zmq.tools.doctor.child import ProbeResult
from birdie_zmq.tools.doctor.lm_eval_command import command_finding, interpreter_of

EXEC = """#!/bin/sh
'''exec' {} "$0" "$@"
' '''
import sys
"""


def script(folder: Path, head: str) -> Path:
    """Write a console script and return its path."""
    folder.mkdir(exist_ok=True)
    path = folder / "lm_eval"
    path.write_text(head)
    path.chmod(0o755)
    return path


def facts(*, registered: bool) -> ProbeResult:
    answer = {"no_site": False, "package": "/other/birdie_zmq/__init__.py", "pth": [], "registered": registered}
    return ProbeResult({**answer, "error": None}, 0, "")


def no_probe(python: str) -> ProbeResult:
    raise AssertionError(f"a probe of {python}")


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("#!/venv/bin/python\nimport sys\n", "/venv/bin/python"),
        ("#!/usr/bin/python3.12 -sE\nimport sys\n", "/usr/bin/python3.12"),
        (EXEC.format('"/a folder/bin/python3"'), "/a folder/bin/python3"),
        (EXEC.format("'/a folder/bin/python3'"), "/a folder/bin/python3"),
        (EXEC.format("/long/bin/python3"), "/long/bin/python3"),
        ("#!/usr/bin/env no-python-of-this-name\n", None),
        ("#!/usr/bin/env python-of-no-folder\n", "python-of-no-folder"),
        ("#!/usr/bin/env -S PYTHONSAFEPATH=1 python-of-no-folder -s\n", "python-of-no-folder"),
        ("#!/bin/sh\nexec pyenv exec lm_eval\n", None),
        ("#!/usr/bin/env bash\nexec pyenv exec lm_eval\n", None),
        ('#!/bin/sh "\n', None),
        ("\x7fELF", None),
        ("", None),
    ],
)
def test_the_python_of_a_script(tmp_path: Path, head: str, expected: str | None) -> None:
    assert interpreter_of(script(tmp_path, head)) == expected


def test_env_finds_the_python_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python-here").write_text("#!/bin/sh\n")
    (tmp_path / "python-here").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert interpreter_of(script(tmp_path, "#!/usr/bin/env python-here\n")) == str(tmp_path / "python-here")


def test_the_script_of_this_python_needs_no_probe(tmp_path: Path) -> None:
    path = script(tmp_path, f"#!{sys.executable}\n")

    assert command_finding(str(path), sys.executable, no_probe).level == "ok"


def test_another_name_of_this_python_needs_no_probe(tmp_path: Path) -> None:
    for name in ("python", "python3"):
        (tmp_path / name).symlink_to(sys.executable)
    path = script(tmp_path, f"#!{tmp_path / 'python3'}\n")

    assert command_finding(str(path), str(tmp_path / "python"), no_probe).level == "ok"


def test_no_command_is_a_warning() -> None:
    found = command_finding(None, sys.executable, no_probe)

    assert found.level == "warning"
    assert found.fix.startswith(f"{sys.executable} -m lm_eval")


def test_a_script_of_an_unknown_kind_is_a_warning_unless_it_is_beside_this_python(tmp_path: Path) -> None:
    path = script(tmp_path, "#!/bin/sh\n")

    assert command_finding(str(path), sys.executable, no_probe).level == "warning"
    assert command_finding(str(path), str(tmp_path / "python"), no_probe).level == "ok"


def test_an_environment_that_was_moved_is_wrong(tmp_path: Path) -> None:
    path = script(tmp_path, f"#!{tmp_path / 'before' / 'bin' / 'python'}\n")

    found = command_finding(str(path), sys.executable, no_probe)

    assert found.level == "wrong"
    assert (
        f"runs {tmp_path / 'before' / 'bin' / 'python'}, which does not exist: the environment was moved" in found.text
    )
    assert found.fix == f"{sys.executable} -m pip install --force-reinstall --no-deps lm_eval"


def test_another_python_that_registers_the_model_is_a_warning(tmp_path: Path) -> None:
    other = script(tmp_path / "bin", "")
    other = other.rename(other.with_name("python"))
    path = script(tmp_path, f"#!{other}\n")

    found = command_finding(str(path), sys.executable, lambda python: facts(registered=python == str(other)))

    assert found.level == "warning"
    assert f"runs another Python, {other}" in found.text


def test_the_command_of_an_environment_without_birdie_zmq_is_wrong(tmp_path: Path) -> None:
    """A real environment that has lm_eval's package and not this one, as when both were installed apart."""
    environment = tmp_path / "venv"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    path = script(tmp_path, f"#!{python}\n")
    site = subprocess.run(
        [python, "-c", "import json, site; print(json.dumps(site.getsitepackages()[0]))"],
        capture_output=True,
        check=True,
        text=True,
    )
    models = Path(json.loads(site.stdout), "lm_eval", "models")
    models.mkdir(parents=True)
    (models / "__init__.py").touch()
    (models.parent / "__init__.py").touch()
    (models.parent / "api").mkdir()
    (models.parent / "api" / "registry.py").write_text("model_registry = {}\n")

    found = command_finding(str(path), sys.executable)

    assert found.level == "wrong"
    assert f"{path} runs another Python, {python}: a new Python process does not find birdie_zmq" in found.text
    assert found.fix.startswith(f"{sys.executable} -m lm_eval")
    shutil.rmtree(environment)
