"""Shared by the commands: logging, one-line errors, and the options of long-running processes."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import birdie_zmq
from birdie_zmq.errors import BirdieError

PACKAGE = Path(birdie_zmq.__file__).resolve().parent
STDIN = 0


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options of every long-running process."""
    parser.add_argument("--quiet", action="store_true", help="log only warnings and errors")
    parser.add_argument("--lifeline", action="store_true", help="exit when standard input is closed")


def run_guarded(prog: str, quiet: bool, function: Callable[[], int]) -> int:
    """Set up logging and run a command; print a `BirdieError` as one line and return 2."""
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    try:
        return function()
    except BirdieError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
