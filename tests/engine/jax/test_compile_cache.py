"""The compile cache is on, in a folder that other users cannot write to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import jax, logging
logging.basicConfig()
from birdie_zmq.engine.jax.compile_cache import enable_compile_cache
print(enable_compile_cache())
print(jax.jit(lambda x: jax.numpy.linalg.svd(x @ x)[1])(jax.numpy.ones((40, 40))).shape)
"""


def run(**variables: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")}
    variables = kept | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | variables
    return subprocess.run([sys.executable, "-c", CODE], env=variables, capture_output=True, text=True, check=True)


def test_compile_cache_folder_is_private_to_the_user(tmp_path: Path) -> None:
    run(XDG_CACHE_HOME=str(tmp_path))
    folder = tmp_path / "birdie_zmq" / "programs"
    assert folder.stat().st_mode & 0o777 == 0o700
    first = {path.name for path in folder.iterdir()}
    assert any(name.endswith("-cache") for name in first)
    run(XDG_CACHE_HOME=str(tmp_path))
    assert {path.name for path in folder.iterdir() if path.name.endswith("-cache")} <= first


def test_a_truncated_entry_is_written_again(tmp_path: Path) -> None:
    run(XDG_CACHE_HOME=str(tmp_path))
    folder = tmp_path / "birdie_zmq" / "programs"
    (largest,) = sorted(folder.glob("*-cache"), key=lambda path: path.stat().st_size)[-1:]
    whole = largest.stat().st_size
    largest.write_bytes(largest.read_bytes()[: whole // 2])

    done = run(XDG_CACHE_HOME=str(tmp_path))

    assert "Error reading persistent compilation cache entry" not in done.stderr
    assert largest.stat().st_size > whole // 2


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707])
def test_folder_accessible_to_others_is_not_used(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "birdie_zmq" / "programs"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    done = run(XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.startswith("None")
    assert f"{folder} is accessible to other users" in done.stderr
    assert not list(folder.iterdir())


def test_folder_that_cannot_be_created_turns_the_cache_off(tmp_path: Path) -> None:
    (tmp_path / "birdie_zmq").write_text("a file where the folder should be")
    done = run(XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.startswith("None")
    assert "the compile cache is off" in done.stderr


def test_jax_compilation_cache_dir_takes_precedence(tmp_path: Path) -> None:
    done = run(XDG_CACHE_HOME=str(tmp_path / "ours"), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs"))
    assert done.stdout.startswith("None")
    assert not (tmp_path / "ours").exists()
    assert list((tmp_path / "theirs").iterdir())
