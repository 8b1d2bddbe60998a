"""The tokenizer of a checkpoint, with its special tokens and chat templates, read without transformers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from birdie_zmq.errors import TokenizerError
from birdie_zmq.models.config_fields import read_json_object
from birdie_zmq.models.fingerprint import Fingerprint

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class CheckpointTokenizer:
    """A ``tokenizers.Tokenizer`` with its checkpoint's special tokens and settings, and with transformers' attributes.

    Args:
        tokenizer: The tokenizer itself.
        special_tokens: Texts of the special tokens by name: ``bos_token``, ``eos_token``, …
        chat_template: A jinja2 template, or several by name.
        model_max_length: The maximum length in the checkpoint's tokenizer config.
        eos_token_ids: All tokens at which generation ends, if the checkpoint names them.
        fingerprint: A string that distinguishes this checkpoint from others with the same name, or a function that
            returns it, which is called when it is first needed.

    Attributes:
        checkpoint: The fingerprint of the local checkpoint that this tokenizer was loaded for, if there is one.

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
        fingerprint: str | Callable[[], str] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.bos_token, self.bos_token_id = self._special_token("bos_token", special_tokens)
        self.eos_token, self.eos_token_id = self._special_token("eos_token", special_tokens)
        self.unk_token = special_tokens.get("unk_token")
        self.pad_token = special_tokens.get("pad_token")
        self.pad_token_id: int | None = None if self.pad_token is None else tokenizer.token_to_id(self.pad_token)
        self.chat_template = chat_template
        self.model_max_length = model_max_length
        self.eos_token_ids = tuple(eos_token_ids)
        self._fingerprint = fingerprint
        self.checkpoint: Fingerprint | None = None

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """A string that distinguishes this checkpoint from others with the same name, if there is one."""
        return self._fingerprint() if callable(self._fingerprint) else self._fingerprint

    @property
    def checkpoint_fingerprint(self) -> str | None:
        """The fingerprint of the local checkpoint that this tokenizer was loaded for, if there is one.

        Raises:
            ModelLoadError: The checkpoint has changed since the tokenizer was loaded.
        """
        return None if self.checkpoint is None else self.checkpoint.result()

    @property
    def all_special_ids(self) -> list[int]:
        """The ids that `decode` omits with ``skip_special_tokens``."""
        return [id for id, token in self._tokenizer.get_added_tokens_decoder().items() if token.special]

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        """Return the token ids of each text under ``input_ids``.

        The post-processor adds BOS and EOS unless `add_special_tokens` is False. Older files also have
        ``add_bos_token`` in tokenizer_config.json, which is ignored as in transformers 5.
        """
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        return {"input_ids": [encoding.ids for encoding in encodings]}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of one text."""
        return self([text], add_special_tokens)["input_ids"][0]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of token ids."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def _special_token(self, name: str, texts: Mapping[str, str]) -> tuple[str | None, int | None]:
        text = texts.get(name)
        if text is None:
            return None, None
        number = self._tokenizer.token_to_id(text)
        if number is None:
            raise TokenizerError(f"the {name} {text!r} is not in the tokenizer's vocabulary")
        return text, number


def read_tokenizer(directory: Path, fingerprint: str | Callable[[], str] | None = None) -> CheckpointTokenizer:
    """Read the tokenizer of a Hugging Face directory.

    Args:
        directory: Holds ``tokenizer.json`` and, optionally, ``tokenizer_config.json``, ``special_tokens_map.json``,
            ``chat_template.jinja``, ``generation_config.json`` and ``config.json``.
        fingerprint: As in `CheckpointTokenizer`.

    Raises:
        TokenizerError: ``tokenizer.json`` is missing or damaged, another file is damaged, or a special token is not in
            the vocabulary.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(
            f"there is no tokenizer.json in {directory}; convert other tokenizer files with transformers: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise TokenizerError(f"{path} is not a valid tokenizer: {error}") from error
    config = _read_json(directory / "tokenizer_config.json")
    special = _read_json(directory / "special_tokens_map.json") | {
        name: value for name, value in config.items() if name in _SPECIAL_TOKENS and value is not None
    }
    return CheckpointTokenizer(
        tokenizer,
        {name: text for name in _SPECIAL_TOKENS if (text := _token_text(special.get(name))) is not None},
        chat_template=_chat_template(directory, config),
        model_max_length=config.get("model_max_length"),
        eos_token_ids=_eos_token_ids(directory),
        fingerprint=fingerprint,
    )


def _chat_template(directory: Path, config: Mapping[str, Any]) -> str | dict[str, str] | None:
    """Return the chat template, or several by name; template files take precedence over the config."""
    given = config.get("chat_template")
    if isinstance(given, list):
        try:
            templates = {str(entry["name"]): str(entry["template"]) for entry in given}
        except (KeyError, TypeError) as error:
            raise TokenizerError(
                f"chat_template in {directory / 'tokenizer_config.json'} must be a string or a list of objects with name "
                "and template"
            ) from error
    else:
        templates = {"default": given} if isinstance(given, str) else {}
    default = directory / "chat_template.jinja"
    additional = sorted((directory / "additional_chat_templates").glob("*.jinja"))
    for name, path in [("default", default)] * default.is_file() + [(path.stem, path) for path in additional]:
        try:
            templates[name] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{path} is not valid UTF-8: {error}") from error
    return templates["default"] if templates.keys() == {"default"} else templates or None


def _eos_token_ids(directory: Path) -> list[int]:
    """Return the tokens that end generation, as in transformers: from the generation config, else the model config."""
    for name in ("generation_config.json", "config.json"):
        value = _read_json(directory / name).get("eos_token_id")
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            if not all(isinstance(id, int) for id in ids):
                raise TokenizerError(
                    f"eos_token_id={value!r} in {directory / name} is not a token id or a list of them"
                )
            return ids
    return []


def _token_text(value: object) -> str | None:
    """Return the text of a special token, which files store as a string or as an object with the field ``content``."""
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
