"""The tokenizer of the built-in demo, read without transformers, so that a first run starts sooner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from birdie_zmq.models.config_fields import read_json_object


class DemoTokenizer:
    """The demo's tokenizer; its two files hold everything, and transformers reads them the same way.

    Args:
        directory: The demo's directory.
        fingerprint: A string that distinguishes this version of the demo from others.
    """

    def __init__(self, directory: Path, fingerprint: str) -> None:
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        config = read_json_object(directory / "tokenizer_config.json")
        self.bos_token: str = config["bos_token"]
        self.eos_token: str = config["eos_token"]
        self.pad_token: str = config["pad_token"]
        self.bos_token_id = self._tokenizer.token_to_id(self.bos_token)
        self.eos_token_id = self._tokenizer.token_to_id(self.eos_token)
        self.pad_token_id = self._tokenizer.token_to_id(self.pad_token)
        self.chat_template: str = config["chat_template"]
        self.model_max_length: int = config["model_max_length"]
        self.fingerprint = fingerprint

    def encode(self, texts: str | list[str]) -> list[int] | list[list[int]]:
        """Return the token ids of a text, or of each text of a list."""
        if isinstance(texts, str):
            ids: list[int] = self._tokenizer.encode(texts, add_special_tokens=False).ids
            return ids
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of token ids."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text
