"""Whether the plain ``lm_eval`` command knows birdie_zmq, and which birdie_zmq a fresh Python imports."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from birdie_zmq.tools.doctor.child import MARK, Reply, ask, interpreter
from birdie_zmq.tools.doctor.finding import Finding

_TIMEOUT_S = 120.0
SWITCH = "BIRDIE_ZMQ_NO_HOOK"
PTH = "birdie_zmq_lm_eval.pth"
WITHOUT_PTH = "python -m birdie_zmq lm_eval …   in place of lm_eval …"

PROGRAM = f"""
import importlib.util, json, os, site, sys
hooked = "_birdie_zmq_hook" in sys.modules
folders = [*site.getsitepackages(), site.getusersitepackages()] if not sys.flags.no_site else []
def origin(name):
    spec = importlib.util.find_spec(name)
    return None if spec is None else spec.origin
found = dict(hooked=hooked, no_site=bool(sys.flags.no_site), package=origin("birdie_zmq"), model=origin("harness_model"),
             pth=[f for f in folders if os.path.isfile(os.path.join(f, {PTH!r}))], registered=None, error=None)
try:
    import lm_eval.models
    from lm_eval.api.registry import model_registry
    found["registered"] = "birdie_zmq" in model_registry
except Exception as error:
    found["error"] = f"{{type(error).__name__}}: {{error}}"
print({MARK!r} + json.dumps(found))
"""


@dataclass(frozen=True)
class Facts:
    """What a fresh Python says of itself.

    Attributes:
        hooked: Whether the hook was imported when it started.
        no_site: Whether it was started with ``-S`` and so read no .pth file.
        package: The file of the birdie_zmq that it imports, None if it finds none.
        model: The same of harness_model.
        pth: The folders in which it has read our .pth file.
        registered: Whether lm_eval knows birdie_zmq; None if lm_eval cannot be imported.
        error: Why not.
    """

    hooked: bool
    no_site: bool
    package: str | None
    model: str | None
    pth: list[str]
    registered: bool | None
    error: str | None


def facts(reply: Reply) -> Facts | None:
    """The facts in a child's reply, None if there are none."""
    return None if reply.answer is None else Facts(**reply.answer)


def hook_finding(found: Facts | None, reply: Reply, switched_off: bool) -> Finding:
    """Whether ``lm_eval --model birdie_zmq`` finds its model, and what is in the way if it does not.

    Args:
        found: What the child said, None if it said nothing.
        reply: How it ended.
        switched_off: Whether the environment switches the hook off.
    """
    name = "lm_eval hook"
    reinstall = "pip install --force-reinstall --no-deps birdie-zmq"
    if found is None:
        why = f"took over {_TIMEOUT_S:.0f} s" if reply.status is None else reply.last_line
        return Finding(
            name, "wrong", f"importing lm_eval in a fresh Python failed: {why}", "python -c 'import lm_eval'"
        )
    if found.registered:
        return Finding(name, "ok", "a fresh Python registers birdie_zmq with lm_eval")
    if found.error is not None:
        return Finding(
            name, "wrong", f"lm_eval cannot be imported: {found.error}", "pip install --force-reinstall lm_eval"
        )
    if switched_off:
        return Finding(name, "wrong", f"{SWITCH} is set, so lm_eval does not know birdie_zmq", f"unset {SWITCH}")
    if found.no_site:
        return Finding(name, "wrong", "this Python runs with -S and reads no .pth file", WITHOUT_PTH)
    if found.package is None:
        return Finding(name, "wrong", "a fresh Python does not find birdie_zmq", "pip install birdie-zmq")
    if not found.pth:
        where = Path(found.package).parent.parent
        if (where / PTH).is_file():
            text = f"Python reads no .pth file in {where} (pip install --target, PYTHONPATH), so the hook is not there"
            return Finding(name, "wrong", text, WITHOUT_PTH)
        return Finding(name, "wrong", f"{PTH} is in no folder of packages, so the hook is not there", reinstall)
    return Finding(name, "wrong", f"{found.pth[0]}/{PTH} is there, and its hook did not register birdie_zmq", reinstall)


def command_finding(command: str | None, python: str) -> Finding:
    """Whether the ``lm_eval`` on the PATH is that of this Python.

    Args:
        command: Its path, None if there is none.
        python: This interpreter's path.
    """
    if command is None:
        return Finding("lm_eval on PATH", "warning", "there is no command lm_eval", f"{python} -m lm_eval …")
    if Path(command).absolute().parent != Path(python).absolute().parent:
        text = f"{command} may be that of another Python than {python}"
        return Finding("lm_eval on PATH", "warning", text, f"{python} -m lm_eval …   in place of lm_eval …")
    return Finding("lm_eval on PATH", "ok", command)


def shadow_finding(running: Path, fresh: Path | None, here: Path) -> Finding:
    """Whether all that may run is one birdie_zmq: that of this process, of the lm_eval command, and of this folder.

    Args:
        running: The folder of the package that this process has imported.
        fresh: That of a fresh Python, as the lm_eval command has it; None if it finds none.
        here: The current directory.
    """
    checkout = here / "birdie_zmq"
    name, mend = "one package", "pip install -e .   in the checkout, or leave its folder"
    if fresh is not None and fresh != running:
        text = f"this command runs {running}, and lm_eval imports {fresh}"
        return Finding(name, "warning", text, mend)
    if (checkout / "__init__.py").is_file() and checkout.resolve() != running.resolve():
        text = f"the checkout in this folder is not what runs: birdie_zmq comes from {running}"
        return Finding(name, "warning", text, mend)
    return Finding(name, "ok", f"birdie_zmq comes from {running}")


def check(package: Path) -> list[Finding]:
    """All of these checks.

    Args:
        package: The folder of the imported package.
    """
    # As the command lm_eval has it, which is a script in another folder: without the current directory.
    reply = ask(interpreter("-P", "-c", PROGRAM), os.environ, _TIMEOUT_S)
    found = facts(reply)
    fresh = None if found is None or found.package is None else Path(found.package).resolve().parent
    return [
        hook_finding(found, reply, bool(os.environ.get(SWITCH))),
        command_finding(shutil.which("lm_eval"), sys.executable),
        shadow_finding(package, fresh, Path.cwd()),
    ]
