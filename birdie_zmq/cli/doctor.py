"""``birdie-zmq doctor``: the checks in their order, each shown as soon as it is known."""

from __future__ import annotations

import argparse
import os
import platform
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

import birdie_zmq
from birdie_zmq._version import __version__
from birdie_zmq.cli.common import run_guarded
from birdie_zmq.errors import UsageError
from birdie_zmq.protocol.security.keys import default_folder
from birdie_zmq.tools.doctor import broker, devices, hook, keys, machine, packages, page
from birdie_zmq.tools.doctor.finding import Finding, exit_status, show, summary
from birdie_zmq.worker import engine_registry

_PACKAGE = Path(birdie_zmq.__file__).resolve().parent


def parser(prog: str) -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    whole = argparse.ArgumentParser(prog=prog, description="Say what a run needs and lacks, and what mends it.")
    where = whole.add_mutually_exclusive_group()
    where.add_argument("--port", type=int, metavar="N", help="ask the broker at this port of this machine")
    where.add_argument("--endpoint", metavar="ENDPOINT", help="ask the broker there; default: a run starts its own")
    whole.add_argument("--key-file", type=Path, metavar="FILE", help="this client's key, for a broker with --keys")
    whole.add_argument("--api", type=Path, metavar="PAGE", help="import this page; default: the built-in one")
    whole.add_argument(
        "--engine",
        default=engine_registry.DEFAULT,
        metavar=f"{'|'.join(engine_registry.BUILT_IN)}|PATH",
        help="what computes; default: %(default)s",
    )
    whole.add_argument(
        "--model-tag", metavar="TAG", help="load this model, here or, where a broker is named, by one of its workers"
    )
    return whole


def run(options: argparse.Namespace) -> int:
    """Make all checks and show them; 0 where nothing is wrong, else 1.

    Raises:
        UsageError: There is no such page or engine.
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
        raise UsageError(f"there is no page at {options.api.absolute()}; --api names an api.py")
    endpoint = options.endpoint if options.port is None else f"tcp://127.0.0.1:{options.port}"
    yield from packages.check(platform.python_version(), __version__)
    yield from hook.check(_PACKAGE)
    if engine in devices.PROGRAMS:
        yield devices.check(engine, os.environ)
    if engine == engine_registry.DEFAULT:
        yield machine.cache_finding(os.environ)
    yield machine.temporary_finding(machine.temporary_folder(os.environ))
    yield machine.descriptors_finding(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield from keys.key_file_findings(options.key_file)
    yield from keys.folder_findings(default_folder())
    # At a broker its workers have the page, and this machine may have no framework.
    if endpoint is None or options.api is not None:
        yield page.check(options.api, engine, options.model_tag, os.environ)
    if endpoint is not None:
        yield from broker.check(endpoint, options.key_file, options.model_tag)


def main(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq doctor") -> int:
    """Say what a run needs and lacks, and what mends it."""
    options = parser(prog).parse_args(arguments)
    return run_guarded(prog, True, lambda: run(options))
