"""The commands ``python broker.py`` and ``birdie-zmq broker``: run a broker."""

from __future__ import annotations

import argparse
import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from birdie_zmq._version import __version__
from birdie_zmq.broker.memory_limit import default_limit_mib, limit_memory
from birdie_zmq.cli.common import (
    PACKAGE,
    STDIN,
    add_allow_group,
    add_common,
    default_key_folder,
    key_folder,
    run_guarded,
)
from birdie_zmq.protocol.endpoints import DEFAULT_ENDPOINT
from birdie_zmq.settings import DEFAULT_STATUS_PORT, BrokerSettings


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    arg_parser = argparse.ArgumentParser(
        prog=prog, description="Run a broker that distributes the requests of lm_eval runs over workers."
    )
    arg_parser.add_argument(
        "--bind", default=DEFAULT_ENDPOINT, metavar="ENDPOINT", help="endpoint to listen on; default: %(default)s"
    )
    arg_parser.add_argument(
        "--keys",
        nargs="?",
        type=Path,
        const=default_key_folder(),
        metavar="FOLDER",
        help="require keys made with birdie-zmq keys new; FOLDER is the key folder, default: %(const)s",
    )
    add_allow_group(arg_parser)
    arg_parser.add_argument(
        "--memory-limit",
        type=int,
        default=default_limit_mib(),
        metavar="MIB",
        help="memory limit of the broker process, on Linux; default: half of the machine's memory, %(default)s",
    )
    arg_parser.add_argument(
        "--status-port",
        type=int,
        nargs="?",
        const=DEFAULT_STATUS_PORT,
        metavar="PORT",
        help="serve a status page at http://127.0.0.1:PORT, readable by every user of this machine; 0 selects a free "
        "port, no number means %(const)s; default: no page",
    )
    add_common(arg_parser)
    arg_parser.add_argument("--remove-folder", action="store_true", help=argparse.SUPPRESS)
    return arg_parser


def main(arguments: Sequence[str] | None = None, prog: str = "broker.py") -> int:
    """Run a broker until a stop signal."""
    options = parser(prog).parse_args(arguments)
    return run_guarded(prog, options.quiet, lambda: _serve(options))


def _serve(options: argparse.Namespace) -> int:
    from birdie_zmq.broker.server import serve
    from birdie_zmq.broker.status.http_server import StatusServer
    from birdie_zmq.processes.signals import StopSignals
    from birdie_zmq.protocol.endpoints import IpcEndpoint, parse_endpoint
    from birdie_zmq.protocol.router import Router
    from birdie_zmq.protocol.security.allow_list import AllowList

    endpoint = parse_endpoint(options.bind)
    allow_group = options.allow_group_readable_keys
    allowed = None if options.keys is None else AllowList(key_folder(options.keys, "--keys"), allow_group)
    limit_memory(options.memory_limit)
    with StopSignals() as stop:
        with Router(endpoint, allowed, owns_folder=options.remove_folder) as router, contextlib.ExitStack() as stack:
            if not options.quiet:
                keys = "" if allowed is None else f", for the keys in {allowed.folder}"
                print(
                    f"birdie-zmq {__version__} from {PACKAGE}: broker at {' and '.join(router.endpoints)}{keys}",
                    flush=True,
                )
            update_status = None
            if options.status_port is not None:
                status_server = stack.enter_context(StatusServer(options.status_port, router.endpoint))
                update_status = status_server.update_status
                print(f"status page at {status_server.address}", flush=True)
            orphaned = serve(router, BrokerSettings(), stop, STDIN if options.lifeline else None, update_status)
        if orphaned and options.remove_folder and isinstance(endpoint, IpcEndpoint):
            shutil.rmtree(endpoint.path.parent, ignore_errors=True)
    return 0
