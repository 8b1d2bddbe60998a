"""A file of answers that outlives a killed run: what is in it need not be asked again.

Every answer is a line of its own (`records`), and is in the file before anybody else is told of it. Runs may share a
file: each append is one write behind the end, under a lock that the kernel takes from a process that dies. Whoever has
the lock next cuts off the half of a line that such a process may have left.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from birdie_zmq.client.journal_records import HEADER, Recorded, encode_record, fault_of_beginning, scan
from birdie_zmq.errors import UsageError

logger = logging.getLogger("birdie_zmq.client")

_BLOCK_BYTES = 1 << 20
_SYNC_S = 5.0
"""How often the disk is waited for, at most. Until then a crash of the machine, not of the run, may take answers."""

# Darwin has no fdatasync.
_sync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


class Journal:
    """An open journal, which is made if there is none. Threads and processes may share it.

    Args:
        path: The file. A new one can be read by this user only; the mode of one that is there stays.
        clock: Seconds that only grow.
        log: Where lines for the person at the prompt go.

    Raises:
        UsageError: It cannot be read and written, or is no journal of this version; it is as it was then.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic, log: logging.Logger = logger) -> None:
        self.path = path
        self._clock = clock
        self._log = log
        self._thread_lock = threading.Lock()  # flock does not keep the threads of one process apart.
        self._damaged = 0
        self._failed = False
        with self._usable():
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._finalizer = weakref.finalize(self, _close, self._file)
        try:
            with self._usable():
                if not stat.S_ISREG(os.fstat(self._file).st_mode):
                    raise UsageError(f"resume={path} in model_args is no regular file; give another path")
                with self._locked():
                    fault = fault_of_beginning(os.pread(self._file, 64, 0))
                    if fault is not None:
                        raise UsageError(
                            f"resume={path} in model_args {fault}; it was left as it is: give another path, or move it away"
                        )
                    self._end_of_whole_lines()
                _sync(self._file)
        except BaseException:
            self.close()
            raise
        self._synced_at = clock()

    def close(self) -> None:
        """Wait until all is on the disk, and close the file; a second time, do nothing.

        It also happens when the journal is forgotten, and at the interpreter's exit.
        """
        self._finalizer()

    def find(self, wanted: Collection[str]) -> dict[str, Recorded]:
        """The answers under these keys that are there, whoever wrote them.

        Raises:
            UsageError: The file can no longer be read, or has been closed.
        """
        with self._usable():
            with self._locked():
                size = self._end_of_whole_lines()
            # Whole lines never change, so no lock is needed to read them.
            found = scan(self._blocks(size), wanted)
        if found.damaged > self._damaged:
            self._log.warning(
                "%s: damaged lines: %d; they are passed over, and what they answered is asked again",
                self.path,
                found.damaged,
            )
            self._damaged = found.damaged
        return found.answers

    def append(self, key: str, answer: Recorded) -> None:
        """Write down an answer; it is safe from the end of this process when this returns.

        If that fails, as on a full disk, a line is logged and nothing is written down any more: the run is worth more.

        Raises:
            UsageError: The journal has been closed.
        """
        if self._failed:
            return
        line = encode_record(key, answer)
        try:
            with self._locked():
                self._write_behind(self._end_of_whole_lines(), line)
            now = self._clock()
            if now - self._synced_at >= _SYNC_S:
                self._synced_at = now
                _sync(self._file)
        except OSError as error:
            self._failed = True
            self._log.warning(
                "%s cannot be written (%s): the run goes on, and its further answers are not written down",
                self.path,
                error.strerror,
            )

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"resume={self.path} in model_args cannot be used ({error.strerror}); give a file that can be read and written, "
                "or a new name in a directory that exists"
            ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._thread_lock:
            if not self._finalizer.alive:
                raise UsageError(f"the journal {self.path} has been closed")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _end_of_whole_lines(self) -> int:
        """Where the next line goes, once what a killed writer left is cut off. Needs the lock."""
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) == b"\n":
            return size
        end = self._behind_last_newline(size)
        if end < size:
            self._log.warning("%s: the last %d bytes are half of a line, and are cut off", self.path, size - end)
            os.ftruncate(self._file, end)
        if end == 0:
            self._write_behind(0, HEADER)
            end = len(HEADER)
        return end

    def _behind_last_newline(self, size: int) -> int:
        while size:
            start = max(0, size - _BLOCK_BYTES)
            at = os.pread(self._file, size - start, start).rfind(b"\n")
            if at >= 0:
                return start + at + 1
            size = start
        return 0

    def _write_behind(self, end: int, line: bytes) -> None:
        """Append a line; where there is room for a part of it only, not even that."""
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
        # A disk that fails here takes answers that the run has used already; there is nothing to be done about it.
        with contextlib.suppress(OSError):
            _sync(file)
    finally:
        os.close(file)
