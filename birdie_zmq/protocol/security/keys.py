"""Key files: a broker's folder of them, and the one file that a person is given.

The folder, of mode 0700, is the broker's, and what it holds is of mode 0600::

    broker            the broker's own pair
    clients/NAME      the public key of each client that may connect; the file is the permission
    workers/NAME      the same for workers
    private/ROLE-NAME what a person or machine is given, unless another place was asked for

A person's file holds their pair and the broker's public key, so that it can be copied to another machine and is all
that is needed there: the broker knows them by it, and they know the broker.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from birdie_zmq.errors import UsageError
from birdie_zmq.protocol.security.key_files import check_closed, make_folder, read_fields, write_fields
from birdie_zmq.protocol.security.principals import ROLES, Principal, Role

_BROKER = "broker"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair in Z85, 40 characters each."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class PeerKey:
    """What a client or worker needs to talk to one broker; ``path`` is where it was read, for messages."""

    holder: Principal
    pair: KeyPair
    broker: str
    path: Path


def default_folder() -> Path:
    """``birdie-zmq/keys`` in the user's folder of settings."""
    settings = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if not settings.is_absolute():
        try:
            settings = Path.home() / ".config"
        except RuntimeError:  # A container's user that has no home; it only matters if no folder is given.
            settings = Path("/nonexistent")
    return settings / "birdie-zmq" / "keys"


def public_path(folder: Path, role: Role, name: str) -> Path:
    """Where the public key of a client or worker is.

    Raises:
        UsageError: The name is not one that a file may have here.
    """
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r:.80} cannot name a key; a name has 1 to 64 letters, digits, dots, dashes and underscores, and does "
            "not begin with a dot"
        )
    return folder / f"{role}s" / name


def new_key(folder: Path, role: Role, name: str, output: Path | None = None) -> Path:
    """Make a key, let it in, and give the path of the private file; the first one makes the broker's pair as well.

    Args:
        folder: The broker's folder of keys, made if it is not there.
        role: What the key is for.
        name: Whose it is, for the broker's log and to revoke it.
        output: Where the private file is written, None for the folder's own place.

    Raises:
        UsageError: A file that would be overwritten, a wrong name, or a folder that is open to others.
    """
    public = public_path(folder, role, name)
    private = output or folder / "private" / f"{role}-{name}"
    make_folder(folder)
    for path in (public, private):
        if os.path.lexists(path):
            raise UsageError(
                f"there is {path} already, and keys are never overwritten; choose another name"
                + (f", or revoke it first with: birdie-zmq keys revoke {role} {name}" if path == public else "")
            )
    broker = _broker_pair(folder)
    pair = _new_pair()
    fields = {"role": role, "name": name, "public": pair.public}
    if output is None:
        make_folder(private.parent)
    write_fields(private, {**fields, "secret": pair.secret, "broker": broker.public})
    try:
        make_folder(public.parent)
        write_fields(public, fields)
    except BaseException:
        private.unlink(missing_ok=True)
        raise
    return private


def revoke_key(folder: Path, role: Role, name: str) -> None:
    """Remove a public key, so that its holder is let in no more, and the private file where it was never taken away.

    Raises:
        UsageError: There is no such key.
    """
    try:
        public_path(folder, role, name).unlink()
    except OSError as error:
        raise UsageError(f"there is no key of a {role} {name!r} in {folder}: {error.strerror}") from error
    (folder / "private" / f"{role}-{name}").unlink(missing_ok=True)


def read_broker_pair(folder: Path) -> KeyPair:
    """The broker's own pair.

    Raises:
        UsageError: There is none, it is malformed, or it or the folder is open to others.
    """
    check_closed(folder)
    path = folder / _BROKER
    if not path.exists():
        raise UsageError(f"{folder} holds no broker's key; it is made with the first: birdie-zmq keys new client NAME")
    fields = read_fields(path, ("role", "public", "secret"))
    if fields["role"] != _BROKER:
        raise UsageError(
            f"{path} is not the key of a broker; a broker's own is made with the first key of a new folder"
        )
    return _pair(path, fields)


def read_peer_key(path: Path) -> PeerKey:
    """What a client or worker was given.

    Raises:
        UsageError: There is no such file, it is no private key of a client or worker, or it is open to others.
    """
    fields = read_fields(path, ("role", "name", "public", "secret", "broker"))
    return PeerKey(_holder(path, fields), _pair(path, fields), _key(path, fields, "broker"), path)


def read_holders(folder: Path) -> tuple[dict[str, Principal], list[UsageError]]:
    """Everybody who is let in, by public key, and what is wrong with files that let in nobody.

    A key that stands in two files is nobody's: it is not known which of the two roles it has.
    """
    holders: dict[str, Principal] = {}
    errors: list[UsageError] = []
    twice: set[str] = set()
    for role in ROLES:
        for path in _public_files(folder / f"{role}s", errors):
            try:
                holder = _holder(path, read_fields(path, ("role", "name", "public")))
                if path != public_path(folder, holder.role, holder.name):
                    raise UsageError(f"{path} is the key of {holder} and belongs to {holder.role}s/{holder.name}")
                if holder.public in holders:
                    twice.add(holder.public)
                    raise UsageError(f"the key in {path} is also that of {holders[holder.public]}; remove one of them")
            except UsageError as error:
                errors.append(error)
            else:
                holders[holder.public] = holder
    return {key: holder for key, holder in holders.items() if key not in twice}, errors


def _public_files(folder: Path, errors: list[UsageError]) -> list[Path]:
    """The files of a folder, sorted; those that begin with a dot are still being written."""
    if not folder.exists():
        return []
    try:
        check_closed(folder)
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except UsageError as error:
        errors.append(error)
    except OSError as error:
        errors.append(UsageError(f"cannot read {folder}: {error.strerror}"))
    return []


def _broker_pair(folder: Path) -> KeyPair:
    path = folder / _BROKER
    if not os.path.lexists(path):
        pair = _new_pair()
        write_fields(path, {"role": _BROKER, "public": pair.public, "secret": pair.secret})
    return read_broker_pair(folder)


def _check_curve() -> None:
    if not zmq.has("curve"):
        raise UsageError(
            "this pyzmq was built without CURVE; install one of its wheels: pip install --force-reinstall pyzmq"
        )


def _new_pair() -> KeyPair:
    _check_curve()
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def _holder(path: Path, fields: dict[str, str]) -> Principal:
    for role in ROLES:
        if fields["role"] == role:
            if _NAME.fullmatch(fields["name"]) is None:
                raise UsageError(f"the name in {path} is malformed; make a new key")
            return Principal(role, fields["name"], _key(path, fields, "public"))
    raise UsageError(f"the role in {path} must be {' or '.join(ROLES)}")


def _pair(path: Path, fields: dict[str, str]) -> KeyPair:
    pair = KeyPair(_key(path, fields, "public"), _key(path, fields, "secret"))
    _check_curve()
    if zmq.curve_public(pair.secret.encode()).decode() != pair.public:
        raise UsageError(f"the two keys in {path} are not a pair; make a new key")
    return pair


def _key(path: Path, fields: dict[str, str], name: str) -> str:
    text = fields[name]
    try:
        if _KEY.fullmatch(text) is None:
            raise ValueError
        z85.decode(text.encode())
    except (ValueError, struct.error):
        raise UsageError(f"the {name} key in {path} is malformed; make a new key") from None
    return text
