"""How many workers a cluster has room for, and saying what it has. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from birdie_zmq.errors import UsageError

_ROUNDING = 1e-6
_SHOWN = ("CPU", "GPU")


@dataclass(frozen=True)
class Node:
    """A living node, and all that Ray lets be reserved there, such as ``{"CPU": 8.0, "GPU": 2.0}``."""

    name: str
    is_here: bool
    resources: Mapping[str, float]


def need_of(cpus: float, gpus: float) -> dict[str, float]:
    """What one worker reserves.

    Raises:
        UsageError: Ray reserves no such amount.
    """
    if cpus < 0 or gpus < 0:
        raise UsageError("--cpus-per-worker and --gpus-per-worker cannot be below 0")
    if gpus > 1 and gpus != int(gpus):
        raise UsageError(f"--gpus-per-worker {gpus:g} is not possible: Ray gives whole GPUs, or a part of one")
    return {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount > 0}


def room_for(nodes: Sequence[Node], need: Mapping[str, float]) -> float:
    """The number of workers that all nodes together could hold if nothing else were there; infinite for no need."""
    return sum(_on(node, need) for node in nodes)


def check_room(nodes: Sequence[Node], need: Mapping[str, float], workers: int) -> None:
    """Refuse what the cluster could not hold even if it were idle.

    Raises:
        UsageError: It has too little; the text says what Ray says it has.
    """
    room = room_for(nodes, need)
    if room < workers:
        raise UsageError(
            f"{workers} worker{'s' * (workers != 1)} of {amounts(need)} each do not fit: Ray says that the cluster has "
            f"{described(nodes)}, which is room for {room:.0f}. Ask for less by --workers, --cpus-per-worker or "
            "--gpus-per-worker, add nodes (ray start --address=…), or give --wait for a cluster that grows by itself"
        )


def described(nodes: Sequence[Node]) -> str:
    """All nodes with their resources, such as ``a (CPU 8, GPU 2) and b (CPU 4)``."""
    shown = [f"{node.name} ({amounts(_named(node.resources)) or 'nothing'})" for node in nodes]
    return " and ".join(shown) or "no nodes"


def amounts(resources: Mapping[str, float]) -> str:
    """Such as ``CPU 8, GPU 0.5``."""
    return ", ".join(f"{name} {amount:g}" for name, amount in resources.items())


def _named(resources: Mapping[str, float]) -> dict[str, float]:
    return {name: resources.get(name, 0.0) for name in _SHOWN}


def _on(node: Node, need: Mapping[str, float]) -> float:
    if not need:
        return float("inf")
    return min(int(node.resources.get(name, 0.0) / amount + _ROUNDING) for name, amount in need.items())
