"""The memory of GPUs as a command prints it. No GPU is needed: a file stands for what the driver would say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from birdie_zmq.worker.device_memory import DeviceMemory, command_for


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
        ("1256\n20\n", True),  # what a desktop may have taken meanwhile
        ("1257\n20\n", False),
        ("1000\n9000\n", False),
        ("10\n0\n", True),
    ],
)
def test_memory_is_free_when_no_more_is_in_use_than_before(
    memory: DeviceMemory, printed: Path, after: str, is_free: bool
) -> None:
    printed.write_text("1000\n20\n")
    memory.note()
    printed.write_text(after)
    assert memory.is_free() is is_free


@pytest.mark.parametrize("after", ["[Not Supported]\n", "", "1000\n"], ids=["no number", "nothing", "another GPU gone"])
def test_what_cannot_be_told_is_not_waited_for(memory: DeviceMemory, printed: Path, after: str) -> None:
    printed.write_text("1000\n20\n")
    memory.note()
    printed.write_text(after)
    assert memory.is_free()


def test_a_command_that_fails_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    memory = DeviceMemory(["false"])
    memory.note()
    assert memory.is_free()
    assert "cannot see the memory of the GPUs" in caplog.text


@pytest.fixture
def path_with_command(tmp_path: Path) -> str:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 1000\n")
    command.chmod(0o700)
    return f"{tmp_path}{os.pathsep}{os.environ['PATH']}"


def test_the_drivers_own_command_is_asked_for_the_gpus_that_can_be_seen(path_with_command: str) -> None:
    whole = command_for({"PATH": path_with_command})
    some = command_for({"PATH": path_with_command, "CUDA_VISIBLE_DEVICES": "1,3"})
    assert whole is not None
    assert some == [*whole, "--id=1,3"]
    memory = DeviceMemory(some)
    memory.note()
    assert memory.is_free()


@pytest.mark.parametrize("more", [{"JAX_PLATFORMS": "cpu"}, {"CUDA_VISIBLE_DEVICES": ""}])
def test_nothing_is_watched_where_no_gpu_is_used(path_with_command: str, more: dict[str, str]) -> None:
    assert command_for({"PATH": path_with_command, **more}) is None


def test_nothing_is_watched_where_the_driver_has_no_such_command(tmp_path: Path) -> None:
    assert command_for({"PATH": str(tmp_path)}) is None
