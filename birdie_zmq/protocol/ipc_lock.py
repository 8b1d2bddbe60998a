"""The lock of a Unix socket path, so that only one broker can bind it."""

from __future__ import annotations

import fcntl
import os

from birdie_zmq.errors import UsageError
from birdie_zmq.protocol.endpoints import IpcEndpoint


def lock_ipc_path(endpoint: IpcEndpoint) -> int:
    """Acquire the lock file beside an ipc path, and remove a stale socket.

    Without the lock, ZeroMQ would let a second broker bind the same path and take over the first one's peers.

    Returns:
        The descriptor that holds the lock until it is closed.

    Raises:
        UsageError: Another broker holds the lock, or the path is not a socket.
    """
    try:
        descriptor = os.open(f"{endpoint.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"cannot bind {endpoint}: {error.strerror} ({error.filename})") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise UsageError(f"cannot bind {endpoint}: another broker is bound to it") from error
    if endpoint.path.is_socket():
        endpoint.path.unlink()
    elif endpoint.path.exists():
        os.close(descriptor)
        raise UsageError(f"cannot bind {endpoint}: the path exists and is not a socket")
    return descriptor
