"""Where the checkpoint of a tag lies: the demo, a directory, a GGUF file, or a repository of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from birdie_zmq.errors import UnknownModelTag
from birdie_zmq.models.checkpoint_policy import CheckpointPolicy, expanded

DEMO = "demo"
BUILT_IN = {DEMO: Path(__file__).parent / "demo"}
"""The tags of the models that come with the package, and where each lies."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_TEXTS = ["*.json", "*.jinja"]
_WEIGHTS = ["*.safetensors"]
_LEFT_OUT = ["original/*", "onnx/*", "consolidated*"]
"""Copies of the same weights in other forms, which some repositories hold as well."""


def locate(
    tag: str, revision: str | None = None, *, weights: bool = True, offer: CheckpointPolicy | None = None
) -> Path:
    """The directory or the GGUF file that a tag stands for, on this machine.

    Args:
        tag: A built-in tag, a path, or ``organisation/name`` of the hub.
        revision: A branch, tag or commit of the hub's repository.
        weights: Whether the weights are wanted too, or only the small files beside them.
        offer: What tags may name; by default, what this process's environment says.

    Raises:
        UnknownModelTag: It is none of these, the hub does not give it, or it is not offered.
    """
    if tag in BUILT_IN:
        return BUILT_IN[tag]
    offer = CheckpointPolicy.of() if offer is None else offer
    path = offer.find(tag) if tag else None
    if path is not None and (path.is_dir() or (path.is_file() and path.suffix == ".gguf")):
        return path.resolve()
    if path is not None and path.is_file():
        raise UnknownModelTag(f"{path.resolve()} is neither a checkpoint directory nor a .gguf file")
    if offer.hub and _HUB_NAME.fullmatch(tag) and Path(tag).suffix != ".gguf":
        return _from_hub(tag, revision, weights)
    raise UnknownModelTag(_unknown(tag, offer))


def _unknown(tag: str, offer: CheckpointPolicy) -> str:
    """What may be asked for instead. Of what is not offered it does not say whether it is there."""
    may_be = [", ".join(sorted(BUILT_IN))]
    if offer.folders is None:
        where = expanded(tag).absolute()
        may_be.append(
            f"the path of a checkpoint directory or of a .gguf file (there is none at {where} on the worker's machine)"
        )
    elif offer.folders:
        folders = " or ".join(map(str, offer.folders))
        may_be.append(f"a checkpoint directory or .gguf file in {folders} on the worker's machine")
    if offer.hub:
        may_be.append("organisation/name of the Hugging Face hub")
    or_else = (
        "For a model of your own, write load_model and load_tokenizer in an api.py and name it with --api of the "
        "worker, or with api= in model_args"
        if offer.folders is None
        else "Whoever starts the worker says what it offers, with --checkpoints FOLDER and --hub"
    )
    return f"no model is known by the tag {tag!r}. It may be {'; or '.join(may_be)}. {or_else}"


def fingerprint_of(path: Path) -> str:
    """What tells a checkpoint from another at the same path, without reading it: its files' names, sizes and times."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            state = file.stat()
            name = file.relative_to(path) if path.is_dir() else Path(file.name)
            digest.update(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _from_hub(name: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download  # late: it is slow to import, and few need it

    try:
        directory = snapshot_download(
            name,
            revision=revision,
            allow_patterns=_TEXTS + _WEIGHTS * weights,
            ignore_patterns=_LEFT_OUT,
        )
    except Exception as error:
        at = f" at revision {revision}" if revision else ""
        raise UnknownModelTag(
            f"there is no directory {name}, and the Hugging Face hub does not give {name}{at}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return Path(directory)
