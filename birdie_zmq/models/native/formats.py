"""The trainers whose checkpoints are read, and how a checkpoint is recognised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from birdie_zmq.models.native import easydel, gemma, keras_hub, levanter, maxtext, tunix
from birdie_zmq.models.native.arrays import ArrayTree, describe_top
from birdie_zmq.models.native.described import read_described
from birdie_zmq.models.native.directory import NativeCheckpoint
from birdie_zmq.models.native.hdf5_tree import read_hdf5_tree
from birdie_zmq.models.native.hints import ModelHints
from birdie_zmq.models.native.maxtext_settings import read_settings
from birdie_zmq.models.native.orbax_tree import read_easydel_tree, read_levanter_tree, read_orbax_tree
from birdie_zmq.models.native.source import NativeModel, NativeSource


@dataclass(frozen=True)
class NativeFormat:
    """How a trainer stores its models.

    Attributes:
        kind: The library that wrote the arrays, as in `NativeCheckpoint`.
        parameters: Returns the parameters in a saved tree; None if it is not this trainer's.
        read: Returns the model in these parameters.
    """

    kind: str
    parameters: Callable[[ArrayTree], ArrayTree | None]
    read: Callable[[ArrayTree, NativeCheckpoint, ModelHints], NativeModel]


def _read_maxtext(tree: ArrayTree, found: NativeCheckpoint, hints: ModelHints) -> NativeModel:
    return maxtext.read(tree, read_settings(found.settings_file(), hints.model_name))


def _read_gemma(tree: ArrayTree, found: NativeCheckpoint, hints: ModelHints) -> NativeModel:
    return gemma.read(tree, read_described(found, hints, "gemma", gemma.FAMILIES))


def _read_tunix(tree: ArrayTree, found: NativeCheckpoint, hints: ModelHints) -> NativeModel:
    return tunix.read(tree, read_described(found, hints, "Tunix", tunix.FAMILIES))


def _read_levanter(tree: ArrayTree, found: NativeCheckpoint, hints: ModelHints) -> NativeModel:
    return levanter.read(tree, read_described(found, hints, "Levanter", levanter.FAMILIES))


def _read_easydel(tree: ArrayTree, found: NativeCheckpoint, hints: ModelHints) -> NativeModel:
    return easydel.read(tree, read_described(found, hints, "EasyDeL", easydel.FAMILIES))


def _read_keras(tree: ArrayTree, found: NativeCheckpoint, hints: ModelHints) -> NativeModel:
    config = None if hints.config is not None else keras_hub.read_config(found, tree)
    return keras_hub.read(tree, config or read_described(found, hints, "Keras", keras_hub.FAMILIES))


READERS: Mapping[str, Callable[[Path], ArrayTree]] = {
    "orbax": read_orbax_tree,
    "levanter": read_levanter_tree,
    "easydel": read_easydel_tree,
    "keras": read_hdf5_tree,
}
"""How the arrays of each library are read."""

FORMATS: Mapping[str, NativeFormat] = {
    "MaxText (Orbax)": NativeFormat("orbax", maxtext.parameters, _read_maxtext),
    "gemma of google-deepmind (Orbax)": NativeFormat("orbax", gemma.parameters, _read_gemma),
    "Tunix (Orbax, NNX)": NativeFormat("orbax", tunix.parameters, _read_tunix),
    "Levanter": NativeFormat("levanter", levanter.parameters, _read_levanter),
    "EasyDeL": NativeFormat("easydel", easydel.parameters, _read_easydel),
    "Keras (.weights.h5 of KerasHub's Llama and Gemma)": NativeFormat("keras", keras_hub.parameters, _read_keras),
}
"""The known formats, by the names that error messages list."""


def load_native(found: NativeCheckpoint, hints: ModelHints) -> tuple[NativeModel, NativeSource]:
    """Return the model in a trainer's checkpoint, and its tensors.

    Raises:
        UsageError: A package is not installed, or a hint is missing or wrong.
        IncompleteCheckpoint: A file is missing.
        ValueError: The format is unknown, or the checkpoint is for a model that is not supported.
    """
    tree = READERS[found.kind](found.root)
    for known in FORMATS.values():
        parameters = known.parameters(tree) if known.kind == found.kind else None
        if parameters is not None:
            try:
                model = known.read(parameters, found, hints)
            except ValueError as error:
                raise ValueError(f"{found.checkpoint}: {error}") from error
            return model, NativeSource(str(found.checkpoint), parameters, model.views, model.outside)
    raise ValueError(
        f"{found.checkpoint} has a tree of an unknown format: {describe_top(list(tree))}. Known formats: "
        f"{', '.join(FORMATS)}. For another one, write an api.py whose load_model returns the model"
    )
