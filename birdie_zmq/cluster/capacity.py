"""The number of workers that fit on a Ray cluster, and descriptions of its resources. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from birdie_zmq.errors import UsageError

_ROUNDING = 1e-6
_SHOWN = ("CPU", "GPU")


@dataclass(frozen=True)
class Node:
    """A live node.

    Attributes:
        name: Its host name.
        is_local: Whether it is this machine.
        resources: The total resources that Ray can reserve there, such as ``{"CPU": 8.0, "GPU": 2.0}``.
    """

    name: str
    is_local: bool
    resources: Mapping[str, float]


def worker_resources(cpus: float, gpus: float) -> dict[str, float]:
    """Return the resources that one worker reserves.

    Raises:
        UsageError: Ray cannot reserve such an amount.
    """
    if cpus < 0 or gpus < 0:
        raise UsageError("--cpus-per-worker and --gpus-per-worker must not be below 0")
    if gpus > 1 and gpus != int(gpus):
        raise UsageError(
            f"--gpus-per-worker {gpus:g} is not possible: Ray gives whole GPUs, or a fraction of one; give a whole number, "
            "or a number below 1"
        )
    return {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount > 0}


def worker_capacity(nodes: Sequence[Node], per_worker: Mapping[str, float]) -> float:
    """Return the number of workers that fit on all nodes of an idle cluster; infinite if a worker reserves nothing."""
    if not per_worker:
        return float("inf")
    counts = ((node.resources.get(name, 0.0) / amount for name, amount in per_worker.items()) for node in nodes)
    return sum(int(min(each) + _ROUNDING) for each in counts)


def check_capacity(nodes: Sequence[Node], per_worker: Mapping[str, float], workers: int) -> None:
    """Check that the cluster could hold the workers if it were idle.

    Raises:
        UsageError: The cluster is too small; the message has the resources that Ray reports.
    """
    capacity = worker_capacity(nodes, per_worker)
    if capacity < workers:
        raise UsageError(
            f"{workers} worker{'s' * (workers != 1)} of {format_resources(per_worker)} each do not fit: Ray reports "
            f"{describe_nodes(nodes)}, which is enough for {capacity:.0f}. Lower --workers, --cpus-per-worker or "
            "--gpus-per-worker, add nodes (ray start --address=…), or pass --wait for a cluster with autoscaling"
        )


def describe_nodes(nodes: Sequence[Node]) -> str:
    """Describe all nodes with their resources, such as ``a (CPU 8, GPU 2) and b (CPU 4)``."""
    shown = [
        f"{node.name} ({format_resources({kind: node.resources.get(kind, 0.0) for kind in _SHOWN})})" for node in nodes
    ]
    return " and ".join(shown) or "no nodes"


def format_resources(resources: Mapping[str, float]) -> str:
    """Format resources, such as ``CPU 8, GPU 0.5``."""
    return ", ".join(f"{name} {amount:g}" for name, amount in resources.items())
