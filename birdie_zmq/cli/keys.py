"""The command ``birdie-zmq keys``: creates, lists and revokes the keys of clients and workers of a broker.

Private keys are written to files and never printed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from birdie_zmq.cli.common import add_allow_group, default_key_folder, key_folder, run_guarded
from birdie_zmq.protocol.security.keys import (
    new_key,
    public_path,
    read_broker_pair,
    read_principals,
    revoke_key,
)
from birdie_zmq.protocol.security.principals import ROLES

_AGES = (("day", 86_400), ("hour", 3_600), ("minute", 60))


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    arg_parser = argparse.ArgumentParser(
        prog=prog, description="Create, list and revoke the keys of clients and workers."
    )
    actions = arg_parser.add_subparsers(dest="action", required=True, metavar="new|list|revoke")
    new = actions.add_parser("new", help="create a key and allow it")
    revoke = actions.add_parser("revoke", help="revoke a key; takes effect in a running broker at once")
    for action in (new, revoke):
        action.add_argument("role", choices=ROLES)
        action.add_argument("name", help="owner of the key: letters, digits, dots, dashes and underscores")
    new.add_argument(
        "--output", type=Path, metavar="FILE", help="path of the private key file; default: in FOLDER/private"
    )
    listed = actions.add_parser("list", help="list the allowed keys")
    add_allow_group(listed)
    for action in (new, revoke, listed):
        action.add_argument(
            "--folder",
            type=Path,
            default=default_key_folder(),
            help="the key folder of the broker; default: %(default)s",
        )
    return arg_parser


def run(options: argparse.Namespace) -> int:
    """Create, revoke or list keys, and print the next step.

    Raises:
        UsageError: A name, a file or a folder is invalid.
    """
    folder = key_folder(options.folder, "--folder")
    match options.action:
        case "new":
            private = new_key(folder, options.role, options.name, options.output)
            option = "key_file=FILE in model_args" if options.role == "client" else "--key-file FILE"
            print(f"The key of {options.role} {options.name!r} is in {private.absolute()}")
            print(
                f"Move this file to the machine of the {options.role}, for example with scp, and pass it with {option}."
            )
            print(f"Start the broker with --keys {folder}; a running broker accepts the key already.")
        case "revoke":
            revoke_key(folder, options.role, options.name)
            print(f"The key of {options.role} {options.name!r} is revoked; a running broker rejects it from now on.")
        case _:
            _show(folder, options.allow_group_readable_keys)
    return 0


def _show(folder: Path, allow_group: bool) -> None:
    print(f"broker  {'':<20}  {read_broker_pair(folder, allow_group).public}")
    principals, errors = read_principals(folder, allow_group)
    for principal in principals.values():
        age_s = time.time() - public_path(folder, principal.role, principal.name).stat().st_mtime
        print(f"{principal.role}  {principal.name:<20}  {principal.public}  {_age(age_s)}")
    if errors:
        raise errors[0]


def _age(seconds: float) -> str:
    for unit, size_s in _AGES:
        if seconds >= size_s:
            count = int(seconds // size_s)
            return f"{count} {unit}{'s' if count > 1 else ''} old"
    return "new"


def main(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq keys") -> int:
    """Run ``birdie-zmq keys``."""
    options = parser(prog).parse_args(arguments)
    return run_guarded(prog, False, lambda: run(options))
