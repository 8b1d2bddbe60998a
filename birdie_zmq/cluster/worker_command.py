"""From what a person typed to the command of a worker on its node. Pure but for looking which files there are."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from birdie_zmq.cluster.capacity import Node
from birdie_zmq.errors import UsageError
from birdie_zmq.protocol.endpoints import Endpoint, TcpEndpoint
from birdie_zmq.worker.engine_registry import BUILT_IN

_ALL_INTERFACES = ("0.0.0.0", "[::]")  # noqa: S104 - it is looked for, not bound
_SHARE_OF_A_PART = 0.9
"""What JAX is given of its part of a GPU that several workers share; the rest is left to CUDA itself."""


@dataclass(frozen=True)
class Folders:
    """Where relative paths begin: `here`, and in the copy of `shipped` if Ray takes that folder to the nodes."""

    here: Path
    shipped: Path | None = None

    def on_node(self, path: Path) -> Path:
        """A path as a worker on a node is to be told it; nodes share the file system, or have the folder's copy."""
        return path if self.shipped is not None else self.here / path.expanduser()

    @property
    def start(self) -> Path:
        """The folder that holds what relative paths name, on this machine."""
        return self.here if self.shipped is None else self.shipped


def worker_arguments(
    parser: argparse.ArgumentParser, options: argparse.Namespace, endpoint: Endpoint, folders: Folders
) -> list[str]:
    """The arguments of a worker: what differs from the defaults of its own parser.

    Raises:
        UsageError: The options name a device, a group of processes, a page that is not there, or a key that Ray would copy.
    """
    if options.distributed or options.coordinator or options.num_processes or options.process_id is not None:
        raise UsageError(
            "--distributed, --coordinator, --num-processes and --process-id are for one model on several hosts, and each worker "
            "that Ray places holds a model of its own; start the processes of a group yourself (docs/many_hosts.md)"
        )
    if options.device is not None and options.device != "cpu":
        raise UsageError(
            "--device N is for Ray to choose: give --gpus-per-worker 1, and each worker is shown its own GPU"
        )
    _check_key(options.key_file, folders)
    chosen = argparse.Namespace(**vars(options))
    chosen.connect, chosen.lifeline = str(endpoint), True
    if chosen.key_file is not None:
        chosen.key_file = folders.here / chosen.key_file.expanduser()
    if chosen.engine not in BUILT_IN:
        chosen.engine = str(folders.on_node(Path(chosen.engine)))
    if not chosen.built_in:
        page = options.api or Path("api.py")
        if (folders.start / page).is_file():
            chosen.api = page
        elif options.api is not None:
            raise UsageError(f"there is no page at {folders.start / page}; --api names an api.py")
        else:
            # The folder in which Ray starts an actor may have an api.py of somebody else.
            chosen.built_in = True
    return list(_typed(parser, chosen, folders))


def _check_key(key_file: Path | None, folders: Folders) -> None:
    if key_file is None or folders.shipped is None:
        return
    if (folders.here / key_file.expanduser()).resolve().is_relative_to(folders.shipped.resolve()):
        raise UsageError(
            f"the key {key_file} lies in --working-dir, which Ray copies to the cluster's store, where others may read it. "
            "Put it at the same absolute path on each node instead (scp, mode 0600), or on a file system that they share"
        )


def _typed(parser: argparse.ArgumentParser, options: argparse.Namespace, folders: Folders) -> Iterator[str]:
    for action in parser._actions:
        value = getattr(options, action.dest, None)
        if not action.option_strings or value is None or value == action.default:
            continue
        flag = action.option_strings[-1]
        if action.nargs == 0:
            yield flag
            continue
        for each in value if isinstance(value, list) else [value]:
            yield flag
            yield str(folders.on_node(each) if isinstance(each, Path) else each)


def variables(given: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that ``--env NAME`` and ``--env NAME=VALUE`` ask for.

    Raises:
        UsageError: A name without a value is not set here.
    """
    result = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            if name not in environment:
                raise UsageError(
                    f"--env {name} names a variable that is not set here; set it, or write --env {name}=VALUE"
                )
            value = environment[name]
        result[name] = value
    return result


def memory_variables(gpus: float, environment: Mapping[str, str]) -> dict[str, str]:
    """What lets several JAX processes share one GPU, each of which would else reserve three quarters of it."""
    name = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    return {name: f"{gpus * _SHARE_OF_A_PART:.3f}"} if 0 < gpus < 1 and name not in environment else {}


def reachable(bound: Endpoint, address: str) -> Endpoint:
    """Where workers find a broker of this machine, whose address on the cluster's network is given."""
    if isinstance(bound, TcpEndpoint) and bound.host in _ALL_INTERFACES:
        return TcpEndpoint(f"[{address}]" if ":" in address else address, bound.port)
    return bound


def check_reach(endpoint: Endpoint, nodes: Sequence[Node]) -> None:
    """Refuse an endpoint that workers on other nodes could not reach.

    Raises:
        UsageError: It is of this machine alone, and there are other nodes.
    """
    if isinstance(endpoint, TcpEndpoint) and not endpoint.is_loopback:
        return
    others = [node.name for node in nodes if not node.is_here]
    if others:
        raise UsageError(
            f"{endpoint} is of this machine alone, and the cluster has other nodes ({', '.join(others)}), whose workers "
            "could not reach it. Make a key for the workers and one for each client (birdie-zmq keys new worker ray, "
            "birdie-zmq keys new client NAME), put the worker's at the same path on each node, mode 0600, and give "
            "--bind tcp://0.0.0.0:5555 --keys --key-file FILE; or --connect with a broker that all of them reach"
        )
