"""The command ``birdie-zmq``: it hands the arguments to a subcommand, one module of this package each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from birdie_zmq._version import __version__
from birdie_zmq.cli.common import PACKAGE

COMMANDS = ("broker", "worker", "keys", "status", "demo", "doctor", "compare", "bench", "ray", "lm_eval")
"""The subcommands; each is imported only when it is called, since some import much."""


def parser() -> argparse.ArgumentParser:
    """The parser of what stands before a subcommand's own arguments."""
    found = argparse.ArgumentParser(
        prog="birdie-zmq", description="Evaluate language models in JAX, PyTorch and others with lm_eval."
    )
    found.add_argument("--version", action="version", version=f"birdie-zmq {__version__} from {PACKAGE}")
    found.add_argument("command", choices=COMMANDS, help="each has a --help of its own")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Only what stands before the subcommand is ours: the rest is the subcommand's.
    command = parser().parse_args(given[:1]).command
    status: int = import_module(f"birdie_zmq.cli.{command}").main(given[1:], f"birdie-zmq {command}")
    return status
