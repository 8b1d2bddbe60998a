"""A check whether a GPU has released the memory of an exited process. The driver frees it a while after the exit.

The check runs nvidia-smi, so that the agent needs no library of a framework; without nvidia-smi nothing is watched. The
memory in use is compared with the memory in use before the model process was started, so the memory of other users of the
device counts on both sides.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Mapping, Sequence

logger = logging.getLogger("birdie_zmq.worker")

_TIMEOUT_S = 5.0
_TOLERANCE_MIB = 256


class DeviceMemory:
    """The memory in use on the GPUs that a model process may use.

    Args:
        command: A command that prints one number per GPU, in MiB, such as `memory_command` returns.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._baseline: list[int] | None = None

    def record_baseline(self) -> None:
        """Record the memory in use now, before a model process is started."""
        self._baseline = self._used()

    def is_free(self) -> bool:
        """Return whether each GPU is within 256 MiB of its baseline; True where that cannot be determined."""
        now = self._used()
        if now is None or self._baseline is None or len(now) != len(self._baseline):
            return True
        return all(used <= baseline + _TOLERANCE_MIB for used, baseline in zip(now, self._baseline, strict=True))

    def _used(self) -> list[int] | None:
        try:
            printed = subprocess.run(self._command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
            return [int(line) for line in printed.stdout.split()]
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            logger.warning("cannot read the memory use of the GPUs: %s", error)
            return None


def memory_command(environment: Mapping[str, str]) -> list[str] | None:
    """Return the command that prints the memory in use on the GPUs of an environment; None if it uses no GPU."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    found = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if found is None or environment.get("JAX_PLATFORMS") == "cpu" or visible == "":
        return None
    selection = [] if visible is None else [f"--id={visible}"]
    return [found, "--query-gpu=memory.used", "--format=csv,noheader,nounits", *selection]
