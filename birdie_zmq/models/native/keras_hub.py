"""Weights of KerasHub's Llama and Gemma backbones, as ``.weights.h5`` files of Keras.

A preset's directory holds ``config.json`` of Keras, which describes the model. For weights without one beside them, ``config=``
does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.config import CONFIG_FILE, complete_config
from birdie_zmq.models.config_fields import ConfigReader, read_json_object
from birdie_zmq.models.families.common import FULL, WINDOWED
from birdie_zmq.models.native.arrays import ArrayTree, TreePath
from birdie_zmq.models.native.directory import NativeCheckpoint
from birdie_zmq.models.native.rules import LayerLocation, Rule, build_views, subtree
from birdie_zmq.models.native.source import NativeModel

FAMILIES = ("gemma", "gemma2", "gemma3_text", "llama")

_ROOT = "layers"
_VALUES = "vars"
_GEMMA3_PERIOD = 6

_OUTER = {
    "model.embed_tokens.weight": Rule("layers/reversible_embedding/vars/0", "v d -> v d"),
    "lm_head.weight": Rule("layers/reversible_embedding/vars/1", "d v -> v d"),
}
_LLAMA_NORM = {"model.norm.weight": Rule("layers/llama_layer_norm/vars/0", "d -> d")}
_GEMMA_NORM = {"model.norm.weight": Rule("layers/rms_normalization/vars/0", "d -> d")}
_LLAMA = {
    "self_attn.q_proj.weight": Rule("_self_attention_layer/_query_dense/vars/0", "d h k -> (h k) d"),
    "self_attn.k_proj.weight": Rule("_self_attention_layer/_key_dense/vars/0", "d h k -> (h k) d"),
    "self_attn.v_proj.weight": Rule("_self_attention_layer/_value_dense/vars/0", "d h k -> (h k) d"),
    "self_attn.o_proj.weight": Rule("_self_attention_layer/_output_dense/vars/0", "h k d -> d (h k)"),
    "mlp.gate_proj.weight": Rule("_feedforward_gate_dense/vars/0", "d f -> f d"),
    "mlp.up_proj.weight": Rule("_feedforward_intermediate_dense/vars/0", "d f -> f d"),
    "mlp.down_proj.weight": Rule("_feedforward_output_dense/vars/0", "f d -> d f"),
    "input_layernorm.weight": Rule("_self_attention_layernorm/vars/0", "d -> d"),
    "post_attention_layernorm.weight": Rule("_feedforward_layernorm/vars/0", "d -> d"),
}
_GEMMA = {
    "self_attn.q_proj.weight": Rule("attention/query_dense/vars/0", "h d k -> (h k) d"),
    "self_attn.k_proj.weight": Rule("attention/key_dense/vars/0", "h d k -> (h k) d"),
    "self_attn.v_proj.weight": Rule("attention/value_dense/vars/0", "h d k -> (h k) d"),
    "self_attn.o_proj.weight": Rule("attention/output_dense/vars/0", "h k d -> d (h k)"),
    "self_attn.q_norm.weight": Rule("attention/query_norm/vars/0", "k -> k"),
    "self_attn.k_norm.weight": Rule("attention/key_norm/vars/0", "k -> k"),
    "mlp.gate_proj.weight": Rule("gating_ffw/vars/0", "d f -> f d"),
    "mlp.up_proj.weight": Rule("gating_ffw_2/vars/0", "d f -> f d"),
    "mlp.down_proj.weight": Rule("ffw_linear/vars/0", "f d -> d f"),
    "input_layernorm.weight": Rule("pre_attention_norm/vars/0", "d -> d"),
}
_GEMMA1_NORMS = {"post_attention_layernorm.weight": Rule("pre_ffw_norm/vars/0", "d -> d")}
_GEMMA_NORMS = {
    "post_attention_layernorm.weight": Rule("post_attention_norm/vars/0", "d -> d"),
    "pre_feedforward_layernorm.weight": Rule("pre_ffw_norm/vars/0", "d -> d"),
    "post_feedforward_layernorm.weight": Rule("post_ffw_norm/vars/0", "d -> d"),
}
_BLOCKS = ("llama_transformer_decoder", "gemma_decoder_block", "gemma3_decoder_block")
"""The names of the modules of a layer; those after the first one have a number."""


def parameters(tree: ArrayTree) -> ArrayTree | None:
    """Return the parameters of a backbone; None if it is none of Llama and Gemma.

    A causal language model of KerasHub has its backbone as a layer, and its optimiser beside it.
    """
    root = next(filter(None, map(_root_of, tree)), None)
    return None if root is None else subtree(tree, root[:-1])


def _root_of(path: TreePath) -> TreePath | None:
    """Return the path of the layers of a backbone if an array is in one of its decoder blocks, else None."""
    ends = (end for end, name in enumerate(path) if end and name in _BLOCKS and path[end - 1] == _ROOT)
    end = next(ends, None)
    return None if end is None or path[0] == "optimizer" else path[:end]


def read(tree: ArrayTree, config: Mapping[str, Any]) -> NativeModel:
    """Return the model in a tree of parameters, whose Hugging Face configuration is known.

    Raises:
        ValueError: The configuration is for another family than the weights.
    """
    family = str(config["model_type"])
    block = next(block for block in _BLOCKS if any(path[:2] == (_ROOT, block) for path in tree))
    expected = {"llama": _BLOCKS[0], "gemma": _BLOCKS[1], "gemma2": _BLOCKS[1], "gemma3_text": _BLOCKS[2]}[family]
    if block != expected:
        raise ValueError(f"the weights are of Keras's {block}, and the config is for the model_type {family!r}")
    modules = {path[1] for path in tree if path[0] == _ROOT}
    locations: list[LayerLocation] = []
    while (name := f"{block}_{len(locations)}" if locations else block) in modules:
        locations.append(LayerLocation((_ROOT, name)))
    if family == "llama":
        outer, layer = {**_OUTER, **_LLAMA_NORM}, _LLAMA
    else:
        norms = _GEMMA1_NORMS if family == "gemma" else _GEMMA_NORMS
        outer, layer = {**_OUTER, **_GEMMA_NORM}, {**_GEMMA, **norms}
    outside = tuple(
        path for path in tree if path[0] != _ROOT or path[1].startswith(("gemma3_vision", "seed_generator"))
    )
    return NativeModel(config, build_views(tree, outer, layer, locations), outside=outside)


def read_config(found: NativeCheckpoint, tree: ArrayTree) -> dict[str, Any] | None:
    """Return the Hugging Face configuration of the backbone that Keras's ``config.json`` describes; None if there is none.

    Args:
        found: The checkpoint. The file is in its directory.
        tree: Its parameters, which tell whether a Llama's head is its embedding.

    Raises:
        ValueError: The file is damaged, or describes a model that is not supported.
    """
    path = found.folders[0] / CONFIG_FILE
    stored = read_json_object(path) if path.is_file() else {}
    name = str(stored.get("registered_name") or "").rpartition(">")[2]
    if not name:
        return None
    config = ConfigReader(stored).record("config")
    if name in ("LlamaBackbone", "Llama3Backbone"):
        return complete_config(_llama(config, tied=tuple(_OUTER["lm_head.weight"].path.split("/")) not in tree))
    if name == "GemmaBackbone":
        return complete_config(_gemma(config))
    if name == "Gemma3Backbone":
        return complete_config(_gemma3(config))
    raise ValueError(
        f"{path}: the Keras model {name} is not supported, only LlamaBackbone, Llama3Backbone, GemmaBackbone and Gemma3Backbone"
    )


def _sizes(config: ConfigReader) -> dict[str, Any]:
    return {
        "vocab_size": config.integer("vocabulary_size"),
        "hidden_size": config.integer("hidden_dim"),
        "num_hidden_layers": config.integer("num_layers"),
        "num_attention_heads": config.integer("num_query_heads"),
        "num_key_value_heads": config.integer("num_key_value_heads"),
        "rms_norm_eps": config.number("layer_norm_epsilon"),
    }


def _llama(config: ConfigReader, *, tied: bool) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.number("rope_max_wavelength")}
    adjustment = config.optional_number("rope_frequency_adjustment_factor")
    factor = config.number("rope_position_scaling_factor", 1.0)
    if adjustment is not None:
        rope |= {"rope_type": "llama3", "factor": adjustment}
        rope |= {
            "low_freq_factor": config.number("rope_low_freq_factor"),
            "high_freq_factor": config.number("rope_high_freq_factor"),
        }
        rope |= {"original_max_position_embeddings": config.integer("rope_pretraining_sequence_length")}
        config.require("rope_position_scaling_factor", (1.0,))
    elif factor != 1.0:
        rope |= {"rope_type": "linear", "factor": factor}
    head = {"head_dim": config.integer("head_dim")} if "head_dim" in config else {}
    return {
        **_sizes(config),
        **head,
        "model_type": "llama",
        "intermediate_size": config.integer("intermediate_dim"),
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "rope_parameters": rope,
    }


def _gemma(config: ConfigReader) -> dict[str, Any]:
    values = {
        **_sizes(config),
        "head_dim": config.integer("head_dim"),
        "intermediate_size": config.integer("intermediate_dim") // 2,  # Keras counts gate and up together
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    }
    if not config.flag("use_post_ffw_norm", False):
        config.require("use_post_attention_norm", (False,))
        config.require("query_head_dim_normalize", (True,))
        config.require("use_sliding_window_attention", (False,))
        return {**values, "model_type": "gemma"}
    config.require("use_post_attention_norm", (True,))
    config.require("use_sliding_window_attention", (True,))
    return {
        **values,
        "model_type": "gemma2",
        "sliding_window": config.integer("sliding_window_size"),
        "query_pre_attn_scalar": _query_scalar(config),
        "attn_logit_softcapping": config.optional_number("attention_logit_soft_cap"),
        "final_logit_softcapping": config.optional_number("final_logit_soft_cap"),
    }


def _gemma3(config: ConfigReader) -> dict[str, Any]:
    for key in ("use_query_key_norm", "use_post_ffw_norm", "use_post_attention_norm", "use_sliding_window_attention"):
        config.require(key, (True,))
    for key in ("use_bidirectional_attention", "is_embedding_model"):
        config.require(key, (False,))

    def rope(theta: float, factor: float) -> dict[str, Any]:
        kind = {"rope_type": "default"} if factor == 1.0 else {"rope_type": "linear", "factor": factor}
        return {**kind, "rope_theta": theta}

    sizes = _sizes(config)
    return {
        **sizes,
        "model_type": "gemma3_text",
        "head_dim": config.integer("head_dim"),
        "intermediate_size": config.integer("intermediate_dim"),
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "sliding_window": config.integer("sliding_window_size"),
        "query_pre_attn_scalar": _query_scalar(config),
        "attn_logit_softcapping": config.optional_number("attention_logit_soft_cap"),
        "final_logit_softcapping": config.optional_number("final_logit_soft_cap"),
        "layer_types": [
            WINDOWED if number % _GEMMA3_PERIOD < _GEMMA3_PERIOD - 1 else FULL
            for number in range(sizes["num_hidden_layers"])
        ],
        "rope_parameters": {
            FULL: rope(1e6, config.number("global_rope_scaling_factor", 1.0)),
            WINDOWED: rope(1e4, config.number("local_rope_scaling_factor", 1.0)),
        },
    }


def _query_scalar(config: ConfigReader) -> int:
    """Return the number by whose square root queries are divided."""
    if config.flag("query_head_dim_normalize", True):
        return config.integer("head_dim")
    return config.integer("hidden_dim") // config.integer("num_query_heads")
