"""DeepSeek-V3 and R1: latent attention, and many small experts in groups, after some dense layers (arXiv:2412.19437)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader, require_positive
from birdie_zmq.models.decoder_layer import DecoderLayer, FeedForward
from birdie_zmq.models.experts import RoutedFeedForward
from birdie_zmq.models.families.common import HEAD, LAYER, Sizes
from birdie_zmq.models.families.expert_specs import expert_specs, read_counts, router_specs, shared_specs
from birdie_zmq.models.latent_attention import LatentAttention
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.routing import GroupedSigmoidRouter
from birdie_zmq.models.weight_map import TensorSpec, column_parallel, linear_specs, norm_specs, row_parallel

_LATENT_EPSILON = 1e-6
"""Of the norms inside of attention, whatever the configuration says of the others."""

_PREDICTION = ("enorm", "hnorm", "eh_proj", "embed_tokens", "shared_head.norm", "shared_head.head")
"""The further modules of a layer that predicts a second token."""


def deepseek_v3(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type deepseek_v3.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    sizes, norm = Sizes.read(config), Norm("rms", config.number("rms_norm_eps"))
    attention, specs = _read_attention(config, sizes)
    specs |= sizes.norm_specs(attention_norm="input_layernorm", feed_forward_norm="post_attention_layernorm")
    routed, routed_specs = _read_experts(config, sizes)
    dense = DecoderLayer(attention, FeedForward(routed.activation), norm, specs | sizes.feed_forward_specs())
    layer = DecoderLayer(attention, routed, norm, specs | routed_specs)
    count_dense = min(config.integer("first_k_dense_replace", 0), sizes.n_layers)
    tied = config.flag("tie_word_embeddings", False)
    return Architecture(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=(dense,) * count_dense + (layer,) * (sizes.n_layers - count_dense),
        outer=sizes.outer_specs(tied=tied),
        norm=norm,
        redundant=Architecture.redundant + _prediction_tensors(config, sizes, layer),
        tied_head=HEAD if tied else None,
    )


def _read_attention(config: ConfigReader, sizes: Sizes) -> tuple[LatentAttention, dict[str, TensorSpec]]:
    latent, rotated = config.integer("kv_lora_rank"), config.integer("qk_rope_head_dim")
    unrotated, value_width = config.integer("qk_nope_head_dim"), config.integer("v_head_dim")
    require_positive(kv_lora_rank=latent, qk_nope_head_dim=unrotated, v_head_dim=value_width)
    rope = replace(read_rope(config, rotated), interleaved=config.flag("rope_interleave", True))
    attention = LatentAttention(
        sizes.n_heads,
        1,
        latent + rotated,
        scale=(unrotated + rotated) ** -0.5 * _yarn_scale(config),
        rope=rope,
        norm=Norm("rms", _LATENT_EPSILON),
        unrotated=unrotated,
        value_width=value_width,
    )
    d, heads, bias, module = sizes.d_model, sizes.n_heads, config.flag("attention_bias", False), LAYER + "self_attn."
    by_head = column_parallel(heads)
    queries = heads * (unrotated + rotated)
    specs = linear_specs(module + "kv_a_proj_with_mqa", d, latent + rotated, bias=bias, key="key_value_down")
    specs |= norm_specs(module + "kv_a_layernorm", latent, key="latent_norm")
    specs |= linear_specs(module + "kv_b_proj", latent, heads * (unrotated + value_width), by_head, key="key_value_up")
    specs |= linear_specs(module + "o_proj", heads * value_width, d, row_parallel(heads), bias=bias, key="output")
    query_latent = config.optional_integer("q_lora_rank")
    if query_latent is None:
        return attention, specs | linear_specs(module + "q_proj", d, queries, by_head, key="query")
    specs |= linear_specs(module + "q_a_proj", d, query_latent, bias=bias, key="query_down")
    specs |= norm_specs(module + "q_a_layernorm", query_latent, key="query_latent_norm")
    return attention, specs | linear_specs(module + "q_b_proj", query_latent, queries, by_head, key="query_up")


def _read_experts(config: ConfigReader, sizes: Sizes) -> tuple[RoutedFeedForward, dict[str, TensorSpec]]:
    """Return the layer of experts, and its tensors."""
    (count, chosen), inner = read_counts(config), config.integer("moe_intermediate_size")
    groups, kept = config.integer("n_group", 1), config.integer("topk_group", 1)
    if count % groups or count // groups < 2 or not 1 <= kept <= groups or chosen > kept * (count // groups):
        raise ValueError(f"n_group={groups} and topk_group={kept} do not fit {count} experts, {chosen} for each token")
    normalised, scale = config.flag("norm_topk_prob", True), config.number("routed_scaling_factor", 1.0)
    experts = expert_specs(LAYER + "mlp.experts.", sizes.d_model, inner, count)
    correction = TensorSpec(LAYER + "mlp.gate.e_score_correction_bias", (count,), dtype="float32")
    specs = experts | router_specs("mlp.gate", sizes.d_model, count) | {"router_correction": correction}
    specs |= shared_specs(LAYER + "mlp.shared_experts.", sizes.d_model, inner * config.integer("n_shared_experts", 1))
    router = GroupedSigmoidRouter(chosen, groups, kept, normalised, scale)
    return RoutedFeedForward(router, count, check_activation(config.text("hidden_act")), experts), specs


def _yarn_scale(config: ConfigReader) -> float:
    """Return the factor of the scores that a longer context needs."""
    parameters = config.record("rope_parameters")
    weight, factor = parameters.number("mscale_all_dim", 0.0), parameters.number("factor", 1.0)
    if parameters.text("rope_type") == "default" or not weight or factor <= 1:
        return 1.0
    return (0.1 * weight * math.log(factor) + 1.0) ** 2


def _prediction_tensors(config: ConfigReader, sizes: Sizes, layer: DecoderLayer) -> tuple[str, ...]:
    """Return the tensors of layers that predict further tokens, which scores do not need."""
    keys = ("num_nextn_predict_layers", "num_mtp_layers")
    count = next((config.integer(key) for key in keys if key in config), 0)
    names = [f".layers.{{}}.{module}.weight" for module in _PREDICTION]
    for spec in layer.specs.values():
        name = spec.name.removeprefix("model")
        names += [name.replace("{member}", str(member)) for member in range(spec.members or 1)]
    return tuple(name.format(sizes.n_layers + number) for number in range(count) for name in names)
