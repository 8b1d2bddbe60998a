"""The tokenizer of a checkpoint, read by transformers, so that its tokens are those of lm_eval's hf backend."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from birdie_zmq.engine.tokenizers.hugging_face import TransformersEncoder
from birdie_zmq.errors import TokenizerError
from birdie_zmq.models.config_fields import read_json_object
from birdie_zmq.models.fingerprint import Fingerprint
from birdie_zmq.models.transformers_import import shorten, transformers_without_torch

_VOCABULARY_FILES = ("tokenizer.json", "*.model", "vocab.*", "merges.txt", "*.tiktoken", "tekken.json")
_JSON_FILES = ("*token*.json", "vocab.json", "tekken.json", "config.json")
_NO_VOCABULARY = (
    "there is no tokenizer in {}: its vocabulary (tokenizer.json, tokenizer.model, or vocab.json and merges.txt) is "
    "missing; copy these files from the checkpoint, or name a directory that has them with tokenizer=DIRECTORY in model_args"
)


class CheckpointTokenizer:
    """A tokenizer of transformers, with what else the engine needs to know of its checkpoint.

    Args:
        tokenizer: A ``PreTrainedTokenizerBase``, or an object with its methods and attributes that are used here.
        eos_token_ids: All tokens at which generation ends, if the checkpoint names them.
        generation_config: The content of the checkpoint's ``generation_config.json``; empty if there is none.
        fingerprint: A string that distinguishes this checkpoint from others with the same name, or a function that
            returns it, which is called when it is first needed.

    Attributes:
        checkpoint: The fingerprint of the local checkpoint that this tokenizer was loaded for, if there is one.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        eos_token_ids: Sequence[int] = (),
        generation_config: Mapping[str, Any] | None = None,
        fingerprint: str | Callable[[], str] | None = None,
    ) -> None:
        self.transformers_tokenizer = tokenizer
        self._encoder = TransformersEncoder(tokenizer)
        self.bos_token: str | None = tokenizer.bos_token
        self.bos_token_id: int | None = tokenizer.bos_token_id
        self.eos_token: str | None = tokenizer.eos_token
        self.eos_token_id: int | None = tokenizer.eos_token_id
        self.pad_token: str | None = tokenizer.pad_token
        self.pad_token_id: int | None = tokenizer.pad_token_id
        self.unk_token: str | None = tokenizer.unk_token
        self.special_tokens_map: dict[str, Any] = dict(tokenizer.special_tokens_map)
        self.all_special_ids: list[int] = list(tokenizer.all_special_ids)
        self.chat_template: str | dict[str, str] | None = tokenizer.chat_template
        self.model_max_length: int | float | None = tokenizer.model_max_length
        self.eos_token_ids = tuple(eos_token_ids)
        self.generation_config = dict(generation_config or {})
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

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        """Return the token ids of each text under ``input_ids``."""
        return {"input_ids": list(self._encoder.encode(texts, add_special=add_special_tokens))}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of one text."""
        return self([text], add_special_tokens)["input_ids"][0]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of token ids."""
        text: str = self.transformers_tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text


def read_tokenizer(
    directory: Path,
    fingerprint: str | Callable[[], str] | None = None,
    *,
    name: str | None = None,
    add_bos_token: bool | None = None,
) -> CheckpointTokenizer:
    """Read the tokenizer of a Hugging Face directory.

    Args:
        directory: Holds the tokenizer's files, and optionally ``config.json`` and ``generation_config.json``.
        fingerprint: As in `CheckpointTokenizer`.
        name: The name of the hub repository, if the directory is one; transformers knows some by name.
        add_bos_token: Whether special tokens that are added include BOS; None leaves it to the files. The class rebuilds
            its post-processor from this, as in lm_eval's hf backend.

    Raises:
        TokenizerError: There is no tokenizer, or a file is damaged.
    """
    generation_config = _read_json(directory / "generation_config.json")
    eos_token_ids = _eos_token_ids(directory, generation_config)
    with transformers_without_torch() as transformers:
        source: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        try:
            config = _read_auto_config(transformers, directory, source)
            if config is not None:
                config._name_or_path = name or config._name_or_path
                source["config"] = config
                if not (directory / "generation_config.json").is_file():
                    eos_token_ids = eos_token_ids or _default_eos_token_ids(config)
            if add_bos_token is not None:
                source["add_bos_token"] = add_bos_token
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory), **source)
        except Exception as error:  # transformers and tokenizers raise many types
            raise TokenizerError(_explain(directory, error)) from error
    if _is_empty(tokenizer):
        # transformers makes such a tokenizer without an error if the class is known and its files are missing.
        raise TokenizerError(_NO_VOCABULARY.format(directory))
    return CheckpointTokenizer(
        tokenizer, eos_token_ids=eos_token_ids, generation_config=generation_config, fingerprint=fingerprint
    )


def _read_auto_config(transformers: Any, directory: Path, source: Mapping[str, Any]) -> Any:
    """Return the configuration of a directory; None if it has none that transformers knows."""
    if not (directory / "config.json").is_file():
        return None
    try:
        return transformers.AutoConfig.from_pretrained(str(directory), **source)
    except (OSError, ValueError):
        return None  # AutoTokenizer can do without


def _default_eos_token_ids(config: Any) -> list[int]:
    """Return the tokens that end generation by the default of a family, for a ``config.json`` that names none."""
    value = getattr(config.get_text_config(), "eos_token_id", None)
    return value if isinstance(value, list) else [] if value is None else [value]


def wrap_tokenizer(
    tokenizer: Any,
    special_tokens: Mapping[str, str],
    chat_template: str | None,
    fingerprint: str | Callable[[], str] | None = None,
) -> CheckpointTokenizer:
    """Make the tokenizer of a checkpoint from its parts.

    Args:
        tokenizer: A ``tokenizers.Tokenizer``.
        special_tokens: Texts of the special tokens by name: ``bos_token``, ``eos_token``, …
        chat_template: A jinja2 template; None if there is none.
        fingerprint: As in `CheckpointTokenizer`.
    """
    with transformers_without_torch() as transformers:
        wrapped = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            chat_template=chat_template,
            clean_up_tokenization_spaces=False,
            **special_tokens,
        )
    return CheckpointTokenizer(wrapped, fingerprint=fingerprint)


def _eos_token_ids(directory: Path, generation_config: Mapping[str, Any]) -> list[int]:
    """Return the tokens that end generation, as in transformers: from the generation config, else the model config."""
    sources = {"generation_config.json": generation_config, "config.json": _read_json(directory / "config.json")}
    for name, values in sources.items():
        value = values.get("eos_token_id")
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            if not all(isinstance(id, int) for id in ids):
                raise TokenizerError(
                    f"eos_token_id={value!r} in {directory / name} is not a token id or a list of them"
                )
            return ids
    return []


def _is_empty(tokenizer: Any) -> bool:
    """Return whether the vocabulary has only special and added tokens."""
    added = {*tokenizer.added_tokens_encoder, *tokenizer.all_special_tokens}
    return tokenizer.vocab_size <= len(added) and added.issuperset(tokenizer.get_vocab())


def _explain(directory: Path, error: Exception) -> str:
    """Say why a tokenizer cannot be loaded: transformers names neither a damaged nor a missing file."""
    if not any(path for pattern in _VOCABULARY_FILES for path in directory.glob(pattern)):
        return _NO_VOCABULARY.format(directory)
    damaged = "".join(f"; {message}" for message in _damaged_files(directory))
    return (
        f"transformers cannot load a tokenizer from {directory}: {type(error).__name__}: {shorten(str(error))}{damaged}"
    )


def _damaged_files(directory: Path) -> Iterator[str]:
    for pattern in _JSON_FILES:
        for path in sorted(directory.glob(pattern)):
            try:
                read_json_object(path)
            except (OSError, ValueError) as error:
                yield str(error)
    for path in sorted(directory.glob("**/*.jinja")):
        try:
            path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            yield f"{path} is not UTF-8 text: {error}"


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_json_object(path)
    except ValueError as error:
        raise TokenizerError(str(error)) from error
