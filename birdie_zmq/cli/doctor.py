"""The command ``birdie-zmq doctor``: runs the checks in order and prints each finding as soon as it is known."""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from birdie_zmq._version import __version__
from birdie_zmq.cli.common import PACKAGE, add_allow_group, run_guarded
from birdie_zmq.errors import UsageError
from birdie_zmq.protocol.security.keys import default_folder
from birdie_zmq.tools.doctor import broker, devices, hook, keys, lm_eval_command, machine, packages, user_module
from birdie_zmq.tools.doctor.finding import Finding, exit_status, show, summary
from birdie_zmq.worker import engine_registry


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    arg_parser = argparse.ArgumentParser(
        prog=prog, description="Check the requirements of a run, and print how to fix what is missing."
    )
    where = arg_parser.add_mutually_exclusive_group()
    where.add_argument("--port", type=int, metavar="N", help="check the broker at this port of localhost")
    where.add_argument(
        "--endpoint",
        metavar="ENDPOINT",
        help="check the broker at this endpoint; default: no broker, as for a run that starts an embedded one",
    )
    arg_parser.add_argument(
        "--key-file", type=Path, metavar="FILE", help="private key file of this client, for a broker with --keys"
    )
    add_allow_group(arg_parser)
    arg_parser.add_argument("--api", type=Path, metavar="PATH", help="the api.py to import; default: the built-in one")
    arg_parser.add_argument(
        "--engine",
        default=engine_registry.DEFAULT,
        metavar=f"{'|'.join(engine_registry.BUILT_IN)}|PATH",
        help="the engine; default: %(default)s",
    )
    arg_parser.add_argument(
        "--model-tag", metavar="TAG", help="load this model, on this machine or, with --port or --endpoint, on a worker"
    )
    return arg_parser


def run(options: argparse.Namespace) -> int:
    """Run all checks and print their findings; return 1 if a finding is ``wrong``, else 0.

    Raises:
        UsageError: The ``--api`` file or the engine does not exist.
    """
    console = Console(highlight=False)
    findings = []
    for finding in _findings(options):
        show(finding, console)
        findings.append(finding)
    console.print(summary(findings))
    return exit_status(findings)


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    engine = engine_registry.find_engine(options.engine)
    if options.api is not None and not options.api.is_file():
        raise UsageError(f"there is no file {options.api.absolute()}; --api takes the path of an api.py")
    endpoint = options.endpoint if options.port is None else f"tcp://127.0.0.1:{options.port}"
    yield from packages.check(platform.python_version(), __version__)
    yield from hook.check(PACKAGE)
    yield lm_eval_command.command_finding(shutil.which("lm_eval"), sys.executable)
    if engine in devices.PROBE_SCRIPTS:
        yield devices.check(engine, os.environ)
    if engine == engine_registry.DEFAULT:
        yield machine.cache_finding(os.environ)
    yield machine.temporary_finding(machine.temporary_folder(os.environ))
    yield machine.descriptors_finding(*resource.getrlimit(resource.RLIMIT_NOFILE))
    allow_group = options.allow_group_readable_keys
    yield from keys.key_file_findings(options.key_file, allow_group)
    key_folder = default_folder()
    yield from [] if key_folder is None else keys.folder_findings(key_folder, allow_group)
    # The workers of a broker have the user module, and this machine may lack the framework.
    if endpoint is None or options.api is not None:
        yield user_module.check(options.api, engine, options.model_tag, os.environ)
    if endpoint is not None:
        yield from broker.check(endpoint, options.key_file, options.model_tag, allow_group=allow_group)


def main(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq doctor") -> int:
    """Run ``birdie-zmq doctor``."""
    options = parser(prog).parse_args(arguments)
    return run_guarded(prog, True, lambda: run(options))
