"""Where the checkpoint of a tag lies: the demo, a directory, a GGUF file, or a repository of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from birdie_zmq.errors import UnknownModelTag

DEMO = "demo"
BUILT_IN = {DEMO: Path(__file__).parent / "demo"}
"""The tags of the models that come with the package, and where each lies."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_TEXTS = ["*.json", "*.jinja"]
_WEIGHTS = ["*.safetensors"]
_LEFT_OUT = ["original/*", "onnx/*", "consolidated*"]
"""Copies of the same weights in other forms, which some repositories hold as well."""


def locate(tag: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The directory or the GGUF file that a tag stands for, on this machine.

    Args:
        tag: A built-in tag, a path, or ``organisation/name`` of the hub.
        revision: A branch, tag or commit of the hub's repository.
        weights: Whether the weights are wanted too, or only the small files beside them.

    Raises:
        UnknownModelTag: It is none of these, or the hub does not give it.
    """
    if tag in BUILT_IN:
        return BUILT_IN[tag]
    path = Path(tag).expanduser()
    if (tag and path.is_dir()) or (path.is_file() and path.suffix == ".gguf"):
        return path.resolve()
    if path.is_file():
        raise UnknownModelTag(f"{path.resolve()} is neither a checkpoint directory nor a .gguf file")
    if _HUB_NAME.fullmatch(tag) and path.suffix != ".gguf":
        return _from_hub(tag, revision, weights)
    raise UnknownModelTag(
        f"no model is known by the tag {tag!r}. It may be {', '.join(sorted(BUILT_IN))}; the path of a checkpoint "
        f"directory or of a .gguf file (there is none at {path.absolute()} on the worker's machine); or "
        "organisation/name of the Hugging Face hub. For a model of your own, write load_model and load_tokenizer in an "
        "api.py and name it with --api of the worker, or with api= in model_args"
    )


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
