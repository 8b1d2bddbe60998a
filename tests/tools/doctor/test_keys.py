"""Key files that others may read, and files that are no keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from birdie_zmq.protocol.security.keys import new_key
from birdie_zmq.tools.doctor import keys


@pytest.fixture
def private(tmp_path: Path) -> Path:
    return new_key(tmp_path / "keys", "client", "alice")


def test_keys_that_are_closed_are_as_they_should_be(private: Path, tmp_path: Path) -> None:
    (file,) = keys.key_file_findings(private)
    (folder,) = keys.folder_findings(tmp_path / "keys")

    assert (file.level, folder.level) == ("ok", "ok")
    assert "client 'alice'" in file.text
    assert folder.text.endswith("lets in 1")


def test_where_there_are_no_keys_nothing_is_said(tmp_path: Path) -> None:
    assert keys.key_file_findings(None) == keys.folder_findings(tmp_path / "keys") == []


@pytest.mark.parametrize(
    ("name", "mode"),
    [("", 0o755), ("broker", 0o644), ("clients", 0o750), ("clients/alice", 0o604), ("private", 0o711)],
)
def test_what_others_may_read_in_the_folder_is_closed(private: Path, tmp_path: Path, name: str, mode: int) -> None:
    path = tmp_path / "keys" / name
    closed = 0o700 if path.is_dir() else 0o600
    path.chmod(mode)

    (one,) = keys.folder_findings(tmp_path / "keys")

    assert (one.level, one.cure) == ("wrong", f"chmod {closed:o} {path}")


def test_a_private_file_that_others_may_read_is_closed(private: Path, tmp_path: Path) -> None:
    private.chmod(0o644)

    (file,) = keys.key_file_findings(private)
    (folder,) = keys.folder_findings(tmp_path / "keys")

    assert file.level == folder.level == "wrong"
    assert file.cure == folder.cure == f"chmod 600 {private}"


def test_a_file_that_is_no_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "page.py"
    path.touch(0o600)

    (one,) = keys.key_file_findings(path)
    (missing,) = keys.key_file_findings(tmp_path / "nothing")

    assert one.level == missing.level == "wrong"
    assert "no key file" in one.text
    assert one.cure.startswith("birdie-zmq keys new")
