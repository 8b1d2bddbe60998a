"""Asking a fresh process: what may hang, crash, print or take a device's memory is not done in this one."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from birdie_zmq.processes.spawn import kill_group

MARK = "birdie-zmq doctor: "
"""What the line with the answer begins with; other code in the child may print as well."""


@dataclass(frozen=True)
class Reply:
    """What a child has said.

    Attributes:
        answer: The object that it printed behind the mark, None if it printed none.
        status: Its exit status, negative for a signal; None if it was killed because its time was over.
        errors: What it wrote to standard error.
    """

    answer: Any
    status: int | None
    errors: str

    @property
    def last_line(self) -> str:
        """The last line of its errors, which names the exception, or how it ended."""
        lines = [line for line in self.errors.splitlines() if line.strip()]
        # A C library may write on after Python's traceback.
        if lines and not (self.status is not None and self.status < 0):
            return lines[-1].strip()
        if self.status is not None and self.status < 0:
            return f"it was ended by {signal.Signals(-self.status).name}"
        return f"it ended with status {self.status}"


def ask(command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Reply:
    """Run a child until it ends or its time is over, and kill all that it has started itself.

    Args:
        command: The child's, which prints MARK and one line of JSON.
        environment: Its environment.
        timeout_s: Seconds that it may take.
    """
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    )
    try:
        printed, errors = process.communicate(timeout=timeout_s)
        status: int | None = process.returncode
    except subprocess.TimeoutExpired:
        kill_group(process)
        printed, errors = process.communicate()
        status = None
    finally:
        kill_group(process)
        process.wait()
    return Reply(_answer(printed.decode(errors="replace")), status, errors.decode(errors="replace"))


def _answer(printed: str) -> Any:
    for line in reversed(printed.splitlines()):
        _, mark, rest = line.partition(MARK)
        if mark:
            with contextlib.suppress(ValueError):
                return json.loads(rest)
    return None


def interpreter(*flags: str) -> list[str]:
    """The command of this Python with the flags that it was started with itself, as far as they say what can be imported."""
    kept = ["-S"] * sys.flags.no_site + ["-s"] * sys.flags.no_user_site + ["-E"] * sys.flags.ignore_environment
    return [sys.executable, *kept, *flags]
