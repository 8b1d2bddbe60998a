"""The command of a worker on a node, made of the options of ``birdie-zmq ray up``."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from birdie_zmq.cli import ray, worker
from birdie_zmq.cluster.capacity import Node
from birdie_zmq.cluster.worker_command import (
    BaseFolders,
    check_reachable,
    endpoint_for_workers,
    gpu_memory_variables,
    variables,
    worker_arguments,
)
from birdie_zmq.errors import UsageError
from birdie_zmq.protocol.endpoints import parse_endpoint

ENDPOINT = parse_endpoint("tcp://10.0.0.1:5555")


def arguments(*options: str, folders: BaseFolders) -> list[str]:
    parsed = ray.parser("ray").parse_args(["up", "--workers", "2", *options])
    return worker_arguments(worker.parser("worker"), parsed, ENDPOINT, folders)


def test_only_given_options_are_passed_on_and_the_worker_parses_them(tmp_path: Path) -> None:
    options = [
        "--engine",
        "torch",
        "--key-file",
        "w.key",
        "--checkpoints",
        "/c",
        "--checkpoints",
        "d",
        "--step-timeout",
        "5",
    ]

    passed = arguments(*options, "--quiet", "--cpus-per-worker", "2", folders=BaseFolders(tmp_path))

    understood = worker.parser("worker").parse_args(passed)
    expected = worker.parser("worker").parse_args([])
    vars(expected).update(
        connect="tcp://10.0.0.1:5555",
        engine="torch",
        key_file=tmp_path / "w.key",
        checkpoints=[Path("/c"), tmp_path / "d"],
        step_timeout=5.0,
        built_in=True,
        quiet=True,
        lifeline=True,
    )
    assert understood == expected
    assert "--load-timeout" not in passed


def test_command_has_every_option_of_a_worker(tmp_path: Path) -> None:
    own = {option for action in worker.parser("worker")._actions for option in action.option_strings}
    (up,) = [
        action.choices["up"] for action in ray.parser("ray")._actions if isinstance(action, argparse._SubParsersAction)
    ]

    assert own <= {option for action in up._actions for option in action.option_strings}


@pytest.mark.parametrize(
    "options", [["--distributed"], ["--coordinator", "a:1"], ["--num-processes", "2"], ["--process-id", "0"]]
)
def test_process_group_options_are_refused(options: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one model on several hosts"):
        arguments(*options, folders=BaseFolders(tmp_path))


def test_user_module_is_found_in_the_cwd_or_the_working_dir(tmp_path: Path) -> None:
    cwd, working_dir = tmp_path / "cwd", tmp_path / "working_dir"
    for folder in (cwd, working_dir):
        folder.mkdir()
    assert "--built-in" in arguments(folders=BaseFolders(cwd))
    (working_dir / "api.py").touch()
    assert "--built-in" in arguments(folders=BaseFolders(cwd))
    assert arguments(folders=BaseFolders(cwd, working_dir))[-3:-1] == ["--api", "api.py"]
    (cwd / "api.py").touch()
    assert arguments(folders=BaseFolders(cwd))[-3:-1] == ["--api", str(cwd / "api.py")]
    assert "--api" not in arguments("--built-in", folders=BaseFolders(cwd))
    with pytest.raises(UsageError, match=f"there is no user module at {working_dir}/other.py"):
        arguments("--api", "other.py", folders=BaseFolders(cwd, working_dir))


def test_gpu_number_is_refused(tmp_path: Path) -> None:
    assert "cpu" in arguments("--device", "cpu", folders=BaseFolders(tmp_path))
    with pytest.raises(UsageError, match="--gpus-per-worker 1"):
        arguments("--device", "0", folders=BaseFolders(tmp_path))


def test_key_in_the_working_dir_is_refused(tmp_path: Path) -> None:
    working_dir = tmp_path / "copied"
    working_dir.mkdir()

    with pytest.raises(UsageError, match="is in --working-dir"):
        arguments("--key-file", "copied/w.key", folders=BaseFolders(tmp_path, working_dir))
    assert str(tmp_path / "w.key") in arguments("--key-file", "w.key", folders=BaseFolders(tmp_path, working_dir))
    assert "/keys/w.key" in arguments("--key-file", "/keys/w.key", folders=BaseFolders(tmp_path, working_dir))


def test_variables_are_taken_from_the_environment_or_given() -> None:
    assert variables(["A", "B=1=2", "C="], {"A": "here", "D": "not requested"}) == {"A": "here", "B": "1=2", "C": ""}
    with pytest.raises(UsageError, match="--env E: this variable is not set in the environment"):
        variables(["E"], {})


def test_workers_that_share_a_gpu_share_its_memory() -> None:
    assert gpu_memory_variables(0.5, {}) == {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.450"}
    assert gpu_memory_variables(1.0, {}) == gpu_memory_variables(0.0, {}) == {}
    assert gpu_memory_variables(0.5, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.3"}) == {}


@pytest.mark.parametrize(
    ("bound", "address", "found"),
    [
        ("tcp://0.0.0.0:5555", "10.0.0.7", "tcp://10.0.0.7:5555"),
        ("tcp://[::]:5555", "fd00::7", "tcp://[fd00::7]:5555"),
        ("tcp://127.0.0.1:5555", "10.0.0.7", "tcp://127.0.0.1:5555"),
    ],
)
def test_wildcard_address_is_replaced_by_this_machines_address(bound: str, address: str, found: str) -> None:
    assert str(endpoint_for_workers(parse_endpoint(bound), address)) == found


def test_the_option_for_group_readable_keys_reaches_the_worker(tmp_path: Path) -> None:
    passed = arguments("--key-file", "w.key", "--allow-group-readable-keys", folders=BaseFolders(tmp_path))

    assert worker.parser("worker").parse_args(passed).allow_group_readable_keys


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:5555", "tcp://localhost:5555", "ipc:///run/broker"])
def test_local_endpoint_is_refused_when_there_are_other_nodes(endpoint: str) -> None:
    local, remote = Node("local", True, {}), Node("remote", False, {})

    check_reachable(parse_endpoint(endpoint), [local])
    check_reachable(ENDPOINT, [local, remote])
    with pytest.raises(UsageError, match=r"the cluster has other nodes \(remote\).*--keys --key-file FILE"):
        check_reachable(parse_endpoint(endpoint), [local, remote])
