"""The parts of a split GGUF model."""

from __future__ import annotations

from pathlib import Path

import pytest

from birdie_zmq.models.gguf_parts import gguf_parts


def test_parts_of_a_split_gguf_model_are_found_by_name(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        part.write_bytes(b"")
    assert gguf_parts(parts[0]) == parts
    assert gguf_parts(tmp_path / "m.gguf") == [tmp_path / "m.gguf"]
    with pytest.raises(ValueError, match=f"name its first part, {parts[0].name}"):
        gguf_parts(parts[1])
    with pytest.raises(ValueError, match="is no part of a split GGUF model"):
        gguf_parts(tmp_path / "m-00003-of-00002.gguf")
