"""The command ``birdie-zmq ray up``: its options, and the loop around the state machine of `birdie_zmq.cluster.core`."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
import select
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from birdie_zmq.cli.broker import parser as broker_parser
from birdie_zmq.cli.common import STDIN, run_guarded
from birdie_zmq.cli.worker import parser as worker_parser
from birdie_zmq.cluster import capacity, core, worker_command
from birdie_zmq.errors import UnavailableError, UsageError
from birdie_zmq.processes.signals import StopSignals
from birdie_zmq.processes.spawn import end, module_command, package_environment, start
from birdie_zmq.protocol.addresses import bindable_addresses
from birdie_zmq.protocol.endpoints import Endpoint, TcpEndpoint, parse_endpoint
from birdie_zmq.settings import AgentSettings

if TYPE_CHECKING:
    from birdie_zmq.cluster.ray_cluster import Cluster

logger = logging.getLogger("birdie_zmq.ray")

_POLL_S = 0.25
_BROKER_OPTIONS = ("bind", "keys", "memory_limit", "status_port")
"""The options of a broker that the command accepts for its embedded broker."""
_AGENT_SETTINGS = AgentSettings()
_STOP_S = _AGENT_SETTINGS.drain_s + _AGENT_SETTINGS.terminate_s + 2.0
"""Seconds that a worker may take to stop: for its running lease and its model process, with a margin."""
_BROKER_END_S = 5.0


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the argument parser of the command, with the options of a broker and of a worker."""
    result = argparse.ArgumentParser(prog=prog, description="Run workers on a Ray cluster.")
    actions = result.add_subparsers(dest="action", required=True, metavar="up")
    up = actions.add_parser(
        "up",
        help="run workers, and replace workers that die, until Ctrl-C",
        parents=[worker_parser(prog, add_help=False)],
        conflict_handler="resolve",
    )
    up.add_argument("--workers", type=int, required=True, metavar="N", help="number of workers")
    up.add_argument(
        "--cpus-per-worker",
        type=float,
        default=1.0,
        metavar="X",
        help="CPUs that Ray reserves for each worker; default: %(default)g",
    )
    up.add_argument(
        "--gpus-per-worker",
        type=float,
        default=0.0,
        metavar="X",
        help="GPUs that Ray reserves for each worker, which sees no others; a fraction, such as 0.5, shares one; default: 0",
    )
    up.add_argument(
        "--address",
        metavar="auto|local|HOST:PORT|ray://HOST:PORT",
        help="address of the cluster; default: RAY_ADDRESS, else a cluster on this machine, else a local one for this command",
    )
    up.add_argument(
        "--wait", action="store_true", help="wait for capacity that the cluster does not have yet (autoscaling)"
    )
    up.add_argument(
        "--working-dir",
        type=Path,
        metavar="FOLDER",
        help="folder that Ray copies to each node, such as one with your api.py; workers start in it, and the paths of --api "
        "and --checkpoints are relative to it; default: none, and nodes use the same paths as this machine",
    )
    up.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="environment variable for the workers; without a value, the value in this environment; may be repeated",
    )
    up.add_argument(
        "--connect",
        metavar="ENDPOINT",
        help="endpoint of a running broker; default: an embedded broker, which ends with the command",
    )
    up.add_argument("--device", metavar="cpu", help="use the CPU; GPUs are assigned by Ray")
    embedded = up.add_argument_group("embedded broker, without --connect")
    for action in broker_parser(prog)._actions:
        if action.dest in _BROKER_OPTIONS:
            action.help = f"embedded broker: {action.help}"
            embedded._add_action(action)
    return result


def run(options: argparse.Namespace) -> int:
    """Run workers on a cluster until a stop signal arrives.

    Raises:
        UsageError: An option cannot be used as given, or exceeds the cluster; or every worker failed with a usage error.
        UnavailableError: The cluster cannot be reached, or the embedded broker exited.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError("birdie-zmq ray needs Ray: pip install 'birdie-zmq[ray]', on this machine and on each node")
    if options.workers < 1:
        raise UsageError(f"--workers must be 1 or more, not {options.workers}")
    per_worker = capacity.worker_resources(options.cpus_per_worker, options.gpus_per_worker)
    bound = _bound(options)
    folders = _base_folders(options.working_dir)
    variables = {
        **worker_command.gpu_memory_variables(options.gpus_per_worker, os.environ),
        **worker_command.variables(options.env, os.environ),
    }
    worker = worker_parser("birdie-zmq worker")
    # Reports errors in the worker's own options before Ray is started.
    worker_command.worker_arguments(worker, options, bound, folders)

    from birdie_zmq.cluster.ray_cluster import Cluster

    cluster = Cluster(options.address, folders.working_dir, options.quiet)
    try:
        nodes = cluster.nodes
        endpoint = bound if options.connect is not None else worker_command.endpoint_for_workers(bound, cluster.address)
        worker_command.check_reachable(endpoint, nodes)
        if not options.wait:
            capacity.check_capacity(nodes, per_worker, options.workers)
        kind = "a local Ray cluster" if cluster.is_local else "the Ray cluster"
        logger.info("%s has %s; workers connect to %s", kind, capacity.describe_nodes(nodes), endpoint)
        arguments = worker_command.worker_arguments(worker, options, endpoint, folders)
        spec = worker_command.WorkerSpec(arguments, variables, per_worker)
        # Ray installs signal handlers of its own, so these must come after it.
        with StopSignals() as stop, contextlib.ExitStack() as stack:
            broker = None if options.connect is not None else stack.enter_context(_embedded_broker(options))
            stops = [stop.descriptor, *([STDIN] if options.lifeline else [])]
            _supervise(cluster, options.workers, spec, stops, broker)
            logger.info("stopping; workers finish their running leases (a second signal ends the command at once)")
            cluster.stop(_STOP_S)
        return 0
    finally:
        cluster.disconnect()


def _bound(options: argparse.Namespace) -> Endpoint:
    if options.connect is not None:
        return parse_endpoint(options.connect)
    endpoint = parse_endpoint(options.bind)
    bindable_addresses(endpoint, options.keys is not None)
    if isinstance(endpoint, TcpEndpoint) and endpoint.port == 0:
        raise UsageError(f"--bind {options.bind} picks any free port, but workers must know it: give a port number")
    if options.keys is not None and options.key_file is None:
        raise UsageError("--keys requires every worker to have a key: give the workers theirs with --key-file FILE")
    return endpoint


def _base_folders(working_dir: Path | None) -> worker_command.BaseFolders:
    if working_dir is not None and not working_dir.is_dir():
        raise UsageError(f"--working-dir: there is no folder at {working_dir.absolute()}")
    return worker_command.BaseFolders(Path.cwd(), None if working_dir is None else working_dir.absolute())


@contextlib.contextmanager
def _embedded_broker(options: argparse.Namespace) -> Iterator[subprocess.Popen[bytes]]:
    """Run an embedded broker, which ends with this command, even if that is killed by SIGKILL."""
    command = ["broker", "--bind", options.bind, "--memory-limit", str(options.memory_limit), "--lifeline"]
    command += [] if options.keys is None else ["--keys", str(options.keys.absolute())]
    command += ["--allow-group-readable-keys"] if options.allow_group_readable_keys else []
    command += [] if options.status_port is None else ["--status-port", str(options.status_port)]
    command += ["--quiet"] if options.quiet else []
    process = start(module_command("birdie_zmq", *command), package_environment(os.environ), stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        end(process, _BROKER_END_S)


def _supervise(
    cluster: Cluster,
    workers: int,
    spec: worker_command.WorkerSpec,
    stops: Sequence[int],
    broker: subprocess.Popen[bytes] | None,
) -> None:
    """Keep the workers placed until one of the descriptors `stops` is readable."""
    cluster_core = core.ClusterCore(workers)
    while True:
        for event in (*cluster.events(), core.Tick()):
            for action in cluster_core.handle(event, time.monotonic()):
                match action:
                    case core.PlaceWorker(number):
                        cluster.place(number, spec)
                    case core.Log(level, text):
                        logger.log(logging.WARNING if level == "warning" else logging.INFO, "%s", text)
                    case core.LogWaiting(numbers):
                        logger.warning("%s", _waiting_text(numbers, spec.resources, cluster))
        if cluster_core.has_failed:
            raise UsageError(f"all workers failed with an error of their options: {cluster_core.last_line}")
        if select.select(stops, [], [], _POLL_S)[0]:
            return
        if broker is not None and (status := broker.poll()) is not None:
            raise UnavailableError(f"the embedded broker exited with status {status}; see its output above")


def _waiting_text(numbers: Sequence[int], per_worker: Mapping[str, float], cluster: Cluster) -> str:
    names = f"worker{'s' * (len(numbers) != 1)} {', '.join(map(str, numbers))}"
    free = {name: cluster.free.get(name, 0.0) for name in ("CPU", "GPU")}
    return (
        f"waiting for a placement of {names} ({capacity.format_resources(per_worker)} each): Ray reports "
        f"{capacity.describe_nodes(cluster.nodes)}, with {capacity.format_resources(free)} free"
    )


def main(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq ray") -> int:
    """Run ``birdie-zmq ray`` and return the exit status."""
    options = parser(prog).parse_args(arguments)
    return run_guarded(f"{prog} {options.action}", options.quiet, lambda: run(options))
