"""Shared by the commands: logging, one-line errors, and the options of long-running processes."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import birdie_zmq
from birdie_zmq.errors import BirdieError, UsageError
from birdie_zmq.protocol.security.key_files import ALLOW_GROUP
from birdie_zmq.protocol.security.keys import default_folder

PACKAGE = Path(birdie_zmq.__file__).resolve().parent
STDIN = 0

_NO_FOLDER = Path("none, without a home directory")
"""Stands for the default of an option that takes a key folder, where there is no such default."""


def default_key_folder() -> Path:
    """Return the default of an option that takes the key folder, for `key_folder`."""
    return default_folder() or _NO_FOLDER


def key_folder(given: Path, option: str) -> Path:
    """Return the absolute path of the key folder that an option names.

    Raises:
        UsageError: The option has no value, and there is no default.
    """
    if given == _NO_FOLDER:
        raise UsageError(f"there is no home directory for the key folder; give its path: {option} FOLDER")
    return given.absolute()


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options of every long-running process."""
    parser.add_argument("--quiet", action="store_true", help="log only warnings and errors")
    parser.add_argument("--lifeline", action="store_true", help="exit when standard input is closed")


def add_allow_group(parser: argparse.ArgumentParser) -> None:
    """Add the option of programs that read key files."""
    parser.add_argument(
        f"--{ALLOW_GROUP.replace('_', '-')}",
        action="store_true",
        help="accept key files and folders that their group may read but not write, such as those of a mounted secret",
    )


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
