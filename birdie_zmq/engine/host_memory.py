"""How much memory there is for what is about to be computed."""

from __future__ import annotations

from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")


def host_free_bytes(meminfo: Path = Path("/proc/meminfo"), group: Path = _GROUP) -> int | None:
    """What this process may still take of the host's memory, within its control group's limit; None if nobody says."""
    found = [free for free in (_available(meminfo), _left(group)) if free is not None]
    return min(found, default=None)


def _available(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _left(group: Path) -> int | None:
    """What version 2 of control groups leaves of the limit, where there is one."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return max(0, int(limit) - used) if limit.isdecimal() else None
