"""What is refused before Ray is asked for anything."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from birdie_zmq.cli import main as cli


@pytest.fixture
def with_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if it were installed: what is tried here ends before it is imported."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.chdir(tmp_path)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["ray", "up", *arguments]) == 2
    return capsys.readouterr().err


def test_without_ray_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    assert "pip install 'birdie-zmq[ray]'" in said(capsys, "--workers", "1")


@pytest.mark.usefixtures("with_ray")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers", "0"], "--workers must be 1 or more, not 0"),
        (["--workers", "1", "--bind", "tcp://0.0.0.0:5555"], "could be reached from other machines"),
        (["--workers", "1", "--bind", "tcp://127.0.0.1:*"], "workers must be told one"),
        (["--workers", "1", "--keys", "keys"], "give the workers theirs with --key-file FILE"),
        (["--workers", "1", "--connect", "here"], "'here' is no endpoint"),
        (["--workers", "1", "--working-dir", "nowhere"], "which --working-dir names"),
        (["--workers", "1", "--gpus-per-worker", "1.5"], "Ray gives whole GPUs"),
        (["--workers", "1", "--api", "mine.py"], "there is no page at "),
    ],
)
def test_what_cannot_be_is_said_at_once(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in said(capsys, *arguments)
