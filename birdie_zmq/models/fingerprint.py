"""The fingerprint of a checkpoint: a hash of the content of the files that are read, under their roles.

Directory names, times and neighbouring files do not count: two copies of a checkpoint are one model, and a README or
results beside the weights change nothing. This module imports neither jax nor transformers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from birdie_zmq.models.config_fields import read_json_object
from birdie_zmq.models.file_hashes import FileHasher, shared_hasher
from birdie_zmq.models.gguf_parts import named_parts
from birdie_zmq.models.native.directory import native_checkpoint

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILES = ("config.json", "generation_config.json")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

TOKENIZER_PATTERNS = (
    "tokenizer.json",
    "tokenizer.*.json",  # for other versions of transformers; tokenizer_config.json chooses
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "tokenizer.model.*",
    "spiece.model",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "spm_char.model",
    "*.tiktoken",
    "tiktoken.model",
    "tekken.json",
    "vocab-src.json",
    "vocab-tgt.json",
    "target_vocab.json",
    "entity_vocab.json",
    "word_shape.json",
    "word_pronunciation.json",
    "byte_maps.json",
    "normalizer.json",
    "emoji.json",
    "dict.txt",
    "bpe.codes",
    "source.spm",
    "target.spm",
    "prophetnet.tokenizer",
)
"""The files that the tokenizer classes of transformers read, in all versions."""


@dataclass(frozen=True)
class CheckpointFile:
    """A file of a checkpoint.

    Attributes:
        role: What it is in the checkpoint, mostly its name; part of the fingerprint.
        path: Where it is; not part of the fingerprint.
    """

    role: str
    path: Path


def checkpoint_files(path: Path) -> list[CheckpointFile]:
    """Return the files that decide what a model computes: its configuration, its weights and an adapter.

    Args:
        path: A Hugging Face directory, a ``.gguf`` file, or the first of several, or the checkpoint of a trainer.

    Raises:
        IncompleteCheckpoint: The checkpoint of a trainer is not committed.
        ModelLoadError: A directory holds several of them.
    """
    native = native_checkpoint(path)
    if native is not None:
        folder, *_ = native.folders
        return [*_named_files(folder, CONFIG_FILES), *(CheckpointFile(*each) for each in native.files())]
    if path.is_file():
        return _gguf_files(path)
    return [*_named_files(path, CONFIG_FILES), *weight_files(path), *adapter_files(path)]


def weight_files(directory: Path) -> list[CheckpointFile]:
    """Return the files of `weight_names` that exist."""
    return _named_files(directory, weight_names(directory))


def weight_names(directory: Path) -> list[str]:
    """Return the names of the files that hold the weights of a directory, and of the index that names them.

    They are those that `birdie_zmq.models.tensor_source` reads, as far as config and index are readable: whoever loads
    the weights says what is wrong with them.
    """
    named = _plain_names([_read_object(directory / CONFIG_FILES[0]).get("transformers_weights")])
    (first,) = named or [WEIGHTS_FILE if (directory / WEIGHTS_FILE).is_file() else INDEX_FILE]
    return [first, *(shard_names(directory / first) if first.endswith(".json") else [])]


def adapter_files(directory: Path) -> list[CheckpointFile]:
    """Return the configuration and the weights of a LoRA adapter, as far as they exist."""
    return _named_files(directory, ADAPTER_FILES)


def tokenizer_files(path: Path) -> list[CheckpointFile]:
    """Return the files that decide how texts are encoded and where generation ends.

    Args:
        path: A Hugging Face directory, a ``.gguf`` file, or the first of several.
    """
    if path.is_file():
        return _gguf_files(path)
    found = {file for pattern in TOKENIZER_PATTERNS for file in path.glob(pattern) if file.is_file()}
    named = [CheckpointFile(file.relative_to(path).as_posix(), file) for file in sorted(found)]
    return [*_named_files(path, CONFIG_FILES), *named]


def shard_names(index: Path) -> list[str]:
    """Return the file names in an index of safetensors files, sorted; none if it is missing or damaged."""
    weight_map = _read_object(index).get("weight_map")
    return _plain_names(weight_map.values()) if isinstance(weight_map, dict) else []


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if the file is missing or damaged."""
    try:
        return read_json_object(path)
    except (OSError, ValueError):
        return {}


def _plain_names(names: Iterable[object]) -> list[str]:
    """Return the distinct plain file names among some values, sorted: an index must not name files elsewhere."""
    return sorted({name for name in names if isinstance(name, str) and name and Path(name).name == name})


def _named_files(directory: Path, names: Iterable[str]) -> list[CheckpointFile]:
    return [CheckpointFile(name, directory / name) for name in names if (directory / name).is_file()]


def _gguf_files(path: Path) -> list[CheckpointFile]:
    parts = named_parts(path)
    roles = [f"gguf {number} of {len(parts)}" for number in range(1, len(parts) + 1)]
    return [CheckpointFile(role, part) for role, part in zip(roles, parts, strict=True) if part.is_file()]


class Fingerprint:
    """The fingerprint of some files, whose hashing begins at once, in the background.

    Args:
        files: The files, in any order. A file that occurs twice is read once.
        hasher: Computes and remembers the hashes; by default that of the process.

    Raises:
        ModelLoadError: A file cannot be read.
    """

    def __init__(self, files: Iterable[CheckpointFile], hasher: FileHasher | None = None) -> None:
        hasher = shared_hasher() if hasher is None else hasher
        distinct = sorted(set(files), key=lambda file: (file.role, str(file.path)))
        self._pending = [(file.role, hasher.submit(file.path)) for file in distinct]

    def result(self) -> str:
        """Wait for all hashes, and return the SHA-256 over the roles and contents of the files.

        Call this after the files have been loaded: it then holds for what was loaded.

        Raises:
            ModelLoadError: A file has changed since the hashing began, or cannot be read.
        """
        digest = hashlib.sha256()
        for role, pending in self._pending:
            digest.update(f"{role}\0{pending.result()}\n".encode())
        return digest.hexdigest()
