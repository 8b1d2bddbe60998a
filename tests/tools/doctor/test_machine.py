"""Folders of wrong modes, full disks, and few open files."""

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


def test_a_private_folder_is_measured(folder: Path, tmp_path: Path) -> None:
    (folder / "one").write_bytes(b"\0" * 3 * MIB)

    one = machine.cache_finding({"XDG_CACHE_HOME": str(tmp_path)})

    assert (one.level, one.text) == ("ok", f"{folder} holds 1 files, 3 MiB")


def test_a_folder_that_will_be_made_is_as_it_should_be(tmp_path: Path) -> None:
    one = machine.cache_finding({"XDG_CACHE_HOME": str(tmp_path / "new")})

    assert one.level == "ok"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707])
def test_a_folder_that_is_open_to_others_is_closed(folder: Path, tmp_path: Path, mode: int) -> None:
    folder.chmod(mode)

    one = machine.cache_finding({"XDG_CACHE_HOME": str(tmp_path)})

    assert (one.level, one.cure) == ("warning", f"chmod 700 {folder}")
    assert f"mode {mode:04o}" in one.text


def test_a_file_in_its_place_is_noticed(folder: Path, tmp_path: Path) -> None:
    folder.rmdir()
    folder.touch()

    one = machine.cache_finding({"XDG_CACHE_HOME": str(tmp_path)})

    assert (one.level, one.cure) == ("warning", f"rm {folder}")


def test_a_folder_that_cannot_be_made_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    one = machine.cache_finding({"XDG_CACHE_HOME": str(tmp_path / "file")})

    assert one.level == "warning"
    assert one.cure.startswith("export XDG_CACHE_HOME")


def test_a_folder_that_may_not_be_written_to_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The superuser, as whom tests may run, may write everywhere.
    monkeypatch.setattr("os.access", lambda *_: False)

    one = machine.cache_finding({"JAX_COMPILATION_CACHE_DIR": str(folder)})

    assert (one.level, one.cure) == ("warning", f"chmod 700 {folder}")


def test_a_cache_that_is_switched_off_is_named() -> None:
    one = machine.cache_finding({"JAX_ENABLE_COMPILATION_CACHE": "false"})

    assert (one.level, one.cure) == ("warning", "unset JAX_ENABLE_COMPILATION_CACHE")


def test_temporary_files_need_a_folder_with_room(tmp_path: Path) -> None:
    assert machine.temporary_finding(tmp_path, 900 * MIB).level == "ok"
    assert machine.temporary_finding(tmp_path, 100 * MIB).level == "warning"
    assert machine.temporary_finding(tmp_path, 1 * MIB).level == "wrong"
    one = machine.temporary_finding(machine.temporary_folder({"TMPDIR": str(tmp_path / "not-there")}))
    assert one.level == "wrong"
    assert one.cure.startswith("export TMPDIR")


def test_few_open_files_are_named() -> None:
    assert machine.descriptors_finding(1024, 4096).level == "ok"
    assert machine.descriptors_finding(-1, -1).level == "ok"
    assert machine.descriptors_finding(256, -1).cure == "ulimit -n 4096"
    assert machine.descriptors_finding(256, 512).cure == "ulimit -n 512"
