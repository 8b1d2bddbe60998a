"""What differs between the architectures of GGUF files: llama.cpp's names and keys, and changed tensors.

An architecture is listed here only once tests/parity shows that a file, written as llama.cpp's converter writes it, gives
the scores of the Hugging Face checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from birdie_zmq.models.families.common import FULL, WINDOWED
from birdie_zmq.models.gguf_layouts import GROUPED, NORMS_PLUS_ONE, ROTATED_PAIRS, TRANSPOSED, Layouts
from birdie_zmq.models.gguf_metadata import GgufMetadata
from birdie_zmq.models.gguf_rope import layer_types, rope_parameters

_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}
_GPT2_SIZES = {
    "n_embd": "embedding_length",
    "n_layer": "block_count",
    "n_head": "attention.head_count",
    "n_inner": "feed_forward_length",
    "n_positions": "context_length",
}
_FALCON_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "ffn_hidden_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}
_BLOOM_SIZES = {
    "hidden_size": "embedding_length",
    "n_layer": "block_count",
    "n_head": "attention.head_count",
    "seq_length": "context_length",
}
_RMS_EPSILON = "attention.layer_norm_rms_epsilon"
_EPSILON = "attention.layer_norm_epsilon"

ConfigKeys = dict[str, Any]


@dataclass(frozen=True)
class GgufArchitecture:
    """How llama.cpp stores a family.

    Attributes:
        model_type: The family, by Hugging Face's name.
        epsilon: The configuration's key for the epsilon of the norms, and the file's.
        config: Returns the keys of the configuration that are not sizes.
        layouts: The tensors that the converter changes.
        sizes: The file's keys by the configuration's.
    """

    model_type: str
    epsilon: tuple[str, str]
    config: Callable[[GgufMetadata], ConfigKeys]
    layouts: Layouts = field(default_factory=dict)
    sizes: Mapping[str, str] = field(default_factory=lambda: _SIZES)

    def read_config(self, file: GgufMetadata) -> ConfigKeys:
        """Return the keys of the Hugging Face ``config.json`` of the same model.

        Raises:
            ValueError: A key is missing, or the file requests an unsupported feature.
        """
        name, key = self.epsilon
        config: ConfigKeys = {"model_type": self.model_type}
        config |= {size: file.integer(stored) for size, stored in self.sizes.items()}
        config |= {"vocab_size": _vocab_size(file), name: file.number(key)}
        config |= {"tie_word_embeddings": "output.weight" not in file.shapes}
        config |= self.config(file)
        if file.optional_number("expert_count"):
            raise ValueError(f"{file.path}: mixtures of experts are not supported")
        file.refuse_unused()
        return config


def find_architecture(file: GgufMetadata) -> GgufArchitecture:
    """Return the architecture of a file.

    Raises:
        ValueError: It is not supported.
    """
    if file.architecture not in ARCHITECTURES:
        raise ValueError(
            f"{file.path}: the architecture {file.architecture!r} is not supported in GGUF files, only "
            f"{', '.join(ARCHITECTURES)}; try its Hugging Face directory (model_tag=DIRECTORY)"
        )
    return ARCHITECTURES[file.architecture]


def _vocab_size(file: GgufMetadata) -> int:
    if "token_embd.weight" not in file.shapes:
        raise ValueError(f"{file.path} lacks the tensor token_embd.weight")
    return file.shapes["token_embd.weight"][0]


def _kv_heads(file: GgufMetadata) -> ConfigKeys:
    heads = file.integer("attention.head_count")
    return {"num_key_value_heads": file.integer("attention.head_count_kv", heads)}


def _without_groups(file: GgufMetadata) -> ConfigKeys:
    """Check that a family without grouped-query attention has as many key/value heads as heads."""
    heads = file.integer("attention.head_count")
    if (found := file.integer("attention.head_count_kv", heads)) != heads:
        raise ValueError(f"{file.path}: {found} key/value heads for {heads} heads are not supported")
    return {}


def _quotient(file: GgufMetadata) -> int:
    """Return the width of a head in families where it follows from the others."""
    return file.integer("embedding_length") // max(file.integer("attention.head_count"), 1)


def _head_dim(file: GgufMetadata) -> int:
    return file.integer("attention.key_length", _quotient(file))


def _with_heads(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of grouped-query attention with rotary positions."""
    head_dim = _head_dim(file)
    return {"head_dim": head_dim, "rope_parameters": rope_parameters(file, head_dim), **_kv_heads(file)}


def _llama(file: GgufMetadata) -> ConfigKeys:
    biases = {"attention_bias": "blk.0.attn_q.bias" in file.shapes, "mlp_bias": "blk.0.ffn_up.bias" in file.shapes}
    return _with_heads(file) | biases


def _qwen3(file: GgufMetadata) -> ConfigKeys:
    return _with_heads(file) | _biased(file)


def _biased(file: GgufMetadata) -> ConfigKeys:
    return {"attention_bias": "blk.0.attn_q.bias" in file.shapes}


def _smollm3(file: GgufMetadata) -> ConfigKeys:
    # llama.cpp knows from the architecture that every fourth layer has no positions.
    return _llama(file) | {
        "no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(file.integer("block_count"))]
    }


def _mistral3(file: GgufMetadata) -> ConfigKeys:
    config = _with_heads(file) | {"sliding_window": None}
    if "attention.temperature_scale" not in file:
        return config | {"model_type": "mistral"}
    rope, multiplier = config["rope_parameters"], file.number("rope.scaling.yarn_log_multiplier")
    length = file.integer("attention.temperature_length", 0)
    if rope["rope_type"] != "yarn" or multiplier != 1 or length not in (0, rope["original_max_position_embeddings"]):
        raise ValueError(
            f"{file.path}: mistral3.attention.temperature_scale is only supported with YaRN, "
            "rope.scaling.yarn_log_multiplier=1 and a temperature_length that is YaRN's original length"
        )
    rope |= {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": file.number("attention.temperature_scale")}
    return config


def _granite(file: GgufMetadata) -> ConfigKeys:
    if not file.flag("rope.scaling.finetuned", True):
        raise ValueError(f"{file.path}: granite.rope.scaling.finetuned=False, for no positions, is not supported")
    config = _llama(file)
    return config | {
        "attention_multiplier": file.number("attention.scale"),
        "embedding_multiplier": file.number("embedding_scale"),
        "residual_multiplier": file.number("residual_scale"),
        "logits_scaling": file.number("logit_scale"),
    }


def _olmo2(file: GgufMetadata) -> ConfigKeys:
    config = _with_heads(file) | _biased(file)
    window = file.integer("attention.sliding_window", 0)
    if not window:
        return config
    theta = file.number("rope.freq_base_swa", config["rope_parameters"]["rope_theta"])
    local = {"rope_type": "default", "rope_theta": theta}
    return config | {
        "model_type": "olmo3",
        "layer_types": layer_types(file, 4),
        "sliding_window": window,
        "rope_parameters": {FULL: config["rope_parameters"], WINDOWED: local},
    }


def _exaone4(file: GgufMetadata) -> ConfigKeys:
    window = file.integer("attention.sliding_window", 0)
    types = layer_types(file, 4 if window else 1)
    return _with_heads(file) | {"layer_types": types, "sliding_window": window or None}


def _phi3(file: GgufMetadata) -> ConfigKeys:
    rope = rope_parameters(file, _quotient(file), partial=True)
    original = file.integer("rope.scaling.original_context_length", 0)
    return _kv_heads(file) | {
        "rope_parameters": rope,
        "original_max_position_embeddings": original or file.integer("context_length"),
        "sliding_window": file.integer("attention.sliding_window", 0) or None,
    }


def _with_partial_rope(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of attention that rotates a part of each head, whose width follows from the other sizes."""
    return _kv_heads(file) | {"rope_parameters": rope_parameters(file, _quotient(file), partial=True)}


def _stablelm(file: GgufMetadata) -> ConfigKeys:
    return _with_partial_rope(file) | {
        "use_qkv_bias": "blk.0.attn_q.bias" in file.shapes,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in file.shapes,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in file.shapes,
    }


def _glm4(file: GgufMetadata) -> ConfigKeys:
    head_dim = _head_dim(file)
    rope = rope_parameters(file, head_dim, partial=True)
    return _kv_heads(file) | _biased(file) | {"head_dim": head_dim, "rope_parameters": rope}


def _command_r(file: GgufMetadata) -> ConfigKeys:
    return _with_heads(file) | {
        "logit_scale": file.number("logit_scale"),
        "use_qk_norm": "blk.0.attn_q_norm.weight" in file.shapes,
    }


def _cohere2(file: GgufMetadata) -> ConfigKeys:
    return _with_heads(file) | {
        "logit_scale": file.number("logit_scale"),
        "layer_types": layer_types(file, 4),
        "sliding_window": file.integer("attention.sliding_window"),
    }


def _starcoder2(file: GgufMetadata) -> ConfigKeys:
    rope = rope_parameters(file, _quotient(file))
    # llama.cpp's converter leaves the window out, and transformers has none for a file without it.
    return _kv_heads(file) | {
        "rope_parameters": rope,
        "use_bias": "blk.0.attn_q.bias" in file.shapes,
        "sliding_window": None,
    }


def _falcon(file: GgufMetadata) -> ConfigKeys:
    heads, groups = file.integer("attention.head_count"), file.integer("attention.head_count_kv", 1)
    has_two_norms = "blk.0.attn_norm_2.weight" in file.shapes
    is_new = has_two_norms or 1 < groups < heads
    if is_new and not has_two_norms:
        file.number("rope.freq_base")  # Falcon 2's is not the default, and llama.cpp's converter leaves it out
    return {
        "new_decoder_architecture": is_new,
        "num_ln_in_parallel_attn": 2 if has_two_norms else 1,
        "num_kv_heads": groups,
        "multi_query": groups == 1,
        "bias": "blk.0.attn_qkv.bias" in file.shapes,
        "rope_parameters": rope_parameters(file, _quotient(file)),
    }


def _bloom(file: GgufMetadata) -> ConfigKeys:
    inner, width = file.integer("feed_forward_length"), file.integer("embedding_length")
    if inner != 4 * width:
        raise ValueError(f"{file.path}: bloom.feed_forward_length={inner} is not supported, only {4 * width}")
    return _without_groups(file)


def _gemma2(file: GgufMetadata) -> ConfigKeys:
    # llama.cpp knows the one size whose scores are scaled by another width by its number of layers.
    config = _with_heads(file) | _query_scale(file, largest=46)
    return config | {
        "layer_types": layer_types(file, 2),
        "sliding_window": file.integer("attention.sliding_window", 4096),
        "attn_logit_softcapping": file.optional_number("attn_logit_softcapping"),
        "final_logit_softcapping": file.optional_number("final_logit_softcapping"),
    }


def _gemma3(file: GgufMetadata) -> ConfigKeys:
    window = file.integer("attention.sliding_window", 0)
    config = _with_heads(file) | _query_scale(file, largest=62)
    local = {"rope_type": "default", "rope_theta": file.number("rope.freq_base_swa", 10_000.0)}
    return config | {
        "layer_types": layer_types(file, 6 if window else 1),
        "sliding_window": window or None,
        "final_logit_softcapping": file.optional_number("final_logit_softcapping"),
        "rope_parameters": {FULL: config["rope_parameters"], WINDOWED: local},
    }


def _query_scale(file: GgufMetadata, largest: int) -> ConfigKeys:
    width = _quotient(file) if file.integer("block_count") == largest else _head_dim(file)
    return {"query_pre_attn_scalar": width}


def _gpt_neox(file: GgufMetadata) -> ConfigKeys:
    return _without_groups(file) | {
        "attention_bias": "blk.0.attn_qkv.bias" in file.shapes,
        "use_parallel_residual": file.flag("use_parallel_residual", True),
        "rope_parameters": rope_parameters(file, _quotient(file), partial=True),
    }


_RMS = ("rms_norm_eps", _RMS_EPSILON)

ARCHITECTURES = {
    "llama": GgufArchitecture("llama", _RMS, _llama, ROTATED_PAIRS),
    "qwen2": GgufArchitecture("qwen2", _RMS, _with_heads),
    "qwen3": GgufArchitecture("qwen3", _RMS, _qwen3),
    "smollm3": GgufArchitecture("smollm3", _RMS, _smollm3, ROTATED_PAIRS),
    "mistral3": GgufArchitecture("ministral3", _RMS, _mistral3, ROTATED_PAIRS),  # or mistral
    "granite": GgufArchitecture("granite", _RMS, _granite, ROTATED_PAIRS),
    "olmo2": GgufArchitecture("olmo2", _RMS, _olmo2),  # or olmo3
    "exaone4": GgufArchitecture("exaone4", _RMS, _exaone4),
    "gemma": GgufArchitecture("gemma", _RMS, _with_heads, NORMS_PLUS_ONE),
    "gemma2": GgufArchitecture("gemma2", _RMS, _gemma2, NORMS_PLUS_ONE),
    "gemma3": GgufArchitecture("gemma3_text", _RMS, _gemma3, NORMS_PLUS_ONE),
    "phi2": GgufArchitecture("phi", ("layer_norm_eps", _EPSILON), _with_partial_rope),
    "phi3": GgufArchitecture("phi3", _RMS, _phi3),
    "glm4": GgufArchitecture("glm4", _RMS, _glm4),
    "command-r": GgufArchitecture("cohere", ("layer_norm_eps", _EPSILON), _command_r),
    "cohere2": GgufArchitecture("cohere2", ("layer_norm_eps", _EPSILON), _cohere2),
    "starcoder2": GgufArchitecture("starcoder2", ("norm_epsilon", _EPSILON), _starcoder2),
    "stablelm": GgufArchitecture("stablelm", ("layer_norm_eps", _EPSILON), _stablelm),
    "falcon": GgufArchitecture("falcon", ("layer_norm_epsilon", _EPSILON), _falcon, GROUPED, _FALCON_SIZES),
    "bloom": GgufArchitecture("bloom", ("layer_norm_epsilon", _EPSILON), _bloom, GROUPED, _BLOOM_SIZES),
    "gpt2": GgufArchitecture("gpt2", ("layer_norm_epsilon", _EPSILON), _without_groups, TRANSPOSED, _GPT2_SIZES),
    "gptneox": GgufArchitecture("gpt_neox", ("layer_norm_eps", _EPSILON), _gpt_neox, GROUPED),
}
"""The supported architectures, by the value of ``general.architecture``. Files of Mistral and SmolLM have llama."""
