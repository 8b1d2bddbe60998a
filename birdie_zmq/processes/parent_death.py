"""Ending a child process when its parent ends, however the parent ends.

An embedded broker or worker gets the read end of a parent-death pipe as standard input. Nobody writes to the pipe, and the
kernel closes its write end when the parent ends, even after kill -9, which wakes the child's poll loop. A model process
may be busy in compiled code, so it has two more mechanisms: a thread that waits for the agent's socket to close, and on Linux
the kernel's parent-death signal.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies (Linux; elsewhere nothing happens).

    The kernel also sends the signal when the *thread* that started this process ends, so the parent must start it from its
    main thread (prctl(2), PR_SET_PDEATHSIG).

    Args:
        parent_pid: The parent's process id, taken before this process started; if that parent is gone, this process exits.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)
