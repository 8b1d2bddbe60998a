"""Starting a Python process of this package, and ending it reliably."""

from __future__ import annotations

import contextlib
import os
import signal
import site
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

PACKAGE_ROOT = Path(__file__).resolve().parent.parent.parent


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this package with the interpreter of this process.

    ``-P`` keeps the current directory off the import path: a worker must not import a stray ``json.py`` from it.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def package_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which a child imports the same birdie_zmq as this process.

    If this process runs from a checkout, as with ``python broker.py``, a child would not find the package, so the checkout
    is put first on its PYTHONPATH. An installed package is found anyway.
    """
    result = dict(environment)
    installed = {Path(directory).resolve() for directory in [*site.getsitepackages(), site.getusersitepackages()]}
    if PACKAGE_ROOT not in installed:
        rest = environment.get("PYTHONPATH")
        result["PYTHONPATH"] = f"{PACKAGE_ROOT}{os.pathsep}{rest}" if rest else str(PACKAGE_ROOT)
    return result


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    output: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child in its own process group, writing to this process's standard error, or to `output` if given.

    The process group keeps a Ctrl-C at the terminal away from the child, so that the parent decides how it ends. The
    child's standard output goes to standard error too: the parent's standard output is reserved for its own results, such
    as lm_eval's table.
    """
    return subprocess.Popen(
        command,
        env=dict(environment),
        stdin=stdin,
        stdout=_standard_error() if output is None else output,
        stderr=subprocess.STDOUT,
        pass_fds=pass_fds,
        process_group=0,
    )


def _standard_error() -> int:
    """Return the descriptor of this process's standard error, `subprocess.DEVNULL` if it has none, as a daemon."""
    if sys.__stderr__ is None:
        return subprocess.DEVNULL
    try:
        descriptor = sys.__stderr__.fileno()
        os.fstat(descriptor)
    except (OSError, ValueError):  # closed
        return subprocess.DEVNULL
    return descriptor


def end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Send SIGTERM to a child, wait for `timeout_s`, and kill its process group if it is still running; reap the child."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            kill_group(process)
            process.wait()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a child of `start` together with its own children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
