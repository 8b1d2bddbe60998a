"""Resolve a model tag to a checkpoint: the demo, a directory, a GGUF file, or a Hugging Face hub repository."""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from birdie_zmq.errors import ModelLoadError, UnknownModelTag, UsageError
from birdie_zmq.models.checkpoint_policy import CheckpointPolicy, expand_tag
from birdie_zmq.models.config_fields import read_json_object
from birdie_zmq.models.lora_config import ADAPTER_CONFIG_FILE
from birdie_zmq.models.tensor_source import has_weights

DEMO = "demo"
BUILT_IN = {DEMO: Path(__file__).parent / "demo"}
"""The directory of each model that comes with the package, by tag."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_METADATA_PATTERNS = ["*.json", "*.jinja"]
_WEIGHT_PATTERNS = ["*.safetensors"]
_IGNORED_PATTERNS = ["original/*", "onnx/*", "consolidated*"]
"""Copies of the same weights in other formats, which some repositories also hold."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_GGUF_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class Checkpoint:
    """Where the parts of a model are.

    Attributes:
        path: The directory or the GGUF file with the config and the weights.
        adapter: The directory of the LoRA adapter that is merged into the weights; None without one.
        tokenizer: The directory or the GGUF file with the tokenizer.
    """

    path: Path
    adapter: Path | None
    tokenizer: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """Each of these paths once: together they identify the model."""
        return tuple(dict.fromkeys(path for path in (self.path, self.adapter, self.tokenizer) if path is not None))


def resolve_model(
    tag: str,
    revision: str | None = None,
    *,
    peft: str | None = None,
    weights: bool = True,
    policy: CheckpointPolicy | None = None,
) -> Checkpoint:
    """Return the parts of the model that a tag names: as `resolve_checkpoint`, and with an adapter's base model.

    A directory with ``adapter_config.json`` is an adapter. As with transformers, its base model is the one in the same
    directory; without one there, and for a repository of the hub, it is the one that the adapter's config names.

    Args:
        tag: A model tag.
        revision: A branch, tag or commit of the hub repositories that `tag` and `peft` name.
        peft: The directory or the hub repository of an adapter for the model of `tag`.
        weights: Whether to download the weights as well.
        policy: The checkpoint policy, which also holds for the adapter and its base model.

    Raises:
        UnknownModelTag: A tag is unknown or not allowed.
        ModelLoadError: The adapter names no base model, or one that cannot be loaded.
        UsageError: `peft` names no adapter, or the model has another one.
    """
    path = resolve_checkpoint(tag, revision, weights=weights, policy=policy)
    is_adapter = (path / ADAPTER_CONFIG_FILE).is_file()
    if peft is not None:
        adapter = resolve_checkpoint(peft, revision, weights=weights, policy=policy)
        if not (adapter / ADAPTER_CONFIG_FILE).is_file():
            raise UsageError(f"peft={peft!r} in model_args names no adapter: {adapter} has no {ADAPTER_CONFIG_FILE}")
        if is_adapter:
            raise UsageError(f"peft={peft!r} in model_args names an adapter, and the model {tag!r} has another one")
        return Checkpoint(path, adapter, path)
    if not is_adapter:
        return Checkpoint(path, None, path)
    is_local = _find_local(tag, policy or CheckpointPolicy.from_environment()) is not None
    if is_local and (path / "config.json").is_file() and has_weights(path):
        return Checkpoint(path, path, path)
    base = _base_model(path, revision, weights=weights, policy=policy)
    has_tokenizer = any((path / name).is_file() for name in _TOKENIZER_FILES)
    return Checkpoint(base, path, path if has_tokenizer else base)


def _base_model(adapter: Path, revision: str | None, *, weights: bool, policy: CheckpointPolicy | None) -> Path:
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


def resolve_checkpoint(
    tag: str, revision: str | None = None, *, weights: bool = True, policy: CheckpointPolicy | None = None
) -> Path:
    """Return the local directory or GGUF file of a model tag, after a download from the hub if necessary.

    Args:
        tag: A built-in tag, a path, or ``organisation/name`` of the hub.
        revision: A branch, tag or commit of the hub repository.
        weights: Whether to download the weights as well, or only the JSON and Jinja files.
        policy: The checkpoint policy; by default, the one in the environment of this process.

    Raises:
        UnknownModelTag: The tag is none of these, the download fails, or the policy does not allow the tag.
    """
    if tag in BUILT_IN:
        return BUILT_IN[tag]
    policy = CheckpointPolicy.from_environment() if policy is None else policy
    path = _find_local(tag, policy)
    if path is not None:
        return path
    if policy.hub and _HUB_NAME.fullmatch(tag) and Path(tag).suffix != ".gguf":
        return _from_hub(tag, revision, weights)
    raise UnknownModelTag(_unknown_tag_message(tag, policy))


def _find_local(tag: str, policy: CheckpointPolicy) -> Path | None:
    """Return the directory or GGUF file that a tag names, None if there is none."""
    path = policy.find(tag) if tag else None
    if path is None or not path.exists():
        return None
    if path.is_dir():
        return path.resolve()
    # The name of a file is kept where it is a link: the hub's cache links to names without a suffix or a part's number.
    found = path.parent.resolve() / path.name
    if path.suffix != ".gguf":
        raise UnknownModelTag(f"{found} is neither a checkpoint directory nor a .gguf file")
    return found


def gguf_parts(path: Path) -> list[Path]:
    """Return all files of a GGUF model by the name of its first, ``NAME-00001-of-00003.gguf``; others are one file.

    Raises:
        FileNotFoundError: A part is missing.
        ValueError: The name is that of another part.
    """
    named = _GGUF_PART.fullmatch(path.name)
    if named is None:
        return [path]
    count = int(named["count"])
    parts = [path.with_name(f"{named['stem']}-{number + 1:05}-of-{named['count']}.gguf") for number in range(count)]
    if path not in parts:
        raise ValueError(f"{path} is no part of a split GGUF model: its name gives it the number {named['number']}")
    if path != parts[0]:
        raise ValueError(f"{path} is one part of a split GGUF model; name its first part, {parts[0].name}")
    for part in parts:
        if not part.is_file():
            raise FileNotFoundError(f"{path} is split into {count} parts, and there is no {part.name} beside it")
    return parts


def _unknown_tag_message(tag: str, policy: CheckpointPolicy) -> str:
    """Return a message that lists valid tags, without disclosing whether a path outside the policy exists."""
    choices = [", ".join(sorted(BUILT_IN))]
    if policy.folders is None:
        path = expand_tag(tag).absolute()
        choices.append(
            f"the path of a checkpoint directory or of a .gguf file (there is none at {path} on the worker's machine)"
        )
    elif policy.folders:
        folders = " or ".join(map(str, policy.folders))
        choices.append(f"a checkpoint directory or .gguf file in {folders} on the worker's machine")
    if policy.hub:
        choices.append("organisation/name of the Hugging Face hub")
    advice = (
        "For a model of your own, write load_model and load_tokenizer in an api.py and name it with --api of the "
        "worker, or with api= in model_args"
        if policy.folders is None
        else "The options --checkpoints FOLDER and --hub of the worker set which checkpoints it serves"
    )
    return f"unknown model tag {tag!r}. It may be {'; or '.join(choices)}. {advice}"


def checkpoint_fingerprint(path: Path) -> str:
    """Return a hash that changes with a checkpoint: of its files' names, sizes and times, not their contents."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    if path.is_file():
        with contextlib.suppress(OSError, ValueError):  # loading the model reports them
            files = gguf_parts(path)
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            state = file.stat()
            name = file.relative_to(path) if path.is_dir() else Path(file.name)
            digest.update(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _from_hub(name: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download  # imported late: it is slow to import, and few runs need it

    try:
        directory = snapshot_download(
            name,
            revision=revision,
            allow_patterns=_METADATA_PATTERNS + _WEIGHT_PATTERNS * weights,
            ignore_patterns=_IGNORED_PATTERNS,
        )
    except Exception as error:
        at = f" at revision {revision}" if revision else ""
        raise UnknownModelTag(
            f"there is no directory {name}, and downloading {name}{at} from the Hugging Face hub failed: "
            f"{type(error).__name__}: {error}"
        ) from error
    return Path(directory)
