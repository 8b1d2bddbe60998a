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

LEVANTER_METADATA = "metadata.json"
"""The file that Levanter writes last; it holds a time."""

EASYDEL_INDEX = "tensorstore_index.json"
"""The file that lists the arrays of EasyDeL; it is written last."""

_EASYDEL_METADATA = "checkpoint_metadata.json"

KERAS_WEIGHTS = ".weights.h5"
"""How the names of Keras's weights end."""

KERAS_INDEX = "model.weights.json"
"""The file that names the shards of Keras's weights."""

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

    kind: Literal["orbax", "levanter", "easydel", "keras"]
    root: Path
    checkpoint: Path

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield the files that hold its weights and its settings, with what they are in the checkpoint."""
        found = keras_files(self.root) if self.kind == "keras" else self.root.rglob("*")
        if self.kind == "easydel":
            # The optimiser's state lies beside the model.
            found = [self.root / EASYDEL_INDEX, *(self.root / "model").rglob("*")]
        for path in sorted(found):
            if path.is_file() and path.name not in (*ORBAX_COMMIT_MARKERS, LEVANTER_METADATA, _EASYDEL_METADATA):
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
        if (directory / EASYDEL_INDEX).is_file():
            return NativeDirectory("easydel", directory, directory)
        return _find_levanter(directory) or _find_keras(directory) or _find_orbax(directory)
    except (OSError, ValueError) as error:
        raise ModelLoadError(str(error)) from error


def keras_files(directory: Path) -> list[Path]:
    """Return the files that hold the weights of a Keras model: the backbone's, its shards, or the only file there is.

    Raises:
        IncompleteCheckpoint: A shard is missing.
        ModelLoadError: There are several files, and none is the backbone's.
        ValueError: The index of shards is damaged.
    """
    index = directory / KERAS_INDEX
    if index.is_file():
        weight_map = read_json_object(index).get("weight_map")
        values = weight_map.values() if isinstance(weight_map, dict) else ()
        names = {name for value in values for name in (value if isinstance(value, list) else [value])}
        shards = [directory / Path(str(name)).name for name in sorted(names, key=str)]
        missing = next((path for path in shards if not path.is_file()), None)
        if missing is not None or not shards:
            raise IncompleteCheckpoint(
                f"{index} names the file {missing}, which does not exist; copy the checkpoint again"
            )
        return [index, *shards]
    found = sorted(directory.glob(f"*{KERAS_WEIGHTS}"))
    backbone = directory / f"model{KERAS_WEIGHTS}"
    if backbone in found or len(found) <= 1:
        return [backbone] if backbone in found else found
    raise ModelLoadError(
        f"{directory} has several weights files of Keras ({', '.join(path.name for path in found)}), and none is "
        f"{backbone.name}; move the others away"
    )


def _find_keras(directory: Path) -> NativeDirectory | None:
    """Return the weights of a Keras model in a directory."""
    return NativeDirectory("keras", directory, directory) if keras_files(directory) else None


def _find_levanter(directory: Path) -> NativeDirectory | None:
    """Return a step of Levanter, which has the OCDBT manifest of its arrays and its own metadata."""
    if not (directory / OCDBT_MANIFEST).is_file() or (directory / TREE_METADATA).is_file():
        return None
    if (directory / LEVANTER_METADATA).is_file():
        return NativeDirectory("levanter", directory, directory)
    raise IncompleteCheckpoint(
        f"{directory} is an incomplete checkpoint: it has neither {LEVANTER_METADATA} of Levanter nor {TREE_METADATA} of "
        "Orbax, which are written last; choose a committed step"
    )


def _find_orbax(directory: Path) -> NativeDirectory | None:
    """Return the saved tree in a directory, which is an Orbax item or a step with one."""
    for root in (directory, *(directory / name for name in _ITEMS)):
        if (root / TREE_METADATA).is_file():
            _check_committed(directory)
            _check_committed(root)
            return NativeDirectory("orbax", root, directory)
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
