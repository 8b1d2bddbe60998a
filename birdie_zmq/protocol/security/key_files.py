"""The form of a key file: text of one version, open to its owner alone, written once.

A line with the format's version, then a line ``field: value`` for each field. No error here shows what a file holds,
since that may be a secret.
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


def make_folder(folder: Path) -> None:
    """Make a folder of mode 0700, unless it is there.

    Raises:
        UsageError: It cannot be made, or is there and open to others.
    """
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}") from error
    check_closed(folder)


def write_fields(path: Path, fields: dict[str, str]) -> None:
    """Write a file of mode 0600, whole or not at all, and never over another.

    Raises:
        UsageError: There is a file already, or none can be written there.
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
        raise UsageError(f"there is {path} already, and keys are never overwritten") from error
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def read_fields(path: Path, expected: tuple[str, ...]) -> dict[str, str]:
    """The fields of a file, which are exactly those that are expected.

    Raises:
        UsageError: It cannot be read, is open to others, is of another version, or has other fields.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{path} is no key file, nor any other plain file")
            _check_mode(path, status, "600")
            content = os.read(descriptor, _MAX_FILE_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UsageError(f"cannot read the key file {path}: {error.strerror}") from error
    first, *lines = content[:_MAX_FILE_BYTES].decode("ascii", errors="replace").rstrip("\n").split("\n")
    if not first.startswith(FORMAT) or len(content) > _MAX_FILE_BYTES:
        raise UsageError(f"{path} is no key file of birdie-zmq; it must begin with {FORMAT + str(VERSION)!r}")
    if first != f"{FORMAT}{VERSION}":
        raise UsageError(f"{path} is of another version than {VERSION}; make a new key with this birdie-zmq")
    pairs = [line.partition(": ") for line in lines]
    fields = {name: value for name, _, value in pairs}
    if sorted(name for name, _, _ in pairs) != sorted(expected):
        raise UsageError(f"{path} must hold the fields {', '.join(expected)}, each once, and holds others")
    return fields


def check_closed(folder: Path) -> None:
    """Refuse a folder that is not there or that others may enter.

    Raises:
        UsageError: With the command that mends it.
    """
    try:
        _check_mode(folder, folder.stat(), "700")
    except OSError as error:
        raise UsageError(
            f"cannot open the folder of keys {folder}: {error.strerror}; one is made with the first: birdie-zmq keys new "
            "client NAME"
        ) from error


def _check_mode(path: Path, status: os.stat_result, mode: str) -> None:
    if status.st_mode & 0o077:
        found = stat.S_IMODE(status.st_mode)
        raise UsageError(
            f"{path} is open to others (mode {found:04o}); close it with: chmod {mode} {shlex.quote(str(path))}"
        )
