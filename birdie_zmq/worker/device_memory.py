"""Whether a GPU has the memory back that an ended process had. The driver frees it a while after the process is gone.

NVIDIA's own command is asked, so that the agent needs no library of a framework; where there is none, nothing is
watched. What is compared is the memory in use before a model process was started: other users of the device are there
before and after.
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
    """The memory in use on the GPUs that a model process may see.

    Args:
        command: What prints one number a GPU, in MiB, such as `command_for` gives.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._before: list[int] | None = None

    def note(self) -> None:
        """Remember what is in use now, before a model process is started."""
        self._before = self._used()

    def is_free(self) -> bool:
        """Whether no more is in use than was noted, but for a little; True where that cannot be told."""
        now = self._used()
        if now is None or self._before is None or len(now) != len(self._before):
            return True
        return all(used <= before + _TOLERANCE_MIB for used, before in zip(now, self._before, strict=True))

    def _used(self) -> list[int] | None:
        try:
            printed = subprocess.run(self._command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
            return [int(line) for line in printed.stdout.split()]
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            logger.warning("cannot see the memory of the GPUs: %s", error)
            return None


def command_for(environment: Mapping[str, str]) -> list[str] | None:
    """The command that prints the memory in use on the GPUs of an environment, None where there are none to be seen."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    found = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if found is None or environment.get("JAX_PLATFORMS") == "cpu" or visible == "":
        return None
    which = [] if visible is None else [f"--id={visible}"]
    return [found, "--query-gpu=memory.used", "--format=csv,noheader,nounits", *which]
