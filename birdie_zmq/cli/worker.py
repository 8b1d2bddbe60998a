"""``python -m workers.jax_worker`` and ``birdie-zmq worker``: serve models to a broker."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from birdie_zmq._version import __version__
from birdie_zmq.cli.common import PACKAGE, STDIN, add_common, run_guarded
from birdie_zmq.engine.distributed.process_group import DEFAULT_TIMEOUT_S, PAGE_VARIABLE, find_rank
from birdie_zmq.errors import UsageError
from birdie_zmq.models.checkpoint_policy import CheckpointPolicy
from birdie_zmq.protocol.endpoints import DEFAULT_ENDPOINT
from birdie_zmq.settings import ENGINE_VARIABLE, AgentSettings
from birdie_zmq.worker import engine_registry

_AGENT = AgentSettings()
_DEADLINES = {"load": _AGENT.load_s, "compile": _AGENT.compile_s, "step": _AGENT.step_s, "silence": _AGENT.silence_s}
_SLOW = {
    "load": "loads its model",
    "compile": "compiles one program",
    "step": "computes one step",
    "silence": "gives no sign of life",
}


def parser(prog: str, engine: str = engine_registry.DEFAULT, add_help: bool = True) -> argparse.ArgumentParser:
    """The parser of a worker's arguments; `engine` is the default of its ``--engine``."""
    found = argparse.ArgumentParser(prog=prog, description="Serve models to a broker.", add_help=add_help)
    found.add_argument("--connect", default=DEFAULT_ENDPOINT, metavar="ENDPOINT", help="default: %(default)s")
    found.add_argument(
        "--engine",
        default=engine,
        metavar=f"{'|'.join(engine_registry.BUILT_IN)}|PATH",
        help="what computes: a framework, or a Python file with make_backend; default: %(default)s",
    )
    page = found.add_mutually_exclusive_group()
    page.add_argument("--api", type=Path, help="the page that loads models; default: ./api.py, else the built-in one")
    page.add_argument("--built-in", action="store_true", help="use the built-in page even if there is an ./api.py")
    found.add_argument("--key-file", type=Path, metavar="FILE", help="this worker's key, for a broker with --keys")
    found.add_argument(
        "--checkpoints",
        type=Path,
        action="append",
        metavar="FOLDER",
        help="let tags of the built-in page name only the demo and checkpoints in this folder; may be given again; "
        "default: any path and the hub, but with --key-file the demo only",
    )
    found.add_argument("--hub", action="store_true", help="let them name repositories of the Hugging Face hub as well")
    found.add_argument("--device", metavar="cpu|N", help="the CPU, or GPU number N; default: what there is")
    group = found.add_argument_group(
        "one model on several hosts",
        "Each host runs this command, with --process-id of its own; process 0 alone connects to the broker.",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is met, by its host and a free port")
    group.add_argument("--num-processes", type=int, metavar="N", help="how many processes there are")
    group.add_argument("--process-id", type=int, metavar="I", help="the number of this one, from 0")
    group.add_argument(
        "--distributed", action="store_true", help="take what is not given of these from Slurm, and the rest from JAX"
    )
    group.add_argument(
        "--initialization-timeout",
        type=float,
        default=DEFAULT_TIMEOUT_S,
        metavar="SECONDS",
        help="how long the processes wait for each other; default: %(default).0f",
    )
    for what, default in _DEADLINES.items():
        found.add_argument(
            f"--{what}-timeout",
            type=float,
            default=default,
            metavar="SECONDS",
            help=f"kill a model process that {_SLOW[what]} for longer; default: %(default).0f",
        )
    add_common(found)
    return found


def main(
    arguments: Sequence[str] | None = None, prog: str = "workers.jax_worker", engine: str = engine_registry.DEFAULT
) -> int:
    """Run a worker until it is told to stop; `engine` is that of its models where nothing else is said."""
    options = parser(prog, engine).parse_args(arguments)
    return run_guarded(prog, options.quiet, lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from birdie_zmq.processes.signals import StopSignals
    from birdie_zmq.protocol.endpoints import parse_endpoint
    from birdie_zmq.protocol.security.keys import read_peer_key
    from birdie_zmq.protocol.sockets import Dealer
    from birdie_zmq.worker.agent import Agent
    from birdie_zmq.worker.device_memory import DeviceMemory, command_for
    from birdie_zmq.worker.devices import device_environment
    from birdie_zmq.worker.distributed.agent import FollowerAgent

    place = find_rank(
        options.coordinator,
        options.num_processes,
        options.process_id,
        distributed=options.distributed,
        timeout_s=options.initialization_timeout,
        environment=os.environ,
    )
    endpoint = parse_endpoint(options.connect)
    key = None if options.key_file is None else read_peer_key(options.key_file)
    engine = engine_registry.find_engine(options.engine)
    offer = _offer(options)
    environment = {
        **device_environment(options.device, os.environ),
        **offer.as_variable(),
        ENGINE_VARIABLE: engine,
    }
    if place is not None:
        if engine != engine_registry.DEFAULT:
            raise UsageError(
                f"a group of processes holds models in JAX, and this worker's engine is {engine_registry.name_of(engine)}"
            )
        environment |= place.as_variable()
    memory = command_for(environment)
    settings = AgentSettings(
        load_s=options.load_timeout,
        compile_s=options.compile_timeout,
        step_s=options.step_timeout,
        silence_s=options.silence_timeout,
    )
    api = None if options.built_in else _find_page(options.api)
    if not options.quiet:
        page = api or "the built-in page"
        where = (
            "" if place is None else f", {place} that meet at {place.coordinator or 'the coordinator that JAX finds'}"
        )
        what = f"worker for {endpoint}" if place is None or place.leads else "worker that follows"
        print(
            f"birdie-zmq {__version__} from {PACKAGE}: {what}, engine {engine}, models from {page}{where}", flush=True
        )
        if offer.folders is not None:
            print(f"checkpoints that tags of the built-in page may name: {offer}", flush=True)
    if place is not None and not place.leads:
        if api is not None:
            environment[PAGE_VARIABLE] = str(api)
        with StopSignals() as stop, FollowerAgent(place, environment, settings) as follower:
            follower.run(stop, STDIN if options.lifeline else None)
        return 0
    with StopSignals() as stop, Dealer(endpoint, key) as dealer:
        loop = Agent(
            dealer,
            settings,
            engine=engine_registry.name_of(engine),
            process_module="birdie_zmq.worker.model_server",
            environment=environment,
            api=api,
            memory=None if memory is None else DeviceMemory(memory),
            processes=1 if place is None else place.num_processes,
        )
        with loop:
            loop.run(stop, STDIN if options.lifeline else None)
    return 0


def _offer(options: argparse.Namespace) -> CheckpointPolicy:
    """What the built-in page offers: whoever is let in by a key chooses only from what was said to be open."""
    if options.checkpoints is None and options.key_file is None:
        if options.hub:
            raise UsageError("--hub adds to --checkpoints; a worker without both offers the hub already")
        return CheckpointPolicy()
    missing = [str(folder) for folder in options.checkpoints or [] if not folder.is_dir()]
    if missing:
        raise UsageError(f"there is no folder at {', '.join(missing)}, which --checkpoints names")
    return CheckpointPolicy.limited(options.checkpoints or [], hub=options.hub)


def _find_page(given: Path | None) -> Path | None:
    page = given or Path("api.py")
    if page.is_file():
        return page.resolve()
    if given is not None:
        raise UsageError(f"there is no page at {given.absolute()}; --api names an api.py")
    return None
