"""Checks which Python the ``lm_eval`` command on PATH runs, and whether that Python registers birdie_zmq.

An environment that was copied or moved, one that sees the packages of the system, pipx, and a second lm_eval in the home
directory have the same symptom: the command runs a Python that has no birdie_zmq.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from birdie_zmq.tools.doctor.child import ProbeResult, run_probe
from birdie_zmq.tools.doctor.finding import Finding
from birdie_zmq.tools.doctor.hook import PROBE_SCRIPT, TIMEOUT_S, hook_finding, parse_facts

NAME = "lm_eval on PATH"
_MAX_HEAD_BYTES = 4096
_EXEC_LINE = re.compile(r"""^'''exec' (?P<command>.+) "\$0" "\$@"$""")
"""The second line of a script whose first line would be too long or would have a space, as pip and uv write it."""

Probe = Callable[[str], ProbeResult]


def interpreter_of(script: Path) -> str | None:
    """Return the path of the Python that runs a console script; None if its first lines do not name one.

    Raises:
        OSError: The script cannot be read.
    """
    with script.open("rb") as file:
        lines = file.read(_MAX_HEAD_BYTES).decode("utf-8", errors="replace").splitlines()
    if not lines or not lines[0].startswith("#!"):
        return None
    found = _EXEC_LINE.match(lines[1]) if len(lines) > 1 else None
    try:
        command = shlex.split(lines[0][2:] if found is None else found["command"])
    except ValueError:
        return None
    if command and Path(command[0]).name == "env":
        command = [part for part in command[1:] if not part.startswith("-") and "=" not in part]
        command = [shutil.which(command[0]) or command[0]] if command else []
    if not command or not Path(command[0]).name.startswith(("python", "pypy")):
        return None
    return command[0]


def probe(python: str) -> ProbeResult:
    """Run the probe of the hook with another Python."""
    return run_probe([python, "-P", "-c", PROBE_SCRIPT], os.environ, TIMEOUT_S)


def command_finding(command: str | None, python: str, run: Probe = probe) -> Finding:
    """Return the finding whether the ``lm_eval`` command registers birdie_zmq.

    Args:
        command: The path of the command, None if there is none.
        python: The path of this interpreter.
        run: Runs the probe of the hook with the Python at a path.
    """
    instead = f"{python} -m lm_eval …   in place of lm_eval …"
    if command is None:
        return Finding(NAME, "warning", "there is no lm_eval command", f"{python} -m lm_eval …")
    try:
        interpreter = interpreter_of(Path(command))
    except OSError as error:
        return Finding(NAME, "warning", f"{command} cannot be read: {error.strerror}", instead)
    if interpreter is None:
        if Path(command).absolute().parent == Path(python).absolute().parent:
            return Finding(NAME, "ok", command)
        return Finding(NAME, "warning", f"{command} may belong to another Python than {python}", instead)
    if os.path.normpath(interpreter) == os.path.normpath(python):
        return Finding(NAME, "ok", command)
    if not Path(interpreter).exists():
        text = f"{command} runs {interpreter}, which does not exist: the environment was moved or copied"
        return Finding(NAME, "wrong", text, f"{python} -m pip install --force-reinstall --no-deps lm_eval")
    if _same_environment(interpreter, python):
        return Finding(NAME, "ok", command)
    result = run(interpreter)
    facts = parse_facts(result)
    if facts is not None and facts.registered:
        return Finding(NAME, "warning", f"{command} runs another Python, {interpreter}, and its birdie_zmq", instead)
    reason = hook_finding(facts, result, False).text
    return Finding(NAME, "wrong", f"{command} runs another Python, {interpreter}: {reason}", instead)


def _same_environment(interpreter: str, python: str) -> bool:
    """Return whether two paths are names of one Python in one environment, such as python and python3.12."""
    one, other = Path(interpreter), Path(python)
    return one.parent.resolve() == other.parent.resolve() and one.resolve() == other.resolve()
