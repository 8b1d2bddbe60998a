"""The devices of a model process, which are set through its environment before it imports jax."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, MutableMapping

from birdie_zmq.errors import UsageError

_CUDA, _HIP, _ROCR = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"

VISIBLE_DEVICES = (_CUDA, _HIP, _ROCR)
"""The variables that tell the runtimes of NVIDIA and AMD which devices to use.

AMD's HIP numbers the devices that ROCR_VISIBLE_DEVICES leaves, and reads CUDA_VISIBLE_DEVICES if HIP_VISIBLE_DEVICES is not set.
"""


class GpuHider:
    """Hides the GPUs from a process for as long as somebody wants it, and restores its variables after the last one.

    Args:
        environment: The environment variables of the process, which are changed.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        self._environment = environment
        self._lock = threading.RLock()  # a finalizer may call `restore` at any time
        self._users = 0
        self._saved: dict[str, str | None] = {}

    def hide(self) -> None:
        """Hide the GPUs until `restore` is called as often as this method."""
        with self._lock:
            if not self._users:
                self._saved = {variable: self._environment.get(variable) for variable in VISIBLE_DEVICES}
                self._environment.update(dict.fromkeys(VISIBLE_DEVICES, ""))
            self._users += 1

    def restore(self) -> None:
        """Undo one call of `hide`; the last one restores the variables, except those that have been changed since."""
        with self._lock:
            self._users -= 1
            if not self._users:
                restored = self._restored()
                for variable in self._saved.keys() - restored.keys():
                    self._environment.pop(variable, None)
                self._environment.update({variable: restored[variable] for variable in self._saved.keys() & restored})
                self._saved = {}

    def original_environment(self) -> dict[str, str]:
        """Return a copy of the environment in which the GPUs are not hidden, for a child process."""
        with self._lock:
            return self._restored()

    def _restored(self) -> dict[str, str]:
        result = dict(self._environment)
        for variable, value in self._saved.items():
            if result.get(variable) != "":
                continue  # the program has chosen other devices meanwhile
            if value is None:
                del result[variable]
            else:
                result[variable] = value
        return result


process_gpus = GpuHider(os.environ)
"""Hides the GPUs from this process."""


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
    # Both are harmless on a machine without such devices: JAX then runs on those it finds.
    for variable in (_CUDA, _HIP):
        limit = next((name for name in (variable, _CUDA, _ROCR) if name in environment), variable)
        visible = [name.strip() for name in environment.get(limit, "").split(",") if name.strip()]
        if visible and int(device) >= len(visible):
            raise UsageError(
                f"there is no device {device}: {limit}={environment[limit]} makes only {len(visible)} visible"
            )
        if limit not in environment or limit == _ROCR:
            result[variable] = device
        elif visible:  # otherwise hidden on purpose, so keep them hidden
            result[variable] = visible[int(device)]
    return result


def device_of_lm_eval(name: str | None) -> str | None:
    """Convert lm_eval's ``--device`` to the worker's: ``cpu``, N for ``cuda:N``, and None, JAX's choice, for all others.

    lm_eval fills in ``cuda:0`` where no device was given, so ``cuda:0`` does not require a GPU.
    """
    if name == "cpu":
        return "cpu"
    prefix, _, index = (name or "").partition(":")
    return index if prefix == "cuda" and index.isdecimal() else None
