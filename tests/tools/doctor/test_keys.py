"""Key files that others can read, and files that are not keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from birdie_zmq.protocol.security.keys import new_key
from birdie_zmq.tools.doctor import keys


@pytest.fixture
def private(tmp_path: Path) -> Path:
    return new_key(tmp_path / "keys", "client", "alice")


def test_private_keys_are_ok(private: Path, tmp_path: Path) -> None:
    (file,) = keys.key_file_findings(private)
    (folder,) = keys.folder_findings(tmp_path / "keys")

    assert (file.level, folder.level) == ("ok", "ok")
    assert "client 'alice'" in file.text
    assert folder.text.endswith("allows 1 key")


def test_no_findings_without_keys(tmp_path: Path) -> None:
    assert keys.key_file_findings(None) == keys.folder_findings(tmp_path / "keys") == []


@pytest.mark.parametrize(
    ("name", "mode"),
    [("", 0o755), ("broker", 0o644), ("clients", 0o750), ("clients/alice", 0o604), ("private", 0o711)],
)
def test_key_folder_readable_by_others_names_the_chmod(private: Path, tmp_path: Path, name: str, mode: int) -> None:
    path = tmp_path / "keys" / name
    private_mode = 0o700 if path.is_dir() else 0o600
    path.chmod(mode)

    (one,) = keys.folder_findings(tmp_path / "keys")

    assert (one.level, one.fix) == ("wrong", f"chmod {private_mode:o} {path}")


def test_private_key_readable_by_others_names_the_chmod(private: Path, tmp_path: Path) -> None:
    private.chmod(0o644)

    (file,) = keys.key_file_findings(private)
    (folder,) = keys.folder_findings(tmp_path / "keys")

    assert file.level == folder.level == "wrong"
    assert file.fix == folder.fix == f"chmod 600 {private}"


def test_private_key_readable_by_its_group_names_the_option_and_the_chmod(private: Path) -> None:
    private.chmod(0o440)

    (finding,) = keys.key_file_findings(private)

    assert (finding.level, finding.fix) == ("wrong", f"chmod 600 {private}")
    assert finding.text.endswith("(allow_group_readable_keys=true in model_args).")
    (allowed,) = keys.key_file_findings(private, allow_group=True)
    assert allowed.level == "ok"


def test_invalid_key_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "api.py"
    path.touch(0o600)

    (one,) = keys.key_file_findings(path)
    (missing,) = keys.key_file_findings(tmp_path / "nothing")

    assert one.level == missing.level == "wrong"
    assert "is not a birdie-zmq key file" in one.text
    assert one.fix.startswith("birdie-zmq keys new")
