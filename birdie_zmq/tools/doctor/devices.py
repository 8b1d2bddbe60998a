"""Which devices the framework sees, and what hides a GPU that is there.

The framework is imported by a child, since it takes a GPU's memory and may hang or crash.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Mapping

from birdie_zmq.tools.doctor.child import MARK, Reply, ask, interpreter
from birdie_zmq.tools.doctor.finding import Finding

_TIMEOUT_S = 120.0
_SMI_TIMEOUT_S = 10.0

_JAX = f"""
import json, jax
devices = jax.devices()
print({MARK!r} + json.dumps(dict(version=jax.__version__, devices=[f"{{d}} {{d.device_kind}}" for d in devices],
                                 accelerators=sum(d.platform != "cpu" for d in devices))))
"""
_TORCH = f"""
import json, torch
count = torch.cuda.device_count()
names = [torch.cuda.get_device_name(i) for i in range(count)] or ["cpu"]
print({MARK!r} + json.dumps(dict(version=torch.__version__, devices=names, accelerators=count)))
"""
PROGRAMS = {"jax": _JAX, "torch": _TORCH}
_INSTALL = {"jax": "pip install 'birdie-zmq[cuda]'", "torch": "pip install 'birdie-zmq[torch]'"}


def gpus_of_nvidia_smi(environment: Mapping[str, str]) -> int | None:
    """How many GPUs NVIDIA's own command lists, None where there is no such command or it fails."""
    command = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if command is None:
        return None
    try:
        listed = subprocess.run([command, "-L"], capture_output=True, text=True, check=True, timeout=_SMI_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def device_finding(
    framework: str, reply: Reply, gpus: int | None, environment: Mapping[str, str], timeout_s: float = _TIMEOUT_S
) -> Finding:
    """What a framework sees.

    Args:
        framework: ``jax`` or ``torch``.
        reply: That of the child that imported it.
        gpus: How many GPUs nvidia-smi lists, None where that is not known.
        environment: The child's.
        timeout_s: Seconds that the child had.
    """
    name = "devices"
    platforms = environment.get("JAX_PLATFORMS", "")
    if reply.answer is None:
        if reply.status is None:
            text = f"{framework} found no device within {timeout_s:.0f} s; another process may hold it, or its driver hangs"
            return Finding(name, "wrong", text, "end what holds it (nvidia-smi lists processes), or use --device cpu")
        if f"No module named '{framework}'" in reply.errors:
            cure = "pip install jax" if framework == "jax" else _INSTALL[framework]
            return Finding(name, "wrong", f"{framework} is not installed", cure)
        if framework == "jax" and platforms:
            text = f"jax finds no device under JAX_PLATFORMS={platforms}: {reply.last_line}"
            return Finding(name, "wrong", text, "unset JAX_PLATFORMS")
        text = f"{framework} cannot be used: {reply.last_line}"
        cure = _INSTALL[framework] if gpus else f"pip install --upgrade {framework}"
        return Finding(name, "wrong", text, cure, reply.errors[-4000:])
    seen = f"{framework} {reply.answer['version']} sees {', '.join(reply.answer['devices'])}"
    if not gpus or reply.answer["accelerators"] >= gpus:
        return Finding(name, "ok", seen)
    there = f"nvidia-smi lists {gpus} GPU{'s' if gpus > 1 else ''}"
    if framework == "jax" and platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return Finding(
            name, "warning", f"{seen}; {there}, which JAX_PLATFORMS={platforms} hides", "unset JAX_PLATFORMS"
        )
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        shown = shlex.quote(visible)
        text = f"{seen}; {there}, and CUDA_VISIBLE_DEVICES={shown} hides {'others' if reply.answer['accelerators'] else 'them'}"
        return Finding(name, "warning", text, "unset CUDA_VISIBLE_DEVICES, if they are meant to be used")
    return Finding(name, "wrong", f"{seen}; {there}, which {framework} does not see", _INSTALL[framework])


def check(framework: str, environment: Mapping[str, str], timeout_s: float = _TIMEOUT_S) -> Finding:
    """Ask a framework.

    Args:
        framework: ``jax`` or ``torch``.
        environment: That of a model process.
        timeout_s: Seconds that it may take.
    """
    # The doctor may be called while a model computes on the same GPU.
    child = {**environment, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    reply = ask(interpreter("-P", "-c", PROGRAMS[framework]), child, timeout_s)
    return device_finding(framework, reply, gpus_of_nvidia_smi(environment), environment, timeout_s)
