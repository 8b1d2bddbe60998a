"""Cache folders with wrong modes, full disks, and low limits of open files."""

from __future__ import annotations

from pathlib import Path

import pytest

from birdie_zmq.tools.doctor import machine

MIB = 2**20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "birdie_zmq" / "programs"
    made.mkdir(parents=True, mode=0o700)
    return made


def test_private_cache_folder_reports_its_size(folder: Path, tmp_path: Path) -> None:
    (folder / "one").write_bytes(b"\0" * 3 * MIB)

    one = machine.cache_finding({"XDG_CACHE_HOME": str(tmp_path)})

    assert (one.level, one.text) == ("ok", f"{folder} has 1 files, 3 MiB")


def test_missing_cache_folder_is_ok(tmp_path: Path) -> None:
    one = machine.cache_finding({"XDG_CACHE_HOME": str(tmp_path / "new")})

    assert one.level == "ok"
    assert not (tmp_path / "new").exists()


def test_no_home_for_the_cache_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54_321)  # has no entry in the user database

    one = machine.cache_finding({})

    assert (one.level, "no home directory" in one.text) == ("warning", True)
    assert one.fix is not None
    assert one.fix.startswith("export XDG_CACHE_HOME=")


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707])
def test_cache_folder_open_to_others_names_the_chmod(folder: Path, tmp_path: Path, mode: int) -> None:
    folder.chmod(mode)

    one = machine.cache_finding({"XDG_CACHE_HOME": str(tmp_path)})

    assert (one.level, one.fix) == ("warning", f"chmod 700 {folder}")
    assert f"mode {mode:04o}" in one.text


def test_file_instead_of_the_cache_folder_is_a_warning(folder: Path, tmp_path: Path) -> None:
    folder.rmdir()
    folder.touch()

    one = machine.cache_finding({"XDG_CACHE_HOME": str(tmp_path)})

    assert (one.level, one.fix) == ("warning", f"rm {folder}")


def test_uncreatable_cache_folder_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    one = machine.cache_finding({"XDG_CACHE_HOME": str(tmp_path / "file")})

    assert one.level == "warning"
    assert one.fix.startswith("export XDG_CACHE_HOME")


def test_unwritable_cache_folder_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests may run as root, who can write everywhere.
    monkeypatch.setattr("os.access", lambda *_: False)

    one = machine.cache_finding({"JAX_COMPILATION_CACHE_DIR": str(folder)})

    assert (one.level, one.fix) == ("warning", f"chmod 700 {folder}")


def test_disabled_cache_is_a_warning() -> None:
    one = machine.cache_finding({"JAX_ENABLE_COMPILATION_CACHE": "false"})

    assert (one.level, one.fix) == ("warning", "unset JAX_ENABLE_COMPILATION_CACHE")


def test_temporary_folder_needs_free_space(tmp_path: Path) -> None:
    assert machine.temporary_finding(tmp_path, 900 * MIB).level == "ok"
    assert machine.temporary_finding(tmp_path, 100 * MIB).level == "warning"
    assert machine.temporary_finding(tmp_path, 1 * MIB).level == "wrong"
    one = machine.temporary_finding(machine.temporary_folder({"TMPDIR": str(tmp_path / "not-there")}))
    assert one.level == "wrong"
    assert one.fix.startswith("export TMPDIR")


def test_low_open_file_limit_is_a_warning() -> None:
    assert machine.descriptors_finding(1024, 4096).level == "ok"
    assert machine.descriptors_finding(-1, -1).level == "ok"
    assert machine.descriptors_finding(256, -1).fix == "ulimit -n 4096"
    assert machine.descriptors_finding(256, 512).fix == "ulimit -n 512"
