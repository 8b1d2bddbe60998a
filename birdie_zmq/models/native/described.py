"""The configuration of a checkpoint whose trainer stores none: the Hugging Face ``config.json`` of the same architecture."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from birdie_zmq.errors import UsageError
from birdie_zmq.models.config import CONFIG_FILE, read_config
from birdie_zmq.models.native.directory import NativeCheckpoint
from birdie_zmq.models.native.hints import ModelHints


def read_described(
    found: NativeCheckpoint, hints: ModelHints, trainer: str, families: Collection[str]
) -> dict[str, Any]:
    """Return the configuration that describes a checkpoint: of ``config=``, else beside the checkpoint.

    Args:
        found: The checkpoint.
        hints: What the user says of it.
        trainer: The name of the trainer, for error messages.
        families: The values of model_type that the trainer's tree may have.

    Raises:
        UsageError: There is none, or a hint is of no use for this trainer.
        ValueError: The file is damaged, or for another family.
    """
    if hints.model_name is not None:
        raise UsageError(
            f"model_name={hints.model_name!r} in model_args is for checkpoints of MaxText, and this is one of {trainer}; "
            "use config="
        )
    directory = hints.config or next((each for each in found.folders if (each / CONFIG_FILE).is_file()), None)
    if directory is None:
        raise UsageError(
            f"{found.checkpoint} is a checkpoint of {trainer}, which stores no configuration: add config= to model_args, a "
            f"directory or hub repository whose {CONFIG_FILE} is that of the same architecture, or copy that file into "
            f"{found.folders[0]}"
        )
    values = read_config(directory)
    if values.get("model_type") not in families:
        raise ValueError(
            f"{directory / CONFIG_FILE} has the model_type {values.get('model_type')!r}, and checkpoints of {trainer} are "
            f"read for {', '.join(families)}"
        )
    return values
