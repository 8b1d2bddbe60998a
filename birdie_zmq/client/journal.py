"""A file of answers that persists when a run is killed, so that its requests need not be sent again.

Every answer is one line (`journal_records`), and is written to the file before it is delivered to the caller. Runs may share
a file: each append is one write at the end of the file, under a lock that the kernel releases when its owner dies. The next
writer removes an incomplete line that a killed writer may have left.

On a file system without locks, a warning says that no other run should write to the file. If one does, a line may be damaged,
which its checksum reveals: its request is computed again.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import logging
import os
import stat
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from birdie_zmq.client.journal_records import (
    DATE_KEY,
    HEADER,
    RecordedAnswer,
    ScanResult,
    encode_record,
    header_error,
    scan,
)
from birdie_zmq.errors import UsageError

logger = logging.getLogger("lm_eval.birdie_zmq")

_BLOCK_BYTES = 1 << 20
_SYNC_S = 5.0
"""Minimum seconds between syncs. A crash of the machine (not of the run) may lose the answers since the last sync."""

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
"""The errors of flock on file systems without locks, such as NFS without a lock service, Lustre and some FUSE."""

# Darwin has no fdatasync.
_sync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


class Journal:
    """An open journal, which is created if it does not exist. Threads and processes may share it.

    Args:
        path: The file. A new file can be read by this user only; an existing file keeps its mode.
        clock: A monotonic clock, in seconds.

    Raises:
        UsageError: The file cannot be read and written, or is not a journal of this version; the file is unchanged then.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._thread_lock = threading.Lock()  # flock does not exclude threads of the same process.
        self._damaged = 0
        self._failed = False
        self._has_locks = True
        with self._usage_errors():
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._finalizer = weakref.finalize(self, _close, self._file)
        try:
            with self._usage_errors():
                if not stat.S_ISREG(os.fstat(self._file).st_mode):
                    raise UsageError(f"resume={path} in model_args is not a regular file; give another path")
                with self._locked():
                    error = header_error(os.pread(self._file, 64, 0))
                    if error is not None:
                        raise UsageError(
                            f"resume={path} in model_args {error}; the file is unchanged: give another path, or move it away"
                        )
                    self._end_of_complete_lines()
                _sync(self._file)
        except BaseException:
            self.close()
            raise
        self._synced_at = clock()

    def close(self) -> None:
        """Sync the file to disk and close it; a second call does nothing.

        This also happens when the journal is garbage-collected, and at the interpreter's exit.
        """
        self._finalizer()

    def scan(self, keys: Collection[str]) -> ScanResult:
        """Find the recorded answers for these keys, whichever process wrote them, and count all answers.

        Raises:
            UsageError: The file can no longer be read, or has been closed.
        """
        with self._usage_errors():
            with self._locked():
                size = self._end_of_complete_lines()
            # Complete lines never change, so no lock is needed to read them.
            found = scan(self._blocks(size), keys)
        if found.damaged > self._damaged:
            logger.warning(
                "%s: damaged lines: %d; they are skipped, and their requests are sent again",
                self.path,
                found.damaged,
            )
            self._damaged = found.damaged
        return found

    def date(self, now: datetime.datetime) -> datetime.datetime:
        """Return the date of the prompts that the journal answers; record `now` if it has none.

        Raises:
            UsageError: The journal can no longer be read.
        """
        recorded = self.scan([DATE_KEY]).answers.get(DATE_KEY)
        if isinstance(recorded, str):
            with contextlib.suppress(ValueError):
                return datetime.datetime.fromisoformat(recorded)
        self.append(DATE_KEY, now.isoformat())
        return now

    def append(self, key: str, answer: RecordedAnswer) -> None:
        """Append an answer; when this returns, the answer survives the death of this process.

        If the write fails, for example on a full disk, a warning is logged and nothing more is recorded: the run is worth
        more than its journal.

        Raises:
            UsageError: The journal has been closed.
        """
        if self._failed:
            return
        line = encode_record(key, answer)
        try:
            with self._locked():
                self._append_at(self._end_of_complete_lines(), line)
            now = self._clock()
            if now - self._synced_at >= _SYNC_S:
                self._synced_at = now
                _sync(self._file)
        except OSError as error:
            self._failed = True
            logger.warning(
                "%s cannot be written (%s): the run continues, and further answers are not recorded",
                self.path,
                error.strerror,
            )

    @contextlib.contextmanager
    def _usage_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"resume={self.path} in model_args cannot be used ({error.strerror}); give a file that can be read and written, "
                "or a new name in an existing directory"
            ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._thread_lock:
            if not self._finalizer.alive:
                raise UsageError(f"the journal {self.path} has been closed")
            if self._has_locks:
                self._lock_file()
            try:
                yield
            finally:
                if self._has_locks:
                    fcntl.flock(self._file, fcntl.LOCK_UN)

    def _lock_file(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._has_locks = False
            logger.warning(
                "the file system of %s does not support locks (%s): let no other run write to this file at the same time, or "
                "some of its answers may be damaged and computed again",
                self.path,
                error.strerror,
            )

    def _end_of_complete_lines(self) -> int:
        """Return the offset of the next line, after removing an incomplete line of a killed writer. Needs the lock."""
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) == b"\n":
            return size
        end = self._after_last_newline(size)
        if end < size:
            logger.warning("%s: the last %d bytes are an incomplete line; removing them", self.path, size - end)
            os.ftruncate(self._file, end)
        if end == 0:
            self._append_at(0, HEADER)
            end = len(HEADER)
        return end

    def _after_last_newline(self, size: int) -> int:
        while size:
            start = max(0, size - _BLOCK_BYTES)
            at = os.pread(self._file, size - start, start).rfind(b"\n")
            if at >= 0:
                return start + at + 1
            size = start
        return 0

    def _append_at(self, end: int, line: bytes) -> None:
        """Append a line at offset `end`; if the disk has no space for the whole line, append nothing."""
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError:
            os.ftruncate(self._file, end)
            raise

    def _blocks(self, size: int) -> Iterator[bytes]:
        at = 0
        while at < size and (block := os.pread(self._file, min(_BLOCK_BYTES, size - at), at)):
            yield block
            at += len(block)


def _close(file: int) -> None:
    try:
        # A disk that fails here loses answers that the run has already used; nothing can be done about it.
        with contextlib.suppress(OSError):
            _sync(file)
    finally:
        os.close(file)
