"""Which checkpoints may replace each other in a model process: those whose weights alone differ.

This module imports neither jax nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from birdie_zmq.models.checkpoint_policy import process_policy
from birdie_zmq.models.fingerprint import CONFIG_FILES, CheckpointFile, Fingerprint, tokenizer_files

_FIXED_ARGUMENTS = ("gguf_file", "peft", "revision", "subfolder", "tokenizer_revision")
"""Arguments that name further files; a model with one of them is loaded in a new process."""


def common_files(path: Path, tokenizer: Path) -> Fingerprint:
    """Return the fingerprint of the files that all checkpoints that may replace each other have in common.

    These are the configuration and the files of the tokenizer, byte for byte.

    Args:
        path: The directory of the checkpoint.
        tokenizer: The directory of the tokenizer.

    Raises:
        ModelLoadError: A file cannot be read.
    """
    configuration = [CheckpointFile(f"model {name}", path / name) for name in CONFIG_FILES if (path / name).is_file()]
    return Fingerprint([*configuration, *tokenizer_files(tokenizer)])


def swappable_files(tag: str, keywords: Mapping[str, Any]) -> Fingerprint | None:
    """Return `common_files` of the checkpoint that a tag names; None if it cannot be replaced.

    It must be a Hugging Face directory with weights of its own, and not an adapter.

    Args:
        tag: The model tag.
        keywords: The arguments of load_model.

    Raises:
        ModelLoadError: A file cannot be read.
    """
    policy = process_policy()
    path = policy.find(tag)
    tokenizer = path if keywords.get("tokenizer") is None else policy.find(str(keywords["tokenizer"]))
    if path is None or tokenizer is None:
        return None
    is_plain = all(keywords.get(name) is None for name in _FIXED_ARGUMENTS)
    has_config = (path / CONFIG_FILES[0]).is_file() and not (path / "adapter_config.json").exists()
    if not (is_plain and has_config and tokenizer.is_dir()):
        return None
    return common_files(path, tokenizer)
