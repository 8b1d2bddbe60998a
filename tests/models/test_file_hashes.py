"""Hashes of files are those of their content, are remembered only while the file is unchanged, and survive no damage."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from birdie_zmq.errors import ModelLoadError
from birdie_zmq.models import file_hashes as module
from birdie_zmq.models.file_hashes import FileHasher, FileState, HashStore, default_store_directory

LARGE = 3 * (1 << 20) + 7
OLD_NS = 1_500_000_000_000_000_001


@pytest.fixture
def store_directory(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "hashes"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(LARGE))
    return path


class Reads:
    """Counts how often files are read, and may act in the middle of a read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[Path] = []
        self.before: Callable[[], None] = lambda: None
        original = module._hash_file

        def read(path: Path, state: FileState) -> str:
            self.paths.append(path)
            self.before()
            return original(path, state)

        monkeypatch.setattr(module, "_hash_file", read)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


def later() -> int:
    """Return a time at which the files of a test have settled."""
    return time.time_ns() + 60_000_000_000


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hasher(directory: Path | None) -> FileHasher:
    return FileHasher(HashStore(directory), later)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, LARGE])
def test_hash_is_the_sha256_of_the_whole_file(tmp_path: Path, store_directory: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    assert hasher(store_directory).submit(path).result() == sha256(path)


def test_large_file_is_read_once_per_process_and_once_per_store(
    weights: Path, store_directory: Path, reads: Reads
) -> None:
    first = hasher(store_directory)
    assert first.submit(weights).result() == first.submit(weights).result() == sha256(weights)
    assert reads.paths == [weights]
    assert hasher(store_directory).submit(weights).result() == sha256(weights)
    assert reads.paths == [weights]
    assert hasher(None).submit(weights).result() == sha256(weights)
    assert reads.paths == [weights] * 2


def test_a_hard_link_and_a_symbolic_link_need_no_reading(weights: Path, store_directory: Path, reads: Reads) -> None:
    os.link(weights, weights.with_name("hard"))
    weights.with_name("soft").symlink_to(weights)
    one = hasher(store_directory)
    names = ("model.safetensors", "hard", "soft")
    assert {one.submit(weights.with_name(name)).result() for name in names} == {sha256(weights)}
    assert len(reads.paths) == 1


def test_other_content_with_equal_size_and_restored_times_is_hashed_again(weights: Path, store_directory: Path) -> None:
    os.utime(weights, ns=(OLD_NS, OLD_NS))
    one = hasher(store_directory)
    before = one.submit(weights).result()
    time.sleep(0.02)  # a tick of the file system's clock
    weights.write_bytes(os.urandom(LARGE))
    os.utime(weights, ns=(OLD_NS, OLD_NS))
    for each in (one, hasher(store_directory)):
        assert each.submit(weights).result() == sha256(weights) != before


@pytest.mark.parametrize("age_ns", [0, 1_999_999_999, -3_600_000_000_000])
def test_hash_of_a_file_that_has_just_changed_is_not_remembered(
    weights: Path, store_directory: Path, reads: Reads, age_ns: int
) -> None:
    changed_at = weights.stat().st_ctime_ns
    one = FileHasher(HashStore(store_directory), lambda: changed_at + age_ns)
    for _ in range(2):
        assert one.submit(weights).result() == sha256(weights)
    assert len(reads.paths) == 2
    assert not store_directory.exists()


@pytest.mark.parametrize(
    ("ctime_ns", "settled"), [(5_000_000_001, True), (5_000_000_000, False), (8_000_000_001, False)]
)
def test_state_is_settled_two_seconds_after_a_change_with_a_fine_clock(ctime_ns: int, settled: bool) -> None:
    assert FileState(1, 2, 3, 4, ctime_ns).is_settled(10_000_000_000) == settled


def test_file_that_is_changed_after_its_hash_was_requested_is_an_error(weights: Path, store_directory: Path) -> None:
    for size in (10, LARGE):
        weights.write_bytes(os.urandom(size))
        pending = hasher(store_directory).submit(weights)
        pending.future.result()
        time.sleep(0.02)
        weights.write_bytes(os.urandom(size))
        with pytest.raises(ModelLoadError, match=r"model\.safetensors was changed while the model was loaded"):
            pending.result()


def test_file_that_is_changed_while_it_is_read_is_an_error_and_can_be_read_again(
    weights: Path, store_directory: Path, reads: Reads
) -> None:
    one = hasher(store_directory)

    def overwrite() -> None:
        weights.write_bytes(os.urandom(LARGE))

    reads.before = overwrite
    with pytest.raises(ModelLoadError, match=r"model\.safetensors was changed"):
        one.submit(weights).result()
    reads.before = lambda: None
    assert one.submit(weights).result() == sha256(weights)


def test_missing_file_is_an_error(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"none cannot be read \(No such file or directory\)"):
        hasher(None).submit(tmp_path / "none")
    pending = hasher(None).submit(weights)
    pending.future.result()
    weights.unlink()
    with pytest.raises(ModelLoadError, match=r"safetensors cannot be read \(No such file or directory\)"):
        pending.result()


def test_a_bounded_number_of_files_is_read_at_once(tmp_path: Path, reads: Reads) -> None:
    active, most, lock = 0, 0, threading.Lock()
    full = threading.Event()

    def enter() -> None:
        nonlocal active, most
        with lock:
            active += 1
            most = max(most, active)
            if active == module.MAX_THREADS:
                full.set()
        full.wait(10)
        time.sleep(0.01)
        with lock:
            active -= 1

    reads.before = enter
    one = hasher(None)
    paths = [tmp_path / str(number) for number in range(3 * module.MAX_THREADS)]
    for path in paths:
        path.write_bytes(bytes(1 << 20) + path.name.encode())
    started = [one.submit(path) for path in paths]
    assert [pending.result() for pending in started] == [sha256(path) for path in paths]
    assert most == module.MAX_THREADS


# --- The store -------------------------------------------------------------------------------------------------------

STATE = FileState(1, 2, 3, 4, 5)
DIGEST = "a" * 64


def test_stored_hash_is_found_by_another_store_for_the_same_state_only(store_directory: Path) -> None:
    HashStore(store_directory).put(STATE, DIGEST)
    other = HashStore(store_directory)
    assert other.get(STATE) == DIGEST
    for field in STATE._fields:
        assert other.get(STATE._replace(**{field: 9})) is None
    assert store_directory.stat().st_mode & 0o777 == 0o700
    assert len(list(store_directory.iterdir())) == 1


def test_damaged_entry_is_ignored_and_replaced(store_directory: Path) -> None:
    store = HashStore(store_directory)
    store.put(STATE, DIGEST)
    (entry,) = store_directory.iterdir()
    content = entry.read_bytes()
    for damaged in (b"", content[:-1], content[:70], content.replace(b"a", b"b", 1), b"\xff" * 99, content + b"\n"):
        entry.write_bytes(damaged)
        assert store.get(STATE) is None
    store.put(STATE, DIGEST)
    assert store.get(STATE) == DIGEST


def test_entry_under_the_name_of_another_state_is_ignored(store_directory: Path) -> None:
    store = HashStore(store_directory)
    store.put(STATE, DIGEST)
    (entry,) = store_directory.iterdir()
    entry.rename(store_directory / module._entry_name(STATE._replace(size=9)))
    assert store.get(STATE._replace(size=9)) is None


@pytest.mark.parametrize("place", ["none", "file", "link", "open", "below a file"])
def test_a_directory_that_is_not_private_is_not_used(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o770)
    (tmp_path / "private").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "private")
    directories = {"none": None, "below a file": tmp_path / "file" / "hashes"}
    store = HashStore(directories.get(place, tmp_path / place))
    store.put(STATE, DIGEST)
    assert store.get(STATE) is None
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "link", "open", "private"]


def test_the_oldest_entries_are_removed_from_a_full_store(
    store_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_ENTRIES", 4)
    store = HashStore(store_directory)
    states = [STATE._replace(inode=number) for number in range(5)]
    for number, state in enumerate(states):
        store.put(state, DIGEST)
        if number < 4:
            os.utime(store_directory / module._entry_name(state), ns=(number, number))
    assert [store.get(state) is not None for state in states] == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("environment", "home", "expected"),
    [
        ({"XDG_CACHE_HOME": "/caches"}, "/home/me", "/caches/birdie_zmq/file_hashes"),
        ({"XDG_CACHE_HOME": ""}, "/home/me", "/home/me/.cache/birdie_zmq/file_hashes"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me", "/home/me/.cache/birdie_zmq/file_hashes"),
        ({}, None, None),
    ],
)
def test_hashes_are_in_the_users_cache_directory(
    environment: dict[str, str], home: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_home() -> Path:
        if home is None:
            raise RuntimeError("Could not determine home directory.")
        return Path(home)

    monkeypatch.setattr(Path, "home", find_home)
    assert default_store_directory(environment) == (None if expected is None else Path(expected))
