"""The parts of a GGUF model that is split into several files, which are found by their names."""

from __future__ import annotations

import re
from pathlib import Path

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def gguf_parts(path: Path) -> list[Path]:
    """Return all files of a GGUF model by the name of its first, ``NAME-00001-of-00003.gguf``; others are one file.

    Raises:
        FileNotFoundError: A part is missing.
        ValueError: The name is that of another part.
    """
    parts = named_parts(path)
    if parts == [path]:
        return parts
    if path not in parts:
        raise ValueError(f"{path} is no part of a split GGUF model: its name gives it a number that does not exist")
    if path != parts[0]:
        raise ValueError(f"{path} is one part of a split GGUF model; name its first part, {parts[0].name}")
    for part in parts:
        if not part.is_file():
            raise FileNotFoundError(f"{path} is split into {len(parts)} parts, and there is no {part.name} beside it")
    return parts


def named_parts(path: Path) -> list[Path]:
    """Return the paths of all parts of a GGUF model by the name of one, whether or not they exist."""
    named = _PART.fullmatch(path.name)
    if named is None:
        return [path]
    count = int(named["count"])
    return [path.with_name(f"{named['stem']}-{number:05}-of-{named['count']}.gguf") for number in range(1, count + 1)]
