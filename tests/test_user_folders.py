"""The user's folders, also where there is no home."""

from __future__ import annotations

from pathlib import Path

import pytest

from birdie_zmq.user_folders import cache_folder, config_folder, expand_home, home_folder


@pytest.fixture
def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove HOME, and name a user id without an entry in the user database."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54_321)


@pytest.mark.usefixtures("_no_home")
def test_there_may_be_no_home() -> None:
    assert home_folder() is None
    assert cache_folder({}) is None
    assert config_folder({"XDG_CONFIG_HOME": "relative"}) is None
    assert cache_folder({"XDG_CACHE_HOME": "/caches"}) == Path("/caches")
    assert expand_home(Path("~/models")) == Path("~/models")
    assert expand_home(Path("~no-such-user/models")) == Path("~no-such-user/models")


def test_folders_are_in_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder({"XDG_CACHE_HOME": ""}) == Path("/home/me/.cache")
    assert config_folder({}) == Path("/home/me/.config")
    assert config_folder({"XDG_CONFIG_HOME": "/settings"}) == Path("/settings")
    assert expand_home(Path("~/models")) == Path("/home/me/models")
