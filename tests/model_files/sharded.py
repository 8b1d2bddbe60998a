"""A model file for tests: a byte-level decoder from the checkpoint directory in its tag, sharded over a mesh if given."""

from pathlib import Path
from typing import Any

from birdie_zmq import Model
from birdie_zmq.models.attention import Target
from birdie_zmq.models.decoder import build_model
from birdie_zmq.models.loader import load_checkpoint

BOS = 256


class Bytes:
    """A tokenizer with one token per byte of UTF-8."""

    bos_token_id = BOS
    model_max_length = 128

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < BOS).decode(errors="replace")


def load_model(model_tag: str, mesh: Any = None, **keywords: Any) -> Model:
    return build_model(*load_checkpoint(Path(model_tag), mesh=mesh), Target(mesh=mesh))


def load_tokenizer(model_tag: str, **keywords: Any) -> Bytes:
    return Bytes()
