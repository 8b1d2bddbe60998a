"""The parts of a model: a checkpoint, the adapter that is merged into it, and the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from birdie_zmq.errors import ModelLoadError, UnknownModelTag, UsageError
from birdie_zmq.models.checkpoint_policy import CheckpointPolicy
from birdie_zmq.models.config_fields import read_json_object
from birdie_zmq.models.fingerprint import CONFIG_FILES, CheckpointFile, adapter_files, checkpoint_files
from birdie_zmq.models.lora_config import ADAPTER_CONFIG_FILE
from birdie_zmq.models.native.hints import NO_HINTS, ModelHints
from birdie_zmq.models.native.keras_files import is_keras_file
from birdie_zmq.models.resolution import is_hub_name, resolve_checkpoint
from birdie_zmq.models.tensor_source import has_weights

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Checkpoint:
    """Where the parts of a model are.

    Attributes:
        path: The directory, or the file of GGUF or Keras, with the config and the weights.
        adapter: The directory of the LoRA adapter that is merged into the weights; None without one.
        tokenizer: The directory or the GGUF file with the tokenizer; for a file of Keras, the directory that it is in.
        hints: What the user says of the checkpoint of a trainer.
    """

    path: Path
    adapter: Path | None
    tokenizer: Path
    hints: ModelHints = NO_HINTS

    def files(self) -> list[CheckpointFile]:
        """Return the files that decide what the model computes: those of the base model, and those of the adapter."""
        adapter = [] if self.adapter in (None, self.path) else adapter_files(self.adapter)
        described = self.hints.config
        config = [] if described is None else [CheckpointFile("architecture", described / CONFIG_FILES[0])]
        return [*checkpoint_files(self.path), *adapter, *config]


def resolve_model(
    tag: str,
    revision: object = None,
    *,
    inside: str | None = None,
    peft: str | None = None,
    weights: bool = True,
    policy: CheckpointPolicy | None = None,
) -> Checkpoint:
    """Return the parts of the model that a tag names: as `resolve_checkpoint`, and with an adapter's base model.

    A directory with ``adapter_config.json`` is an adapter. As with transformers, its base model is the one in the same
    directory; without one there, and for a repository of the hub, it is the one that the adapter's config names.

    Args:
        tag: A model tag.
        revision: A branch, tag or commit of the hub repositories that `tag` and `peft` name; as in `resolve_checkpoint`.
        inside: The relative path of the checkpoint in the directory or repository of `tag`; as in `resolve_checkpoint`.
        peft: The directory or the hub repository of an adapter for the model of `tag`.
        weights: Whether to download the weights as well.
        policy: The checkpoint policy, which also holds for the adapter and its base model.

    Raises:
        UnknownModelTag: A tag is unknown or not allowed.
        ModelLoadError: The adapter names no base model, or one that cannot be loaded.
        UsageError: `peft` names no adapter, or the model has another one.
    """
    path = resolve_checkpoint(tag, revision, inside=inside, weights=weights, policy=policy)
    beside = path.parent if is_keras_file(path) else path
    is_adapter = (path / ADAPTER_CONFIG_FILE).is_file()
    if peft is not None:
        adapter = resolve_checkpoint(peft, revision, weights=weights, policy=policy)
        if not (adapter / ADAPTER_CONFIG_FILE).is_file():
            raise UsageError(f"peft={peft!r} in model_args names no adapter: {adapter} has no {ADAPTER_CONFIG_FILE}")
        if is_adapter:
            raise UsageError(f"peft={peft!r} in model_args names an adapter, and the model {tag!r} has another one")
        return Checkpoint(path, adapter, beside)
    if not is_adapter:
        return Checkpoint(path, None, beside)
    if not is_hub_name(tag, policy) and (path / "config.json").is_file() and has_weights(path):
        return Checkpoint(path, path, path)
    base = _base_model(path, revision, weights=weights, policy=policy)
    has_tokenizer = any((path / name).is_file() for name in _TOKENIZER_FILES)
    return Checkpoint(base, path, path if has_tokenizer else base)


def _base_model(adapter: Path, revision: object, *, weights: bool, policy: CheckpointPolicy | None) -> Path:
    """Return the base model that an adapter's config names; a relative path is relative to the current directory."""
    try:
        values = read_json_object(adapter / ADAPTER_CONFIG_FILE)
    except ValueError as error:
        raise ModelLoadError(str(error)) from error
    name, named_revision = values.get("base_model_name_or_path"), values.get("revision")
    if not isinstance(name, str) or not name:
        raise ModelLoadError(
            f"the adapter {adapter} names no base model (base_model_name_or_path in {ADAPTER_CONFIG_FILE}) and has none "
            "beside it; name the base model with pretrained= and the adapter with peft= in model_args"
        )
    try:
        base = resolve_checkpoint(name, revision or named_revision, weights=weights, policy=policy)
    except UnknownModelTag as error:
        raise UnknownModelTag(
            f"the adapter {adapter} is for the base model {name!r} (base_model_name_or_path in {ADAPTER_CONFIG_FILE}), "
            f"which cannot be loaded: {error}; or name the base model with pretrained= and the adapter with peft= in "
            "model_args"
        ) from error
    if (base / ADAPTER_CONFIG_FILE).is_file():
        raise ModelLoadError(f"the adapter {adapter} is for the base model {name!r}, which has an adapter itself")
    return base
