"""The memory of GPUs as a command prints it. No GPU is needed: a file has the output that the driver would print."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from birdie_zmq.worker.device_memory import DeviceMemory, memory_command


@pytest.fixture
def printed(tmp_path: Path) -> Path:
    """The file that the command prints."""
    return tmp_path / "used"


@pytest.fixture
def memory(printed: Path) -> DeviceMemory:
    return DeviceMemory(["cat", str(printed)])


@pytest.mark.parametrize(
    ("after", "is_free"),
    [
        ("1000\n20\n", True),
        ("1256\n20\n", True),  # what a desktop may have allocated meanwhile
        ("1257\n20\n", False),
        ("1000\n9000\n", False),
        ("10\n0\n", True),
    ],
)
def test_memory_is_free_within_the_tolerance_of_the_baseline(
    memory: DeviceMemory, printed: Path, after: str, is_free: bool
) -> None:
    printed.write_text("1000\n20\n")
    memory.record_baseline()
    printed.write_text(after)
    assert memory.is_free() is is_free


@pytest.mark.parametrize("after", ["[Not Supported]\n", "", "1000\n"], ids=["no-number", "no-output", "fewer-gpus"])
def test_memory_counts_as_free_when_the_output_is_unusable(memory: DeviceMemory, printed: Path, after: str) -> None:
    printed.write_text("1000\n20\n")
    memory.record_baseline()
    printed.write_text(after)
    assert memory.is_free()


def test_memory_counts_as_free_when_the_command_fails(caplog: pytest.LogCaptureFixture) -> None:
    memory = DeviceMemory(["false"])
    memory.record_baseline()
    assert memory.is_free()
    assert "cannot read the memory use of the GPUs" in caplog.text


@pytest.fixture
def path_with_command(tmp_path: Path) -> str:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 1000\n")
    command.chmod(0o700)
    return f"{tmp_path}{os.pathsep}{os.environ['PATH']}"


def test_nvidia_smi_is_run_for_the_visible_gpus(path_with_command: str) -> None:
    whole = memory_command({"PATH": path_with_command})
    some = memory_command({"PATH": path_with_command, "CUDA_VISIBLE_DEVICES": "1,3"})
    assert whole is not None
    assert some == [*whole, "--id=1,3"]
    memory = DeviceMemory(some)
    memory.record_baseline()
    assert memory.is_free()


@pytest.mark.parametrize("more", [{"JAX_PLATFORMS": "cpu"}, {"CUDA_VISIBLE_DEVICES": ""}])
def test_no_command_without_visible_gpus(path_with_command: str, more: dict[str, str]) -> None:
    assert memory_command({"PATH": path_with_command, **more}) is None


def test_no_command_without_nvidia_smi(tmp_path: Path) -> None:
    assert memory_command({"PATH": str(tmp_path)}) is None
