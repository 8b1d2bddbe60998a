"""Ending with the parent, however the parent ends.

A run's own broker and worker are given the reading end of a pipe as standard input; nobody writes to it, and the kernel
closes the writing end when the parent is gone, kill -9 included. Their poll loops wait for that. A model process may be
deep in compiled code, so it has two more ways: a thread that waits for the agent's socket to close, and on Linux the
kernel's own signal at the parent's death.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies (Linux; elsewhere nothing happens).

    The signal also comes when the *thread* that started this process ends, so the parent must start it from its main
    thread (prctl(2), PR_SET_PDEATHSIG).

    Args:
        parent_pid: The parent as it was known before this process began; if it is gone already, this process ends.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)
