"""The tokenizer of a checkpoint, with its special tokens and chat templates, read without transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from birdie_zmq.errors import TokenizerError
from birdie_zmq.models.config_fields import read_json_object

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class CheckpointTokenizer:
    """A ``tokenizers.Tokenizer`` and what stands beside it in a checkpoint, seen as transformers shows it.

    Args:
        tokenizer: The tokenizer itself.
        special_tokens: Texts by name: ``bos_token``, ``eos_token``, …
        chat_template: jinja2 text, or several by name.
        model_max_length: The length that the checkpoint names beside its tokenizer.
        eos_token_ids: All tokens at which generation ends, where the checkpoint names them.
        fingerprint: What tells this checkpoint from another under the same name.

    Raises:
        TokenizerError: BOS or EOS is not in the vocabulary.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        special_tokens: Mapping[str, str],
        *,
        chat_template: str | dict[str, str] | None = None,
        model_max_length: int | float | None = None,
        eos_token_ids: Sequence[int] = (),
        fingerprint: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.bos_token, self.bos_token_id = self._special("bos_token", special_tokens)
        self.eos_token, self.eos_token_id = self._special("eos_token", special_tokens)
        self.unk_token = special_tokens.get("unk_token")
        self.pad_token = special_tokens.get("pad_token")
        self.pad_token_id: int | None = None if self.pad_token is None else tokenizer.token_to_id(self.pad_token)
        self.chat_template = chat_template
        self.model_max_length = model_max_length
        self.eos_token_ids = tuple(eos_token_ids)
        self.fingerprint = fingerprint

    @property
    def all_special_ids(self) -> list[int]:
        """The ids that `decode` leaves out when told to skip special tokens."""
        return [id for id, token in self._tokenizer.get_added_tokens_decoder().items() if token.special]

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        """Token ids of each text under ``input_ids``, with BOS and EOS as the post-processor has it unless told not to.

        Older files also say ``add_bos_token`` in tokenizer_config.json; transformers 5 heeds only the post-processor.
        """
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        return {"input_ids": [encoding.ids for encoding in encodings]}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of one text."""
        return self([text], add_special_tokens)["input_ids"][0]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def _special(self, name: str, texts: Mapping[str, str]) -> tuple[str | None, int | None]:
        text = texts.get(name)
        if text is None:
            return None, None
        number = self._tokenizer.token_to_id(text)
        if number is None:
            raise TokenizerError(f"the {name} {text!r} is not in the tokenizer's vocabulary")
        return text, number


def read_tokenizer(directory: Path, fingerprint: str | None = None) -> CheckpointTokenizer:
    """Read what a Hugging Face directory says of its tokenizer.

    Args:
        directory: Holds ``tokenizer.json``, and beside it, where there is more to say, ``tokenizer_config.json``,
            ``special_tokens_map.json``, ``chat_template.jinja``, ``generation_config.json`` and ``config.json``.
        fingerprint: As in `CheckpointTokenizer`.

    Raises:
        TokenizerError: ``tokenizer.json`` is missing or damaged, another file is damaged, or a special token is not in
            the vocabulary.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(
            f"there is no tokenizer.json in {directory}; a tokenizer that has only other files is converted by "
            "transformers' AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise TokenizerError(f"{path} is no tokenizer: {error}") from error
    config = _read_json(directory / "tokenizer_config.json")
    special = _read_json(directory / "special_tokens_map.json") | {
        name: value for name, value in config.items() if name in _NAMED and value is not None
    }
    return CheckpointTokenizer(
        tokenizer,
        {name: text for name in _NAMED if (text := _text(special.get(name))) is not None},
        chat_template=_chat_template(directory, config),
        model_max_length=config.get("model_max_length"),
        eos_token_ids=_eos_token_ids(directory),
        fingerprint=fingerprint,
    )


def _chat_template(directory: Path, config: Mapping[str, Any]) -> str | dict[str, str] | None:
    """Templates in files of their own come before what the config holds; several are named."""
    given = config.get("chat_template")
    if isinstance(given, list):
        try:
            templates = {str(entry["name"]): str(entry["template"]) for entry in given}
        except (KeyError, TypeError) as error:
            raise TokenizerError(
                f"chat_template in {directory / 'tokenizer_config.json'} must be a text or a list of records with name "
                "and template"
            ) from error
    else:
        templates = {"default": given} if isinstance(given, str) else {}
    alone = directory / "chat_template.jinja"
    further = sorted((directory / "additional_chat_templates").glob("*.jinja"))
    for name, path in [("default", alone)] * alone.is_file() + [(path.stem, path) for path in further]:
        try:
            templates[name] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{path} is no UTF-8 text: {error}") from error
    return templates["default"] if templates.keys() == {"default"} else templates or None


def _eos_token_ids(directory: Path) -> list[int]:
    """Where generation ends, as transformers' ``generate`` decides it: by the generation config, else the model's."""
    for name in ("generation_config.json", "config.json"):
        value = _read_json(directory / name).get("eos_token_id")
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            if not all(isinstance(id, int) for id in ids):
                raise TokenizerError(f"eos_token_id={value!r} in {directory / name} is no token id")
            return ids
    return []


def _text(value: object) -> str | None:
    """A special token's text; files give it as it is, or as a record of which it is one field."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_json_object(path)
    except ValueError as error:
        raise TokenizerError(str(error)) from error
