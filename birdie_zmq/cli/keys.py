"""``birdie-zmq keys``: who may use a broker that other machines can reach. Secrets go into files, never to a terminal."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from birdie_zmq.cli.common import run_guarded
from birdie_zmq.protocol.security.keys import (
    default_folder,
    new_key,
    public_path,
    read_broker_pair,
    read_holders,
    revoke_key,
)
from birdie_zmq.protocol.security.principals import ROLES

_AGES = (("day", 86_400), ("hour", 3_600), ("minute", 60))


def parser(prog: str) -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    whole = argparse.ArgumentParser(prog=prog, description="Make, list and revoke the keys of clients and workers.")
    actions = whole.add_subparsers(dest="action", required=True, metavar="new|list|revoke")
    new = actions.add_parser("new", help="make a key and let its holder in")
    revoke = actions.add_parser("revoke", help="let the holder of a key in no more; a running broker sees it at once")
    for action in (new, revoke):
        action.add_argument("role", choices=ROLES)
        action.add_argument("name", help="whose key it is: letters, digits, dots, dashes and underscores")
    new.add_argument("--output", type=Path, metavar="FILE", help="the private file; default: in FOLDER/private")
    for action in (new, revoke, actions.add_parser("list", help="show who is let in")):
        action.add_argument(
            "--folder", type=Path, default=default_folder(), help="the broker's folder of keys; default: %(default)s"
        )
    return whole


def run(options: argparse.Namespace) -> int:
    """Do what was asked for, and say what comes next.

    Raises:
        UsageError: A name, a file or a folder cannot be used.
    """
    folder = options.folder.absolute()
    match options.action:
        case "new":
            private = new_key(folder, options.role, options.name, options.output)
            how = "key_file=FILE in model_args" if options.role == "client" else "--key-file FILE"
            print(f"The key of {options.role} {options.name!r} is in {private.absolute()}")
            print(f"Move this file to where it is used, with scp or the like, and name it there with {how}.")
            print(f"The broker is started with --keys {folder}; one that runs lets the key in already.")
        case "revoke":
            revoke_key(folder, options.role, options.name)
            print(f"The key of {options.role} {options.name!r} is revoked; a running broker sees it at once.")
        case _:
            _show(folder)
    return 0


def _show(folder: Path) -> None:
    print(f"broker  {'':<20}  {read_broker_pair(folder).public}")
    holders, errors = read_holders(folder)
    for holder in holders.values():
        age_s = time.time() - public_path(folder, holder.role, holder.name).stat().st_mtime
        print(f"{holder.role}  {holder.name:<20}  {holder.public}  {_age(age_s)}")
    if errors:
        raise errors[0]


def _age(seconds: float) -> str:
    for unit, size_s in _AGES:
        if seconds >= size_s:
            count = int(seconds // size_s)
            return f"{count} {unit}{'s' if count > 1 else ''} old"
    return "new"


def main(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq keys") -> int:
    """Make, list or revoke the keys of those who may use a broker."""
    options = parser(prog).parse_args(arguments)
    return run_guarded(prog, False, lambda: run(options))
