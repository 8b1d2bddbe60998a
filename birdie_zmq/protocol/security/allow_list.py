"""Who may talk to a broker: the public keys in its folder, as the folder is now."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from birdie_zmq.errors import NotAllowed, UsageError
from birdie_zmq.protocol.security.key_files import check_closed
from birdie_zmq.protocol.security.keys import read_broker_pair, read_holders
from birdie_zmq.protocol.security.principals import ROLES, Principal

logger = logging.getLogger("birdie_zmq.broker")

_State = tuple[tuple[object, ...], ...]


class AllowList:
    """The holders of the keys in a folder, which is read again when it has changed.

    It is asked by the broker's loop and by the thread that answers handshakes. What goes wrong with a file once the
    broker runs shuts out the holder of that file, and nobody else.

    Args:
        folder: The broker's folder of keys.

    Raises:
        UsageError: A file in it cannot be used, or is open to others.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pair = read_broker_pair(folder)
        self._lock = threading.Lock()
        self._seen = _state(folder)
        self._holders, errors = read_holders(folder)
        self._former: dict[str, Principal] = {}
        self._revoked: set[Principal] = set()
        if errors:
            raise errors[0]

    def admits(self, key: str) -> bool:
        """Whether a key may connect, after a look at the folder."""
        self.refresh()
        return key in self._holders

    def holder(self, key: str | None) -> Principal:
        """Whose key a message came under.

        Raises:
            NotAllowed: The key has been revoked since its holder connected.
        """
        holder = self._holders.get(key) if key is not None else None
        if holder is not None:
            return holder
        former = self._former.get(key) if key is not None else None
        raise NotAllowed(f"the key of {former} has been revoked" if former else "a message came under no key")

    def take_revoked(self) -> frozenset[Principal]:
        """Whose keys have been revoked since this was asked last, after a look at the folder."""
        self.refresh()
        with self._lock:
            revoked, self._revoked = frozenset(self._revoked), set()
        return revoked

    def refresh(self) -> None:
        """Read the folder again if anything about it has changed."""
        with self._lock:
            state = _state(self.folder)  # Taken first: what changes while files are read is seen the next time.
            if state == self._seen:
                return
            self._seen = state
            holders, errors = read_holders(self.folder)
            try:
                check_closed(self.folder)
            except UsageError as open_folder:
                holders, errors = {}, [open_folder]
            for wrong in errors:
                logger.warning("not let in: %s", wrong)
            gone = {key: holder for key, holder in self._holders.items() if holders.get(key) != holder}
            for holder in gone.values():
                logger.info("the key of %s is let in no more", holder)
            for holder in holders.values():
                if holder not in self._holders.values():
                    logger.info("the key of %s is let in from now on", holder)
            self._former.update(gone)
            self._revoked.update(gone.values())
            self._holders = holders


def _state(folder: Path) -> _State:
    """What tells that keys have come, gone or changed, without opening a file."""
    found: list[tuple[object, ...]] = []
    for each in (folder, *(folder / f"{role}s" for role in ROLES)):
        try:
            status = each.stat()
            found.append((each, status.st_ino, status.st_mode))
            if each != folder:
                with os.scandir(each) as entries:
                    found += sorted((entry.name, *_signs(entry)) for entry in entries)
        except OSError as error:
            found.append((each, error.errno))
    return tuple(found)


def _signs(entry: os.DirEntry[str]) -> tuple[int, ...]:
    status = entry.stat()
    return status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns
