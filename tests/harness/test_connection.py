"""The client of a run, of a running broker or with embedded processes that end with it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, cast

import pytest

from birdie_zmq.client.embedded import WorkerOptions
from birdie_zmq.errors import UsageError
from birdie_zmq.harness import connection
from birdie_zmq.harness.connection import connect
from birdie_zmq.harness.model_args import parse_model_args


class FakeProcesses:
    """Embedded processes that only record their arguments and whether they were closed."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.is_closed = False
        self.endpoint = "ipc:///nowhere/broker"

    def begin_run(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture(autouse=True)
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "EmbeddedProcesses", FakeProcesses)


def embedded_with(device: str | None, **model_args: Any) -> FakeProcesses:
    """Return the embedded processes of a run, after it has ended."""
    arguments = parse_model_args({"model_tag": "demo", **model_args}, device=device)
    with contextlib.ExitStack() as resources:
        embedded = cast(FakeProcesses, connect(arguments, None, resources)[1])
        assert not embedded.is_closed
    return embedded


def test_embedded_processes_end_with_the_client() -> None:
    embedded = embedded_with("cuda:1", engine="torch", status_port=0)

    assert embedded.is_closed
    assert embedded.arguments == (WorkerOptions(device="1", engine="torch"), False, 0)


@pytest.mark.parametrize(
    ("device", "mesh", "seen"),
    [("cuda:0", None, "0"), ("cuda:0", "data:2", None), ("cpu", "data:2", "cpu"), (None, None, None)],
)
def test_a_mesh_sees_all_gpus(device: str | None, mesh: str | None, seen: str | None) -> None:
    model_args = {} if mesh is None else {"mesh": mesh}

    assert embedded_with(device, **model_args).arguments[0] == WorkerOptions(device=seen)


def test_a_running_broker_needs_no_processes(tmp_path: Path) -> None:
    arguments = parse_model_args({"model_tag": "demo", "endpoint": f"ipc://{tmp_path / 'broker'}"})
    with contextlib.ExitStack() as resources:
        _, embedded = connect(arguments, None, resources)
        assert embedded is None


def test_a_client_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    arguments = parse_model_args({"model_tag": "demo", "port": 5555, "key_file": str(tmp_path / "missing")})
    with contextlib.ExitStack() as resources, pytest.raises(UsageError, match="missing"):
        connect(arguments, None, resources)
