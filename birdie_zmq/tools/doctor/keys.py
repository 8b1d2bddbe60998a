"""Checks whether only their owner can read key files."""

from __future__ import annotations

from pathlib import Path

from birdie_zmq.errors import UsageError
from birdie_zmq.protocol.security.key_files import check_private
from birdie_zmq.protocol.security.keys import read_broker_pair, read_peer_key, read_principals
from birdie_zmq.tools.doctor.finding import Finding

_FIX_MARKER = "fix it with: "
"""Text before the command in the error messages of key files."""


def _wrong(name: str, error: UsageError) -> Finding:
    """Return the finding for an invalid key; its error message may contain the command that fixes it."""
    text, found, command = error.message.partition(_FIX_MARKER)
    if found:
        return Finding(name, "wrong", text.removesuffix("Otherwise ").rstrip("; "), command)
    return Finding(name, "wrong", text, "birdie-zmq keys new client NAME   (or worker NAME) creates a key")


def key_file_findings(path: Path | None, allow_group: bool = False) -> list[Finding]:
    """Check the ``--key-file``; return no finding without one. With `allow_group`, its group may read it."""
    if path is None:
        return []
    try:
        key = read_peer_key(path, allow_group)
    except UsageError as error:
        return [_wrong("key file", error)]
    return [Finding("key file", "ok", f"{path} belongs to {key.principal}")]


def folder_findings(folder: Path, allow_group: bool = False) -> list[Finding]:
    """Check the key folder of a broker on this machine; return no finding without one. `allow_group` as above."""
    if not folder.exists():
        return []
    name = "key folder"
    errors: list[UsageError] = []
    keys = 0
    try:
        read_broker_pair(folder, allow_group)
        allowed, errors = read_principals(folder, allow_group)
        keys = len(allowed)
        private = folder / "private"
        if private.exists():
            check_private(private, allow_group)
            for path in sorted(private.iterdir()):
                try:
                    read_peer_key(path, allow_group)
                except UsageError as error:
                    errors.append(error)
    except UsageError as error:
        errors.append(error)
    return [_wrong(name, error) for error in errors] or [
        Finding(name, "ok", f"{folder} allows {keys} key{'s' * (keys != 1)}")
    ]
