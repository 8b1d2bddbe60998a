"""A page for tests: a small decoder over bytes from the checkpoint directory that is its tag, over a mesh if there is one."""

from pathlib import Path
from typing import Any

from birdie_zmq import Model
from birdie_zmq.models.decoder import model_of
from birdie_zmq.models.loader import load_checkpoint

BOS = 256


class Bytes:
    """One token a byte of UTF-8."""

    bos_token_id = BOS
    model_max_length = 128

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < BOS).decode(errors="replace")


def load_model(model_tag: str, mesh: Any = None, **keywords: Any) -> Model:
    return model_of(*load_checkpoint(Path(model_tag), mesh=mesh), mesh)


def load_tokenizer(model_tag: str, **keywords: Any) -> Bytes:
    return Bytes()
