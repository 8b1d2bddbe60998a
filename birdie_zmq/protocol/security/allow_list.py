"""The allow list of a broker: the public keys in its key folder, which is watched for changes."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from birdie_zmq.errors import NotAllowed, UsageError
from birdie_zmq.protocol.security.key_files import check_private
from birdie_zmq.protocol.security.keys import read_broker_pair, read_principals
from birdie_zmq.protocol.security.principals import ROLES, Principal

logger = logging.getLogger("birdie_zmq.broker")

_FolderState = tuple[tuple[object, ...], ...]


class AllowList:
    """The principals with a key in a folder, which is read again when it changes.

    The broker's loop and the authenticator's thread use it. A file that becomes invalid while the broker runs excludes its
    own principal only.

    Args:
        folder: The broker's key folder.
        allow_group: Whether the group of the folder and its files may read them.

    Raises:
        UsageError: A file in it is invalid, or is accessible to other users.
    """

    def __init__(self, folder: Path, allow_group: bool = False) -> None:
        self.folder = folder
        self._allow_group = allow_group
        self.pair = read_broker_pair(folder, allow_group)
        self._lock = threading.Lock()
        self._seen = _folder_state(folder)
        self._principals, errors = read_principals(folder, allow_group)
        self._former: dict[str, Principal] = {}
        self._revoked: set[Principal] = set()
        if errors:
            raise errors[0]

    def allows(self, key: str) -> bool:
        """Return whether a key may connect, after checking the folder for changes."""
        self.refresh()
        return key in self._principals

    def principal(self, key: str | None) -> Principal:
        """Return the principal of the key that a message was sent with.

        Raises:
            NotAllowed: The key has been revoked since its principal connected, or there is no key.
        """
        principal = self._principals.get(key) if key is not None else None
        if principal is not None:
            return principal
        former = self._former.get(key) if key is not None else None
        raise NotAllowed(f"the key of {former} has been revoked" if former else "a message was sent without a key")

    def take_revoked(self) -> frozenset[Principal]:
        """Return the principals whose keys were revoked since the last call, after checking the folder for changes."""
        self.refresh()
        with self._lock:
            revoked, self._revoked = frozenset(self._revoked), set()
        return revoked

    def refresh(self) -> None:
        """Read the folder again if it has changed."""
        with self._lock:
            state = _folder_state(self.folder)  # Taken first: a change while files are read is detected the next time.
            if state == self._seen:
                return
            self._seen = state
            principals, errors = read_principals(self.folder, self._allow_group)
            try:
                check_private(self.folder, self._allow_group)
            except UsageError as open_folder:
                principals, errors = {}, [open_folder]
            for wrong in errors:
                logger.warning("key not allowed: %s", wrong)
            gone = {key: principal for key, principal in self._principals.items() if principals.get(key) != principal}
            for principal in gone.values():
                logger.info("the key of %s is no longer allowed", principal)
            for principal in principals.values():
                if principal not in self._principals.values():
                    logger.info("the key of %s is now allowed", principal)
            self._former.update(gone)
            self._revoked.update(gone.values())
            self._principals = principals


def _folder_state(folder: Path) -> _FolderState:
    """Return a value that changes when keys are added, removed or changed; no file is opened for it."""
    found: list[tuple[object, ...]] = []
    for each in (folder, *(folder / f"{role}s" for role in ROLES)):
        try:
            status = each.stat()
            found.append((each, status.st_ino, status.st_mode))
            if each != folder:
                with os.scandir(each) as entries:
                    found += sorted((entry.name, *_fingerprint(entry)) for entry in entries)
        except OSError as error:
            found.append((each, error.errno))
    return tuple(found)


def _fingerprint(entry: os.DirEntry[str]) -> tuple[int, ...]:
    status = entry.stat()
    return status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns
