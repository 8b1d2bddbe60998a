"""Checks which devices the framework sees, and why it does not see an existing GPU.

The framework is imported in a child process, since it allocates GPU memory and may hang or crash.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Mapping

from birdie_zmq.tools.doctor.child import MARKER, ProbeResult, python_command, run_probe
from birdie_zmq.tools.doctor.finding import Finding

_TIMEOUT_S = 120.0
_SMI_TIMEOUT_S = 10.0

_JAX = f"""
import json, jax
devices = jax.devices()
print({MARKER!r} + json.dumps(dict(version=jax.__version__, devices=[f"{{d}} {{d.device_kind}}" for d in devices],
                                 accelerators=sum(d.platform != "cpu" for d in devices))))
"""
_TORCH = f"""
import json, torch
count = torch.cuda.device_count()
names = [torch.cuda.get_device_name(i) for i in range(count)] or ["cpu"]
print({MARKER!r} + json.dumps(dict(version=torch.__version__, devices=names, accelerators=count)))
"""
PROBE_SCRIPTS = {"jax": _JAX, "torch": _TORCH}
_INSTALL = {"jax": "pip install 'birdie-zmq[cuda]'", "torch": "pip install 'birdie-zmq[torch]'"}


def gpus_of_nvidia_smi(environment: Mapping[str, str]) -> int | None:
    """Return the number of GPUs that nvidia-smi lists, None if there is no such command or it fails."""
    command = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if command is None:
        return None
    try:
        listed = subprocess.run([command, "-L"], capture_output=True, text=True, check=True, timeout=_SMI_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def device_finding(
    framework: str, result: ProbeResult, gpus: int | None, environment: Mapping[str, str], timeout_s: float = _TIMEOUT_S
) -> Finding:
    """Return the finding about the devices of a framework.

    Args:
        framework: ``jax`` or ``torch``.
        result: The result of the probe that imported the framework.
        gpus: Number of GPUs that nvidia-smi lists, None if unknown.
        environment: The environment variables of the probe.
        timeout_s: The timeout of the probe in seconds.
    """
    name = "devices"
    platforms = environment.get("JAX_PLATFORMS", "")
    if result.answer is None:
        if result.status is None:
            text = (
                f"{framework} found no device within {timeout_s:.0f} s; another process may use it, or its driver hangs"
            )
            return Finding(
                name, "wrong", text, "end the process that uses it (nvidia-smi lists processes), or use --device cpu"
            )
        if f"No module named '{framework}'" in result.errors:
            fix = "pip install jax" if framework == "jax" else _INSTALL[framework]
            return Finding(name, "wrong", f"{framework} is not installed", fix)
        if framework == "jax" and platforms:
            text = f"jax finds no device with JAX_PLATFORMS={platforms}: {result.last_line}"
            return Finding(name, "wrong", text, "unset JAX_PLATFORMS")
        text = f"{framework} cannot be used: {result.last_line}"
        fix = _INSTALL[framework] if gpus else f"pip install --upgrade {framework}"
        return Finding(name, "wrong", text, fix, result.errors[-4000:])
    seen = f"{framework} {result.answer['version']} sees {', '.join(result.answer['devices'])}"
    if not gpus or result.answer["accelerators"] >= gpus:
        return Finding(name, "ok", seen)
    there = f"nvidia-smi lists {gpus} GPU{'s' if gpus > 1 else ''}"
    if framework == "jax" and platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return Finding(
            name, "warning", f"{seen}; {there}, which JAX_PLATFORMS={platforms} hides", "unset JAX_PLATFORMS"
        )
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        shown = shlex.quote(visible)
        text = f"{seen}; {there}, and CUDA_VISIBLE_DEVICES={shown} hides {'others' if result.answer['accelerators'] else 'them'}"
        return Finding(name, "warning", text, "unset CUDA_VISIBLE_DEVICES, to use these GPUs")
    return Finding(name, "wrong", f"{seen}; {there}, which {framework} does not see", _INSTALL[framework])


def check(framework: str, environment: Mapping[str, str], timeout_s: float = _TIMEOUT_S) -> Finding:
    """Import a framework in a child process and return the finding about its devices.

    Args:
        framework: ``jax`` or ``torch``.
        environment: The environment variables of a model process.
        timeout_s: Timeout in seconds.
    """
    # A model may be running on the same GPU.
    child = {**environment, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    result = run_probe(python_command("-P", "-c", PROBE_SCRIPTS[framework]), child, timeout_s)
    return device_finding(framework, result, gpus_of_nvidia_smi(environment), environment, timeout_s)
