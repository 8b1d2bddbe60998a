"""Whether key files can be read by their owner alone."""

from __future__ import annotations

from pathlib import Path

from birdie_zmq.errors import UsageError
from birdie_zmq.protocol.security.key_files import check_closed
from birdie_zmq.protocol.security.keys import read_broker_pair, read_holders, read_peer_key
from birdie_zmq.tools.doctor.finding import Finding

_CLOSE = "close it with: "


def _wrong(name: str, error: UsageError) -> Finding:
    """A fault of a key, whose message holds the command that mends it where there is one."""
    text, found, command = error.message.partition(_CLOSE)
    if found:
        return Finding(name, "wrong", text.rstrip("; "), command)
    return Finding(name, "wrong", text, "birdie-zmq keys new client NAME   (or worker NAME) makes a key")


def key_file_findings(path: Path | None) -> list[Finding]:
    """Whether the key that was given can be used; nothing where none was."""
    if path is None:
        return []
    try:
        key = read_peer_key(path)
    except UsageError as error:
        return [_wrong("key file", error)]
    return [Finding("key file", "ok", f"{path} is that of {key.holder}")]


def folder_findings(folder: Path) -> list[Finding]:
    """Whether a broker could use this machine's folder of keys; nothing where there is none."""
    if not folder.exists():
        return []
    name = "folder of keys"
    faults: list[UsageError] = []
    holders = 0
    try:
        read_broker_pair(folder)
        found, faults = read_holders(folder)
        holders = len(found)
        private = folder / "private"
        if private.exists():
            check_closed(private)
            for path in sorted(private.iterdir()):
                try:
                    read_peer_key(path)
                except UsageError as error:
                    faults.append(error)
    except UsageError as error:
        faults.append(error)
    return [_wrong(name, error) for error in faults] or [Finding(name, "ok", f"{folder} lets in {holders}")]
