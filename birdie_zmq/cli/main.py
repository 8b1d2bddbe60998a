"""The command ``birdie-zmq``: passes the arguments on to a subcommand, which is a module of this package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from birdie_zmq._version import __version__
from birdie_zmq.cli.common import PACKAGE

COMMANDS = (
    "broker",
    "worker",
    "serve",
    "keys",
    "status",
    "demo",
    "doctor",
    "compare",
    "bench",
    "watch",
    "ray",
    "lm_eval",
)
"""The subcommands. Each is imported only when it is called, since some have slow imports."""


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of the arguments up to the name of the subcommand."""
    arg_parser = argparse.ArgumentParser(
        prog="birdie-zmq", description="Evaluate language models in JAX, PyTorch and others with lm_eval."
    )
    arg_parser.add_argument("--version", action="version", version=f"birdie-zmq {__version__} from {PACKAGE}")
    arg_parser.add_argument("command", choices=COMMANDS, help="see COMMAND --help")
    return arg_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    # All arguments after the name belong to the subcommand.
    command = parser().parse_args(argv[:1]).command
    status: int = import_module(f"birdie_zmq.cli.{command}").main(argv[1:], f"birdie-zmq {command}")
    return status
