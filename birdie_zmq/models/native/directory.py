"""Recognise the checkpoint of a trainer, and tell which files hold it and whether it is complete.

Only names of files and small JSON files are read here: neither jax nor orbax is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from birdie_zmq.errors import IncompleteCheckpoint, ModelLoadError
from birdie_zmq.models.config_fields import read_json_object
from birdie_zmq.models.native.keras_files import is_keras_file, keras_files, keras_roles
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

LEVANTER_METADATA = "metadata.json"
"""The file that Levanter writes last; it holds a time."""

EASYDEL_INDEX = "tensorstore_index.json"
"""The file that lists the arrays of EasyDeL; it is written last."""

_EASYDEL_METADATA = "checkpoint_metadata.json"

_CHECKPOINT_METADATA, _COMMITTED = ORBAX_COMMIT_MARKERS

_ITEMS = ("items", "default", "model_params", "params", "model", "state")
"""The names under which trainers save their parameters in a step of an Orbax ``CheckpointManager``."""

_MAX_STEPS_LISTED = 5


@dataclass(frozen=True)
class NativeCheckpoint:
    """A checkpoint in the format of a trainer.

    Attributes:
        kind: The library that wrote its arrays.
        root: The directory of its arrays, or the only file of Keras.
        checkpoint: The path that was named: `root`, or the step that holds it.
    """

    kind: Literal["orbax", "levanter", "easydel", "keras"]
    root: Path
    checkpoint: Path

    @property
    def folders(self) -> tuple[Path, ...]:
        """The directories in which a file may describe it: that of the checkpoint, and that of its arrays."""
        if self.root.is_file():
            return (self.root.parent,)
        return (self.checkpoint,) if self.checkpoint == self.root else (self.checkpoint, self.root)

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield the files that hold its weights and its settings, with what they are in the checkpoint."""
        if self.kind == "keras":
            yield from keras_roles(self.root)
            return
        # Beside a model of EasyDeL lies the optimiser's state.
        found = (
            [self.root / EASYDEL_INDEX, *(self.root / "model").rglob("*")]
            if self.kind == "easydel"
            else self.root.rglob("*")
        )
        for path in sorted(found):
            if path.is_file() and path.name not in (*ORBAX_COMMIT_MARKERS, LEVANTER_METADATA, _EASYDEL_METADATA):
                yield path.relative_to(self.root).as_posix(), path
        settings = self.settings_file()
        if settings is not None and self.root not in settings.parents:
            yield SETTINGS_FILE, settings

    def settings_file(self) -> Path | None:
        """Return the ``config.yml`` of MaxText: in the checkpoint, beside it, or in the folder of its run.

        MaxText saves the steps of a run in ``RUN/checkpoints``, and its configuration as ``RUN/config.yml``. Other trainers
        than those that write with Orbax have none: a file of this name beside theirs is not read.
        """
        if self.kind != "orbax":
            return None
        step = self.checkpoint if self.checkpoint.name not in _ITEMS else self.checkpoint.parent
        folders = (self.checkpoint, step, step.parent, step.parent.parent)
        return next((folder / SETTINGS_FILE for folder in folders if (folder / SETTINGS_FILE).is_file()), None)


def native_checkpoint(path: Path) -> NativeCheckpoint | None:
    """Return the trainer's checkpoint at a path; None if there is none, or weights as Hugging Face stores them.

    Args:
        path: A directory, or a ``.weights.h5`` file of Keras.

    Raises:
        IncompleteCheckpoint: It is not committed.
        ModelLoadError: The directory holds several steps of a run, or a file is damaged.
    """
    if is_keras_file(path):
        return NativeCheckpoint("keras", path, path)
    if not path.is_dir() or has_weights(path):
        return None
    try:
        if (path / EASYDEL_INDEX).is_file():
            return NativeCheckpoint("easydel", path, path)
        return _find_levanter(path) or _find_keras(path) or _find_orbax(path)
    except (OSError, ValueError) as error:
        raise ModelLoadError(str(error)) from error


def _find_keras(directory: Path) -> NativeCheckpoint | None:
    """Return the weights of a Keras model in a directory."""
    return NativeCheckpoint("keras", directory, directory) if keras_files(directory) else None


def _find_levanter(directory: Path) -> NativeCheckpoint | None:
    """Return a step of Levanter, which has the OCDBT manifest of its arrays and its own metadata."""
    if not (directory / OCDBT_MANIFEST).is_file() or (directory / TREE_METADATA).is_file():
        return None
    if (directory / LEVANTER_METADATA).is_file():
        return NativeCheckpoint("levanter", directory, directory)
    raise IncompleteCheckpoint(
        f"{directory} is an incomplete checkpoint: it has neither {LEVANTER_METADATA} of Levanter nor {TREE_METADATA} of "
        "Orbax, which are written last; choose a committed step"
    )


def _find_orbax(directory: Path) -> NativeCheckpoint | None:
    """Return the saved tree in a directory, which is an Orbax item or a step with one."""
    for root in (directory, *(directory / name for name in _ITEMS)):
        if (root / TREE_METADATA).is_file():
            _check_committed(directory)
            _check_committed(root)
            return NativeCheckpoint("orbax", root, directory)
    if (directory / _CHECKPOINT_METADATA).is_file():
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
