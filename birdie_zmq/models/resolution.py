"""Resolve a model tag to a checkpoint: the demo, a directory, a GGUF file, or a Hugging Face hub repository."""

from __future__ import annotations

import re
from pathlib import Path

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

DEMO = "demo"
BUILT_IN = {DEMO: Path(__file__).parent / "demo"}
"""The directory of each model that comes with the package, by tag."""

_HUB_NAME = re.compile(r"([\w.-]+/)?[\w.-]+")
_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = ADAPTER_FILES
_METADATA_PATTERNS = [*CONFIG_FILES, _ADAPTER_CONFIG, INDEX_FILE, *TOKENIZER_PATTERNS]


def resolve_checkpoint(
    tag: str, revision: object = None, *, weights: bool = True, policy: CheckpointPolicy | None = None
) -> Path:
    """Return the local directory or GGUF file of a model tag, after a download from the hub if necessary.

    Args:
        tag: A built-in tag, a path, or the name of a hub repository, with or without an organisation.
        revision: A branch, tag or commit of the hub repository: a string, or an integer, which stands for its digits.
        weights: Whether to download the weights as well, or only the configuration and the tokenizer.
        policy: The checkpoint policy; by default, that of this process.

    Raises:
        UnknownModelTag: The tag is none of these, the download fails, or the policy does not allow the tag.
        UsageError: The revision is of another type.
    """
    if tag in BUILT_IN:
        return BUILT_IN[tag]
    policy = process_policy() if policy is None else policy
    path = _local_path(tag, policy)
    if path is not None:
        return path
    if not _may_be_hub_name(tag, policy):
        raise UnknownModelTag(f"unknown model tag {tag!r}. {_choices(tag, policy)}")
    commit = _revision_text(revision)
    try:
        return _from_hub(tag, commit, weights)
    except Exception as error:
        at = f" at revision {commit}" if commit else ""
        raise UnknownModelTag(
            f"unknown model tag {tag!r}: it is not a local checkpoint, and downloading {tag}{at} from the Hugging Face hub "
            f"failed: {type(error).__name__}: {error}\n{_choices(tag, policy)}"
        ) from error


def is_hub_name(tag: str, policy: CheckpointPolicy | None = None) -> bool:
    """Return whether `resolve_checkpoint` looks for a tag on the hub, as it is neither built in nor a local checkpoint."""
    policy = process_policy() if policy is None else policy
    return tag not in BUILT_IN and _local_path(tag, policy) is None and _may_be_hub_name(tag, policy)


def _local_path(tag: str, policy: CheckpointPolicy) -> Path | None:
    """Return the checkpoint directory or GGUF file that a tag names, if it exists.

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
    if path.suffix != ".gguf":
        raise UnknownModelTag(f"{found} is neither a checkpoint directory nor a .gguf file")
    return found


def _may_be_hub_name(tag: str, policy: CheckpointPolicy) -> bool:
    return policy.hub and _HUB_NAME.fullmatch(tag) is not None and Path(tag).suffix != ".gguf"


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
            f"the path of a checkpoint directory or of a .gguf file (there is none at {path} on the worker's machine)"
        )
    elif policy.folders:
        folders = " or ".join(map(str, policy.folders))
        choices.append(f"a checkpoint directory or .gguf file in {folders} on the worker's machine")
    if policy.hub:
        choices.append("the name of a repository of the Hugging Face hub, such as gpt2 or organisation/name")
    advice = (
        "For a model of your own, write load_model and load_tokenizer in an api.py and name it with --api of the "
        "worker, or with api= in model_args"
        if policy.folders is None
        else "The options --checkpoints FOLDER and --hub of the worker set which checkpoints it serves"
    )
    return f"It may be {'; or '.join(choices)}. {advice}"


def _from_hub(name: str, revision: str | None, weights: bool) -> Path:
    """Return the snapshot of a repository in the hub's cache, which needs no network if it is complete.

    Only files that are read are downloaded: one ``model.safetensors``, or else the shards that the index names.
    """
    from huggingface_hub import snapshot_download  # imported late: it is slow to import, and few runs need it

    patterns = _METADATA_PATTERNS + [WEIGHTS_FILE, _ADAPTER_WEIGHTS] * weights
    snapshot = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    named = weight_names(snapshot) if weights else []
    if any(not (snapshot / file).is_file() for file in named):
        # By its commit: a branch may have moved since the index was downloaded.
        snapshot = Path(snapshot_download(name, revision=snapshot.name, allow_patterns=[*patterns, *named]))
        shards = [file for file in weight_names(snapshot) if file not in named]
        if shards:  # of an index that the configuration names
            snapshot = Path(
                snapshot_download(name, revision=snapshot.name, allow_patterns=[*patterns, *named, *shards])
            )
    return snapshot
