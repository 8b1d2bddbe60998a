"""A tokenizer from a directory: ``tokenizer.json`` and, beside it, the special tokens and the chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from tokenizers import Tokenizer

from birdie_zmq.errors import TokenizerError


class DirectoryTokenizer:
    """Reads what a Hugging Face directory says of its tokenizer, without transformers.

    Args:
        directory: Holds ``tokenizer.json`` and ``tokenizer_config.json``.

    Raises:
        TokenizerError: One of the files is missing or names a special token that is not in the vocabulary.
    """

    def __init__(self, directory: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (directory / name).is_file():
                raise TokenizerError(f"there is no {name} in {directory}")
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        config: dict[str, Any] = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
        self.bos_token, self.bos_token_id = self._special(config, "bos_token")
        self.eos_token, self.eos_token_id = self._special(config, "eos_token")
        self.pad_token, self.pad_token_id = self._special(config, "pad_token")
        self.chat_template: str | None = config.get("chat_template")
        self.model_max_length: int | None = config.get("model_max_length")

    @overload
    def encode(self, texts: str) -> list[int]: ...

    @overload
    def encode(self, texts: list[str]) -> list[list[int]]: ...

    def encode(self, texts: str | list[str]) -> list[int] | list[list[int]]:
        """Token ids of one text, or of each in a list, without special tokens."""
        if isinstance(texts, str):
            ids: list[int] = self._tokenizer.encode(texts, add_special_tokens=False).ids
            return ids
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def _special(self, config: dict[str, Any], name: str) -> tuple[str | None, int | None]:
        """A special token and its id; the file gives it as text, or as a record of which the text is one field."""
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if text is None:
            return None, None
        number = self._tokenizer.token_to_id(text)
        if number is None:
            raise TokenizerError(f"the {name} {text!r} is not in the tokenizer's vocabulary")
        return text, number
