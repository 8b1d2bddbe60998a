"""A journal keeps every answer that it has taken, whatever ends the process, and takes no file that is not its own."""

from __future__ import annotations

import contextlib
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
from birdie_zmq.client.journal_records import HEADER, Recorded, encode_record
from birdie_zmq.errors import UsageError

answers: st.SearchStrategy[Recorded] = st.one_of(
    st.floats(allow_nan=False), st.tuples(st.floats(-99, 0), st.booleans()), st.text(max_size=20)
)


def key(number: int) -> str:
    return f"{number:032x}"


KEYS = {key(number) for number in range(100)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.journal"


def write(path: Path, *answers: Recorded) -> bytes:
    """A journal with these answers, under the keys 0, 1, …, as bytes."""
    with contextlib.closing(Journal(path)) as journal:
        for number, answer in enumerate(answers):
            journal.append(key(number), answer)
    return path.read_bytes()


def read(path: Path) -> dict[str, Recorded]:
    with contextlib.closing(Journal(path)) as journal:
        return journal.find(KEYS)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- What a kill leaves ----------------------------------------------------------------------------------------------


def test_what_is_written_is_found_by_this_run_and_by_the_next(path: Path) -> None:
    with contextlib.closing(Journal(path)) as journal:
        assert journal.find(KEYS) == {}
        journal.append(key(1), (-1.5, True))
        journal.append(key(2), "é\n")
        assert journal.find({key(2), key(3)}) == {key(2): "é\n"}

    assert read(path) == {key(1): (-1.5, True), key(2): "é\n"}


@given(st.lists(answers, max_size=5), st.data())
def test_a_file_cut_anywhere_has_what_stands_before_and_can_be_gone_on_with(
    answers: list[Recorded], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        content = write(path, *answers)
        end = data.draw(st.integers(0, len(content)))
        os.truncate(path, end)
        ends = [len(HEADER)]
        for number, answer in enumerate(answers):
            ends.append(ends[-1] + len(encode_record(key(number), answer)))
        whole = {key(n): answer for n, answer in enumerate(answers) if ends[n + 1] <= end}

        assert repr(read(path)) == repr(whole)
        with contextlib.closing(Journal(path)) as journal:
            journal.append(key(99), "after")
        assert repr(read(path)) == repr({**whole, key(99): "after"})


def test_every_single_cut_is_mended_and_what_is_cut_off_is_said(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = write(path, (-1.25, False), -2.5, "three")
    starts = [at + 1 for at, byte in enumerate(content) if byte == ord("\n")]
    for end in range(len(content) + 1):
        path.write_bytes(content[:end])
        caplog.clear()
        found = read(path)

        start = max((s for s in starts if s <= end), default=0)
        assert len(found) == max(0, starts.index(start)) if start else found == {}
        assert path.read_bytes() == (content[:start] or HEADER)
        lost = [f"{path}: the last {end - start} bytes are half of a line, and are cut off"] if end > start else []
        assert warnings(caplog) == lost


def test_what_another_writer_left_is_cut_off_before_the_next_answer(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(Journal(path)) as journal:
        journal.append(key(1), -1.0)
        with path.open("ab") as killed:
            killed.write(b"0b9a27fa [\x00\xff")
        journal.append(key(2), -2.0)

    assert warnings(caplog) == [f"{path}: the last 12 bytes are half of a line, and are cut off"]
    assert path.read_bytes() == HEADER + encode_record(key(1), -1.0) + encode_record(key(2), -2.0)


def test_a_torn_line_longer_than_any_block_is_cut_off(path: Path) -> None:
    content = write(path, "y" * module._BLOCK_BYTES, -1.0)
    path.write_bytes(content + b"x" * (2 * module._BLOCK_BYTES + 7))

    assert read(path)[key(1)] == -1.0
    assert path.read_bytes() == content


def test_lines_across_blocks_are_read(path: Path) -> None:
    long = "y" * (module._BLOCK_BYTES + 3)
    write(path, long, -1.0, long)

    assert read(path) == {key(0): long, key(1): -1.0, key(2): long}


def test_damaged_lines_are_passed_over_counted_once_and_left(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = bytearray(write(path, -1.0, -2.0, -3.0))
    content[len(HEADER) + 12] ^= 1
    content[-5] ^= 1
    path.write_bytes(content)
    with contextlib.closing(Journal(path)) as journal:
        assert journal.find(KEYS) == {key(1): -2.0}
        assert journal.find(KEYS) == {key(1): -2.0}
        journal.append(key(0), -1.5)
        assert journal.find(KEYS) == {key(0): -1.5, key(1): -2.0}

    (warning,) = warnings(caplog)
    assert warning.startswith(f"{path}: damaged lines: 2;")
    assert path.read_bytes().startswith(bytes(content))


def test_the_first_answer_under_a_key_stays(path: Path) -> None:
    with contextlib.closing(Journal(path)) as journal:
        journal.append(key(1), -1.0)
        journal.append(key(1), -2.0)

    assert read(path) == {key(1): -1.0}


def test_a_file_that_was_emptied_meanwhile_is_begun_again(path: Path) -> None:
    with contextlib.closing(Journal(path)) as journal:
        journal.append(key(1), -1.0)
        os.truncate(path, 0)
        journal.append(key(2), -2.0)

    assert read(path) == {key(2): -2.0}


# --- Files that are not taken ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"some notes\n", "is no journal of birdie-zmq's"),
        (b"no newline", "is no journal of birdie-zmq's"),
        (b"SQLite format 3\x00" + bytes(84), "is no journal of birdie-zmq's"),
        (b"birdie_zmq journal 2\nwhatever", "is a journal of another version"),
    ],
)
def test_a_file_that_is_not_ours_is_refused_and_left_as_it_is(path: Path, content: bytes, fault: str) -> None:
    path.write_bytes(content)
    before = path.stat()

    with pytest.raises(UsageError, match=fault) as caught:
        Journal(path)

    assert f"resume={path}" in caught.value.message
    assert "give another path, or move it away" in caught.value.message
    assert path.read_bytes() == content
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_what_cannot_be_a_file_is_refused_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    for name, reason in [
        (".", "Is a directory"),
        ("none/journal", "No such file or directory"),
        ("file/journal", "Not a directory"),
        ("loop", "symbolic links"),
        ("pipe", "no regular file"),
    ]:
        with pytest.raises(UsageError, match=reason) as caught:
            Journal(tmp_path / name)
        assert f"resume={tmp_path / name}" in caught.value.message


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
@pytest.mark.parametrize("mode", [0o400, 0o200])
def test_a_file_that_cannot_be_read_or_written_is_refused(path: Path, mode: int) -> None:
    path.touch(mode=mode)

    with pytest.raises(UsageError, match="Permission denied"):
        Journal(path)


def test_a_new_journal_is_private_and_an_old_one_keeps_its_mode(path: Path) -> None:
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


def test_the_disk_is_waited_for_every_few_seconds_and_at_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def room_for(size: int) -> Iterator[None]:
    """No file can grow beyond this many bytes: a write gets so far and then fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_the_writing_and_not_the_run(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = write(path, -1.0)
    with contextlib.closing(Journal(path)) as journal:
        with room_for(len(content) + 10):
            journal.append(key(1), "does not fit")
            assert path.read_bytes() == content
            journal.append(key(2), "nor this")
        journal.append(key(3), "would fit again")

        assert journal.find(KEYS) == {key(0): -1.0}
    assert path.read_bytes() == content
    (warning,) = warnings(caplog)
    assert warning.startswith(f"{path} cannot be written (File too large)")


def test_a_journal_that_was_closed_says_so_and_touches_no_other_file(path: Path, tmp_path: Path) -> None:
    journal = Journal(path)
    journal.close()
    journal.close()
    with (tmp_path / "other").open("wb") as other:
        assert other.fileno() == journal._file  # the number is another file's now

        with pytest.raises(UsageError, match="has been closed"):
            journal.append(key(1), -1.0)
        with pytest.raises(UsageError, match="has been closed"):
            journal.find(KEYS)
    assert (tmp_path / "other").read_bytes() == b""


def test_a_journal_that_was_forgotten_is_closed(path: Path) -> None:
    journal = Journal(path)
    file = journal._file
    os.fstat(file)
    del journal
    gc.collect()

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)
