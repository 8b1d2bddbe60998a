"""Rewrite a config.json of transformers 5 as transformers 4 wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_KEPT = ("model_type", "architectures")


def as_version_4(values: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a config.json in the form of transformers 4.

    Rotary positions stand under ``rope_theta`` and ``rope_scaling`` at the top level, the dtype under ``torch_dtype``, and
    keys are left out that have the family's default, as in many released checkpoints.
    """
    import transformers

    values = dict(values)
    values["transformers_version"] = "4.44.0"
    values["torch_dtype"] = values.pop("dtype", None)
    parameters = values.pop("rope_parameters", None)
    if parameters is not None and values["model_type"] != "gpt_neox" and "partial_rotary_factor" in parameters:
        values["partial_rotary_factor"] = parameters.pop("partial_rotary_factor")
    if parameters is not None and "full_attention" in parameters:  # Gemma 3
        full, local = parameters["full_attention"], parameters["sliding_attention"]
        values |= {"rope_theta": full["rope_theta"], "rope_local_base_freq": local["rope_theta"]}
        values["rope_scaling"] = _scaling(full, "rope_type")
    elif parameters is not None and values["model_type"] == "gpt_neox":
        values |= {"rotary_emb_base": parameters["rope_theta"], "rotary_pct": parameters["partial_rotary_factor"]}
        values["rope_scaling"] = _scaling(parameters)
    elif parameters is not None:
        values |= {"rope_theta": parameters["rope_theta"], "rope_scaling": _scaling(parameters)}
    defaults = transformers.AutoConfig.for_model(values["model_type"]).to_dict()
    return {
        key: value
        for key, value in values.items()
        if key in _KEPT or key not in defaults or defaults[key] != value or isinstance(value, list)
    }


def _scaling(parameters: dict[str, Any], key: str = "type") -> dict[str, Any] | None:
    """Return a ``rope_scaling``; by default its type is under the name that it had until transformers 4.43."""
    if parameters["rope_type"] == "default":
        return None
    rest = {key: value for key, value in parameters.items() if key not in ("rope_type", "rope_theta")}
    return {key: parameters["rope_type"], **rest}


def rewrite_as_version_4(directory: Path) -> None:
    """Replace the config.json of a directory."""
    path = directory / "config.json"
    path.write_text(json.dumps(as_version_4(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
