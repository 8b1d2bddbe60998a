"""SHA-256 hashes of whole files, computed in background threads and remembered for as long as a file is unchanged.

A remembered hash belongs to a device, inode, size, modification time and status change time. Every write sets the last
of these, and no program can set it back, so a file whose five values are equal has the same content.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from birdie_zmq.errors import ModelLoadError
from birdie_zmq.user_folders import cache_folder

MAX_THREADS = 4
"""Number of files that are read at the same time."""

_CHUNK_BYTES = 1 << 20
_MIN_BACKGROUND_BYTES = 1 << 20
"""Smaller files are hashed at once and not remembered: this takes less time than the bookkeeping."""

_SETTLED_NS = 2_000_000_000
_WHOLE_SECOND_NS = 1_000_000_000
_MAX_ENTRIES = 4096


class FileState(NamedTuple):
    """What tells whether a file has changed; times are in nanoseconds since the epoch."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """Return the state in a result of `os.stat`."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def is_settled(self, now_ns: int) -> bool:
        """Return whether every later write gives the file another state.

        A file that has just been written may be written again within the same tick of the file system's clock. File
        systems that store whole seconds have ticks that are too long.
        """
        return self.ctime_ns <= now_ns - _SETTLED_NS and self.ctime_ns % _WHOLE_SECOND_NS != 0

    def same_content(self, other: FileState) -> bool:
        """Return whether nothing was written between two states of a path; some network mounts change inode numbers."""
        return self[2:] == other[2:]


class HashStore:
    """Hashes on disk, one small file each; without a usable directory it remembers nothing.

    Args:
        directory: Is created for this user alone. It is not used if others own it or may enter it, or if it cannot be
            created. None: there is no place for it.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def get(self, state: FileState) -> str | None:
        """Return the hash of a file in this state; None if it is unknown or its entry is damaged."""
        directory = self._usable_directory
        if directory is None:
            return None
        try:
            entry = (directory / _entry_name(state)).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return None
        digest = entry[:64]
        return digest if entry == _entry(state, digest) else None

    def put(self, state: FileState, digest: str) -> None:
        """Remember a hash; a failure is ignored, since the file can be hashed again."""
        directory = self._usable_directory
        if directory is None:
            return
        with contextlib.suppress(OSError):
            descriptor, temporary = tempfile.mkstemp(dir=directory)
            try:
                with os.fdopen(descriptor, "w", encoding="ascii") as file:
                    file.write(_entry(state, digest))
                Path(temporary).replace(directory / _entry_name(state))
            except OSError:
                Path(temporary).unlink(missing_ok=True)
                raise
            _remove_oldest(directory)

    @functools.cached_property
    def _usable_directory(self) -> Path | None:
        if self._directory is None:
            return None
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self._directory.lstat()
        except OSError:
            return None
        private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
        return self._directory if private else None


def _entry_name(state: FileState) -> str:
    return hashlib.sha256(" ".join(map(str, state)).encode()).hexdigest()[:40]


def _entry(state: FileState, digest: str) -> str:
    """Return the content of an entry: the hash, the state, and a checksum of both."""
    text = " ".join([digest, *map(str, state)])
    return f"{text} {hashlib.sha256(text.encode()).hexdigest()[:16]}\n"


def _remove_oldest(directory: Path) -> None:
    """Remove the older half of the entries if there are too many."""
    entries = list(directory.iterdir())
    if len(entries) <= _MAX_ENTRIES:
        return
    dated = []
    for entry in entries:
        with contextlib.suppress(OSError):  # another process may have removed it
            dated.append((entry.stat().st_mtime_ns, entry))
    for _, entry in sorted(dated)[: len(dated) // 2]:
        entry.unlink(missing_ok=True)


def default_store_directory(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the directory of remembered hashes in the user's cache directory; None without a home directory."""
    caches = cache_folder(environment)
    return None if caches is None else caches / "birdie_zmq" / "file_hashes"


@dataclass(frozen=True)
class PendingHash:
    """A hash that is being computed.

    Attributes:
        path: The file.
        state: Its state when the hash was requested.
        future: The hash, in hexadecimal digits.
    """

    path: Path
    state: FileState
    future: Future[str]

    def result(self) -> str:
        """Wait for the hash, and return it if the file has not changed since the hash was requested.

        Raises:
            ModelLoadError: The file has changed, or cannot be read.
        """
        try:
            digest = self.future.result()
            now = FileState.of(self.path.stat())
        except OSError as error:
            raise ModelLoadError(f"{self.path} cannot be read ({error.strerror})") from error
        if not now.same_content(self.state):
            raise _changed(self.path)
        return digest


class FileHasher:
    """Hashes files, the large ones in daemon threads, and each state of a file only once.

    Args:
        store: Where hashes are remembered for later processes.
        now_ns: Returns the time in nanoseconds since the epoch.
    """

    def __init__(self, store: HashStore, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._store = store
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._known: dict[FileState, Future[str]] = {}
        # Daemon threads: a process that ends with an error must not wait for the hashes of its weights.
        self._slots = threading.BoundedSemaphore(MAX_THREADS)

    def submit(self, path: Path) -> PendingHash:
        """Start to hash a file.

        Raises:
            ModelLoadError: The file does not exist or cannot be read.
        """
        try:
            state = FileState.of(path.stat())
        except OSError as error:
            raise ModelLoadError(f"{path} cannot be read ({error.strerror})") from error
        future: Future[str] = Future()
        if state.size < _MIN_BACKGROUND_BYTES:
            self._compute(path, state, future, remember=False)
            return PendingHash(path, state, future)
        settled = state.is_settled(self._now_ns())
        if settled:
            with self._lock:
                known = self._known.setdefault(state, future)
            if known is not future:
                return PendingHash(path, state, known)
            digest = self._store.get(state)
            if digest is not None:
                future.set_result(digest)
                return PendingHash(path, state, future)
        threading.Thread(target=self._compute_in_turn, args=(path, state, future, settled), daemon=True).start()
        return PendingHash(path, state, future)

    def _compute_in_turn(self, path: Path, state: FileState, future: Future[str], remember: bool) -> None:
        with self._slots:
            self._compute(path, state, future, remember)

    def _compute(self, path: Path, state: FileState, future: Future[str], remember: bool) -> None:
        try:
            digest = _hash_file(path, state)
        except Exception as error:  # noqa: BLE001 - raised by result()
            if remember:
                with self._lock:
                    del self._known[state]  # The next attempt reads the file again.
            future.set_exception(error)
            return
        if remember:
            self._store.put(state, digest)
        future.set_result(digest)


@functools.cache
def shared_hasher() -> FileHasher:
    """Return the hasher of this process, which remembers hashes in the user's cache directory."""
    return FileHasher(HashStore(default_store_directory()))


def _hash_file(path: Path, state: FileState) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits.

    Raises:
        OSError: The file cannot be read.
        ModelLoadError: The file was not in this state before and after it was read.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, max(1, state.size))))
    with path.open("rb", buffering=0) as file:
        before = FileState.of(os.fstat(file.fileno()))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
        after = FileState.of(os.fstat(file.fileno()))
    if not (before.same_content(state) and after.same_content(state)):
        raise _changed(path)
    return digest.hexdigest()


def _changed(path: Path) -> ModelLoadError:
    return ModelLoadError(
        f"{path} was changed while the model was loaded, so its content is not known; start the run again when the file is "
        "complete"
    )
