"""Incomplete entries of the compile cache are removed once; complete ones stay."""

from __future__ import annotations

import os
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path

from birdie_zmq.engine.jax.compile_cache_check import remove_incomplete_entries

ENTRY = zlib.compress(bytes(range(256)) * 100)
ZSTANDARD = b"\x28\xb5\x2f\xfd" + b"not a whole frame"


def entry(folder: Path, name: str, content: bytes) -> Path:
    path = folder / f"{name}-cache"
    path.write_bytes(content)
    return path


def test_truncated_and_empty_entries_are_removed(tmp_path: Path) -> None:
    complete = entry(tmp_path, "complete", ENTRY)
    truncated = entry(tmp_path, "truncated", ENTRY[:-1])
    empty = entry(tmp_path, "empty", b"")
    foreign = entry(tmp_path, "foreign", b"text")
    other = tmp_path / "truncated-atime"
    other.write_bytes(b"")

    assert sorted(remove_incomplete_entries(tmp_path)) == sorted([truncated, empty, foreign])
    assert complete.read_bytes() == ENTRY
    assert other.exists()


def test_only_entries_since_the_last_check_are_read(tmp_path: Path) -> None:
    assert remove_incomplete_entries(tmp_path) == []
    checked_at = (tmp_path / ".checked").stat().st_mtime_ns
    before, after = entry(tmp_path, "before", b""), entry(tmp_path, "after", b"")
    os.utime(before, ns=(checked_at - 1, checked_at - 1))
    os.utime(after, ns=(checked_at + 1, checked_at + 1))

    assert remove_incomplete_entries(tmp_path) == [after]
    assert before.exists()


def test_a_truncated_zstandard_entry_is_removed_where_jax_could_read_it(tmp_path: Path) -> None:
    path = entry(tmp_path, "zstandard", ZSTANDARD)
    jax_reads_it = sys.version_info >= (3, 14) or find_spec("zstandard") is not None

    assert remove_incomplete_entries(tmp_path) == ([path] if jax_reads_it else [])
