"""The path of a Unix socket: the lock with which only one broker can bind it, its folder, and signs that it is gone."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
from pathlib import Path

from birdie_zmq.errors import UsageError
from birdie_zmq.protocol.endpoints import IpcEndpoint

logger = logging.getLogger("birdie_zmq.broker")


def lock_ipc_path(endpoint: IpcEndpoint, held: int | None = None) -> int:
    """Acquire the lock file beside an ipc path, and remove a stale socket.

    Without the lock, ZeroMQ would let a second broker bind the same path and take over the first one's peers. A file system
    without locks, such as NFS without a lock service, leaves one sign of another broker: its socket accepts connections.

    Args:
        endpoint: The path.
        held: The descriptor of the lock that this broker already holds, None for none.

    Returns:
        The descriptor that holds the lock until it is closed: ``held``, unless its file has been removed.

    Raises:
        UsageError: Another broker holds the lock or listens on the socket, or the path is not a socket.
    """
    try:
        descriptor = os.open(f"{endpoint.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if held is not None and os.path.sameopenfile(descriptor, held):
            os.close(descriptor)
            return held
    except OSError as error:
        raise UsageError(f"cannot bind {endpoint}: {error.strerror} ({error.filename})") from error
    try:
        _lock(descriptor, endpoint)
        if endpoint.path.is_socket():
            endpoint.path.unlink()
        elif endpoint.path.exists():
            raise UsageError(f"cannot bind {endpoint}: the path exists and is not a socket")
    except OSError as error:
        os.close(descriptor)
        raise UsageError(f"cannot bind {endpoint}: {error.strerror} ({error.filename})") from error
    except UsageError:
        os.close(descriptor)
        raise
    if held is not None:
        os.close(held)
    return descriptor


def _lock(descriptor: int, endpoint: IpcEndpoint) -> None:
    unsupported: OSError | None = None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_taken = False
    except BlockingIOError:
        is_taken = True
    except OSError as error:
        is_taken, unsupported = False, error
    # With a lock as well: the lock file of a running broker may have been removed.
    if is_taken or _accepts(endpoint.path):
        raise UsageError(f"cannot bind {endpoint}: another broker is bound to it")
    if unsupported is not None:
        logger.warning(
            "the file system of %s does not support locks (%s); nothing prevents a second broker that starts at the same "
            "moment from taking over this path: use a path on a local file system, such as in /run or /tmp",
            endpoint.path,
            unsupported.strerror,
        )


def _accepts(path: Path) -> bool:
    """Return whether a process listens on a Unix socket.

    Raises:
        OSError: This cannot be determined, for example for lack of permission.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except BlockingIOError:  # Its queue of connections is full.
            return True
        except OSError as error:
            if error.errno in (errno.ENOTSOCK, errno.EPROTOTYPE):
                return False
            raise OSError(error.errno, error.strerror, str(path)) from error
    return True


def make_owned_folder(folder: Path) -> None:
    """Create a folder of mode 0700, or check that the one that exists is this user's and closed to others.

    Raises:
        UsageError: It cannot be created, or is accessible to other users, who may have created it.
    """
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o700)
        status = folder.lstat()
    except OSError as error:
        raise UsageError(f"cannot create the folder {folder}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise UsageError(
            f"the folder {folder} of the embedded broker has been replaced by one that other users can access; start the run "
            "again with TMPDIR set to a folder of your own"
        )


def missing_socket_hint(endpoint: IpcEndpoint) -> str | None:
    """Return why nobody can connect to a path, None if there is a socket."""
    path = endpoint.path
    if path.is_socket():
        return None
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist: no broker was started there, or the folder has been removed since"
    if path.exists():
        return f"{path} is not a socket"
    return f"there is no socket at {path}: no broker was started there, or the path has been removed since"
