"""What must not change by accident: the frames on the wire, the options of each command, and the error codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from birdie_zmq.errors import BirdieError
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.messages import Message
from tests.golden.frames import make_frames

GOLDEN = Path(__file__).resolve().parent
ROOT = GOLDEN.parent.parent
FRAMES: dict[str, list[str]] = json.loads((GOLDEN / "frames.json").read_text())
HELP = sorted((GOLDEN / "help").glob("*.txt"))
COMMANDS = {
    "broker": ["broker.py"],
    "jax_worker": ["-m", "workers.jax_worker"],
    "torch_worker": ["-m", "workers.torch_worker"],
    "birdie-zmq": ["-m", "birdie_zmq"],
}

decode = decoder(Message)


def test_there_are_golden_frames_of_every_message() -> None:
    assert {record.__struct_config__.tag for record in get_args(Message)} == FRAMES.keys()
    assert all(FRAMES.values())


def test_frames_have_a_value_in_each_field() -> None:
    assert make_frames() == FRAMES


@pytest.mark.parametrize("tag", FRAMES)
def test_frames_are_byte_equal(tag: str) -> None:
    for frame in map(bytes.fromhex, FRAMES[tag]):
        message = decode(frame)

        assert message.__struct_config__.tag == tag
        assert encode(message) == frame


def test_error_codes_stay() -> None:
    assert sorted(BirdieError._classes) == json.loads((GOLDEN / "error_codes.json").read_text())


def options_of(text: str) -> list[str]:
    """The options and the choices in the usage of a command; help texts and the names of values may change."""
    usage, _, _ = text.partition("\n\n")
    return re.findall(r"--?[a-z][\w-]*|\{[^}]*\}", re.sub(r"\s+", " ", usage))


@pytest.mark.parametrize("golden", HELP, ids=lambda path: path.stem)
def test_options_stay(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    command = COMMANDS.get(golden.stem, ["-m", "birdie_zmq", *golden.stem.split("_")])
    shown = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )

    assert options_of(shown.stdout) == options_of(golden.read_text())
