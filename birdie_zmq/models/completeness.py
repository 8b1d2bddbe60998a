"""Whether a checkpoint is complete, for each format: a trainer may still be writing it.

Each format has its own sign of completeness. A trainer that writes other files behind that sign, such as a tokenizer after
the weights, is not noticed here; whoever follows a run also waits until the files no longer change. This module imports
neither jax nor transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

from birdie_zmq.errors import IncompleteCheckpoint, ModelLoadError
from birdie_zmq.models.config_fields import read_json_object
from birdie_zmq.models.fingerprint import ADAPTER_FILES, CONFIG_FILES, INDEX_FILE, WEIGHTS_FILE, weight_names
from birdie_zmq.models.native.directory import (
    LEVANTER_METADATA,
    OCDBT_MANIFEST,
    ORBAX_COMMIT_MARKERS,
    ORBAX_TEMPORARY,
    TREE_METADATA,
    native_checkpoint,
)
from birdie_zmq.models.native.hdf5_header import missing_part_of_hdf5
from birdie_zmq.models.native.keras_files import KERAS_WEIGHTS, is_keras_file, keras_files
from birdie_zmq.models.tensor_source import has_weights

_ORBAX_FILES = (TREE_METADATA, OCDBT_MANIFEST, "ocdbt.process_0")
_COMMIT_TIME = "commit_timestamp_nsecs"
_HEADER_SIZE_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format."""


class CheckpointFormat(Protocol):
    """A format of checkpoints, as far as its completeness is concerned; `name` is for messages."""

    name: str

    def recognizes(self, path: Path) -> bool:
        """Return whether a path holds a checkpoint of this format, or the first files of one."""
        ...

    def missing_part(self, path: Path) -> str | None:
        """Return what a checkpoint still lacks, as the end of the sentence "it lacks"; None if it is complete."""
        ...


class Orbax:
    """A directory that Orbax writes: a step of a CheckpointManager, or a single checkpoint."""

    name = "Orbax"

    def recognizes(self, path: Path) -> bool:
        """Return whether the name or a file is Orbax's, in the directory itself or in one of its items."""
        if ORBAX_TEMPORARY in path.name:
            return True
        names = (*ORBAX_COMMIT_MARKERS, *_ORBAX_FILES)
        return path.is_dir() and any((folder / name).exists() for folder in (path, *_folders(path)) for name in names)

    def missing_part(self, path: Path) -> str | None:
        """Return the commit marker if there is none, or if it names no time of the commit."""
        if ORBAX_TEMPORARY in path.name:
            return "its final name: Orbax still writes to it"
        metadata, committed = ORBAX_COMMIT_MARKERS
        if (path / committed).is_file():
            return None
        if (path / metadata).is_file():
            try:
                has_time = read_json_object(path / metadata).get(_COMMIT_TIME) is not None
            except ValueError:
                has_time = False
            return None if has_time else f"the time of its commit in {metadata}"
        missing = f"a commit marker of Orbax ({' or '.join(ORBAX_COMMIT_MARKERS)})"
        # Levanter begins with the same file.
        is_of_levanter = (path / OCDBT_MANIFEST).is_file() and not (path / TREE_METADATA).is_file()
        return f"{LEVANTER_METADATA} of Levanter, or {missing}" if is_of_levanter else missing


class HuggingFace:
    """A directory with ``config.json`` and safetensors files, or a LoRA adapter."""

    name = "Hugging Face"

    def recognizes(self, path: Path) -> bool:
        """Return whether the directory has one of the files of the format."""
        names = (*CONFIG_FILES, *ADAPTER_FILES, WEIGHTS_FILE, INDEX_FILE)
        return path.is_dir() and (any((path / name).is_file() for name in names) or any(path.glob("*.safetensors")))

    def missing_part(self, path: Path) -> str | None:
        """Return the first file that is not there, or that is shorter than its header says."""
        config, _ = CONFIG_FILES
        adapter_config, _ = ADAPTER_FILES
        if (path / config).is_file():
            if not _is_json(path / config):
                return f"the rest of {config}"
            needed = weight_names(path)
        elif (path / adapter_config).is_file():
            needed = list(ADAPTER_FILES)
        else:
            return config
        if needed == [INDEX_FILE]:
            # Either there are no weights yet, or the index is not readable yet.
            return f"the rest of {INDEX_FILE}" if (path / INDEX_FILE).is_file() else f"{WEIGHTS_FILE} or {INDEX_FILE}"
        for name in needed:
            if not (path / name).is_file():
                return name
            if name.endswith(".safetensors") and (rest := _missing_bytes(path / name)):
                return f"the rest of {name} ({rest})"
        return None


class Gguf:
    """A ``.gguf`` file. It has no sign of completeness, so only a size that no longer changes tells."""

    name = "GGUF"

    def recognizes(self, path: Path) -> bool:
        """Return whether the file has that suffix."""
        return path.suffix == ".gguf" and path.is_file()

    def missing_part(self, path: Path) -> str | None:
        """Return None."""
        del path
        return None


class Keras:
    """Weights of Keras: a ``.weights.h5`` file, or a directory with one, or with shards and their index."""

    name = "Keras"

    def recognizes(self, path: Path) -> bool:
        """Return whether the path is such a file, or a directory with one and without weights of Hugging Face."""
        return is_keras_file(path) or (path.is_dir() and not has_weights(path) and any(path.glob(f"*{KERAS_WEIGHTS}")))

    def missing_part(self, path: Path) -> str | None:
        """Return the index or the shard that is not there, or the first file that is not closed or is too short."""
        try:
            files = keras_files(path)
        except IncompleteCheckpoint as error:
            return f"a file of Keras's weights: {error}"
        except (ModelLoadError, ValueError):
            return None  # whoever loads it says what is wrong
        weights = (file for file in files if file.name.endswith(KERAS_WEIGHTS))
        return next(filter(None, map(missing_part_of_hdf5, weights)), None)


class OtherTrainers:
    """A directory that Levanter or EasyDeL has written: each is recognised by the file that it writes last."""

    name = "Levanter, EasyDeL"

    def recognizes(self, path: Path) -> bool:
        """Return whether the last file is there."""
        try:
            found = native_checkpoint(path)
        except ModelLoadError:
            return False
        return found is not None and found.kind not in ("orbax", "keras")

    def missing_part(self, path: Path) -> str | None:
        """Return None."""
        del path
        return None


FORMATS: tuple[CheckpointFormat, ...] = (OtherTrainers(), Keras(), Orbax(), HuggingFace(), Gguf())
"""The known formats. The first one that recognizes a path decides."""


def missing_part(path: Path) -> str | None:
    """Return what the checkpoint at a path still lacks, or that its format is unknown; None if it is complete.

    A file that disappears meanwhile counts as missing.
    """
    return _missing_part(path, f"the files of a known format ({', '.join(each.name for each in FORMATS)})")


def missing_part_if_known(path: Path) -> str | None:
    """Return what the checkpoint at a path still lacks; None if it is complete, and for a path of an unknown format."""
    return _missing_part(path, None)


def _missing_part(path: Path, unknown: str | None) -> str | None:
    try:
        found = next((each for each in FORMATS if each.recognizes(path)), None)
        return unknown if found is None else found.missing_part(path)
    except OSError as error:
        return f"a file that can be read ({error.strerror})"


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_dir())


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def _missing_bytes(path: Path) -> str | None:
    """Return how many bytes of a safetensors file are there if it is shorter than its header says; else None.

    A file with a damaged header counts as complete: whoever loads it says what is wrong.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_HEADER_SIZE_BYTES), "little")
        if size < _HEADER_SIZE_BYTES or (length <= _MAX_HEADER_BYTES and size < _HEADER_SIZE_BYTES + length):
            return f"{size:,} bytes are there"
        if length > _MAX_HEADER_BYTES:
            return None
        try:
            header = json.loads(file.read(length))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None
    expected = _HEADER_SIZE_BYTES + length + end
    return f"{size:,} of {expected:,} bytes are there" if size < expected else None
