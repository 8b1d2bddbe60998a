"""Check the ``adapter_config.json`` of a LoRA adapter: whatever it requests that is not plain LoRA is refused by name.

An adapter is plain if the adapted weights are ``W + B·A·alpha/r`` (Hu et al., 2021, arXiv:2106.09685). Keys that are not
known are refused too, because a later version of peft may give them a meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from birdie_zmq.models.config_fields import ConfigReader, read_json_object

ADAPTER_CONFIG_FILE = "adapter_config.json"

_REFUSED = {
    "use_rslora": "which scales by the square root of the rank",
    "use_dora": "which also scales the columns of the weights",
    "use_qalora": "which pools the inputs",
    "rank_pattern": "which gives matrices ranks of their own",
    "alpha_pattern": "which gives matrices scales of their own",
    "modules_to_save": "which replaces whole modules of the base model",
    "lora_bias": "which adds biases",
    "target_parameters": "which adapts parameters that are not matrices of a layer",
    "trainable_token_indices": "which replaces rows of the embedding",
    "layer_replication": "which repeats layers of the base model",
    "alora_invocation_tokens": "which adapts only the tokens after an invocation",
    "loftq_config": "which changes the weights of the base model",
    "corda_config": "which changes the weights of the base model",
    "lora_ga_config": "which changes the weights of the base model",
}
"""Keys that are refused if they are set, and what they do."""

_READ = {
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "bias",
    "init_lora_weights",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "base_model_name_or_path",
    "revision",
}
_WITHOUT_EFFECT = {
    "auto_mapping",
    "peft_version",
    "inference_mode",
    "lora_dropout",  # of training
    "fan_in_fan_out",  # the kind of the adapted layer decides, as in peft, which corrects a wrong value
    "megatron_core",
    "eva_config",  # of the initial values of A and B, as "eva" in init_lora_weights
    "qalora_group_size",
    "ensure_weight_tying",
    "runtime_config",
}

_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
"""The values of init_lora_weights that leave the base model as it is."""


@dataclass(frozen=True)
class LoraConfig:
    """The values of a plain adapter.

    Attributes:
        directory: The directory of the adapter.
        rank: The number of rows of every A.
        scale: The factor of ``B·A``.
        base: The base model that the adapter was trained on, as its config names it; None if it names none.
        targets: The rule that says which modules are adapted; see `LoraConfig.adapts`.
    """

    directory: Path
    rank: int
    scale: float
    base: str | None
    targets: Mapping[str, Any]

    def adapts(self, module: str) -> bool:
        """Return whether peft applies the adapter to a module, such as ``model.layers.0.self_attn.q_proj``."""
        excluded = self.targets.get("exclude_modules")
        if excluded and _names(excluded, module):
            return False
        targets = self.targets.get("target_modules")
        if targets == "all-linear":
            return True
        if targets is None:
            return True  # peft then has a list for each family
        if not _names(targets, module):
            return False
        return isinstance(targets, str) or _is_in_layers(self.targets, module)


def read_lora_config(directory: Path) -> LoraConfig:
    """Read and check the ``adapter_config.json`` in a directory.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged, or the adapter is not plain LoRA. The message names the adapter and the key.
    """
    values = read_json_object(directory / ADAPTER_CONFIG_FILE)

    def refuse(what: str) -> ValueError:
        return ValueError(
            f"the adapter {directory} {what}, which is not supported; merge it into its base model with peft "
            "(merge_and_unload) and evaluate the result"
        )

    if values.get("peft_type") != "LORA":
        raise refuse(f"has the peft_type {values.get('peft_type')!r}")
    if values.get("task_type") not in (None, "CAUSAL_LM"):
        raise refuse(f"has the task_type {values['task_type']!r}")
    if values.get("bias", "none") not in (None, "none"):
        raise refuse(f"has bias={values['bias']!r}: it changes biases")
    initialisation = values.get("init_lora_weights", True)
    if initialisation not in _INITIALISATIONS:
        raise refuse(f"has init_lora_weights={initialisation!r}: it changes the weights of the base model")
    for key, value in values.items():
        if value and key in _REFUSED:
            raise ValueError(
                f"the adapter {directory} uses {key}, {_REFUSED[key]}; only plain LoRA is supported: merge it into its "
                "base model with peft (merge_and_unload) and evaluate the result"
            )
        if value and key not in _READ | _WITHOUT_EFFECT | _REFUSED.keys():
            raise refuse(f"sets {key}={value!r}")
    config = ConfigReader(values)
    try:
        rank, alpha = config.integer("r", 8), config.number("lora_alpha", 8)
        if rank < 1:
            raise ValueError(f"r must be at least 1, not {rank}")
        _check_targets(values)
    except ValueError as error:
        raise ValueError(f"{directory / ADAPTER_CONFIG_FILE}: {error}") from error
    base = values.get("base_model_name_or_path")
    return LoraConfig(directory, rank, alpha / rank, None if base is None else str(base), values)


def _check_targets(values: Mapping[str, Any]) -> None:
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        value = values.get(key)
        is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if not (value is None or isinstance(value, str) or is_list):
            raise ValueError(f"{key} must be a string or a list of strings, not {value!r}")
    for key in ("target_modules", "exclude_modules"):
        if isinstance(values.get(key), str):
            try:
                re.compile(values[key])
            except re.error as error:
                raise ValueError(f"{key}={values[key]!r} is no regular expression: {error}") from error


def _names(targets: Any, module: str) -> bool:
    """Return whether a regular expression or a list of last parts of names fits a module."""
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(f".{module}".endswith(f".{target}") for target in targets)


def _is_in_layers(targets: Mapping[str, Any], module: str) -> bool:
    """Return whether a module is in one of the layers that ``layers_to_transform`` lists, if it lists any."""
    indices = targets.get("layers_to_transform")
    if indices is None or indices == []:
        return True
    patterns = targets.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module)
        if found:
            return int(found[1]) in (indices if isinstance(indices, list) else [indices])
    return False
