"""Resolve a model tag to a checkpoint: the demo, a directory, a file of GGUF or Keras, or a Hugging Face hub repository."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from birdie_zmq.errors import UnknownModelTag, UsageError
from birdie_zmq.models.checkpoint_policy import CheckpointPolicy, expand_tag, process_policy
from birdie_zmq.models.fingerprint import (
    ADAPTER_FILES,
    CONFIG_FILES,
    INDEX_FILE,
    TOKENIZER_PATTERNS,
    WEIGHTS_FILE,
    weight_names,
)
from birdie_zmq.models.gguf_parts import named_parts
from birdie_zmq.models.native.keras_files import KERAS_WEIGHTS

DEMO = "demo"
BUILT_IN = {DEMO: Path(__file__).parent / "demo"}
"""The directory of each model that comes with the package, by tag."""

_FILE_SUFFIXES = (".gguf", KERAS_WEIGHTS)
"""How the names of files end that hold a model."""

_FILE_KINDS = " or ".join(_FILE_SUFFIXES)

_HUB_NAME = re.compile(r"([\w.-]+/)?[\w.-]+")
_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = ADAPTER_FILES
_METADATA_PATTERNS = [*CONFIG_FILES, _ADAPTER_CONFIG, INDEX_FILE, *TOKENIZER_PATTERNS]


def resolve_checkpoint(
    tag: str,
    revision: object = None,
    *,
    inside: str | None = None,
    weights: bool = True,
    policy: CheckpointPolicy | None = None,
) -> Path:
    """Return the local directory or file of a model tag, after a download from the hub if necessary.

    Args:
        tag: A built-in tag, a path, or the name of a hub repository, with or without an organisation.
        revision: A branch, tag or commit of the hub repository: a string, or an integer, which stands for its digits.
        inside: The relative path of a directory or of a GGUF file in the directory or repository of the tag.
        weights: Whether to download the weights as well, or only the configuration and the tokenizer.
        policy: The checkpoint policy; by default, that of this process.

    Raises:
        UnknownModelTag: The tag is none of these, the download fails, or the policy does not allow the tag.
        UsageError: The revision is of another type, or there is nothing at the path inside.
    """
    if inside is not None:
        _check_inside(tag, inside)
    if tag in BUILT_IN:
        return BUILT_IN[tag]
    policy = process_policy() if policy is None else policy
    path = _local_path(tag, policy)
    if path is not None:
        return path if inside is None else _local_inside(tag, inside, path, policy)
    if not _may_be_hub_name(tag, policy):
        raise UnknownModelTag(f"unknown model tag {tag!r}. {_choices(tag, policy)}")
    commit = _revision_text(revision)
    try:
        return _from_hub(tag, commit, inside, weights)
    except Exception as error:
        at = f" at revision {commit}" if commit else ""
        raise UnknownModelTag(
            f"unknown model tag {tag!r}: it is not a local checkpoint, and downloading {tag}{at} from the Hugging Face hub "
            f"failed: {type(error).__name__}: {error}\n{_choices(tag, policy)}"
        ) from error


def _check_inside(tag: str, inside: str) -> None:
    """Check that a path is a relative one that does not leave its directory.

    Raises:
        UsageError: It is not, or the tag has no directory.
    """
    path = PurePosixPath(inside)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise UsageError(f"{inside!r} (subfolder= or gguf_file= in model_args) must be a relative path without '..'")
    if tag in BUILT_IN:
        raise UsageError(f"subfolder= and gguf_file= in model_args cannot be used with the built-in model {tag!r}")


def _local_inside(tag: str, inside: str, directory: Path, policy: CheckpointPolicy) -> Path:
    found = _local_path(str(Path(tag, inside)), policy) if directory.is_dir() else None
    if found is None:
        raise UsageError(f"there is no {inside} (subfolder= or gguf_file= in model_args) in {directory}")
    return found


def is_hub_name(tag: str, policy: CheckpointPolicy | None = None) -> bool:
    """Return whether `resolve_checkpoint` looks for a tag on the hub, as it is neither built in nor a local checkpoint."""
    policy = process_policy() if policy is None else policy
    return tag not in BUILT_IN and _local_path(tag, policy) is None and _may_be_hub_name(tag, policy)


def _local_path(tag: str, policy: CheckpointPolicy) -> Path | None:
    """Return the checkpoint directory or file that a tag names, if it exists.

    Raises:
        UnknownModelTag: It is a file of another type.
    """
    path = policy.find(tag) if tag else None
    if path is None or not path.exists():
        return None
    if path.is_dir():
        return path.resolve()
    # The name of a file is kept where it is a link: the hub's cache links to names without a suffix or a part's number.
    found = path.parent.resolve() / path.name
    if not path.name.endswith(_FILE_SUFFIXES):
        raise UnknownModelTag(f"{found} is neither a checkpoint directory nor a {_FILE_KINDS} file")
    return found


def _may_be_hub_name(tag: str, policy: CheckpointPolicy) -> bool:
    return policy.hub and _HUB_NAME.fullmatch(tag) is not None and not tag.endswith(_FILE_SUFFIXES)


def _revision_text(revision: object) -> str | None:
    """Return a revision as text: lm_eval turns digits in model_args into an integer.

    Raises:
        UsageError: It has another type, from which the text cannot be told.
    """
    if revision is None or isinstance(revision, str):
        return revision
    if isinstance(revision, int) and not isinstance(revision, bool):
        return str(revision)
    raise UsageError(
        f"revision={revision!r} in model_args is not a string but {type(revision).__name__}; write model_args as JSON with "
        'the revision in quotes: --model_args \'{"pretrained": "NAME", "revision": "REVISION"}\''
    )


def _choices(tag: str, policy: CheckpointPolicy) -> str:
    """Return sentences that list valid tags, without disclosing whether a path outside the policy exists."""
    choices = [", ".join(sorted(BUILT_IN))]
    if policy.folders is None:
        path = expand_tag(tag).absolute()
        choices.append(
            f"the path of a checkpoint directory or of a {_FILE_KINDS} file (there is none at {path} on the worker's machine)"
        )
    elif policy.folders:
        folders = " or ".join(map(str, policy.folders))
        choices.append(f"a checkpoint directory or {_FILE_KINDS} file in {folders} on the worker's machine")
    if policy.hub:
        choices.append("the name of a repository of the Hugging Face hub, such as gpt2 or organisation/name")
    advice = (
        "For a model of your own, write load_model and load_tokenizer in an api.py and name it with --api of the "
        "worker, or with api= in model_args"
        if policy.folders is None
        else "The options --checkpoints FOLDER and --hub of the worker set which checkpoints it serves"
    )
    return f"It may be {'; or '.join(choices)}. {advice}"


def _from_hub(name: str, revision: str | None, inside: str | None, weights: bool) -> Path:
    """Return the snapshot of a repository in the hub's cache, which needs no network if it is complete.

    Only files that are read are downloaded: a GGUF file, or one ``model.safetensors``, or else the shards that the index
    names.
    """
    from huggingface_hub import snapshot_download  # imported late: it is slow to import, and few runs need it

    def download(commit: str | None, patterns: Sequence[str], folder: str = "") -> Path:
        return Path(snapshot_download(name, revision=commit, allow_patterns=[folder + each for each in patterns]))

    if inside is not None and inside.endswith(".gguf"):
        return download(revision, [glob.escape(str(part)) for part in named_parts(Path(inside))]) / inside
    folder, subfolder = ("", ".") if inside is None else (f"{glob.escape(inside)}/", inside)
    patterns = _METADATA_PATTERNS + [WEIGHTS_FILE, _ADAPTER_WEIGHTS] * weights
    snapshot = download(revision, patterns, folder)
    named = weight_names(snapshot / subfolder) if weights else []
    if any(not (snapshot / subfolder / file).is_file() for file in named):
        # By its commit: a branch may have moved since the index was downloaded.
        snapshot = download(snapshot.name, [*patterns, *named], folder)
        shards = [file for file in weight_names(snapshot / subfolder) if file not in named]
        if shards:  # of an index that the configuration names
            snapshot = download(snapshot.name, [*patterns, *named, *shards], folder)
    return snapshot / subfolder
