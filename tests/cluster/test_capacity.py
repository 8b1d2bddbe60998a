"""The capacity of a cluster, and its description."""

from __future__ import annotations

import pytest

from birdie_zmq.cluster.capacity import Node, check_capacity, worker_capacity, worker_resources
from birdie_zmq.errors import UsageError

NODES = [
    Node("head", True, {"CPU": 4.0, "memory": 1e10}),
    Node("gpus", False, {"CPU": 8.0, "GPU": 2.0, "memory": 1e10}),
]


@pytest.mark.parametrize(
    ("cpus", "gpus", "capacity"),
    [(1, 0, 12), (3, 0, 3), (1, 1, 2), (0, 0.1, 20), (1, 0.5, 4), (8, 1, 1), (0, 2, 1), (1, 3, 0)],
)
def test_worker_must_fit_on_one_node(cpus: float, gpus: float, capacity: int) -> None:
    assert worker_capacity(NODES, worker_resources(cpus, gpus)) == capacity


def test_worker_without_resources_always_fits() -> None:
    check_capacity(NODES, worker_resources(0, 0), 1000)


def test_too_many_workers_are_refused_with_the_resources_of_the_cluster() -> None:
    check_capacity(NODES, worker_resources(1, 1), 2)
    with pytest.raises(UsageError) as raised:
        check_capacity(NODES, worker_resources(1, 1), 3)
    assert str(raised.value).startswith(
        "3 workers of CPU 1, GPU 1 each do not fit: Ray reports head (CPU 4, GPU 0) and gpus (CPU 8, GPU 2), which is enough "
        "for 2. "
    )


@pytest.mark.parametrize(("cpus", "gpus", "message"), [(-1, 0, "below 0"), (1, 1.5, "--gpus-per-worker 1.5")])
def test_invalid_resources_are_refused(cpus: float, gpus: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        worker_resources(cpus, gpus)
