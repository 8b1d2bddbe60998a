"""Whether the page that loads models can be imported, and whether it loads one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from birdie_zmq.processes.spawn import module_command, package_environment
from birdie_zmq.settings import ENGINE_VARIABLE
from birdie_zmq.tools.doctor.child import Reply, ask
from birdie_zmq.tools.doctor.finding import Finding

LOAD_S = 900.0
_IMPORT_S = 120.0


def page_finding(page: Path | None, engine: str, tag: str | None, reply: Reply, timeout_s: float) -> Finding:
    """What became of a page.

    Args:
        page: The page, None for the built-in one.
        engine: As `birdie_zmq.worker.engine_registry.find_engine` gives it.
        tag: The model that was to be loaded, None for none.
        reply: That of the child.
        timeout_s: Seconds that it had.
    """
    name = "page" if tag is None else "model"
    called = "the built-in page" if page is None else str(page)
    answer = reply.answer
    if answer is None:
        doing = f"importing {called}" if tag is None else f"loading {tag} by {called}"
        if reply.status is None:
            return Finding(name, "wrong", f"{doing} took over {timeout_s:.0f} s", "look where it hangs: py-spy dump")
        text = f"{doing} ended the process: {reply.last_line}"
        cure = "give it more memory, or a smaller model" if reply.status == -9 else _cure(page, reply.errors)
        return Finding(name, "wrong", text, cure, reply.errors[-4000:])
    if "error" in answer:
        trace = answer["traceback"] or ""
        if answer["code"] == "engine":
            cure = _cure_of_engine(engine, answer["error"])
        else:
            cure = _cure(page, trace, answer["code"])
        return Finding(name, "wrong", answer["error"], cure, trace)
    if tag is None:
        return Finding(name, "ok", f"{called} has load_model and load_tokenizer, for the engine {engine}")
    parameters = "" if answer["parameters"] is None else f"{answer['parameters']:,} parameters, "
    text = (
        f"{called} loads {tag} in {answer['seconds']:.1f} s: {parameters}{answer['dtype']}, "
        f"{answer['max_length']:,} tokens at once, on {', '.join(answer['devices'])}"
    )
    if answer["warnings"]:
        return Finding(name, "warning", f"{text}; {'; '.join(answer['warnings'])}")
    return Finding(name, "ok", text)


def _cure(page: Path | None, trace: str, code: str = "") -> str:
    if page is None:
        return "give another --model-tag: demo, a checkpoint's folder, a .gguf file or a repository of the hub"
    if code == "unknown-model-tag":
        return f"give a --model-tag that {page} knows"
    lines = re.findall(rf'File "{re.escape(str(page))}", line (\d+)', trace)
    return f"edit {page}{f', line {lines[-1]}' if lines else ''}"


def _cure_of_engine(engine: str, error: str) -> str:
    advice = re.search(r"\((pip install [^)]*)\)", error) or re.search(r"needs (\S+), which is not installed", error)
    if advice is None:
        return f"edit {engine}"
    return advice[1] if advice[1].startswith("pip ") else f"pip install {advice[1]}"


def check(
    page: Path | None, engine: str, tag: str | None, environment: Mapping[str, str], timeout_s: float | None = None
) -> Finding:
    """Try a page in a child.

    Args:
        page: The page, None for the built-in one.
        engine: As `birdie_zmq.worker.engine_registry.find_engine` gives it.
        tag: A model to load, None for none.
        environment: That of a model process.
        timeout_s: Seconds that it may take; None for LOAD_S, or for two minutes where nothing is loaded.
    """
    page = None if page is None else page.resolve()
    seconds = timeout_s or (_IMPORT_S if tag is None else LOAD_S)
    arguments = ["" if page is None else str(page), engine, *([] if tag is None else [tag])]
    child = {**package_environment(environment), ENGINE_VARIABLE: engine, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    reply = ask(module_command("birdie_zmq.tools.doctor.page_probe", *arguments), child, seconds)
    return page_finding(page, engine, tag, reply, seconds)
