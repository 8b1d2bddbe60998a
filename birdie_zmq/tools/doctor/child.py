"""Runs probes in a child process: a probe may hang, crash, print, or allocate device memory."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from birdie_zmq.processes.signals import signal_name
from birdie_zmq.processes.spawn import kill_group

MARKER = "birdie-zmq doctor: "
"""Prefix of the line with the result; other code in the child may print lines too."""


@dataclass(frozen=True)
class ProbeResult:
    """The result of a probe.

    Attributes:
        answer: The object that the child printed after MARKER, None if it printed none.
        status: Its exit status, negative for a signal; None if it was killed after the timeout.
        errors: Its standard error.
    """

    answer: Any
    status: int | None
    errors: str

    @property
    def last_line(self) -> str:
        """The last line of standard error, which names the exception, or else a text about how the child ended."""
        if self.status is not None and self.status < 0:
            # A C library may have written more lines after Python's traceback.
            return f"killed by {signal_name(-self.status)}"
        lines = [line for line in self.errors.splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"exited with status {self.status}"


def run_probe(command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> ProbeResult:
    """Run a probe until it ends or times out, and kill all processes that it has started.

    Args:
        command: The command of the probe, which prints MARKER and one line of JSON.
        environment: Its environment variables.
        timeout_s: Timeout in seconds.
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
    return ProbeResult(_parse_answer(printed.decode(errors="replace")), status, errors.decode(errors="replace"))


def _parse_answer(printed: str) -> Any:
    for line in reversed(printed.splitlines()):
        _, mark, rest = line.partition(MARKER)
        if mark:
            with contextlib.suppress(ValueError):
                return json.loads(rest)
    return None


def python_command(*flags: str) -> list[str]:
    """Return the command of this Python, with its own flags that affect which modules can be imported."""
    inherited = ["-S"] * sys.flags.no_site + ["-s"] * sys.flags.no_user_site + ["-E"] * sys.flags.ignore_environment
    return [sys.executable, *inherited, *flags]
