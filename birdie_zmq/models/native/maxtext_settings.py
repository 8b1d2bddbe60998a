"""What MaxText's configuration says beyond the sizes of the arrays, from its ``config.yml`` or by ``model_name=``.

With ``save_config_to_gcs``, MaxText writes its configuration to ``config.yml`` in the run's folder. Its values may be
Python objects, such as enumerations. They are read as the plain values in them, and nothing is constructed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from birdie_zmq.errors import UsageError
from birdie_zmq.models.native.directory import SETTINGS_FILE

_SILU = {"mlp_activations": ["silu", "linear"], "logits_via_embedding": False}
_GEMMA = {"mlp_activations": ["gelu", "linear"], "logits_via_embedding": True}
_LLAMA = {**_SILU, "decoder_block": "llama2", "normalization_layer_epsilon": 1e-5}
_LLAMA3 = {**_LLAMA, "rope_max_timescale": 500_000}
_GEMMA2 = {
    **_GEMMA,
    "decoder_block": "gemma2",
    "final_logits_soft_cap": 30.0,
    "attn_logits_soft_cap": 50.0,
    "sliding_window_size": 4096,
    "use_post_attn_norm": True,
    "use_post_ffw_norm": True,
}
_GEMMA3 = {
    **_GEMMA,
    "decoder_block": "gemma3",
    "sliding_window_size": 1024,
    "use_post_attn_norm": True,
    "use_post_ffw_norm": True,
    "local_rope_max_timescale": 10_000,
    "rope_max_timescale": 1_000_000,
    "rope_linear_scaling_factor": 8.0,
}
_QWEN = {
    **_SILU,
    "normalization_layer_epsilon": 1e-6,
    "rope_max_timescale": 1_000_000,
    "normalize_embedding_logits": False,
}
_QWEN2 = {**_QWEN, "decoder_block": "qwen2", "attention_bias": True}
_QWEN3 = {**_QWEN, "decoder_block": "qwen3", "use_qk_norm": True}
_TIED = {"logits_via_embedding": True}
_MIXTRAL = {**_LLAMA, "decoder_block": "mixtral", "rope_max_timescale": 1_000_000, "num_experts_per_tok": 2}
_DEEPSEEK3 = {
    **_SILU,
    "decoder_block": "deepseek",
    "normalization_layer_epsilon": 1e-6,
    "first_num_dense_layers": 3,
    "num_experts_per_tok": 8,
    "routed_scaling_factor": 2.5,
    "routed_score_func": "sigmoid",
    "routed_bias": True,
    "attention_type": "mla",
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rope_type": "yarn",
}

MODELS: Mapping[str, Mapping[str, Any]] = {
    **{f"llama2-{size}": _LLAMA for size in ("7b", "13b", "70b")},
    **{f"llama3-{size}": _LLAMA3 for size in ("8b", "70b", "405b")},
    **{f"llama3.1-{size}": _LLAMA3 for size in ("8b", "70b", "405b")},
    "mistral-7b": {**_LLAMA, "decoder_block": "mistral", "rope_max_timescale": 1_000_000},
    **{f"mixtral-{size}": _MIXTRAL for size in ("8x7b", "8x22b")},
    "deepseek3-671b": _DEEPSEEK3,
    **{f"gemma-{size}": {**_GEMMA, "decoder_block": "gemma"} for size in ("2b", "7b")},
    **{f"gemma2-{size}": _GEMMA2 for size in ("2b", "9b", "27b")},
    **{f"gemma3-{size}": _GEMMA3 for size in ("4b", "12b", "27b")},
    **{f"qwen2.5-{size}": _QWEN2 for size in ("7b", "14b")},
    "qwen2.5-1.5b": {**_QWEN2, **_TIED},
    **{f"qwen3-{size}": {**_QWEN3, **_TIED} for size in ("0.6b", "1.7b", "1.7b-base", "4b", "4b-base")},
    "qwen3-4b-thinking-2507": {**_QWEN3, **_TIED, "rope_max_timescale": 5_000_000},
    **{f"qwen3-{size}": _QWEN3 for size in ("8b", "8b-base", "14b", "14b-base", "32b")},
}
"""The values of MaxText's configs/models that are not sizes, by its ``model_name``; those of supported blocks.

MaxText itself routes DeepSeek V3 without groups; a run whose command line has ``n_routing_groups`` needs its ``config.yml``.
"""

_DEFAULTS: Mapping[str, Any] = {
    "normalization_layer_epsilon": 1e-5,
    "normalize_embedding_logits": True,
    "rope_type": "default",
    "rope_use_scale": True,
    "rope_min_timescale": 1,
    "rope_max_timescale": 10_000,
    "rope_linear_scaling_factor": 1.0,
    "local_rope_max_timescale": -1,
    "attention_type": "global",
    "partial_rotary_factor": 1.0,
    "param_scan_axis": 1,
    "num_experts": 1,
    "first_num_dense_layers": 0,
    "routed_scaling_factor": 1.0,
    "n_routing_groups": -1,
    "topk_routing_group": -1,
    "max_position_embeddings": 163_840,
    "original_max_position_embeddings": 4096,
    "rope_factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "rope_interleave": True,
    "rope_truncate": True,
}
"""The defaults of MaxText's base.yml, of 2025 and 2026."""


class _PlainLoader(yaml.SafeLoader):
    """Reads YAML with tags of Python objects as the plain values in them."""


def _plain(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        values = loader.construct_sequence(node, deep=True)
        return values[0] if len(values) == 1 and suffix.startswith("object/apply:") else values
    return loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None


_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", _plain)


def read_settings(config: Path | None, model_name: str | None) -> dict[str, Any]:
    """Return MaxText's configuration, with its defaults.

    Args:
        config: The ``config.yml``; it is preferred.
        model_name: MaxText's name of a model.

    Raises:
        UsageError: There is neither, or the name is unknown.
        ValueError: The file is damaged.
    """
    if model_name is not None and model_name not in MODELS:
        raise UsageError(
            f"model_name={model_name!r} in model_args is none of the supported models of MaxText: {', '.join(MODELS)}"
        )
    if config is None:
        if model_name is None:
            raise UsageError(
                "this is a checkpoint of MaxText, whose arrays do not say how the model computes (the order of rotated "
                f"dimensions, epsilons, windows): copy the run's {SETTINGS_FILE} beside the checkpoint (MaxText writes it "
                "with save_config_to_gcs=true), or add model_name= with MaxText's name of the model to model_args"
            )
        return {**_DEFAULTS, **MODELS[model_name], "model_name": model_name}
    try:
        values = yaml.load(config.read_text(encoding="utf-8"), _PlainLoader)  # noqa: S506 - a SafeLoader
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{config} is not valid YAML: {error}") from error
    if not isinstance(values, dict) or "decoder_block" not in values:
        raise ValueError(f"{config} is not a configuration of MaxText: it has no decoder_block")
    if model_name is not None and values.get("model_name") not in (model_name, "default"):
        raise UsageError(
            f"model_name={model_name!r} in model_args contradicts {config}, which has model_name: {values.get('model_name')}"
        )
    return {**_DEFAULTS, **values}
