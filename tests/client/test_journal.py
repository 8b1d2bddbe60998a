"""A journal keeps every recorded answer, however the process ends, and accepts only journal files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import logging
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.client import journal as module
from birdie_zmq.client.journal import Journal
from birdie_zmq.client.journal_records import HEADER, RecordedAnswer, encode_record
from birdie_zmq.errors import UsageError

answers: st.SearchStrategy[RecordedAnswer] = st.one_of(
    st.floats(allow_nan=False), st.tuples(st.floats(-99, 0), st.booleans()), st.text(max_size=20)
)


def key(number: int) -> str:
    return f"{number:032x}"


KEYS = {key(number) for number in range(100)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.journal"


def write(path: Path, *answers: RecordedAnswer) -> bytes:
    """Write a journal with these answers, under the keys 0, 1, …, and return its bytes."""
    with contextlib.closing(Journal(path)) as journal:
        for number, answer in enumerate(answers):
            journal.append(key(number), answer)
    return path.read_bytes()


def read(path: Path) -> dict[str, RecordedAnswer]:
    with contextlib.closing(Journal(path)) as journal:
        return journal.scan(KEYS).answers


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- Files of killed runs --------------------------------------------------------------------------------------------


def test_recorded_answers_are_found_by_this_run_and_the_next(path: Path) -> None:
    with contextlib.closing(Journal(path)) as journal:
        assert journal.scan(KEYS).answers == {}
        journal.append(key(1), (-1.5, True))
        journal.append(key(2), "é\n")
        assert journal.scan({key(2), key(3)}).answers == {key(2): "é\n"}

    assert read(path) == {key(1): (-1.5, True), key(2): "é\n"}


@given(st.lists(answers, max_size=5), st.data())
def test_a_truncated_file_keeps_its_complete_lines_and_can_be_appended_to(
    answers: list[RecordedAnswer], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        content = write(path, *answers)
        end = data.draw(st.integers(0, len(content)))
        os.truncate(path, end)
        ends = [len(HEADER)]
        for number, answer in enumerate(answers):
            ends.append(ends[-1] + len(encode_record(key(number), answer)))
        complete = {key(n): answer for n, answer in enumerate(answers) if ends[n + 1] <= end}

        assert repr(read(path)) == repr(complete)
        with contextlib.closing(Journal(path)) as journal:
            journal.append(key(99), "after")
        assert repr(read(path)) == repr({**complete, key(99): "after"})


def test_every_truncation_is_repaired_with_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = write(path, (-1.25, False), -2.5, "three")
    starts = [at + 1 for at, byte in enumerate(content) if byte == ord("\n")]
    for end in range(len(content) + 1):
        path.write_bytes(content[:end])
        caplog.clear()
        found = read(path)

        start = max((s for s in starts if s <= end), default=0)
        assert len(found) == max(0, starts.index(start)) if start else found == {}
        assert path.read_bytes() == (content[:start] or HEADER)
        expected = (
            [f"{path}: the last {end - start} bytes are an incomplete line; removing them"] if end > start else []
        )
        assert warnings(caplog) == expected


def test_an_incomplete_line_of_another_writer_is_removed_before_the_next_answer(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(Journal(path)) as journal:
        journal.append(key(1), -1.0)
        with path.open("ab") as writer:
            writer.write(b"0b9a27fa [\x00\xff")
        journal.append(key(2), -2.0)

    assert warnings(caplog) == [f"{path}: the last 12 bytes are an incomplete line; removing them"]
    assert path.read_bytes() == HEADER + encode_record(key(1), -1.0) + encode_record(key(2), -2.0)


def test_an_incomplete_line_longer_than_a_block_is_removed(path: Path) -> None:
    content = write(path, "y" * module._BLOCK_BYTES, -1.0)
    path.write_bytes(content + b"x" * (2 * module._BLOCK_BYTES + 7))

    assert read(path)[key(1)] == -1.0
    assert path.read_bytes() == content


def test_lines_across_blocks_are_read(path: Path) -> None:
    long = "y" * (module._BLOCK_BYTES + 3)
    write(path, long, -1.0, long)

    assert read(path) == {key(0): long, key(1): -1.0, key(2): long}


def test_damaged_lines_are_skipped_reported_once_and_kept(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = bytearray(write(path, -1.0, -2.0, -3.0))
    content[len(HEADER) + 12] ^= 1
    content[-5] ^= 1
    path.write_bytes(content)
    with contextlib.closing(Journal(path)) as journal:
        assert journal.scan(KEYS).answers == {key(1): -2.0}
        assert journal.scan(KEYS).answers == {key(1): -2.0}
        journal.append(key(0), -1.5)
        assert journal.scan(KEYS).answers == {key(0): -1.5, key(1): -2.0}

    (warning,) = warnings(caplog)
    assert warning.startswith(f"{path}: damaged lines: 2;")
    assert path.read_bytes().startswith(bytes(content))


def test_the_first_answer_of_a_key_counts(path: Path) -> None:
    with contextlib.closing(Journal(path)) as journal:
        journal.append(key(1), -1.0)
        journal.append(key(1), -2.0)

    assert read(path) == {key(1): -1.0}


def test_a_file_that_was_emptied_meanwhile_gets_a_new_header(path: Path) -> None:
    with contextlib.closing(Journal(path)) as journal:
        journal.append(key(1), -1.0)
        os.truncate(path, 0)
        journal.append(key(2), -2.0)

    assert read(path) == {key(2): -2.0}


# --- Files that are refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"some notes\n", "is not a birdie-zmq journal"),
        (b"no newline", "is not a birdie-zmq journal"),
        (b"SQLite format 3\x00" + bytes(84), "is not a birdie-zmq journal"),
        (b"birdie_zmq journal 2\nwhatever", "is a journal of another version"),
    ],
)
def test_a_file_that_is_not_a_journal_is_refused_and_unchanged(path: Path, content: bytes, error: str) -> None:
    path.write_bytes(content)
    before = path.stat()

    with pytest.raises(UsageError, match=error) as caught:
        Journal(path)

    assert f"resume={path}" in caught.value.message
    assert "give another path, or move it away" in caught.value.message
    assert path.read_bytes() == content
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_path_that_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    for name, reason in [
        (".", "Is a directory"),
        ("none/journal", "No such file or directory"),
        ("file/journal", "Not a directory"),
        ("loop", "symbolic links"),
        ("pipe", "not a regular file"),
    ]:
        with pytest.raises(UsageError, match=reason) as caught:
            Journal(tmp_path / name)
        assert f"resume={tmp_path / name}" in caught.value.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root can access every file")
@pytest.mark.parametrize("mode", [0o400, 0o200])
def test_a_file_that_cannot_be_read_or_written_is_refused(path: Path, mode: int) -> None:
    path.touch(mode=mode)

    with pytest.raises(UsageError, match="Permission denied"):
        Journal(path)


def test_a_new_journal_is_private_and_an_existing_one_keeps_its_mode(path: Path) -> None:
    umask = os.umask(0)
    try:
        write(path, -1.0)
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o600

    path.chmod(0o664)
    write(path, -1.0)
    assert path.stat().st_mode & 0o777 == 0o664


# --- The disk --------------------------------------------------------------------------------------------------------


def test_the_file_is_synced_every_few_seconds_and_at_close(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(module, "_sync", lambda file: synced.append(os.fstat(file).st_size))
    now = 100.0
    journal = Journal(path, clock=lambda: now)
    assert synced == [len(HEADER)]
    sizes = []
    for seconds in (0.0, 4.9, 0.2, 4.9, 60.0, 0.1):
        now += seconds
        journal.append(key(1), -1.0)
        sizes.append(path.stat().st_size)
    assert synced[1:] == [sizes[2], sizes[4]]
    journal.close()
    assert synced[3:] == [sizes[-1]]


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Limit the size of files, in bytes: a write beyond the limit is cut short and then fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_stops_recording_but_not_the_run(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = write(path, -1.0)
    with contextlib.closing(Journal(path)) as journal:
        with file_size_limit(len(content) + 10):
            journal.append(key(1), "does not fit")
            assert path.read_bytes() == content
            journal.append(key(2), "nor this")
        journal.append(key(3), "would fit again")

        assert journal.scan(KEYS).answers == {key(0): -1.0}
    assert path.read_bytes() == content
    (warning,) = warnings(caplog)
    assert warning.startswith(f"{path} cannot be written (File too large)")


def test_a_closed_journal_raises_and_touches_no_other_file(path: Path, tmp_path: Path) -> None:
    journal = Journal(path)
    journal.close()
    journal.close()
    with (tmp_path / "other").open("wb") as other:
        assert other.fileno() == journal._file  # The descriptor now belongs to another file.

        with pytest.raises(UsageError, match="has been closed"):
            journal.append(key(1), -1.0)
        with pytest.raises(UsageError, match="has been closed"):
            journal.scan(KEYS)
    assert (tmp_path / "other").read_bytes() == b""


def test_a_garbage_collected_journal_is_closed(path: Path) -> None:
    journal = Journal(path)
    file = journal._file
    os.fstat(file)
    del journal
    gc.collect()

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


# --- File systems without locks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_answers_are_recorded_after_one_warning(
    path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with contextlib.closing(Journal(path)) as journal:
        journal.append(key(0), -1.5)
        journal.append(key(1), "text")
        assert journal.scan(KEYS).answers == {key(0): -1.5, key(1): "text"}
    (warning,) = warnings(caplog)
    assert f"does not support locks ({os.strerror(number)})" in warning
    assert "let no other run write to this file" in warning


def test_a_lock_that_fails_for_another_reason_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UsageError, match="Input/output error"):
        Journal(path)
