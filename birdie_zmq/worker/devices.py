"""The devices of a model process, which are set through its environment before it imports jax."""

from __future__ import annotations

from collections.abc import Mapping

from birdie_zmq.errors import UsageError

VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""The variables that tell NVIDIA's and AMD's runtimes which devices to use."""


def device_environment(device: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a model process.

    Args:
        device: None for the framework's own choice, ``cpu``, or the index of one of the GPUs that the environment makes
            visible.
        environment: The worker's environment; its XLA_FLAGS, JAX_* and XLA_PYTHON_CLIENT_* reach the model process.

    Raises:
        UsageError: The device is neither, or the environment makes fewer GPUs visible.
    """
    result = dict(environment)
    if device is None:
        return result
    if device == "cpu":
        # JAX has its own variable; other frameworks find no GPU.
        return {**result, "JAX_PLATFORMS": "cpu", **dict.fromkeys(VISIBLE_DEVICES, "")}
    if not device.isdecimal():
        raise UsageError(f"the device {device!r} is neither cpu nor the number of a GPU")
    for variable in VISIBLE_DEVICES:
        # Harmless on a machine without such devices: JAX then runs on those it finds.
        if variable not in environment:
            result[variable] = device
            continue
        visible = [name.strip() for name in environment[variable].split(",") if name.strip()]
        if not visible:
            continue  # Hidden on purpose, so keep them hidden.
        if int(device) < len(visible):
            result[variable] = visible[int(device)]
        else:
            raise UsageError(
                f"there is no device {device}: {variable}={environment[variable]} makes only {len(visible)} visible"
            )
    return result


def device_of_lm_eval(name: str | None) -> str | None:
    """Convert lm_eval's ``--device`` to the worker's: ``cpu``, N for ``cuda:N``, and None, JAX's choice, for all others.

    lm_eval fills in ``cuda:0`` where no device was given, so ``cuda:0`` does not require a GPU.
    """
    if name == "cpu":
        return "cpu"
    prefix, _, index = (name or "").partition(":")
    return index if prefix == "cuda" and index.isdecimal() else None
