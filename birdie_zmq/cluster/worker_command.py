"""The command of a worker on its node, from the options of ``birdie-zmq ray up``. Pure, except for checks of files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from birdie_zmq.cluster.capacity import Node
from birdie_zmq.errors import UsageError
from birdie_zmq.protocol.endpoints import Endpoint, TcpEndpoint
from birdie_zmq.user_folders import expand_home
from birdie_zmq.worker.engine_registry import BUILT_IN

_ALL_INTERFACES = ("0.0.0.0", "[::]")  # noqa: S104 - compared with, not bound
_JAX_MEMORY_SHARE = 0.9
"""The share of a worker's fraction of a GPU that JAX may reserve; the rest is left to CUDA itself."""


@dataclass(frozen=True)
class WorkerSpec:
    """What Ray starts for each worker.

    Attributes:
        arguments: The arguments of ``birdie-zmq worker``.
        variables: Variables to add to the environment of its node.
        resources: The resources that Ray reserves, such as ``{"CPU": 1.0}``.
    """

    arguments: Sequence[str]
    variables: Mapping[str, str]
    resources: Mapping[str, float]


@dataclass(frozen=True)
class BaseFolders:
    """The folders that relative paths are relative to.

    Attributes:
        cwd: The working directory of the command.
        working_dir: The folder that Ray copies to the nodes; None for none. If set, a worker's relative paths are relative
            to its copy.
    """

    cwd: Path
    working_dir: Path | None = None

    def on_node(self, path: Path) -> Path:
        """Return the path for a worker on a node: nodes share the file system, or have a copy of the working directory."""
        return path if self.working_dir is not None else self.cwd / expand_home(path)

    @property
    def start(self) -> Path:
        """The folder on this machine that relative paths are relative to."""
        return self.cwd if self.working_dir is None else self.working_dir


def worker_arguments(
    parser: argparse.ArgumentParser, options: argparse.Namespace, endpoint: Endpoint, folders: BaseFolders
) -> list[str]:
    """Return the arguments of a worker that differ from the defaults of its own parser.

    Args:
        parser: The worker's own parser.
        options: The options of ``birdie-zmq ray up``.
        endpoint: The broker's endpoint.
        folders: The folders of relative paths.

    Raises:
        UsageError: The options name a GPU, a process group, a user module that does not exist, or a key that Ray would
            copy.
    """
    if options.distributed or options.coordinator or options.num_processes or options.process_id is not None:
        raise UsageError(
            "--distributed, --coordinator, --num-processes and --process-id are for one model on several hosts, but each worker "
            "that Ray places holds a model of its own; start the workers of a process group yourself "
            "(docs/how_to/many_hosts.md)"
        )
    if options.device is not None and options.device != "cpu":
        raise UsageError(
            "--device N cannot be used, since Ray assigns the GPUs: pass --gpus-per-worker 1, and each worker sees its own GPU"
        )
    _check_key(options.key_file, folders)
    chosen = argparse.Namespace(**vars(options))
    chosen.connect, chosen.lifeline = str(endpoint), True
    if chosen.key_file is not None:
        chosen.key_file = folders.cwd / expand_home(chosen.key_file)
    if chosen.engine not in BUILT_IN:
        chosen.engine = str(folders.on_node(Path(chosen.engine)))
    if not chosen.built_in:
        api = options.api or Path("api.py")
        if (folders.start / api).is_file():
            chosen.api = api
        elif options.api is not None:
            raise UsageError(f"there is no user module at {folders.start / api}; --api takes the path of your api.py")
        else:
            # The folder in which Ray starts an actor may contain an unrelated api.py.
            chosen.built_in = True
    return list(_changed_options(parser, chosen, folders))


def _check_key(key_file: Path | None, folders: BaseFolders) -> None:
    if key_file is None or folders.working_dir is None:
        return
    if (folders.cwd / expand_home(key_file)).resolve().is_relative_to(folders.working_dir.resolve()):
        raise UsageError(
            f"the key {key_file} is in --working-dir, which Ray copies to the cluster's store, where others may read it. "
            "Put it at the same absolute path on each node instead (scp, mode 0600), or on a shared file system"
        )


def _changed_options(
    parser: argparse.ArgumentParser, options: argparse.Namespace, folders: BaseFolders
) -> Iterator[str]:
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
    """Return the variables of ``--env NAME`` and ``--env NAME=VALUE``.

    Raises:
        UsageError: A variable given without a value is not set in this environment.
    """
    result = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            if name not in environment:
                raise UsageError(
                    f"--env {name}: this variable is not set in the environment; set it, or pass --env {name}=VALUE"
                )
            value = environment[name]
        result[name] = value
    return result


def gpu_memory_variables(gpus: float, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for JAX processes that share one GPU; each would otherwise reserve three quarters of it."""
    name = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    return {name: f"{gpus * _JAX_MEMORY_SHARE:.3f}"} if 0 < gpus < 1 and name not in environment else {}


def endpoint_for_workers(bound: Endpoint, address: str) -> Endpoint:
    """Return the endpoint at which workers reach a broker on this machine.

    Args:
        bound: The endpoint that the broker binds.
        address: The address of this machine in the cluster's network.
    """
    if isinstance(bound, TcpEndpoint) and bound.host in _ALL_INTERFACES:
        return TcpEndpoint(f"[{address}]" if ":" in address else address, bound.port)
    return bound


def check_reachable(endpoint: Endpoint, nodes: Sequence[Node]) -> None:
    """Check that workers on all nodes can reach an endpoint.

    Raises:
        UsageError: The endpoint is local to this machine, and there are other nodes.
    """
    if isinstance(endpoint, TcpEndpoint) and not endpoint.is_loopback and endpoint.host.lower() != "localhost":
        return
    others = [node.name for node in nodes if not node.is_local]
    if others:
        raise UsageError(
            f"{endpoint} is local to this machine, but the cluster has other nodes ({', '.join(others)}), whose workers "
            "cannot reach it. Make a key for the workers and one for each client (birdie-zmq keys new worker ray, "
            "birdie-zmq keys new client NAME), put the worker's key at the same path on each node, mode 0600, and pass "
            "--bind tcp://0.0.0.0:5555 --keys --key-file FILE; or pass --connect with a broker that all nodes can reach"
        )
