"""What the commands share: logging, errors as one line, and the options that every process has."""

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
    parser.add_argument("--quiet", action="store_true", help="write down only what goes wrong")
    parser.add_argument("--lifeline", action="store_true", help="end when standard input is closed")


def run_guarded(prog: str, quiet: bool, function: Callable[[], int]) -> int:
    """Run a command with logging set up; print an error that a person can cause as one line and return 2."""
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    try:
        return function()
    except BirdieError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
