"""The commands that need a key folder, for a user without a home directory."""

from __future__ import annotations

import pytest

from birdie_zmq.cli import broker, keys


@pytest.fixture(autouse=True)
def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54_321)  # has no entry in the user database


def test_keys_asks_for_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert keys.main(["new", "client", "alice"]) == 2
    assert "there is no home directory for the key folder; give its path: --folder FOLDER" in capsys.readouterr().err


def test_broker_asks_for_the_folder_and_does_not_start_without_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert broker.main(["--bind", "tcp://127.0.0.1:0", "--keys"]) == 2
    assert "give its path: --keys FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize("command", [keys, broker])
def test_help_says_that_there_is_no_default(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["list", "--help"] if command is keys else ["--help"])  # type: ignore[attr-defined]
    assert "none, without a home directory" in " ".join(capsys.readouterr().out.split())
