"""Which device a model process may see. It is said through the environment, before jax is imported there."""

from __future__ import annotations

from collections.abc import Mapping

from birdie_zmq.errors import UsageError

VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""The variables by which NVIDIA's and AMD's runtimes are told which devices there are."""


def device_environment(device: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a model process.

    Args:
        device: None for whatever the framework finds, ``cpu``, or the number of one GPU among those that the environment shows.
        environment: The worker's own; XLA_FLAGS, JAX_* and XLA_PYTHON_CLIENT_* in it reach the model process.

    Raises:
        UsageError: The device is neither, or the environment does not show as many.
    """
    result = dict(environment)
    if device is None:
        return result
    if device == "cpu":
        # JAX is told by its own word; other frameworks find no GPU.
        return {**result, "JAX_PLATFORMS": "cpu", **dict.fromkeys(VISIBLE_DEVICES, "")}
    if not device.isdecimal():
        raise UsageError(f"the device {device!r} is neither cpu nor the number of a GPU")
    for variable in VISIBLE_DEVICES:
        # A machine without such devices is not harmed: JAX then runs on what it finds.
        if variable not in environment:
            result[variable] = device
            continue
        shown = [name.strip() for name in environment[variable].split(",") if name.strip()]
        if not shown:
            continue  # Hidden on purpose, and they stay so.
        if int(device) < len(shown):
            result[variable] = shown[int(device)]
        else:
            raise UsageError(f"there is no device {device}: {variable}={environment[variable]} shows {len(shown)}")
    return result


def device_of_lm_eval(name: str | None) -> str | None:
    """The worker's device for lm_eval's ``--device``: ``cpu``, ``cuda:N`` or ``cuda``; others leave it to JAX.

    lm_eval fills in ``cuda:0`` where nothing was said, so it cannot mean that there must be a GPU.
    """
    if name == "cpu":
        return "cpu"
    prefix, _, index = (name or "").partition(":")
    return index if prefix == "cuda" and index.isdecimal() else None
