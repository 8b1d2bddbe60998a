"""A Ray cluster and its worker actors. The only module that imports ray."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from birdie_zmq.cluster.capacity import Node
from birdie_zmq.cluster.core import ActorLost, Event, Placed, WorkerExited
from birdie_zmq.cluster.node_worker import NodeWorker
from birdie_zmq.cluster.worker_command import WorkerSpec
from birdie_zmq.errors import UnavailableError
from birdie_zmq.sanitize import first_line

logger = logging.getLogger("birdie_zmq.ray")

_CALLS_AT_ONCE = 3
"""Number of concurrent calls of one actor: start, wait and stop."""
_MARGIN_S = 5.0
_LOCAL = "local"


class RayWorker(NodeWorker):
    """The actor class. Ray creates the actor on a node that it chooses."""

    def begin(self) -> str:
        """Start the worker's process and return its location."""
        process_id = self.start()
        node = ray.get_runtime_context().get_node_id()[:8]
        gpus = ", ".join(f"GPU {number}" for number in ray.get_gpu_ids())
        location = f"node {socket.gethostname()} ({ray.util.get_node_ip_address()}, {node})"
        return f"{location}{f', {gpus}' if gpus else ''}, process {process_id}"


@dataclass(frozen=True)
class _Placement:
    """An actor with the references of its pending calls; ``started`` is None once that call has returned."""

    actor: Any
    started: Any
    exited: Any


class Cluster:
    """A connection to a Ray cluster, or a local cluster that ends with the connection.

    Args:
        address: An address as Ray takes it. None tries ``RAY_ADDRESS``, then a cluster on this machine, then starts a local
            one.
        working_dir: A folder that Ray copies to each node, in which workers are started; None for none.
        quiet: Whether the output of workers stays in Ray's logs only.

    Raises:
        UnavailableError: No cluster answers at the address, or it refuses this process.
    """

    def __init__(self, address: str | None, working_dir: Path | None, quiet: bool) -> None:
        self._placements: dict[int, _Placement] = {}
        options: dict[str, Any] = {"log_to_driver": not quiet, "logging_level": logging.WARNING}
        if working_dir is not None:
            options["runtime_env"] = {"working_dir": str(working_dir)}
        address = address or os.environ.get("RAY_ADDRESS")
        if address is None:
            try:
                self._connect("auto", options)
                return
            except UnavailableError:
                address = _LOCAL
        self._connect(address, options)

    def _connect(self, address: str, options: Mapping[str, Any]) -> None:
        self.is_local = address == _LOCAL
        # A cluster that lives for one command needs no dashboard, which would take a port.
        extra = {"include_dashboard": False} if self.is_local else {}
        logger.info(
            "%s", "starting a local Ray cluster" if self.is_local else f"connecting to the Ray cluster at {address}"
        )
        try:
            ray.init(address=address, **options, **extra)
        except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:
            raise UnavailableError(
                f"cannot connect to the Ray cluster at {address}: {str(error).strip()}. Check it with: ray status. A cluster "
                "that was started with a token also needs RAY_AUTH_MODE=token in the environment. Without --address and "
                "RAY_ADDRESS, a local cluster is started"
            ) from error

    @property
    def nodes(self) -> list[Node]:
        """The live nodes."""
        local = {self.address, "127.0.0.1"}
        return [
            Node(node["NodeManagerHostname"], node["NodeManagerAddress"] in local, dict(node["Resources"]))
            for node in ray.nodes()
            if node["Alive"]
        ]

    @property
    def address(self) -> str:
        """The address of this machine in the cluster's network."""
        return str(ray.util.get_node_ip_address())

    @property
    def free(self) -> dict[str, float]:
        """The resources that are not reserved."""
        return dict(ray.available_resources())

    def place(self, number: int, spec: WorkerSpec) -> None:
        """Request an actor for a worker. `events` reports its location once it runs."""
        actor_class = ray.remote(
            num_cpus=spec.resources.get("CPU", 0.0),
            num_gpus=spec.resources.get("GPU", 0.0),
            # ClusterCore decides about lost actors, and the broker retries requests.
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=_CALLS_AT_ONCE,
            scheduling_strategy="SPREAD",
        )(RayWorker)
        actor = actor_class.remote(number, list(spec.arguments), dict(spec.variables))
        self._placements[number] = _Placement(actor, actor.begin.remote(), actor.wait.remote())

    def events(self) -> Iterator[Event]:
        """Yield the events since the last call, without waiting."""
        for number, placement in list(self._placements.items()):
            refs = [ref for ref in (placement.started, placement.exited) if ref is not None]
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
            try:
                if placement.started in ready:
                    self._placements[number] = _Placement(placement.actor, None, placement.exited)
                    yield Placed(number, ray.get(placement.started))
                if placement.exited in ready:
                    status, last_line = ray.get(placement.exited)
                    self._kill(number)
                    yield WorkerExited(number, status, last_line)
            except RayActorError as error:
                self._kill(number)
                yield ActorLost(number, _reason(error))
            except RayError as error:
                self._kill(number)
                yield ActorLost(number, f"it could not be started: {_reason(error)}")

    def _kill(self, number: int) -> None:
        # An actor that is only unreachable must not come back beside its replacement.
        ray.kill(self._placements.pop(number).actor)

    def stop(self, timeout_s: float) -> None:
        """Let all workers finish their running leases and exit, within `timeout_s` seconds."""
        stops = [
            placement.actor.stop.remote(timeout_s)
            for placement in self._placements.values()
            if placement.started is None
        ]
        if stops:
            ray.wait(stops, num_returns=len(stops), timeout=timeout_s + _MARGIN_S)
        for number in list(self._placements):
            self._kill(number)

    @staticmethod
    def disconnect() -> None:
        """Close the connection, which ends remaining actors, and a local cluster too."""
        ray.shutdown()


def _reason(error: Exception) -> str:
    if isinstance(error, ActorUnavailableError):
        return "Ray cannot reach its node"
    lines = [line.strip() for line in str(error).splitlines()]
    reasons = (line for line in lines if line.lower().startswith(("the actor died", "the actor is dead", "the node")))
    return next(reasons, first_line(error))
