"""Whether an HDF5 file is complete, from its first bytes: HDF5 marks a file that is open for writing, and notes its length.

The superblock is that of the HDF5 File Format Specification, section II.A. h5py writes version 0 unless it is told otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HEADER_BYTES = 64
"""More than any superblock needs up to the address of the end."""

_WIDTHS = (2, 4, 8)
"""The sizes of addresses, in bytes."""


@dataclass(frozen=True)
class _Layout:
    """Where a version of the superblock has its fields, in bytes from its start.

    Attributes:
        width: The size of addresses.
        flags: The byte of the file's flags; bit 0 says that it is open for writing.
        base: The address from which others count. The address of the end follows two addresses behind it.
    """

    width: int
    flags: int
    base: int


_LAYOUTS = {0: _Layout(13, 20, 24), 1: _Layout(13, 20, 28), 2: _Layout(9, 11, 12), 3: _Layout(9, 11, 12)}
"""The layouts by the version of the superblock."""


def missing_part_of_hdf5(path: Path) -> str | None:
    """Return what an HDF5 file still lacks, as the end of the sentence "it lacks"; None if it is complete.

    A superblock of an unknown version counts as complete: whoever opens the file says what is wrong.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        size, header = path.stat().st_size, file.read(_HEADER_BYTES)
    if not header.startswith(_SIGNATURE) or len(header) < _HEADER_BYTES:
        return f"the rest of {path.name} ({size:,} bytes are there)"
    layout = _LAYOUTS.get(header[8])
    width = 0 if layout is None else header[layout.width]
    if layout is None or width not in _WIDTHS:
        return None
    if header[layout.flags] & 1:
        return f"the end of {path.name}: it is being written, or its writer died"
    base, end = (int.from_bytes(header[at : at + width], "little") for at in (layout.base, layout.base + 2 * width))
    return f"the rest of {path.name} ({size:,} of {base + end:,} bytes are there)" if size < base + end else None
