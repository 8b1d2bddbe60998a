"""``python broker.py`` and ``birdie-zmq broker``: run a broker."""

from __future__ import annotations

import argparse
import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from birdie_zmq._version import __version__
from birdie_zmq.broker.memory_limit import default_limit_mib, limit_memory
from birdie_zmq.cli.common import PACKAGE, STDIN, add_common, run_guarded
from birdie_zmq.protocol.endpoints import DEFAULT_ENDPOINT
from birdie_zmq.protocol.security.keys import default_folder
from birdie_zmq.settings import DEFAULT_STATUS_PORT, BrokerSettings


def parser(prog: str) -> argparse.ArgumentParser:
    """The parser of a broker's arguments."""
    found = argparse.ArgumentParser(prog=prog, description="Pass work from lm_eval runs to workers.")
    found.add_argument("--bind", default=DEFAULT_ENDPOINT, metavar="ENDPOINT", help="default: %(default)s")
    found.add_argument(
        "--keys",
        nargs="?",
        type=Path,
        const=default_folder(),
        metavar="FOLDER",
        help="let in only holders of a key made with birdie-zmq keys new; default: %(const)s",
    )
    found.add_argument(
        "--memory-limit",
        type=int,
        default=default_limit_mib(),
        metavar="MIB",
        help="take no more memory than this, whatever peers send; on Linux; default: half of the machine's, %(default)s",
    )
    found.add_argument(
        "--status-port",
        type=int,
        nargs="?",
        const=DEFAULT_STATUS_PORT,
        metavar="PORT",
        help="show what goes on at http://127.0.0.1:PORT, to every user of this machine; 0 takes a free port; default: "
        "no page, and %(const)s if no number is given",
    )
    add_common(found)
    found.add_argument("--remove-folder", action="store_true", help=argparse.SUPPRESS)
    return found


def main(arguments: Sequence[str] | None = None, prog: str = "broker.py") -> int:
    """Run a broker until it is told to stop."""
    options = parser(prog).parse_args(arguments)
    return run_guarded(prog, options.quiet, lambda: _serve(options))


def _serve(options: argparse.Namespace) -> int:
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
                print(f"birdie-zmq {__version__} from {PACKAGE}: broker at {router.endpoint}{who}", flush=True)
            look = None
            if options.status_port is not None:
                shown = page.enter_context(StatusServer(options.status_port, router.endpoint))
                look = shown.look
                print(f"status page at {shown.address}", flush=True)
            orphaned = serve(router, BrokerSettings(), stop, STDIN if options.lifeline else None, look)
        if orphaned and options.remove_folder and isinstance(endpoint, IpcEndpoint):
            shutil.rmtree(endpoint.path.parent, ignore_errors=True)
    return 0
