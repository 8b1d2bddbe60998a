"""The tokenizer of the built-in demo, read without transformers, so that a first run starts sooner."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from birdie_zmq.models.config_fields import read_json_object


class DemoTokenizer:
    """The demo's tokenizer, with the methods and attributes of a transformers tokenizer that are used here.

    The demo's two files hold everything, and transformers reads them the same way.

    Args:
        directory: The demo's directory.
    """

    unk_token = None

    def __init__(self, directory: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        config = read_json_object(directory / "tokenizer_config.json")
        self.special_tokens_map: dict[str, str] = {
            name: config[name] for name in ("bos_token", "eos_token", "pad_token")
        }
        self.bos_token, self.eos_token, self.pad_token = self.special_tokens_map.values()
        self.bos_token_id, self.eos_token_id, self.pad_token_id = map(
            self._tokenizer.token_to_id, self.special_tokens_map.values()
        )
        self.all_special_ids = list(self._tokenizer.get_added_tokens_decoder())
        self.chat_template: str = config["chat_template"]
        self.model_max_length: int = config["model_max_length"]

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        """Return the token ids of each text under ``input_ids``."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return {"input_ids": [encoding.ids for encoding in encodings]}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """Return the text of token ids."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text
