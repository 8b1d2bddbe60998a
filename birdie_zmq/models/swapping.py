"""Which checkpoints may replace each other in a model process: those whose weights alone differ.

This module imports neither jax nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from birdie_zmq.models.checkpoint_policy import process_policy
from birdie_zmq.models.fingerprint import CONFIG_FILES, CheckpointFile, Fingerprint, tokenizer_files
from birdie_zmq.models.native.directory import native_checkpoint
from birdie_zmq.models.native.keras_files import is_keras_file
from birdie_zmq.models.resolution import resolve_checkpoint
from birdie_zmq.models.sentencepiece_file import SUFFIX

_FIXED_ARGUMENTS = ("gguf_file", "peft", "revision", "subfolder", "tokenizer_revision")
"""Arguments that name further files; a model with one of them is loaded in a new process."""


def swappable_files(tag: str, keywords: Mapping[str, Any]) -> Fingerprint | None:
    """Return the fingerprint of the files that checkpoints have in common which may replace each other.

    These are the configuration and the files of the tokenizer, byte for byte. For the checkpoint of a JAX trainer, the
    configuration is what describes the model: the trainer's own file, and that of ``config=``.

    Args:
        tag: The model tag.
        keywords: The arguments of load_model.

    Returns:
        The fingerprint; None if the checkpoint cannot be replaced. It must have weights of its own, as Hugging Face or a
        trainer stores them, and not be an adapter.

    Raises:
        ModelLoadError: A file cannot be read, or the checkpoint of a trainer is incomplete.
        UnknownModelTag: The tokenizer or the configuration of an argument is unknown.
    """
    path = process_policy().find(tag)
    is_plain = all(keywords.get(name) is None for name in _FIXED_ARGUMENTS)
    if path is None or not is_plain:
        return None
    tokenizer = _tokenizer_files(path, keywords.get("tokenizer"))
    native = native_checkpoint(path)
    if tokenizer is None:
        return None
    if native is None:
        has_config = (path / CONFIG_FILES[0]).is_file() and not (path / "adapter_config.json").exists()
        return Fingerprint([*_configuration("model", path), *tokenizer]) if has_config else None
    roles = zip(("model", "arrays"), native.folders, strict=False)
    files = [file for role, folder in roles for file in _configuration(role, folder)]
    if keywords.get("config") is not None:
        files += _configuration("architecture", resolve_checkpoint(str(keywords["config"]), weights=False))
    settings = native.settings_file()
    files += [] if settings is None else [CheckpointFile("settings", settings)]
    return Fingerprint([*files, *tokenizer])


def _tokenizer_files(path: Path, given: object) -> list[CheckpointFile] | None:
    """Return the files of the tokenizer: that of an argument, else that of the checkpoint; None if there is no directory.

    Raises:
        UnknownModelTag: There is no such tokenizer.
    """
    if given is None:
        beside = path.parent if is_keras_file(path) else path
        return tokenizer_files(beside) if beside.is_dir() else None
    if str(given).endswith(SUFFIX):
        file = process_policy().find(str(given))
        return None if file is None else [CheckpointFile("sentencepiece", file)]
    return tokenizer_files(resolve_checkpoint(str(given), weights=False))


def _configuration(role: str, folder: Path) -> list[CheckpointFile]:
    return [CheckpointFile(f"{role} {name}", folder / name) for name in CONFIG_FILES if (folder / name).is_file()]
