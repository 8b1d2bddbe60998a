"""Trees of MaxText for models with experts, written by hand from its sources, with the weights of Hugging Face tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.models.native.hugging_face import LAYER, SIZES, Tensors, heads, layers_of
from tests.models.native.trainers_trees import Flat, maxtext_settings

MIXTRAL = {
    **SIZES,
    "model_type": "mixtral",
    "hidden_act": "silu",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": None,
    "rope_theta": 10_000.0,
}
DEEPSEEK = {
    **{name: value for name, value in SIZES.items() if name != "head_dim"},
    "model_type": "deepseek_v3",
    "hidden_act": "silu",
    "num_key_value_heads": 4,
    "max_position_embeddings": 640,
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 14,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 40.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}
MIXTRAL_SETTINGS = maxtext_settings(MIXTRAL, "mixtral", num_experts=4, num_experts_per_tok=2)
DEEPSEEK_SETTINGS = maxtext_settings(
    DEEPSEEK,
    "deepseek",
    model_name="deepseek3-671b",
    attention_type="mla",
    qk_nope_head_dim=6,
    qk_rope_head_dim=4,
    v_head_dim=8,
    num_experts=8,
    num_experts_per_tok=3,
    n_routing_groups=4,
    topk_routing_group=2,
    first_num_dense_layers=1,
    routed_scaling_factor=2.5,
    routed_score_func="sigmoid",
    routed_bias=True,
    rope_type="yarn",
    original_max_position_embeddings=16,
    max_position_embeddings=640,
)
_LATENT = {
    "kv_a_proj_with_mqa": "wkv_a/kernel",
    "q_a_proj": "wq_a/kernel",
    "q_a_layernorm": "q_norm/scale",
    "kv_a_layernorm": "kv_norm/scale",
}


def mixtral_parameters(config: dict[str, Any], tensors: Tensors) -> Flat:
    """Return the parameters of Mixtral with scanned layers, in one tree with ``/`` in its keys."""
    width, layers = config["head_dim"], []
    for number in layers_of(config):
        of = LAYER.format(number)
        layer = _norms(of, tensors)
        for name, projection in {"query": "q", "key": "k", "value": "v"}.items():
            kernel = heads(tensors[f"{of}self_attn.{projection}_proj.weight"], width)
            scale = np.float32(width**-0.5) if name == "query" else np.float32(1)
            layer[f"self_attention/{name}/kernel"] = kernel * scale
        layer["self_attention/out/kernel"] = _output(tensors[f"{of}self_attn.o_proj.weight"], width)
        layer["MoeBlock_0/gate/kernel"] = tensors[f"{of}block_sparse_moe.gate.weight"].T
        for name, matrix in {"wi_0": "w1", "wi_1": "w3", "wo": "w2"}.items():
            layer[f"MoeBlock_0/{name}"] = np.stack(
                [
                    tensors[f"{of}block_sparse_moe.experts.{expert}.{matrix}.weight"].T
                    for expert in range(config["num_local_experts"])
                ]
            )
        layers.append(layer)
    return {**_outer(tensors), **_stack("decoder/layers", layers)}


def deepseek_parameters(config: dict[str, Any], tensors: Tensors) -> Flat:
    """Return the parameters of DeepSeek V3 with scanned layers, in one tree with ``/`` in its keys."""
    dense, routed = [], []
    for number in layers_of(config):
        of = LAYER.format(number)
        layer = _norms(of, tensors)
        for name, path in _LATENT.items():
            layer[f"self_attention/{path}"] = tensors[f"{of}self_attn.{name}.weight"].T
        queries = heads(tensors[f"{of}self_attn.q_b_proj.weight"], 10)
        keys_values = heads(tensors[f"{of}self_attn.kv_b_proj.weight"], 14)
        layer |= {"self_attention/wq_b/kernel": queries, "self_attention/wkv_b/kernel": keys_values}
        layer["self_attention/out/kernel"] = _output(tensors[f"{of}self_attn.o_proj.weight"], config["v_head_dim"])
        matrices = {"wi_0": "gate_proj", "wi_1": "up_proj", "wo": "down_proj"}
        if number < config["first_k_dense_replace"]:
            layer |= {f"mlp/{name}/kernel": tensors[f"{of}mlp.{m}.weight"].T for name, m in matrices.items()}
            dense.append(layer)
            continue
        experts, shared = "DeepSeekMoeBlock_0/MoeBlock_0/", "DeepSeekMoeBlock_0/shared_experts/"
        layer[f"{experts}gate/kernel"] = tensors[f"{of}mlp.gate.weight"].T
        layer[f"{experts}gate/bias"] = tensors[f"{of}mlp.gate.e_score_correction_bias"]
        for name, matrix in matrices.items():
            layer[f"{shared}{name}/kernel"] = tensors[f"{of}mlp.shared_experts.{matrix}.weight"].T
            layer[f"{experts}{name}"] = np.stack(
                [tensors[f"{of}mlp.experts.{expert}.{matrix}.weight"].T for expert in range(config["n_routed_experts"])]
            )
        routed.append(layer)
    return {**_outer(tensors), **_stack("decoder/dense_layers", dense), **_stack("decoder/moe_layers", routed)}


def _outer(tensors: Tensors) -> Flat:
    return {
        "token_embedder/embedding": tensors["model.embed_tokens.weight"],
        "decoder/decoder_norm/scale": tensors["model.norm.weight"],
        "decoder/logits_dense/kernel": tensors["lm_head.weight"].T,
    }


def _norms(of: str, tensors: Tensors) -> Flat:
    return {
        "pre_self_attention_layer_norm/scale": tensors[f"{of}input_layernorm.weight"],
        "post_self_attention_layer_norm/scale": tensors[f"{of}post_attention_layernorm.weight"],
    }


def _output(matrix: Any, width: int) -> Any:
    return matrix.T.reshape(-1, width, len(matrix))


def _stack(module: str, layers: list[Flat]) -> Flat:
    return {f"{module}/{path}": np.stack([layer[path] for layer in layers], axis=1) for path in layers[0]}
