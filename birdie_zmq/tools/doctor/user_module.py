"""Checks whether the user module (an ``api.py``) can be imported, and whether it loads a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from birdie_zmq.processes.spawn import module_command, package_environment
from birdie_zmq.settings import ENGINE_VARIABLE
from birdie_zmq.tools.doctor.child import ProbeResult, run_probe
from birdie_zmq.tools.doctor.finding import Finding

LOAD_TIMEOUT_S = 900.0
_IMPORT_TIMEOUT_S = 120.0


def user_module_finding(
    path: Path | None, engine: str, tag: str | None, result: ProbeResult, timeout_s: float
) -> Finding:
    """Return the finding about a user module.

    Args:
        path: The ``api.py``, None for the built-in one.
        engine: The engine, as `birdie_zmq.worker.engine_registry.find_engine` returns it.
        tag: The model tag to load, None to load no model.
        result: The result of the probe.
        timeout_s: The timeout of the probe in seconds.
    """
    name = "api.py" if tag is None else "model"
    module = "the built-in api.py" if path is None else str(path)
    answer = result.answer
    if answer is None:
        action = f"importing {module}" if tag is None else f"loading {tag} with {module}"
        if result.status is None:
            return Finding(name, "wrong", f"{action} took over {timeout_s:.0f} s", "find where it hangs: py-spy dump")
        text = f"{action} ended the process: {result.last_line}"
        fix = "add memory, or load a smaller model" if result.status == -9 else _fix(path, result.errors)
        return Finding(name, "wrong", text, fix, result.errors[-4000:])
    if "error" in answer:
        trace = answer["traceback"] or ""
        code, error = answer["code"], answer["error"]
        fix = _engine_fix(engine, error) if code == "engine" else _fix(path, trace, code)
        return Finding(name, "wrong", error, fix, trace)
    if tag is None:
        return Finding(name, "ok", f"{module} has load_model and load_tokenizer, for the {engine} engine")
    parameters = "" if answer["parameters"] is None else f"{answer['parameters']:,} parameters, "
    text = (
        f"{module} loads {tag} in {answer['seconds']:.1f} s: {parameters}{answer['dtype']}, "
        f"maximum length {answer['max_length']:,} tokens, on {', '.join(answer['devices'])}"
    )
    if answer["warnings"]:
        return Finding(name, "warning", f"{text}; {'; '.join(answer['warnings'])}")
    return Finding(name, "ok", text)


def _fix(path: Path | None, trace: str, code: str = "") -> str:
    if path is None:
        return "pass another --model-tag: demo, a checkpoint folder, a .gguf file or a Hugging Face repository"
    if code == "unknown-model-tag":
        return f"pass a --model-tag that {path} knows"
    lines = re.findall(rf'File "{re.escape(str(path))}", line (\d+)', trace)
    return f"edit {path}{f', line {lines[-1]}' if lines else ''}"


def _engine_fix(engine: str, error: str) -> str:
    advice = re.search(r"\((pip install [^)]*)\)", error) or re.search(r"needs (\S+), which is not installed", error)
    if advice is None:
        return f"edit {engine}"
    return advice[1] if advice[1].startswith("pip ") else f"pip install {advice[1]}"


def check(
    path: Path | None, engine: str, tag: str | None, environment: Mapping[str, str], timeout_s: float | None = None
) -> Finding:
    """Import a user module in a child process, load a model if requested, and return the finding.

    Args:
        path: The ``api.py``, None for the built-in one.
        engine: The engine, as `birdie_zmq.worker.engine_registry.find_engine` returns it.
        tag: The model tag to load, None to load no model.
        environment: The environment variables of a model process.
        timeout_s: Timeout in seconds; None for LOAD_TIMEOUT_S, or for two minutes if no model is loaded.
    """
    path = None if path is None else path.resolve()
    seconds = timeout_s or (_IMPORT_TIMEOUT_S if tag is None else LOAD_TIMEOUT_S)
    arguments = ["" if path is None else str(path), engine, *([] if tag is None else [tag])]
    child = {**package_environment(environment), ENGINE_VARIABLE: engine, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    result = run_probe(module_command("birdie_zmq.tools.doctor.user_module_probe", *arguments), child, seconds)
    return user_module_finding(path, engine, tag, result, seconds)
