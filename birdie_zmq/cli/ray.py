"""``birdie-zmq ray up``: its arguments, and the loop that does what the supervisor says."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from birdie_zmq.cli.broker import parser as broker_parser
from birdie_zmq.cli.common import run_guarded
from birdie_zmq.cli.worker import parser as worker_parser
from birdie_zmq.cluster import capacity, core, worker_command
from birdie_zmq.errors import UnavailableError, UsageError
from birdie_zmq.processes.signals import StopSignals
from birdie_zmq.processes.spawn import end, module_command, package_environment, start
from birdie_zmq.protocol.endpoints import Endpoint, TcpEndpoint, check_bindable, parse_endpoint
from birdie_zmq.settings import AgentSettings

if TYPE_CHECKING:
    from birdie_zmq.cluster.ray_cluster import Cluster

logger = logging.getLogger("birdie_zmq.ray")

_STDIN = 0
_LOOK_S = 0.25
_BROKERS = ("bind", "keys", "memory_limit", "status_port")
"""The options of a broker that are those of the command's own broker."""
_AGENT = AgentSettings()
_STOP_S = _AGENT.drain_s + _AGENT.terminate_s + 2.0
"""How long a worker may take to end in good order: what it is at, its model process, and a little."""
_BROKER_END_S = 5.0


def parser(prog: str, broker: argparse.ArgumentParser, worker: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser of the command's arguments.

    Args:
        prog: Its name.
        broker: The parser of a broker, whose options are those of the command's own broker; made for this call.
        worker: The parser of a worker, without --help; its options are passed on. Made for this call.
    """
    whole = argparse.ArgumentParser(prog=prog, description="Let workers run on a Ray cluster.")
    actions = whole.add_subparsers(dest="action", required=True, metavar="up")
    up = actions.add_parser(
        "up",
        help="place workers, and bring back those that are lost, until Ctrl-C",
        parents=[worker],
        conflict_handler="resolve",
    )
    up.add_argument("--workers", type=int, required=True, metavar="N", help="how many workers")
    up.add_argument(
        "--cpus-per-worker", type=float, default=1.0, metavar="X", help="what Ray reserves; default: %(default)g"
    )
    up.add_argument(
        "--gpus-per-worker",
        type=float,
        default=0.0,
        metavar="X",
        help="what Ray reserves, and the GPUs that a worker is shown; a part of one, such as 0.5, is shared; default: 0",
    )
    up.add_argument(
        "--address",
        metavar="auto|local|HOST:PORT|ray://HOST:PORT",
        help="the cluster; default: that of RAY_ADDRESS, else the one of this machine, else a local one for this command",
    )
    up.add_argument(
        "--wait", action="store_true", help="wait for room that the cluster does not have yet, since it grows by itself"
    )
    up.add_argument(
        "--working-dir",
        type=Path,
        metavar="FOLDER",
        help="a folder that Ray copies to each node, such as one with api.py; workers start in it, and relative paths "
        "of pages and checkpoints begin there; default: none, and nodes read paths as they are here",
    )
    up.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a variable that workers are given; without a value, that of here; may be given again",
    )
    up.add_argument(
        "--connect",
        metavar="ENDPOINT",
        help="a broker that runs; default: one of the command's own, which ends with it",
    )
    up.add_argument("--device", metavar="cpu", help="the CPU; which GPU a worker has is for Ray to choose")
    own = up.add_argument_group("its own broker, without --connect")
    for action in broker._actions:
        if action.dest in _BROKERS:
            action.help = f"of its own broker: {action.help}"
            own._add_action(action)
    return whole


def run(options: argparse.Namespace, worker: argparse.ArgumentParser) -> int:
    """Keep workers on a cluster until a stop signal.

    Args:
        options: What `parser` made of the command line.
        worker: The parser of a worker alone.

    Raises:
        UsageError: Something cannot be used as given, or is more than the cluster has; or all workers said so of theirs.
        UnavailableError: There is no such cluster.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError("birdie-zmq ray needs Ray: pip install 'birdie-zmq[ray]', here and on each node")
    if options.workers < 1:
        raise UsageError(f"--workers must be 1 or more, not {options.workers}")
    need = capacity.need_of(options.cpus_per_worker, options.gpus_per_worker)
    bound = _bound(options)
    folders = _folders(options.working_dir)
    variables = {
        **worker_command.memory_variables(options.gpus_per_worker, os.environ),
        **worker_command.variables(options.env, os.environ),
    }
    # So that what is wrong with the worker's own options is said before Ray is started.
    worker_command.worker_arguments(worker, options, bound, folders)

    from birdie_zmq.cluster.ray_cluster import Cluster

    cluster = Cluster(options.address, folders.shipped, options.quiet)
    try:
        nodes = cluster.nodes
        endpoint = bound if options.connect is not None else worker_command.reachable(bound, cluster.address)
        worker_command.check_reach(endpoint, nodes)
        if not options.wait:
            capacity.check_room(nodes, need, options.workers)
        kind = "a local Ray cluster" if cluster.is_local else "the Ray cluster"
        logger.info("%s has %s; workers connect to %s", kind, capacity.described(nodes), endpoint)
        command = worker_command.worker_arguments(worker, options, endpoint, folders)
        # Ray has handlers of its own for signals, so ours come after it.
        with StopSignals() as stop, contextlib.ExitStack() as left:
            broker = None if options.connect is not None else left.enter_context(_own_broker(options))
            _supervise(cluster, options, command, variables, need, stop, broker)
            logger.info("workers are told to finish what they are at; again, and nothing is waited for")
            cluster.stop(_STOP_S)
        return 0
    finally:
        cluster.leave()


def _bound(options: argparse.Namespace) -> Endpoint:
    if options.connect is not None:
        return parse_endpoint(options.connect)
    endpoint = parse_endpoint(options.bind)
    check_bindable(endpoint, options.keys is not None)
    if isinstance(endpoint, TcpEndpoint) and endpoint.port == 0:
        raise UsageError(f"--bind {options.bind} takes any port, and workers must be told one: name it")
    if options.keys is not None and options.key_file is None:
        raise UsageError("--keys lets in holders of a key only: give the workers theirs with --key-file FILE")
    return endpoint


def _folders(working_dir: Path | None) -> worker_command.Folders:
    if working_dir is not None and not working_dir.is_dir():
        raise UsageError(f"there is no folder at {working_dir.absolute()}, which --working-dir names")
    return worker_command.Folders(Path.cwd(), None if working_dir is None else working_dir.absolute())


@contextlib.contextmanager
def _own_broker(options: argparse.Namespace) -> Iterator[subprocess.Popen[bytes]]:
    """A broker of the command's own, which ends with it, kill -9 included."""
    command = ["broker", "--bind", options.bind, "--memory-limit", str(options.memory_limit), "--lifeline"]
    command += [] if options.keys is None else ["--keys", str(options.keys.absolute())]
    command += [] if options.status_port is None else ["--status-port", str(options.status_port)]
    command += ["--quiet"] if options.quiet else []
    process = start(module_command("birdie_zmq", *command), package_environment(os.environ), stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        end(process, _BROKER_END_S)


def _supervise(
    cluster: Cluster,
    options: argparse.Namespace,
    command: Sequence[str],
    variables: dict[str, str],
    need: dict[str, float],
    stop: StopSignals,
    broker: subprocess.Popen[bytes] | None,
) -> None:
    crew = core.ClusterCore(options.workers)
    ends = [stop.descriptor, *([_STDIN] if options.lifeline else [])]
    actions = crew.begin(time.monotonic())
    while True:
        for action in actions:
            match action:
                case core.Place(number):
                    cluster.place(number, command, variables, need)
                case core.Say(level, text):
                    logger.log(logging.WARNING if level == "warning" else logging.INFO, "%s", text)
                case core.SayWaiting(numbers):
                    logger.warning("%s", _waiting(numbers, need, cluster))
        if crew.is_given_up:
            raise UsageError(f"no worker can work as it was told to: {crew.last_words}")
        if select.select(ends, [], [], _LOOK_S)[0]:
            return
        if broker is not None and (status := broker.poll()) is not None:
            raise UnavailableError(f"the command's own broker ended with status {status}; what it wrote is above")
        actions = [
            action for event in (*cluster.events(), core.Tick()) for action in crew.handle(event, time.monotonic())
        ]


def _waiting(numbers: Sequence[int], need: dict[str, float], cluster: Cluster) -> str:
    who = f"worker{'s' * (len(numbers) != 1)} {', '.join(map(str, numbers))} wait{'s' * (len(numbers) == 1)} for room"
    free = {name: cluster.free.get(name, 0.0) for name in ("CPU", "GPU")}
    return (
        f"{who} ({capacity.amounts(need)} each): Ray says that the cluster has {capacity.described(cluster.nodes)}, of which "
        f"{capacity.amounts(free)} is free"
    )


def full_parser(prog: str = "birdie-zmq ray") -> argparse.ArgumentParser:
    """The parser of the arguments of ``birdie-zmq ray``, with those of a broker and of a worker."""
    return parser(prog, broker_parser(prog), worker_parser(prog, add_help=False))


def main(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq ray") -> int:
    """Let workers run on a Ray cluster."""
    options = full_parser(prog).parse_args(arguments)
    return run_guarded(f"{prog} {options.action}", options.quiet, lambda: run(options, worker_parser(prog)))
