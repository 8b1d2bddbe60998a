"""The commands ``python -m workers.jax_worker`` and ``birdie-zmq worker``: serve models to a broker."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from birdie_zmq._version import __version__
from birdie_zmq.cli.common import PACKAGE, STDIN, add_allow_group, add_common, run_guarded
from birdie_zmq.engine.distributed.process_group import find_rank
from birdie_zmq.errors import UsageError
from birdie_zmq.models.checkpoint_policy import CheckpointPolicy
from birdie_zmq.protocol.endpoints import DEFAULT_ENDPOINT
from birdie_zmq.protocol.messages import WorkerConfig
from birdie_zmq.settings import GROUP_TIMEOUT_S, AgentSettings
from birdie_zmq.types import RankInfo
from birdie_zmq.worker import engine_registry

_AGENT_SETTINGS = AgentSettings()
_TIMEOUTS = {
    "load": (_AGENT_SETTINGS.load_s, "loading the model"),
    "compile": (_AGENT_SETTINGS.compile_s, "one compilation"),
    "step": (_AGENT_SETTINGS.step_s, "one step"),
    "silence": (_AGENT_SETTINGS.silence_s, "the time without a heartbeat"),
}


def parser(prog: str, engine: str = engine_registry.DEFAULT, add_help: bool = True) -> argparse.ArgumentParser:
    """Return the parser of a worker.

    Args:
        prog: The name of the program.
        engine: The default of ``--engine``.
        add_help: Whether to add ``--help``.
    """
    result = argparse.ArgumentParser(prog=prog, description="Serve models to a broker.", add_help=add_help)
    result.add_argument("--connect", default=DEFAULT_ENDPOINT, metavar="ENDPOINT", help="default: %(default)s")
    result.add_argument(
        "--engine",
        default=engine,
        metavar=f"{'|'.join(engine_registry.BUILT_IN)}|PATH",
        help="the framework that computes, or a Python file with make_backend; default: %(default)s",
    )
    module = result.add_mutually_exclusive_group()
    module.add_argument("--api", type=Path, help="path of your api.py; default: ./api.py, else the built-in models")
    module.add_argument("--built-in", action="store_true", help="use the built-in models even if there is an ./api.py")
    result.add_argument("--key-file", type=Path, metavar="FILE", help="this worker's key, for a broker with --keys")
    add_allow_group(result)
    result.add_argument(
        "--checkpoints",
        type=Path,
        action="append",
        metavar="FOLDER",
        help="allow only the demo and checkpoints in this folder as tags of the built-in models; may be repeated; "
        "default: any path and the Hugging Face hub, but with --key-file the demo only",
    )
    result.add_argument("--hub", action="store_true", help="also allow repositories of the Hugging Face hub")
    result.add_argument(
        "--device", metavar="cpu|N", help="cpu, or the number of a GPU; default: the framework's choice"
    )
    result.add_argument(
        "--swap-weights",
        action="store_true",
        help="when a checkpoint has the configuration and the tokenizer of the loaded one, load its weights into the same "
        "process instead of starting another one, as birdie-zmq watch does",
    )
    group = result.add_argument_group(
        "one model on several hosts",
        "Each host runs this command, with its own --process-id; only process 0 connects to the broker.",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="the host of process 0 and a free port on it")
    group.add_argument("--num-processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process-id", type=int, metavar="I", help="number of this process, from 0")
    group.add_argument(
        "--distributed", action="store_true", help="take missing values from Slurm, and a missing coordinator from JAX"
    )
    group.add_argument(
        "--initialization-timeout",
        type=float,
        default=GROUP_TIMEOUT_S,
        metavar="SECONDS",
        help="how long the processes wait for each other to connect; default: %(default).0f",
    )
    for name, (default, limited) in _TIMEOUTS.items():
        result.add_argument(
            f"--{name}-timeout",
            type=float,
            default=default,
            metavar="SECONDS",
            help=f"kill the model process when {limited} exceeds this; default: %(default).0f",
        )
    add_common(result)
    return result


def main(
    arguments: Sequence[str] | None = None, prog: str = "workers.jax_worker", engine: str = engine_registry.DEFAULT
) -> int:
    """Run a worker until a stop signal arrives, and return the exit status; `engine` is the default of ``--engine``."""
    options = parser(prog, engine).parse_args(arguments)
    return run_guarded(prog, options.quiet, lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from birdie_zmq.processes.signals import StopSignals
    from birdie_zmq.protocol.dealer import Dealer
    from birdie_zmq.protocol.endpoints import parse_endpoint
    from birdie_zmq.protocol.security.keys import read_peer_key
    from birdie_zmq.worker.agent import Agent
    from birdie_zmq.worker.device_memory import DeviceMemory, memory_command
    from birdie_zmq.worker.devices import device_environment
    from birdie_zmq.worker.distributed.agent import FollowerAgent

    rank = find_rank(
        options.coordinator,
        options.num_processes,
        options.process_id,
        distributed=options.distributed,
        timeout_s=options.initialization_timeout,
        environment=os.environ,
    )
    endpoint = parse_endpoint(options.connect)
    key = None if options.key_file is None else read_peer_key(options.key_file, options.allow_group_readable_keys)
    policy = _checkpoint_policy(options)
    config = _worker_config(options, rank, policy)
    environment = device_environment(options.device, os.environ)
    memory = memory_command(environment)
    settings = AgentSettings(
        load_s=options.load_timeout,
        compile_s=options.compile_timeout,
        step_s=options.step_timeout,
        silence_s=options.silence_timeout,
    )
    is_follower = rank is not None and not rank.is_leader
    if not options.quiet:
        _print_start(config, policy, "follower worker" if is_follower else f"worker for {endpoint}")
    parent_pipe = STDIN if options.lifeline else None
    if is_follower:
        with StopSignals() as stop, FollowerAgent(config, environment, settings) as follower:
            follower.run(stop, parent_pipe)
        return 0
    watcher = None if memory is None else DeviceMemory(memory)
    with (
        StopSignals() as stop,
        Dealer(endpoint, key) as dealer,
        Agent(dealer, settings, config, environment, watcher) as agent,
    ):
        agent.run(stop, parent_pipe)
    return 0


def _worker_config(options: argparse.Namespace, rank: RankInfo | None, policy: CheckpointPolicy) -> WorkerConfig:
    """Return the options that each model process needs."""
    engine = engine_registry.find_engine(options.engine)
    if rank is not None and engine != engine_registry.DEFAULT:
        raise UsageError(
            "a process group (--coordinator, --distributed) needs the engine jax, and this worker's engine is "
            f"{engine_registry.engine_name(engine)}"
        )
    api = None if options.built_in else _find_user_module(options.api)
    if options.swap_weights and (api is not None or rank is not None):
        reason = "processes of a process group" if api is None else f"models of {api}"
        raise UsageError(
            f"--swap-weights is for the built-in models in one process; the {reason} are always started anew"
        )
    return WorkerConfig(
        engine=engine,
        api=None if api is None else str(api),
        rank=rank,
        checkpoint_folders=None if policy.folders is None else tuple(map(str, policy.folders)),
        hub=policy.hub,
        swap_weights=options.swap_weights,
    )


def _print_start(config: WorkerConfig, policy: CheckpointPolicy, role: str) -> None:
    rank = config.rank
    module = config.api or "the built-in models"
    group = "" if rank is None else f", {rank}, coordinator {rank.coordinator or 'found by JAX'}"
    print(
        f"birdie-zmq {__version__} from {PACKAGE}: {role}, engine {config.engine}, models from {module}{group}",
        flush=True,
    )
    if policy.folders is not None:
        print(f"checkpoints allowed as tags of the built-in models: {policy}", flush=True)


def _checkpoint_policy(options: argparse.Namespace) -> CheckpointPolicy:
    """Return the policy for the built-in models; a worker with a key serves only the checkpoints that its options allow."""
    if options.checkpoints is None and options.key_file is None:
        if options.hub:
            raise UsageError("--hub adds to --checkpoints or --key-file; a worker without them allows the hub already")
        return CheckpointPolicy()
    missing = [str(folder) for folder in options.checkpoints or [] if not folder.is_dir()]
    if missing:
        raise UsageError(f"--checkpoints: there is no folder at {', '.join(missing)}")
    return CheckpointPolicy.limited(options.checkpoints or [], hub=options.hub)


def _find_user_module(given: Path | None) -> Path | None:
    path = given or Path("api.py")
    if path.is_file():
        return path.resolve()
    if given is not None:
        raise UsageError(f"there is no user module at {given.absolute()}; --api takes the path of your api.py")
    return None
