"""Starting a Python process of this same package, and ending one for certain."""

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
    """The command that runs a module of this package with the interpreter of this process.

    ``-P`` keeps the current directory off the import path: a stray ``json.py`` there must not be run by a worker.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def package_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which a child imports the same birdie_zmq as this process.

    A checkout from which somebody runs ``python broker.py`` is on nobody's path but theirs, so it is put first on the
    child's PYTHONPATH; an installed package is found anyway.
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
    """Start a child in a process group of its own, writing to this process's standard error, or to `output` if given.

    The group keeps a Ctrl-C at the terminal away from the child, so that its parent decides how it ends. Standard
    output goes to standard error as well: the parent's own output is lm_eval's table, or a person's.
    """
    return subprocess.Popen(
        command,
        env=dict(environment),
        stdin=stdin,
        stdout=output if output is not None else sys.__stderr__ if sys.__stderr__ is not None else subprocess.DEVNULL,
        stderr=None if output is None else subprocess.STDOUT,
        pass_fds=pass_fds,
        process_group=0,
    )


def end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Ask a child to end, wait, and kill it with its whole group if it does not; the child is reaped."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            kill_group(process)
            process.wait()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a child of `start` and whatever it has started itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
