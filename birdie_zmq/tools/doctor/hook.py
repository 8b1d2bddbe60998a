"""Checks whether the ``lm_eval`` command knows birdie_zmq, and which birdie_zmq a new Python process imports."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from birdie_zmq.tools.doctor.child import MARKER, ProbeResult, python_command, run_probe
from birdie_zmq.tools.doctor.finding import Finding

TIMEOUT_S = 120.0
DISABLE_VARIABLE = "BIRDIE_ZMQ_NO_HOOK"
PTH = "birdie_zmq_lm_eval.pth"
WITHOUT_PTH = "python -m birdie_zmq lm_eval …   in place of lm_eval …"

PROBE_SCRIPT = f"""
import importlib.util, json, os, site, sys
folders = [*site.getsitepackages(), site.getusersitepackages()] if not sys.flags.no_site else []
package = importlib.util.find_spec("birdie_zmq")
facts = dict(no_site=bool(sys.flags.no_site), package=package and package.origin,
             pth=[f for f in folders if os.path.isfile(os.path.join(f, {PTH!r}))], registered=None, error=None)
try:
    import lm_eval.models
    from lm_eval.api.registry import model_registry
    facts["registered"] = "birdie_zmq" in model_registry
except Exception as error:
    facts["error"] = f"{{type(error).__name__}}: {{error}}"
print({MARKER!r} + json.dumps(facts))
"""


@dataclass(frozen=True)
class HookFacts:
    """The state of the hook in a new Python process.

    Attributes:
        no_site: Whether Python runs with ``-S`` and reads no .pth files.
        package: The file of the birdie_zmq that it imports, None if there is none.
        pth: The site-packages folders that contain our .pth file.
        registered: Whether lm_eval knows birdie_zmq; None if lm_eval cannot be imported.
        error: Why lm_eval cannot be imported.
    """

    no_site: bool
    package: str | None
    pth: list[str]
    registered: bool | None
    error: str | None


def parse_facts(result: ProbeResult) -> HookFacts | None:
    """Return the facts that the probe printed, None if it printed none."""
    return None if result.answer is None else HookFacts(**result.answer)


def hook_finding(facts: HookFacts | None, result: ProbeResult, disabled: bool) -> Finding:
    """Return the finding whether ``lm_eval --model birdie_zmq`` finds its model, or why it does not.

    Args:
        facts: The facts of the probe, None if it printed none.
        result: The result of the probe.
        disabled: Whether an environment variable disables the hook.
    """
    name = "lm_eval hook"
    reinstall = "pip install --force-reinstall --no-deps birdie-zmq"
    if facts is None:
        reason = f"no result within {TIMEOUT_S:.0f} s" if result.status is None else result.last_line
        return Finding(
            name, "wrong", f"importing lm_eval in a new Python process failed: {reason}", "python -c 'import lm_eval'"
        )
    if facts.registered:
        return Finding(name, "ok", "a new Python process registers birdie_zmq with lm_eval")
    if facts.error is not None:
        return Finding(
            name, "wrong", f"lm_eval cannot be imported: {facts.error}", "pip install --force-reinstall lm_eval"
        )
    if disabled:
        return Finding(
            name,
            "wrong",
            f"{DISABLE_VARIABLE} is set, so lm_eval does not know birdie_zmq",
            f"unset {DISABLE_VARIABLE}",
        )
    if facts.no_site:
        return Finding(name, "wrong", "this Python runs with -S and reads no .pth files", WITHOUT_PTH)
    if facts.package is None:
        return Finding(name, "wrong", "a new Python process does not find birdie_zmq", "pip install birdie-zmq")
    if not facts.pth:
        where = Path(facts.package).parent.parent
        if (where / PTH).is_file():
            text = (
                f"Python reads no .pth files in {where} (pip install --target, PYTHONPATH), so the hook is not active"
            )
            return Finding(name, "wrong", text, WITHOUT_PTH)
        return Finding(name, "wrong", f"{PTH} is in no site-packages folder, so the hook is not active", reinstall)
    return Finding(name, "wrong", f"{facts.pth[0]}/{PTH} exists, but its hook did not register birdie_zmq", reinstall)


def shadow_finding(running: Path, imported: Path | None, directory: Path) -> Finding:
    """Return the finding whether this process, the lm_eval command and this directory have the same birdie_zmq.

    Args:
        running: The folder of the package that this process has imported.
        imported: The folder that a new Python process imports, as the lm_eval command does; None if it finds none.
        directory: The current directory.
    """
    checkout = directory / "birdie_zmq"
    name, fix = "one package", "pip install -e .   in the checkout, or change the directory"
    if imported is not None and imported != running:
        text = f"this command runs {running}, but lm_eval imports {imported}"
        return Finding(name, "warning", text, fix)
    if (checkout / "__init__.py").is_file() and checkout.resolve() != running.resolve():
        text = f"the checkout in this directory is not used: birdie_zmq is imported from {running}"
        return Finding(name, "warning", text, fix)
    return Finding(name, "ok", f"birdie_zmq is imported from {running}")


def check(package: Path) -> list[Finding]:
    """Run the checks of the hook and the package.

    Args:
        package: The folder of the imported package.
    """
    # The probe does not import from the current directory, like the lm_eval command, which is a script in another folder.
    result = run_probe(python_command("-P", "-c", PROBE_SCRIPT), os.environ, TIMEOUT_S)
    facts = parse_facts(result)
    imported = None if facts is None or facts.package is None else Path(facts.package).resolve().parent
    return [
        hook_finding(facts, result, bool(os.environ.get(DISABLE_VARIABLE))),
        shadow_finding(package, imported, Path.cwd()),
    ]
