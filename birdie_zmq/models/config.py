"""The configuration of a checkpoint, read by transformers, so that its keys mean what they mean to lm_eval's hf backend.

transformers completes a ``config.json``: it fills in the defaults of the family, renames the keys of older versions, and
gathers everything about rotary positions under ``rope_parameters``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from birdie_zmq.models.config_fields import read_json_object
from birdie_zmq.models.transformers_import import shorten, transformers_without_torch

CONFIG_FILE = "config.json"


def read_config(directory: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a checkpoint directory.

    Returns:
        All keys of the language model: of a model with more parts, such as vision, those of its text part. ``dtype`` is
        that of the weights if the file names one.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is damaged, its model_type is unknown to transformers, or a value has a wrong type.
    """
    path = directory / CONFIG_FILE
    read_model_type(directory)  # reports a missing or damaged file
    with transformers_without_torch() as transformers:
        try:
            config = transformers.AutoConfig.from_pretrained(
                str(directory), trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # transformers raises many types for a damaged file
            raise ValueError(f"{path}: {_summary(error)}") from error
        return _text_values(config)


def read_model_type(directory: Path) -> object:
    """Return the model_type that the ``config.json`` of a checkpoint directory names; None if it names none.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file does not hold a JSON object.
    """
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"there is no {CONFIG_FILE} in {directory}, so it is not a checkpoint directory")
    return read_json_object(path).get("model_type")


def complete_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the keys of a ``config.json`` as `read_config` does.

    Raises:
        ValueError: The model_type is missing or unknown to transformers, or a value has a wrong type.
    """
    with transformers_without_torch() as transformers:
        try:
            config = transformers.AutoConfig.for_model(**values)
        except Exception as error:  # as above
            raise ValueError(_summary(error)) from error
        return _text_values(config)


def _text_values(config: Any) -> dict[str, Any]:
    text = config.get_text_config()
    if getattr(text, "rope_parameters", None):
        # Models do this too when they are built: only now is an original length outside of rope_parameters visible.
        text.standardize_rope_params()
    values: dict[str, Any] = text.to_dict()
    if text is not config:
        # These belong to the whole model.
        values["dtype"] = config.to_dict().get("dtype") or values.get("dtype")
        if config.model_type != "mistral3":
            # Mistral 3's own default, true, is wrong for all untied checkpoints; their text part has the right value.
            values["tie_word_embeddings"] = config.tie_word_embeddings
        # transformers' Gemma 3 with vision does not cap its logits, whatever its text part says.
        values |= {"final_logit_softcapping": None} if config.model_type == "gemma3" else {}
        values["quantization_config"] = getattr(config, "quantization_config", None)
    return values


def _summary(error: Exception) -> str:
    text = str(error).strip()
    if not text or isinstance(error, ArithmeticError | AttributeError | LookupError | TypeError):
        text = f"{type(error).__name__}: {text}"  # such a message says little on its own
    return shorten(text)
