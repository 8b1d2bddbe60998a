"""Which files checkpoints must have in common to replace each other in a model process."""

from __future__ import annotations

from pathlib import Path

import pytest

from birdie_zmq.errors import UnknownModelTag
from birdie_zmq.models.swapping import swappable_files


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "step_1"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def common(checkpoint: Path, tokenizer: str) -> str:
    found = swappable_files(str(checkpoint), {"tokenizer": tokenizer})
    assert found is not None
    return found.result()


def test_a_sentencepiece_file_is_a_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("same", b"1"), ("other", b"2")):
        (tmp_path / f"{name}.model").write_bytes(content)
    a, same, other = (common(checkpoint, str(tmp_path / f"{name}.model")) for name in ("a", "same", "other"))
    assert a == same != other


def test_a_repository_of_the_hub_is_a_tokenizer(checkpoint: Path, cached: dict[str, Path]) -> None:
    assert common(checkpoint, "acme/tiny") == common(checkpoint, str(cached["main"]))


def test_an_unknown_tokenizer_is_an_error(checkpoint: Path) -> None:
    with pytest.raises(UnknownModelTag, match="nowhere/at/all"):
        swappable_files(str(checkpoint), {"tokenizer": "nowhere/at/all"})
