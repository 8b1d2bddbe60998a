"""Removes incomplete entries from JAX's compile cache.

JAX writes an entry in place and never replaces one. A process that is killed while it writes leaves a truncated entry, which
every later process fails to read, with a warning, and compiles again.
"""

from __future__ import annotations

import importlib
import logging
import zlib
from pathlib import Path

logger = logging.getLogger(__name__)

_MARKER = ".checked"
"""A file whose modification time is that of the last check. Older entries are not read again."""

_ZSTANDARD_MAGIC = b"\x28\xb5\x2f\xfd"


def remove_incomplete_entries(folder: Path) -> list[Path]:
    """Remove the truncated entries that were written since the last check, and return their paths.

    An entry that another process is writing counts as truncated: the process keeps its executable, and the next one
    compiles it again.

    Args:
        folder: The cache's folder, which must exist.

    Raises:
        OSError: The folder cannot be read or written.
    """
    marker = folder / _MARKER
    checked_ns = marker.stat().st_mtime_ns if marker.exists() else 0
    marker.touch()  # Before the entries are read: one that is written meanwhile is read again by the next check.
    removed = []
    for path in folder.glob("*-cache"):
        try:
            if path.stat().st_mtime_ns >= checked_ns and not _is_complete(path.read_bytes()):
                path.unlink()
                removed.append(path)
        except FileNotFoundError:  # removed by another process
            continue
    if removed:
        logger.info("removed %d incomplete entries from the compile cache %s", len(removed), folder)
    return removed


def _is_complete(entry: bytes) -> bool:
    """Return whether an entry can be decompressed; True if it is in Zstandard and no such module is installed.

    As JAX, this takes ``compression.zstd`` of Python 3.14, else the package zstandard, else zlib.
    """
    if not entry.startswith(_ZSTANDARD_MAGIC):
        return _is_complete_zlib(entry)
    for name in ("compression.zstd", "zstandard"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        try:
            module.decompress(entry)
        except (EOFError, ValueError, getattr(module, "ZstdError", EOFError)):
            return False
        return True
    return True


def _is_complete_zlib(entry: bytes) -> bool:
    decompressor = zlib.decompressobj()
    try:
        decompressor.decompress(entry)
    except zlib.error:
        return False
    return decompressor.eof
