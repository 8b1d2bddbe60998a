"""A bound on the memory of this process, so that what is sent to it does not fill its machine.

libzmq keeps the frames of a message until the last one has come, and bounds each frame but not their number: no budget
of ours sees them. The kernel does.
"""

from __future__ import annotations

import os
import resource

from birdie_zmq.errors import UsageError

LEAST_MIB = 256
"""Of private memory a broker without peers has 110, and a frame may have 64."""


def default_limit_mib() -> int:
    """Half of the machine's memory."""
    return max(LEAST_MIB, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 // 2**20)


def limit_memory(limit_mib: int) -> None:
    """Let this process and its children have no more private memory than this. Kernels other than Linux may not care.

    libzmq closes a connection for whose next frame there is none. Other code of it ends the process, and Python raises
    MemoryError.

    Raises:
        UsageError: That is less than a broker needs.
    """
    if limit_mib < LEAST_MIB:
        raise UsageError(f"--memory-limit {limit_mib} is less than the {LEAST_MIB} MiB that a broker needs")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = limit_mib * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
