"""Resolve a model tag to a checkpoint: the demo, a directory, a GGUF file, or a Hugging Face hub repository."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from birdie_zmq.errors import UnknownModelTag
from birdie_zmq.models.checkpoint_policy import CheckpointPolicy, expand_tag

DEMO = "demo"
BUILT_IN = {DEMO: Path(__file__).parent / "demo"}
"""The directory of each model that comes with the package, by tag."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_METADATA_PATTERNS = ["*.json", "*.jinja"]
_WEIGHT_PATTERNS = ["*.safetensors"]
_IGNORED_PATTERNS = ["original/*", "onnx/*", "consolidated*"]
"""Copies of the same weights in other formats, which some repositories also hold."""


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
    path = policy.find(tag) if tag else None
    if path is not None and (path.is_dir() or (path.is_file() and path.suffix == ".gguf")):
        return path.resolve()
    if path is not None and path.is_file():
        raise UnknownModelTag(f"{path.resolve()} is neither a checkpoint directory nor a .gguf file")
    if policy.hub and _HUB_NAME.fullmatch(tag) and Path(tag).suffix != ".gguf":
        return _from_hub(tag, revision, weights)
    raise UnknownModelTag(_unknown_tag_message(tag, policy))


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
