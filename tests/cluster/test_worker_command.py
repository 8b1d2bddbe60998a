"""What a worker on a node is told, of what a person typed."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from birdie_zmq.cli import ray, worker
from birdie_zmq.cluster.capacity import Node
from birdie_zmq.cluster.worker_command import (
    Folders,
    check_reach,
    memory_variables,
    reachable,
    variables,
    worker_arguments,
)
from birdie_zmq.errors import UsageError
from birdie_zmq.protocol.endpoints import parse_endpoint

ENDPOINT = parse_endpoint("tcp://10.0.0.1:5555")


def arguments(*typed: str, folders: Folders) -> list[str]:
    options = ray.full_parser("ray").parse_args(["up", "--workers", "2", *typed])
    return worker_arguments(worker.parser("worker"), options, ENDPOINT, folders)


def test_only_what_was_typed_is_passed_on_and_the_worker_understands_it(tmp_path: Path) -> None:
    typed = [
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

    passed = arguments(*typed, "--quiet", "--cpus-per-worker", "2", folders=Folders(tmp_path))

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


def test_every_option_of_a_worker_is_one_of_the_command(tmp_path: Path) -> None:
    own = {option for action in worker.parser("worker")._actions for option in action.option_strings}
    (up,) = [
        action.choices["up"]
        for action in ray.full_parser("ray")._actions
        if isinstance(action, argparse._SubParsersAction)
    ]

    assert own <= {option for action in up._actions for option in action.option_strings}


@pytest.mark.parametrize(
    "typed", [["--distributed"], ["--coordinator", "a:1"], ["--num-processes", "2"], ["--process-id", "0"]]
)
def test_a_group_of_processes_is_not_for_ray(typed: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one model on several hosts"):
        arguments(*typed, folders=Folders(tmp_path))


def test_a_page_is_looked_for_here_or_in_the_folder_that_ray_copies(tmp_path: Path) -> None:
    here, shipped = tmp_path / "here", tmp_path / "shipped"
    for folder in (here, shipped):
        folder.mkdir()
    assert "--built-in" in arguments(folders=Folders(here))
    (shipped / "api.py").touch()
    assert "--built-in" in arguments(folders=Folders(here))
    assert arguments(folders=Folders(here, shipped))[-3:-1] == ["--api", "api.py"]
    (here / "api.py").touch()
    assert arguments(folders=Folders(here))[-3:-1] == ["--api", str(here / "api.py")]
    assert "--api" not in arguments("--built-in", folders=Folders(here))
    with pytest.raises(UsageError, match=f"there is no page at {shipped}/other.py"):
        arguments("--api", "other.py", folders=Folders(here, shipped))


def test_the_choice_of_a_gpu_is_left_to_ray(tmp_path: Path) -> None:
    assert "cpu" in arguments("--device", "cpu", folders=Folders(tmp_path))
    with pytest.raises(UsageError, match="--gpus-per-worker 1"):
        arguments("--device", "0", folders=Folders(tmp_path))


def test_a_key_is_not_copied_to_the_cluster(tmp_path: Path) -> None:
    shipped = tmp_path / "shipped"
    shipped.mkdir()

    with pytest.raises(UsageError, match="lies in --working-dir"):
        arguments("--key-file", "shipped/w.key", folders=Folders(tmp_path, shipped))
    assert str(tmp_path / "w.key") in arguments("--key-file", "w.key", folders=Folders(tmp_path, shipped))
    assert "/keys/w.key" in arguments("--key-file", "/keys/w.key", folders=Folders(tmp_path, shipped))


def test_variables_are_named_or_given() -> None:
    assert variables(["A", "B=1=2", "C="], {"A": "here", "D": "not asked for"}) == {"A": "here", "B": "1=2", "C": ""}
    with pytest.raises(UsageError, match="--env E names a variable that is not set here"):
        variables(["E"], {})


def test_workers_that_share_a_gpu_share_its_memory() -> None:
    assert memory_variables(0.5, {}) == {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.450"}
    assert memory_variables(1.0, {}) == memory_variables(0.0, {}) == {}
    assert memory_variables(0.5, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.3"}) == {}


@pytest.mark.parametrize(
    ("bound", "address", "found"),
    [
        ("tcp://0.0.0.0:5555", "10.0.0.7", "tcp://10.0.0.7:5555"),
        ("tcp://[::]:5555", "fd00::7", "tcp://[fd00::7]:5555"),
        ("tcp://127.0.0.1:5555", "10.0.0.7", "tcp://127.0.0.1:5555"),
    ],
)
def test_a_broker_at_all_addresses_is_found_at_one(bound: str, address: str, found: str) -> None:
    assert str(reachable(parse_endpoint(bound), address)) == found


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:5555", "tcp://localhost:5555", "ipc:///run/broker"])
def test_an_endpoint_of_this_machine_is_refused_where_there_are_other_nodes(endpoint: str) -> None:
    here, there = Node("here", True, {}), Node("there", False, {})

    check_reach(parse_endpoint(endpoint), [here])
    check_reach(ENDPOINT, [here, there])
    with pytest.raises(UsageError, match=r"the cluster has other nodes \(there\).*--keys --key-file FILE"):
        check_reach(parse_endpoint(endpoint), [here, there])
