"""The command ``birdie-zmq serve``: an OpenAI-compatible HTTP server."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from birdie_zmq._version import __version__
from birdie_zmq.cli.common import run_guarded
from birdie_zmq.cli.model_options import add_model_options
from birdie_zmq.errors import UsageError
from birdie_zmq.harness.model_args import parse_model_args

_PACKAGES = ("starlette", "uvicorn")


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    arg_parser = argparse.ArgumentParser(
        prog=prog,
        description="Serve a model to clients of OpenAI's API: completions, chat, and log-probabilities of prompts.",
    )
    arg_parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    arg_parser.add_argument(
        "--port", type=int, default=8000, help="port to listen on; 0 selects a free port; default: %(default)s"
    )
    add_model_options(arg_parser)
    arg_parser.add_argument(
        "--endpoint",
        metavar="ENDPOINT",
        help="a running broker, as endpoint= in --model_args; default: an embedded one",
    )
    arg_parser.add_argument(
        "--served-model-name",
        nargs="+",
        metavar="NAME",
        help="names by which requests may call the model; default: its tag",
    )
    security = arg_parser.add_argument_group("access", "Without a key, the server listens on this machine only.")
    security.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="file of mode 0600 with the key that requests must have; or set the environment variable BIRDIE_ZMQ_API_KEY",
    )
    security.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate chain in PEM, for HTTPS")
    security.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key in PEM")
    security.add_argument(
        "--allow-plain-http",
        action="store_true",
        help="listen on other addresses than loopback without TLS: the key and all texts can be read on the way",
    )
    limits = arg_parser.add_argument_group("limits")
    limits.add_argument(
        "--max-requests",
        type=int,
        default=256,
        metavar="N",
        help="requests at once; more get 429; default: %(default)s",
    )
    limits.add_argument(
        "--max-body-mib", type=int, default=8, metavar="MIB", help="largest body of a request; default: %(default)s"
    )
    limits.add_argument(
        "--request-timeout",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="longest time until a request is answered; default: %(default).0f",
    )
    arg_parser.add_argument("--quiet", action="store_true", help="log only warnings and errors")
    return arg_parser


def run(options: argparse.Namespace) -> int:
    """Serve until a stop signal; return 0.

    Raises:
        UsageError: An argument is invalid, or the packages of the extra are missing.
        BirdieError: The model cannot be loaded.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} cannot be found; install them with: pip install 'birdie-zmq[serve]'")
    from birdie_zmq.serve.access import read_api_key
    from birdie_zmq.serve.server import ServerOptions, serve
    from birdie_zmq.serve.settings import ServeSettings

    model_args: dict[str, Any] = dict(options.model_args)
    if options.endpoint is not None:
        model_args["endpoint"] = options.endpoint
    arguments = parse_model_args(model_args, batch_size=options.batch_size, device=options.device)
    if arguments.resume is not None:
        raise UsageError("resume= in model_args is for runs of lm_eval; the server has no journal")
    if (options.tls_cert is None) != (options.tls_key is None):
        raise UsageError("--tls-cert and --tls-key belong together; give both")
    tls = None if options.tls_cert is None else (options.tls_cert, options.tls_key)
    api_key = read_api_key(options.api_key_file, os.environ)
    body_bytes = options.max_body_mib * 2**20
    settings = ServeSettings(
        max_requests=options.max_requests,
        max_body_bytes=body_bytes,
        max_total_body_bytes=8 * body_bytes,
        request_s=options.request_timeout,
    )
    names = tuple(options.served_model_name or (arguments.model.tag,))
    server = ServerOptions(
        host=options.host,
        port=options.port,
        api_key=api_key,
        tls=tls,
        allows_plain=options.allow_plain_http,
        names=names,
    )
    serve(
        arguments,
        server,
        settings,
        lambda address: print(f"birdie-zmq {__version__}: serving {names[0]} at {address}/v1", flush=True),
    )
    return 0


def main(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq serve") -> int:
    """Run ``birdie-zmq serve``."""
    options = parser(prog).parse_args(arguments)
    return run_guarded(prog, options.quiet, lambda: run(options))
