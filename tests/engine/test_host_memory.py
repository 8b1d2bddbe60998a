"""The free memory is the smaller of what the host and the cgroup leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from birdie_zmq.engine.host_memory import host_free_bytes

MEMINFO = "MemTotal:       100 kB\nMemAvailable:    60 kB\n"


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [
        ("max", "5", 60 * 1024),
        ("51200", "1200", 50_000),
        ("1000", "2000", 0),
        (str(2**40), "0", 60 * 1024),
        ("?", "x", 60 * 1024),
    ],
)
def test_a_cgroup_may_leave_less_than_the_host(tmp_path: Path, limit: str, used: str, free: int) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")

    assert host_free_bytes(tmp_path / "meminfo", tmp_path) == free


def test_free_memory_is_unknown_without_meminfo_and_cgroup(tmp_path: Path) -> None:
    assert host_free_bytes(tmp_path / "meminfo", tmp_path) is None


def test_free_memory_is_unknown_without_mem_available(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\n")

    assert host_free_bytes(tmp_path / "meminfo", tmp_path) is None
