"""A Ray cluster, and the workers that stand on it. The only module that imports ray."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from birdie_zmq.cluster.capacity import Node
from birdie_zmq.cluster.core import Ended, Event, Lost, Placed
from birdie_zmq.cluster.node_worker import NodeWorker
from birdie_zmq.errors import UnavailableError

logger = logging.getLogger("birdie_zmq.ray")

_CALLS_AT_ONCE = 3
"""Of one actor: its start, the wait for its end, and its stop."""
_MARGIN_S = 5.0
_LOCAL = "local"


class RayWorker(NodeWorker):
    """The actor. Ray makes it on the node that it has chosen."""

    def begin(self) -> str:
        """Start the worker's process, and say where it is."""
        process_id = self.start()
        node = ray.get_runtime_context().get_node_id()[:8]
        gpus = ", ".join(f"GPU {number}" for number in ray.get_gpu_ids())
        place = f"node {socket.gethostname()} ({ray.util.get_node_ip_address()}, {node})"
        return f"{place}{f', {gpus}' if gpus else ''}, process {process_id}"


@dataclass(frozen=True)
class _Standing:
    """An actor with its calls that have no result yet."""

    actor: Any
    begun: Any
    ended: Any


class Cluster:
    """A connection to a cluster, or a local one that ends with it.

    Args:
        address: As Ray takes it; None for ``RAY_ADDRESS``, else for the cluster of this machine, else for a local one.
        working_dir: A folder that Ray takes to each node, in which workers are started; None for none.
        quiet: Whether what workers write stays in Ray's logs.

    Raises:
        UnavailableError: No cluster answers there, or it does not take this process.
    """

    def __init__(self, address: str | None, working_dir: Path | None, quiet: bool) -> None:
        self._standing: dict[int, _Standing] = {}
        how: dict[str, Any] = {"log_to_driver": not quiet, "logging_level": logging.WARNING}
        if working_dir is not None:
            how["runtime_env"] = {"working_dir": str(working_dir)}
        address = address or os.environ.get("RAY_ADDRESS")
        if address is None:
            try:
                self._connect("auto", how)
                return
            except UnavailableError:
                address = _LOCAL
        self._connect(address, how)

    def _connect(self, address: str, how: Mapping[str, Any]) -> None:
        self.is_local = address == _LOCAL
        # A dashboard of a cluster that lives for one command would only take a port.
        more = {"include_dashboard": False} if self.is_local else {}
        logger.info(
            "%s", "starting a local Ray cluster" if self.is_local else f"looking for the Ray cluster: {address}"
        )
        try:
            ray.init(address=address, **how, **more)
        except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:
            raise UnavailableError(
                f"there is no way to the Ray cluster at {address}: {str(error).strip()}. ray status says whether it is "
                "there; one that was started with a token wants RAY_AUTH_MODE=token in the environment as well; without "
                "--address and RAY_ADDRESS a local one is started"
            ) from error

    @property
    def nodes(self) -> list[Node]:
        """The nodes that live."""
        here = {self.address, "127.0.0.1"}
        return [
            Node(node["NodeManagerHostname"], node["NodeManagerAddress"] in here, dict(node["Resources"]))
            for node in ray.nodes()
            if node["Alive"]
        ]

    @property
    def address(self) -> str:
        """The address of this machine as others see it."""
        return str(ray.util.get_node_ip_address())

    @property
    def free(self) -> dict[str, float]:
        """What is not reserved by anybody."""
        return dict(ray.available_resources())

    def place(
        self, number: int, arguments: Sequence[str], variables: Mapping[str, str], need: Mapping[str, float]
    ) -> None:
        """Ask for an actor for a worker. Where it comes to be is heard from `events`."""
        made = ray.remote(
            num_cpus=need.get("CPU", 0.0),
            num_gpus=need.get("GPU", 0.0),
            # Whatever is lost, the supervisor sees and decides; a request is the broker's to try again.
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=_CALLS_AT_ONCE,
            scheduling_strategy="SPREAD",
        )(RayWorker)
        actor = made.remote(number, list(arguments), dict(variables))
        self._standing[number] = _Standing(actor, *_calls(actor))

    def events(self) -> Iterator[Event]:
        """What has happened since the last look; it does not wait."""
        for number, standing in list(self._standing.items()):
            refs = [ref for ref in (standing.begun, standing.ended) if ref is not None]
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
            try:
                if standing.begun in ready:
                    self._standing[number] = _Standing(standing.actor, None, standing.ended)
                    yield Placed(number, ray.get(standing.begun))
                if standing.ended in ready:
                    status, last_words = ray.get(standing.ended)
                    self._forget(number)
                    yield Ended(number, status, last_words)
            except RayActorError as error:
                self._forget(number)
                yield Lost(number, _short(error))
            except RayError as error:
                self._forget(number)
                yield Lost(number, f"it could not be started: {_short(error)}")

    def _forget(self, number: int) -> None:
        # An actor that is only out of reach must not come back beside the one that takes its place.
        ray.kill(self._standing.pop(number).actor)

    def stop(self, patience_s: float) -> None:
        """Tell all workers to finish what they are at and end, wait, and leave the cluster."""
        asked = [
            standing.actor.stop.remote(patience_s) for standing in self._standing.values() if standing.begun is None
        ]
        if asked:
            ray.wait(asked, num_returns=len(asked), timeout=patience_s + _MARGIN_S)
        for number in list(self._standing):
            self._forget(number)
        self.leave()

    @staticmethod
    def leave() -> None:
        """End the connection; actors that are left end with it, and a local cluster too."""
        ray.shutdown()


def _calls(actor: Any) -> tuple[Any, Any]:
    return actor.begin.remote(), actor.wait.remote()


def _short(error: Exception) -> str:
    if isinstance(error, ActorUnavailableError):
        return "Ray does not reach its node"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if line.lower().startswith(("the actor died", "the actor is dead", "the node"))]
    return (reasons or lines or [type(error).__name__])[0]
