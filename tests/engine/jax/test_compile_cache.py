"""Compiled programs are kept where others cannot put theirs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import jax, logging
logging.basicConfig()
from birdie_zmq.engine.jax.compile_cache import keep_programs
print(keep_programs())
print(jax.jit(lambda x: jax.numpy.linalg.svd(x @ x)[1])(jax.numpy.ones((40, 40))).shape)
"""


def run(**variables: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")}
    variables = kept | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | variables
    return subprocess.run([sys.executable, "-c", CODE], env=variables, capture_output=True, text=True, check=True)


def test_programs_are_kept_in_a_folder_that_only_the_user_can_read(tmp_path: Path) -> None:
    run(XDG_CACHE_HOME=str(tmp_path))
    folder = tmp_path / "birdie_zmq" / "programs"
    assert folder.stat().st_mode & 0o777 == 0o700
    first = {path.name for path in folder.iterdir()}
    assert any(name.endswith("-cache") for name in first)
    run(XDG_CACHE_HOME=str(tmp_path))
    assert {path.name for path in folder.iterdir() if path.name.endswith("-cache")} <= first


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707])
def test_a_folder_that_is_open_to_others_is_not_used(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "birdie_zmq" / "programs"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    done = run(XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.startswith("None")
    assert f"{folder} is open to others" in done.stderr
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_made_costs_only_the_keeping(tmp_path: Path) -> None:
    (tmp_path / "birdie_zmq").write_text("a file where the folder should be")
    done = run(XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.startswith("None")
    assert "compiled programs are not kept" in done.stderr


def test_a_folder_that_jax_was_told_is_left_to_jax(tmp_path: Path) -> None:
    done = run(XDG_CACHE_HOME=str(tmp_path / "ours"), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs"))
    assert done.stdout.startswith("None")
    assert not (tmp_path / "ours").exists()
    assert list((tmp_path / "theirs").iterdir())
