"""The files of Keras's weights: one ``.weights.h5`` file, or shards with an index, alone or in the directory of a preset.

Neither h5py nor keras is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from birdie_zmq.errors import IncompleteCheckpoint, ModelLoadError
from birdie_zmq.models.config_fields import read_json_object

KERAS_WEIGHTS = ".weights.h5"
"""How the names of Keras's weights end."""

KERAS_INDEX = ".weights.json"
"""How the name of the file ends that lists the shards of Keras's weights; it is written last."""

_PRESET = "model"
"""How the names of a preset's files begin."""

_SHARD = re.compile(r"_\d{5}" + re.escape(KERAS_WEIGHTS) + "$")


def is_keras_file(path: Path) -> bool:
    """Return whether a path is a file of Keras's weights."""
    return path.name.endswith(KERAS_WEIGHTS) and path.is_file()


def keras_files(path: Path) -> list[Path]:
    """Return the files that hold the weights of a Keras model: one file, or an index and its shards.

    Args:
        path: A ``.weights.h5`` file, or a directory with the files of a preset, or with one model.

    Returns:
        The files; none if the directory has no weights of Keras.

    Raises:
        IncompleteCheckpoint: A shard or the index is missing.
        ModelLoadError: There are several models.
        ValueError: The index is damaged.
    """
    if path.is_file():
        return [path]
    indexes = sorted(path.glob(f"*{KERAS_INDEX}"))
    weights = sorted(path.glob(f"*{KERAS_WEIGHTS}"))
    shards = [each for each in weights if _SHARD.search(each.name)]
    models = [*indexes, *(each for each in weights if each not in shards)]
    if not models and shards:
        raise IncompleteCheckpoint(
            f"{path} has shards of Keras's weights, such as {shards[0].name}, without the {KERAS_INDEX} file that lists "
            "them, which is written last; wait until it is there, or copy the checkpoint again"
        )
    preset = [each for each in models if each.name in (_PRESET + KERAS_INDEX, _PRESET + KERAS_WEIGHTS)]
    if len(models) > 1 and not preset:
        raise ModelLoadError(
            f"{path} has the weights of several models of Keras ({', '.join(each.name for each in models)}); name a file, as "
            f"{path / next((each.name for each in models if each not in indexes), '*' + KERAS_WEIGHTS)}"
        )
    chosen = (preset or models)[:1]
    return [*chosen, *_shards(chosen[0])] if chosen and chosen[0] in indexes else chosen


def keras_roles(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the same files with what they are in the checkpoint, whatever the name of the model is."""
    files = keras_files(path)
    for file in files:
        if file.name.endswith(KERAS_INDEX):
            yield _PRESET + KERAS_INDEX, file
        else:
            yield _PRESET + KERAS_WEIGHTS if len(files) == 1 else file.name, file


def _shards(index: Path) -> list[Path]:
    """Return the shards that an index names.

    Raises:
        IncompleteCheckpoint: One is missing.
        ValueError: The index is damaged, or names no file of its directory.
    """
    weight_map = read_json_object(index).get("weight_map")
    values = weight_map.values() if isinstance(weight_map, dict) else ()
    names = {name for value in values for name in (value if isinstance(value, list) else [value])}
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(f"{index} does not list the shards of Keras's weights")
    shards = [index.with_name(name) for name in sorted(names)]
    missing = next((path for path in shards if not path.is_file()), None)
    if missing is not None:
        raise IncompleteCheckpoint(f"{index} names the file {missing}, which does not exist; copy the checkpoint again")
    return shards
