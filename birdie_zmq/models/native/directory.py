"""Recognise the directory of a trainer's checkpoint, and tell which files hold it and whether it is complete.

Only names of files and small JSON files are read here: neither jax nor orbax is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from birdie_zmq.errors import IncompleteCheckpoint, ModelLoadError
from birdie_zmq.models.config_fields import read_json_object
from birdie_zmq.models.tensor_source import has_weights

TREE_METADATA = "_METADATA"
"""The file of an Orbax item that describes its tree."""

OCDBT_MANIFEST = "manifest.ocdbt"
SETTINGS_FILE = "config.yml"
"""The configuration of a run of MaxText."""

ORBAX_TEMPORARY = ".orbax-checkpoint-tmp"
"""Part of the name of a directory that Orbax still writes to; it is renamed when it is complete."""
ORBAX_COMMIT_MARKERS = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""The files that Orbax writes last: the second one where directories cannot be renamed, as on object stores. They hold
times, which differ between equal checkpoints."""

_CHECKPOINT_METADATA, _COMMITTED = ORBAX_COMMIT_MARKERS

_ITEMS = ("items", "default", "model_params", "params", "model", "state")
"""The names under which trainers save their parameters in a step of an Orbax ``CheckpointManager``."""

_MAX_STEPS_LISTED = 5


@dataclass(frozen=True)
class NativeDirectory:
    """A checkpoint in the format of a trainer.

    Attributes:
        kind: The library that wrote its arrays.
        root: The directory of its arrays.
        checkpoint: The directory that was named: `root`, or the step that holds it.
    """

    kind: Literal["orbax"]
    root: Path
    checkpoint: Path

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield the files that hold its weights and its settings, with what they are in the checkpoint."""
        for path in sorted(self.root.rglob("*")):
            if path.is_file() and path.name not in ORBAX_COMMIT_MARKERS:
                yield path.relative_to(self.root).as_posix(), path
        settings = self.settings_file()
        if settings is not None and self.root not in settings.parents:
            yield SETTINGS_FILE, settings

    def settings_file(self) -> Path | None:
        """Return the ``config.yml`` of MaxText: in the checkpoint, beside it, or in the folder of its run.

        MaxText saves the steps of a run in ``RUN/checkpoints``, and its configuration as ``RUN/config.yml``.
        """
        step = self.checkpoint if self.checkpoint.name not in _ITEMS else self.checkpoint.parent
        folders = (self.checkpoint, step, step.parent, step.parent.parent)
        return next((folder / SETTINGS_FILE for folder in folders if (folder / SETTINGS_FILE).is_file()), None)


def native_directory(directory: Path) -> NativeDirectory | None:
    """Return the trainer's checkpoint in a directory; None if there is none, or weights as Hugging Face stores them.

    Raises:
        IncompleteCheckpoint: It is not committed.
        ModelLoadError: The directory holds several steps of a run, or a file is damaged.
    """
    if not directory.is_dir() or has_weights(directory):
        return None
    try:
        return _find_orbax(directory)
    except (OSError, ValueError) as error:
        raise ModelLoadError(str(error)) from error


def _find_orbax(directory: Path) -> NativeDirectory | None:
    """Return the saved tree in a directory, which is an Orbax item or a step with one."""
    for root in (directory, *(directory / name for name in _ITEMS)):
        if (root / TREE_METADATA).is_file():
            _check_committed(directory)
            _check_committed(root)
            return NativeDirectory("orbax", root, directory)
    if any((directory / name).is_file() for name in (OCDBT_MANIFEST, _CHECKPOINT_METADATA)):
        raise _incomplete(directory, f"it has no {TREE_METADATA}")
    names = sorted(path.name for path in directory.iterdir() if path.is_dir())
    steps = sorted(
        int(name) for name in names if name.isdigit() and (directory / name / _CHECKPOINT_METADATA).is_file()
    )
    if steps:
        listed = ", ".join(map(str, steps[-_MAX_STEPS_LISTED:]))
        more = "…, " if len(steps) > _MAX_STEPS_LISTED else ""
        raise ModelLoadError(
            f"{directory} holds the steps {more}{listed} of a training run; name one, as {directory / str(steps[-1])}"
        )
    unfinished = next((name for name in names if ORBAX_TEMPORARY in name), None)
    if ORBAX_TEMPORARY in directory.name or unfinished is not None:
        raise _incomplete(
            directory if unfinished is None else directory / unfinished, "it is being written, or its writer died"
        )
    return None


def _check_committed(directory: Path) -> None:
    """Check that Orbax has committed a directory: by its name, and by the time of the commit in its metadata.

    Raises:
        IncompleteCheckpoint: It has not.
    """
    if ORBAX_TEMPORARY in directory.name:
        raise _incomplete(directory, "it is being written, or its writer died")
    metadata = directory / _CHECKPOINT_METADATA
    if not metadata.is_file() or (directory / _COMMITTED).is_file():
        return  # early versions of Orbax write no such file
    if read_json_object(metadata).get("commit_timestamp_nsecs") is None:
        raise _incomplete(directory, f"{_CHECKPOINT_METADATA} names no time of a commit")


def _incomplete(directory: Path, reason: str) -> IncompleteCheckpoint:
    return IncompleteCheckpoint(f"{directory} is an incomplete checkpoint of Orbax: {reason}; choose a committed step")
