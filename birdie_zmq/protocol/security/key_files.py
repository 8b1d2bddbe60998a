"""The format of key files: versioned text, accessible to its owner only, never overwritten.

The first line has the version of the format; each further line has the form ``field: value``. No error message shows the
contents of a file, since they may be secret.
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
_MAX_FILE_BYTES = 4096


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


def read_fields(path: Path, expected: tuple[str, ...]) -> dict[str, str]:
    """Return the fields of a file, which must be exactly the expected ones.

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
            _check_mode(path, status, "600")
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


def check_private(folder: Path) -> None:
    """Check that a folder exists and that only its owner can access it.

    Raises:
        UsageError: It does not exist or is accessible to other users; the message has the command that fixes it.
    """
    try:
        _check_mode(folder, folder.stat(), "700")
    except OSError as error:
        raise UsageError(
            f"cannot open the key folder {folder}: {error.strerror}; the first key creates it: birdie-zmq keys new "
            "client NAME"
        ) from error


def _check_mode(path: Path, status: os.stat_result, mode: str) -> None:
    if status.st_mode & 0o077:
        found = stat.S_IMODE(status.st_mode)
        raise UsageError(
            f"{path} is accessible to other users (mode {found:04o}); fix it with: chmod {mode} {shlex.quote(str(path))}"
        )
