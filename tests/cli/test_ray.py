"""``birdie-zmq ray up``: options that are rejected before Ray is started."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from birdie_zmq.cli import main as cli


@pytest.fixture
def with_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pretend that Ray is installed; these tests end before it is imported."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.chdir(tmp_path)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["ray", "up", *arguments]) == 2
    return capsys.readouterr().err


def test_missing_ray_names_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    assert "pip install 'birdie-zmq[ray]'" in error_of(capsys, "--workers", "1")


@pytest.mark.usefixtures("with_ray")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "--workers must be 1 or more, not 0"),
        (["--workers", "1", "--bind", "tcp://0.0.0.0:5555"], "could be reached from other machines"),
        (["--workers", "1", "--bind", "tcp://127.0.0.1:*"], "give a port number"),
        (["--workers", "1", "--keys", "keys"], "give the workers theirs with --key-file FILE"),
        (["--workers", "1", "--connect", "here"], "'here' is not an endpoint"),
        (["--workers", "1", "--working-dir", "nowhere"], "--working-dir: there is no folder at"),
        (["--workers", "1", "--gpus-per-worker", "1.5"], "Ray gives whole GPUs"),
        (["--workers", "1", "--api", "mine.py"], "there is no user module at "),
    ],
)
def test_impossible_options_are_rejected_before_ray_starts(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(capsys, *arguments)
