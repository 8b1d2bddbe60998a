"""The format of key files: versioned text, accessible to its owner only, never overwritten.

The first line has the version of the format; each further line has the form ``field: value``. No error message shows the
contents of a file, since they may be secret.

Orchestrators mount secrets read-only, owned by root and readable by the group of the container. Where the person who starts a
program allows it (``allow_group``), the group may read a file and list a folder, but never write, and others may do nothing.
"""

from __future__ import annotations

import os
import shlex
import stat
import tempfile
from pathlib import Path

from birdie_zmq.errors import UsageError

FORMAT = "birdie-zmq key file, version "
VERSION = 1
ALLOW_GROUP = "allow_group_readable_keys"
"""The argument of model_args, and with dashes the option of the commands, that accepts keys which their group may read."""
_MAX_FILE_BYTES = 4096
_PRIVATE = 0o077
"""The mode bits that no key file or folder has."""
_GROUP_READS_FILE, _GROUP_READS_FOLDER = 0o040, 0o050


def make_private_folder(folder: Path) -> None:
    """Create a folder of mode 0700 unless it exists.

    Raises:
        UsageError: The folder cannot be created, or exists and is accessible to other users.
    """
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create the folder {folder}: {error.strerror}") from error
    check_private(folder)


def write_fields(path: Path, fields: dict[str, str]) -> None:
    """Write a file of mode 0600 atomically; an existing file is never overwritten.

    Raises:
        UsageError: The file exists already, or cannot be written.
    """
    text = "".join([f"{FORMAT}{VERSION}\n", *(f"{name}: {value}\n" for name, value in fields.items())])
    try:
        descriptor, unfinished = tempfile.mkstemp(prefix=".", dir=path.parent)  # Of mode 0600, whatever the umask.
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(text)
            os.link(unfinished, path)
        finally:
            Path(unfinished).unlink()
    except FileExistsError as error:
        raise UsageError(f"{path} exists already, and keys are never overwritten") from error
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def read_fields(path: Path, expected: tuple[str, ...], allow_group: bool = False) -> dict[str, str]:
    """Return the fields of a file, which must be exactly the expected ones.

    Args:
        path: The file; a symbolic link is followed.
        expected: The names of the fields.
        allow_group: Whether the file's group may read it.

    Raises:
        UsageError: The file cannot be read, is accessible to other users, has another version, or has other fields.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{path} is not a key file: it is not a regular file")
            _check_mode(path, status, "600", _GROUP_READS_FILE, allow_group)
            content = os.read(descriptor, _MAX_FILE_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UsageError(f"cannot read the key file {path}: {error.strerror}") from error
    first, *lines = content[:_MAX_FILE_BYTES].decode("ascii", errors="replace").rstrip("\n").split("\n")
    if not first.startswith(FORMAT) or len(content) > _MAX_FILE_BYTES:
        raise UsageError(f"{path} is not a birdie-zmq key file; it must begin with {FORMAT + str(VERSION)!r}")
    if first != f"{FORMAT}{VERSION}":
        raise UsageError(f"{path} has another version than {VERSION}; make a new key with this birdie-zmq")
    pairs = [line.partition(": ") for line in lines]
    fields = {name: value for name, _, value in pairs}
    if sorted(name for name, _, _ in pairs) != sorted(expected):
        raise UsageError(f"{path} has invalid fields; it must have {', '.join(expected)}, each exactly once")
    return fields


def check_private(folder: Path, allow_group: bool = False) -> None:
    """Check that a folder exists and that only its owner can access it, or with `allow_group` that its group cannot write.

    Raises:
        UsageError: It does not exist or is accessible to other users; the message has the command that fixes it.
    """
    try:
        _check_mode(folder, folder.stat(), "700", _GROUP_READS_FOLDER, allow_group)
    except OSError as error:
        raise UsageError(
            f"cannot open the key folder {folder}: {error.strerror}; the first key creates it: birdie-zmq keys new "
            "client NAME"
        ) from error


def _check_mode(path: Path, status: os.stat_result, mode: str, group_reads: int, allow_group: bool) -> None:
    excess = status.st_mode & _PRIVATE
    if not excess or (allow_group and not excess & ~group_reads):
        return
    found = stat.S_IMODE(status.st_mode)
    quoted = shlex.quote(str(path))
    if excess & ~group_reads:
        raise UsageError(f"{path} is accessible to other users (mode {found:04o}); fix it with: chmod {mode} {quoted}")
    raise UsageError(
        f"{path} is accessible to its group (mode {found:04o}). On a read-only mount, such as a secret of Kubernetes, set "
        f"defaultMode 0400; or, if all members of the group may use the key, pass --{ALLOW_GROUP.replace('_', '-')} "
        f"({ALLOW_GROUP}=true in model_args). Otherwise fix it with: chmod {mode} {quoted}"
    )
