"""Checks which Python the ``lm_eval`` command on PATH runs, and whether that Python registers birdie_zmq.

An environment that was copied or moved, one that sees the packages of the system, pipx, a pyenv shim, and a second lm_eval in
the home directory have the same symptom: the command runs a Python that has no birdie_zmq.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from birdie_zmq.tools.doctor.child import MARKER, ProbeResult, run_probe
from birdie_zmq.tools.doctor.finding import Finding
from birdie_zmq.tools.doctor.hook import PROBE_SCRIPT, TIMEOUT_S, hook_finding, parse_facts

NAME = "lm_eval on PATH"

_TELL_PYTHON = f"""
import json, os, sys
print({MARKER!r} + json.dumps(sys.executable), flush=True)
os._exit(0)
"""
"""A ``sitecustomize`` module. The Python of the command imports it when it starts, and ends before it runs lm_eval."""

Probe = Callable[[str], ProbeResult]


def python_of(command: str) -> str | None:
    """Return the path of the Python that a command runs, directly or by other scripts; None if it does not tell.

    Raises:
        OSError: The command cannot be started, such as a script whose Python does not exist.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(_TELL_PYTHON, encoding="utf-8")
        result = run_probe([command, "--help"], {**os.environ, "PYTHONPATH": folder}, TIMEOUT_S)
    return result.answer if isinstance(result.answer, str) else None


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
        other = python_of(command)
    except OSError as error:
        text = f"{command} cannot be started ({error.strerror}): its Python may have been moved or removed"
        return Finding(NAME, "wrong", text, f"{python} -m pip install --force-reinstall --no-deps lm_eval")
    if other is None:
        if Path(command).absolute().parent == Path(python).absolute().parent:
            return Finding(NAME, "ok", command)
        return Finding(NAME, "warning", f"{command} may belong to another Python than {python}", instead)
    if _same_environment(other, python):
        return Finding(NAME, "ok", command)
    result = run(other)
    facts = parse_facts(result)
    if facts is not None and facts.registered:
        return Finding(NAME, "warning", f"{command} runs another Python, {other}, and its birdie_zmq", instead)
    reason = hook_finding(facts, result, False).text
    return Finding(NAME, "wrong", f"{command} runs another Python, {other}: {reason}", instead)


def _same_environment(one: str, other: str) -> bool:
    """Return whether two paths are names of one Python in one environment, such as python and python3.12."""
    first, second = Path(one), Path(other)
    return first.parent.resolve() == second.parent.resolve() and first.resolve() == second.resolve()
