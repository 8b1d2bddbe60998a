"""What fits on a cluster, and how it is said."""

from __future__ import annotations

import pytest

from birdie_zmq.cluster.capacity import Node, check_room, need_of, room_for
from birdie_zmq.errors import UsageError

NODES = [
    Node("head", True, {"CPU": 4.0, "memory": 1e10}),
    Node("gpus", False, {"CPU": 8.0, "GPU": 2.0, "memory": 1e10}),
]


@pytest.mark.parametrize(
    ("cpus", "gpus", "room"),
    [(1, 0, 12), (3, 0, 3), (1, 1, 2), (0, 0.1, 20), (1, 0.5, 4), (8, 1, 1), (0, 2, 1), (1, 3, 0)],
)
def test_a_worker_stands_on_one_node(cpus: float, gpus: float, room: int) -> None:
    assert room_for(NODES, need_of(cpus, gpus)) == room


def test_who_needs_nothing_fits_anywhere() -> None:
    check_room(NODES, need_of(0, 0), 1000)


def test_what_is_too_much_is_refused_with_what_ray_has() -> None:
    check_room(NODES, need_of(1, 1), 2)
    with pytest.raises(UsageError) as raised:
        check_room(NODES, need_of(1, 1), 3)
    assert str(raised.value).startswith(
        "3 workers of CPU 1, GPU 1 each do not fit: Ray says that the cluster has head (CPU 4, GPU 0) and gpus (CPU 8, "
        "GPU 2), which is room for 2. "
    )


@pytest.mark.parametrize(("cpus", "gpus", "words"), [(-1, 0, "below 0"), (1, 1.5, "--gpus-per-worker 1.5")])
def test_what_ray_cannot_reserve_is_refused(cpus: float, gpus: float, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        need_of(cpus, gpus)
