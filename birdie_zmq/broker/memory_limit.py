"""A limit on the memory of the broker process, so that peers cannot fill the memory of its machine.

libzmq keeps the frames of a multipart message until the last one has arrived. It limits the size of each frame but not
their number, and the limits of the broker apply to complete messages only. The kernel enforces the limit of this module.
"""

from __future__ import annotations

import os
import resource

from birdie_zmq.errors import UsageError

MIN_LIMIT_MIB = 256
"""A broker without peers uses 110 MiB of private memory, and a frame may have 64 MiB."""


def default_limit_mib() -> int:
    """Return half of the machine's memory in MiB, and no less than the minimum."""
    return max(MIN_LIMIT_MIB, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 // 2**20)


def limit_memory(limit_mib: int) -> None:
    """Limit the private memory of this process and its children. Kernels other than Linux may ignore the limit.

    At the limit, libzmq closes a connection if it cannot allocate that connection's next frame. A failed allocation
    elsewhere in libzmq ends the process, and Python raises MemoryError.

    Raises:
        UsageError: The limit is less than a broker needs.
    """
    if limit_mib < MIN_LIMIT_MIB:
        raise UsageError(f"--memory-limit {limit_mib} is less than the {MIN_LIMIT_MIB} MiB that a broker needs")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    requested = limit_mib * 2**20
    resource.setrlimit(
        resource.RLIMIT_DATA, (requested if hard == resource.RLIM_INFINITY else min(requested, hard), hard)
    )
