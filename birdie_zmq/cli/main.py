"""The command ``birdie-zmq``, and the functions behind ``broker.py`` and ``workers/*.py``.

Each returns an exit status, and turns the errors that a person can cause into one line.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import birdie_zmq
from birdie_zmq._version import __version__
from birdie_zmq.broker.memory_limit import default_limit_mib, limit_memory
from birdie_zmq.cli import keys as keys_command
from birdie_zmq.engine.distributed.process_group import DEFAULT_TIMEOUT_S, PAGE_VARIABLE, find_place
from birdie_zmq.errors import BirdieError, UsageError
from birdie_zmq.models.checkpoint_policy import Offer
from birdie_zmq.protocol.endpoints import DEFAULT_ENDPOINT
from birdie_zmq.protocol.security.keys import default_folder
from birdie_zmq.settings import DEFAULT_STATUS_PORT, ENGINE_VARIABLE, AgentSettings, BrokerSettings
from birdie_zmq.worker import engine_registry

_PACKAGE = Path(birdie_zmq.__file__).resolve().parent
_STDIN = 0
_AGENT = AgentSettings()
_DEADLINES = {"load": _AGENT.load_s, "compile": _AGENT.compile_s, "step": _AGENT.step_s, "silence": _AGENT.silence_s}
_SLOW = {
    "load": "loads its model",
    "compile": "compiles one program",
    "step": "computes one step",
    "silence": "gives no sign of life",
}


def broker_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of a broker's arguments."""
    parser = argparse.ArgumentParser(prog=prog, description="Pass work from lm_eval runs to workers.")
    parser.add_argument("--bind", default=DEFAULT_ENDPOINT, metavar="ENDPOINT", help="default: %(default)s")
    parser.add_argument(
        "--keys",
        nargs="?",
        type=Path,
        const=default_folder(),
        metavar="FOLDER",
        help="let in only holders of a key made with birdie-zmq keys new; default: %(const)s",
    )
    parser.add_argument(
        "--memory-limit",
        type=int,
        default=default_limit_mib(),
        metavar="MIB",
        help="take no more memory than this, whatever peers send; on Linux; default: half of the machine's, %(default)s",
    )
    parser.add_argument(
        "--status-port",
        type=int,
        nargs="?",
        const=DEFAULT_STATUS_PORT,
        metavar="PORT",
        help="show what goes on at http://127.0.0.1:PORT, to every user of this machine; 0 takes a free port; default: "
        "no page, and %(const)s if no number is given",
    )
    _add_common(parser)
    parser.add_argument("--remove-folder", action="store_true", help=argparse.SUPPRESS)
    return parser


def broker(arguments: Sequence[str] | None = None, prog: str = "broker.py") -> int:
    """Run a broker until it is told to stop."""
    options = broker_parser(prog).parse_args(arguments)
    return _guarded(prog, options.quiet, lambda: _serve_broker(options))


def worker_parser(prog: str, engine: str = engine_registry.DEFAULT, add_help: bool = True) -> argparse.ArgumentParser:
    """The parser of a worker's arguments; `engine` is the default of its ``--engine``."""
    parser = argparse.ArgumentParser(prog=prog, description="Serve models to a broker.", add_help=add_help)
    parser.add_argument("--connect", default=DEFAULT_ENDPOINT, metavar="ENDPOINT", help="default: %(default)s")
    parser.add_argument(
        "--engine",
        default=engine,
        metavar=f"{'|'.join(engine_registry.BUILT_IN)}|PATH",
        help="what computes: a framework, or a Python file with make_backend; default: %(default)s",
    )
    page = parser.add_mutually_exclusive_group()
    page.add_argument("--api", type=Path, help="the page that loads models; default: ./api.py, else the built-in one")
    page.add_argument("--built-in", action="store_true", help="use the built-in page even if there is an ./api.py")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="this worker's key, for a broker with --keys")
    parser.add_argument(
        "--checkpoints",
        type=Path,
        action="append",
        metavar="FOLDER",
        help="let tags of the built-in page name only the demo and checkpoints in this folder; may be given again; "
        "default: any path and the hub, but with --key-file the demo only",
    )
    parser.add_argument("--hub", action="store_true", help="let them name repositories of the Hugging Face hub as well")
    parser.add_argument("--device", metavar="cpu|N", help="the CPU, or GPU number N; default: what there is")
    group = parser.add_argument_group(
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
        parser.add_argument(
            f"--{what}-timeout",
            type=float,
            default=default,
            metavar="SECONDS",
            help=f"kill a model process that {_SLOW[what]} for longer; default: %(default).0f",
        )
    _add_common(parser)
    return parser


def worker(
    arguments: Sequence[str] | None = None, prog: str = "workers.jax_worker", engine: str = engine_registry.DEFAULT
) -> int:
    """Run a worker until it is told to stop; `engine` is that of its models where nothing else is said."""
    options = worker_parser(prog, engine).parse_args(arguments)
    return _guarded(prog, options.quiet, lambda: _run_worker(options))


def demo_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of a run of the demo, which leaves all arguments but --help to lm_eval."""
    return argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [-h] [ARGUMENT OF LM_EVAL ...]",
        description="Evaluate the demo model on its three tasks. All further arguments are lm_eval's.",
        allow_abbrev=False,
    )


def demo(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq demo") -> int:
    """Evaluate the demo model on its three tasks, in a broker and worker of the run's own."""
    _, rest = demo_parser(prog).parse_known_args(arguments)
    tasks = _demo_tasks()
    names = ",".join(sorted(path.stem for path in tasks.glob("demo_*.yaml")))
    run = ["--model", "birdie_zmq", "--model_args", "model_tag=demo", "--include_path", str(tasks), "--tasks", names]
    return lm_eval([*run, *rest])


def keys(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq keys") -> int:
    """Make, list or revoke the keys of those who may use a broker."""
    options = keys_command.parser(prog).parse_args(arguments)
    return _guarded(prog, False, lambda: keys_command.run(options))


def status(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq status") -> int:
    """Show what a broker with --status-port does."""
    from birdie_zmq.cli import status as status_command

    options = status_command.parser(prog).parse_args(arguments)
    return _guarded(prog, False, lambda: status_command.run(options))


def doctor(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq doctor") -> int:
    """Say what a run needs and lacks, and what mends it."""
    from birdie_zmq.cli import doctor as doctor_command

    options = doctor_command.parser(prog).parse_args(arguments)
    return _guarded(prog, True, lambda: doctor_command.run(options))


def compare(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq compare") -> int:
    """Compare two results of lm_eval, sample by sample."""
    from birdie_zmq.cli import compare as compare_command

    options = compare_command.parser(prog).parse_args(arguments)
    return _guarded(prog, True, lambda: compare_command.run(options))


def bench(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq bench") -> int:
    """Measure how fast a model answers what lm_eval asks, and say what would make it faster."""
    from birdie_zmq.cli import bench as bench_command

    options = bench_command.parser(prog).parse_args(arguments)
    return _guarded(prog, True, lambda: bench_command.run(options))


def ray_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of the arguments of ``birdie-zmq ray``."""
    from birdie_zmq.cli import ray as ray_command

    return ray_command.parser(prog, broker_parser(prog), worker_parser(prog, add_help=False))


def ray(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq ray") -> int:
    """Let workers run on a Ray cluster."""
    from birdie_zmq.cli import ray as ray_command

    options = ray_parser(prog).parse_args(arguments)
    return _guarded(f"{prog} {options.action}", options.quiet, lambda: ray_command.run(options, worker_parser(prog)))


def lm_eval(arguments: Sequence[str] | None = None) -> int:
    """Run lm_eval's own command with the model birdie_zmq registered, where no .pth file could do that."""
    import _birdie_zmq_hook
    from lm_eval.__main__ import cli_evaluate

    _birdie_zmq_hook.install()
    sys.argv = ["lm_eval", *(sys.argv[1:] if arguments is None else arguments)]
    cli_evaluate()
    return 0


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "broker": lambda rest: broker(rest, "birdie-zmq broker"),
    "worker": lambda rest: worker(rest, "birdie-zmq worker"),
    "keys": keys,
    "status": status,
    "demo": lambda rest: demo(rest, "birdie-zmq demo"),
    "doctor": doctor,
    "compare": compare,
    "bench": bench,
    "ray": ray,
    "lm_eval": lm_eval,
}


def main_parser() -> argparse.ArgumentParser:
    """The parser of what stands before a command's own arguments."""
    parser = argparse.ArgumentParser(
        prog="birdie-zmq",
        description="Evaluate language models in JAX, PyTorch and others with lm_eval.",
        add_help=True,
    )
    parser.add_argument("--version", action="version", version=f"birdie-zmq {__version__} from {_PACKAGE}")
    parser.add_argument("command", choices=list(_COMMANDS), help="each has a --help of its own")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command ``birdie-zmq``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Only what stands before the command is ours: the rest is the command's.
    options = main_parser().parse_args(given[:1])
    return _COMMANDS[options.command](given[1:])


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="write down only what goes wrong")
    parser.add_argument("--lifeline", action="store_true", help="end when standard input is closed")


def _serve_broker(options: argparse.Namespace) -> int:
    from birdie_zmq.broker.server import serve
    from birdie_zmq.broker.status.http_server import StatusServer
    from birdie_zmq.processes.signals import StopSignals
    from birdie_zmq.protocol.endpoints import IpcEndpoint, parse_endpoint
    from birdie_zmq.protocol.security.allow_list import AllowList
    from birdie_zmq.protocol.sockets import Router

    endpoint = parse_endpoint(options.bind)
    limit_memory(options.memory_limit)
    allowed = None if options.keys is None else AllowList(options.keys.absolute())
    with StopSignals() as stop:
        with Router(endpoint, allowed) as router, contextlib.ExitStack() as page:
            if not options.quiet:
                who = "" if allowed is None else f", for the keys in {allowed.folder}"
                print(f"birdie-zmq {__version__} from {_PACKAGE}: broker at {router.endpoint}{who}", flush=True)
            look = None
            if options.status_port is not None:
                shown = page.enter_context(StatusServer(options.status_port, router.endpoint))
                look = shown.look
                print(f"status page at {shown.address}", flush=True)
            orphaned = serve(router, BrokerSettings(), stop, _STDIN if options.lifeline else None, look)
        if orphaned and options.remove_folder and isinstance(endpoint, IpcEndpoint):
            shutil.rmtree(endpoint.path.parent, ignore_errors=True)
    return 0


def _run_worker(options: argparse.Namespace) -> int:
    from birdie_zmq.processes.signals import StopSignals
    from birdie_zmq.protocol.endpoints import parse_endpoint
    from birdie_zmq.protocol.security.keys import read_peer_key
    from birdie_zmq.protocol.sockets import Dealer
    from birdie_zmq.worker.agent import AgentLoop
    from birdie_zmq.worker.device_memory import DeviceMemory, command_for
    from birdie_zmq.worker.devices import device_environment
    from birdie_zmq.worker.distributed.agent import FollowerLoop

    place = find_place(
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
            f"birdie-zmq {__version__} from {_PACKAGE}: {what}, engine {engine}, models from {page}{where}", flush=True
        )
        if offer.folders is not None:
            print(f"checkpoints that tags of the built-in page may name: {offer}", flush=True)
    if place is not None and not place.leads:
        if api is not None:
            environment[PAGE_VARIABLE] = str(api)
        with StopSignals() as stop, FollowerLoop(place, environment, settings) as follower:
            follower.run(stop, _STDIN if options.lifeline else None)
        return 0
    with StopSignals() as stop, Dealer(endpoint, key) as dealer:
        loop = AgentLoop(
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
            loop.run(stop, _STDIN if options.lifeline else None)
    return 0


def _offer(options: argparse.Namespace) -> Offer:
    """What the built-in page offers: whoever is let in by a key chooses only from what was said to be open."""
    if options.checkpoints is None and options.key_file is None:
        if options.hub:
            raise UsageError("--hub adds to --checkpoints; a worker without both offers the hub already")
        return Offer()
    missing = [str(folder) for folder in options.checkpoints or [] if not folder.is_dir()]
    if missing:
        raise UsageError(f"there is no folder at {', '.join(missing)}, which --checkpoints names")
    return Offer.limited(options.checkpoints or [], hub=options.hub)


def _find_page(given: Path | None) -> Path | None:
    page = given or Path("api.py")
    if page.is_file():
        return page.resolve()
    if given is not None:
        raise UsageError(f"there is no page at {given.absolute()}; --api names an api.py")
    return None


def _demo_tasks() -> Path:
    """The folder of the demo's tasks: in a checkout, or where the installation copied it."""
    for folder in (_PACKAGE.parent / "examples" / "tasks", _PACKAGE / "demo_tasks"):
        if folder.is_dir():
            return folder
    raise UsageError(f"the demo's tasks are missing from {_PACKAGE}; install birdie-zmq again")


def _guarded(prog: str, quiet: bool, function: Callable[[], int]) -> int:
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    try:
        return function()
    except BirdieError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
