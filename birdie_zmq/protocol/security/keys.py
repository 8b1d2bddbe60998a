"""Key files: the broker's key folder, and the private file of each client or worker.

The broker's key folder has mode 0700, the files in it have mode 0600::

    broker            the broker's key pair
    clients/NAME      the public key of each client that may connect; the file grants the access
    workers/NAME      the same for workers
    private/ROLE-NAME the private file of a client or worker, unless another path was given

A private file holds the key pair of its principal and the broker's public key. It is the only file that a client or worker
needs on another machine: the broker authenticates the principal with it, and the principal authenticates the broker.
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
from birdie_zmq.protocol.security.key_files import check_private, make_private_folder, read_fields, write_fields
from birdie_zmq.protocol.security.principals import ROLES, Principal, Role
from birdie_zmq.user_folders import config_folder

_BROKER = "broker"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair in Z85, with 40 characters per key."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class PeerKey:
    """The contents of a private file, with which a client or worker connects to one broker; ``path`` is for messages."""

    principal: Principal
    pair: KeyPair
    broker: str
    path: Path


def default_folder() -> Path | None:
    """Return ``birdie-zmq/keys`` in the user's configuration folder; None if the user has no such folder."""
    settings = config_folder()
    return None if settings is None else settings / "birdie-zmq" / "keys"


def public_path(folder: Path, role: Role, name: str) -> Path:
    """Return the path of the public key of a client or worker.

    Raises:
        UsageError: The name is invalid.
    """
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r:.80} is not a valid key name; a name has 1 to 64 letters, digits, dots, dashes and underscores, and "
            "does not begin with a dot"
        )
    return folder / f"{role}s" / name


def new_key(folder: Path, role: Role, name: str, output: Path | None = None) -> Path:
    """Make a key, allow it, and return the path of the private file; the first key also makes the broker's key pair.

    Args:
        folder: The broker's key folder, created if it does not exist.
        role: The role of the key.
        name: The name of its owner, for the broker's log and for revoking it.
        output: The path of the private file, None for the default in the key folder.

    Raises:
        UsageError: A file would be overwritten, the name is invalid, or a folder is accessible to other users.
    """
    public = public_path(folder, role, name)
    private = output or folder / "private" / f"{role}-{name}"
    make_private_folder(folder)
    for path in (public, private):
        if os.path.lexists(path):
            raise UsageError(
                f"{path} exists already, and keys are never overwritten; choose another name"
                + (f", or revoke it first with: birdie-zmq keys revoke {role} {name}" if path == public else "")
            )
    broker = _broker_pair(folder)
    pair = _new_pair()
    fields = {"role": role, "name": name, "public": pair.public}
    if output is None:
        make_private_folder(private.parent)
    write_fields(private, {**fields, "secret": pair.secret, "broker": broker.public})
    try:
        make_private_folder(public.parent)
        write_fields(public, fields)
    except BaseException:
        private.unlink(missing_ok=True)
        raise
    return private


def revoke_key(folder: Path, role: Role, name: str) -> None:
    """Remove a public key, so that its owner can no longer connect, and the private file if it is still in the key folder.

    Raises:
        UsageError: The key does not exist.
    """
    try:
        public_path(folder, role, name).unlink()
    except OSError as error:
        raise UsageError(f"there is no key of {role} {name!r} in {folder}: {error.strerror}") from error
    (folder / "private" / f"{role}-{name}").unlink(missing_ok=True)


def read_broker_pair(folder: Path, allow_group: bool = False) -> KeyPair:
    """Return the broker's key pair; `allow_group` as in `key_files`.

    Raises:
        UsageError: It does not exist, is malformed, or it or the folder is accessible to other users.
    """
    check_private(folder, allow_group)
    path = folder / _BROKER
    if not path.exists():
        raise UsageError(f"{folder} has no broker key; the first key creates it: birdie-zmq keys new client NAME")
    fields = read_fields(path, ("role", "public", "secret"), allow_group)
    if fields["role"] != _BROKER:
        raise UsageError(f"{path} is not the key of a broker; the first key of a new folder creates the broker's key")
    return _pair(path, fields)


def read_peer_key(path: Path, allow_group: bool = False) -> PeerKey:
    """Return the contents of the private file of a client or worker; `allow_group` as in `key_files`.

    Raises:
        UsageError: The file does not exist, is not a private key of a client or worker, or is accessible to other users.
    """
    fields = read_fields(path, ("role", "name", "public", "secret", "broker"), allow_group)
    return PeerKey(_principal(path, fields), _pair(path, fields), _key(path, fields, "broker"), path)


def read_principals(folder: Path, allow_group: bool = False) -> tuple[dict[str, Principal], list[UsageError]]:
    """Return the allowed principals by public key, and the errors of invalid files; `allow_group` as in `key_files`.

    A key in two files is not allowed, since its role is ambiguous.
    """
    principals: dict[str, Principal] = {}
    errors: list[UsageError] = []
    twice: set[str] = set()
    for role in ROLES:
        for path in _public_files(folder / f"{role}s", errors, allow_group):
            try:
                principal = _principal(path, read_fields(path, ("role", "name", "public"), allow_group))
                if path != public_path(folder, principal.role, principal.name):
                    raise UsageError(
                        f"{path} is the key of {principal} and belongs in {principal.role}s/{principal.name}"
                    )
                if principal.public in principals:
                    twice.add(principal.public)
                    raise UsageError(
                        f"the key in {path} is also that of {principals[principal.public]}; remove one of them"
                    )
            except UsageError as error:
                errors.append(error)
            else:
                principals[principal.public] = principal
    return {key: principal for key, principal in principals.items() if key not in twice}, errors


def _public_files(folder: Path, errors: list[UsageError], allow_group: bool) -> list[Path]:
    """Return the files of a folder, sorted, without files that are still being written (their names begin with a dot)."""
    if not folder.exists():
        return []
    try:
        check_private(folder, allow_group)
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


def _principal(path: Path, fields: dict[str, str]) -> Principal:
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
