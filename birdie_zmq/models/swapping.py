"""Which checkpoints may replace each other in a model process: those whose weights alone differ.

This module imports neither jax nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from birdie_zmq.models.checkpoint_policy import process_policy
from birdie_zmq.models.fingerprint import CONFIG_FILES, CheckpointFile, Fingerprint, tokenizer_files
from birdie_zmq.models.native.directory import native_directory

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
        The fingerprint; None if the checkpoint cannot be replaced. It must be a directory with weights of its own, as
        Hugging Face or a trainer stores them, and not an adapter.

    Raises:
        ModelLoadError: A file cannot be read, or the checkpoint of a trainer is incomplete.
    """
    policy = process_policy()
    path = policy.find(tag)
    tokenizer = path if keywords.get("tokenizer") is None else policy.find(str(keywords["tokenizer"]))
    is_plain = all(keywords.get(name) is None for name in _FIXED_ARGUMENTS)
    if path is None or tokenizer is None or not is_plain or not tokenizer.is_dir():
        return None
    native = native_directory(path)
    if native is None:
        has_config = (path / CONFIG_FILES[0]).is_file() and not (path / "adapter_config.json").exists()
        return Fingerprint([*_configuration("model", path), *tokenizer_files(tokenizer)]) if has_config else None
    files = [*_configuration("model", native.checkpoint), *_configuration("arrays", native.root)]
    if keywords.get("config") is not None:
        described = policy.find(str(keywords["config"]))
        if described is None or not described.is_dir():
            return None  # a repository of the hub
        files += _configuration("architecture", described)
    settings = native.settings_file()
    files += [] if settings is None else [CheckpointFile("settings", settings)]
    return Fingerprint([*files, *tokenizer_files(tokenizer)])


def _configuration(role: str, folder: Path) -> list[CheckpointFile]:
    return [CheckpointFile(f"{role} {name}", folder / name) for name in CONFIG_FILES if (folder / name).is_file()]
