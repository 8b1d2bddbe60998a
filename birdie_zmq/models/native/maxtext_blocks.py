"""The decoder blocks of MaxText that are read: the family of each, where its tensors are, and the settings it may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from birdie_zmq.models.native.rules import Rule, gated_rules, vector_rules

OUTER = {
    "model.embed_tokens.weight": Rule("token_embedder/embedding", "v d -> v d"),
    "model.norm.weight": Rule("decoder/decoder_norm/scale", "d -> d"),
    "lm_head.weight": Rule("decoder/logits_dense/kernel", "d v -> v d"),
}
"""The tensors outside of the layers."""

_VALUES = {
    "self_attn.v_proj.weight": Rule("self_attention{}/value/kernel", "d h k -> (h k) d"),
    "self_attn.o_proj.weight": Rule("self_attention{}/out/kernel", "h k d -> d (h k)"),
    "self_attn.q_proj.bias": Rule("self_attention{}/query/bias", "h k -> (h k)"),
    "self_attn.k_proj.bias": Rule("self_attention{}/key/bias", "h k -> (h k)"),
    "self_attn.v_proj.bias": Rule("self_attention{}/value/bias", "h k -> (h k)"),
    "self_attn.q_norm.weight": Rule("self_attention{}/query_norm/scale", "k -> k"),
    "self_attn.k_norm.weight": Rule("self_attention{}/key_norm/scale", "k -> k"),
}
_DENSE = gated_rules("mlp{}/wi_0/kernel", "mlp{}/wi_1/kernel", "mlp{}/wo/kernel")
_IN_HALVES, _IN_PAIRS = (
    {
        "self_attn.q_proj.weight": Rule("self_attention{}/query/kernel", pattern),
        "self_attn.k_proj.weight": Rule("self_attention{}/key/kernel", pattern),
    }
    for pattern in ("d h k -> (h k) d", "d h (p i) -> (h i p) d")
)
"""Queries and keys; in pairs where the members of a rotated pair are neighbours, as in Meta's own weights of Llama."""

_LATENT = {
    **vector_rules(
        "scale",
        {"self_attn.q_a_layernorm": "self_attention/q_norm", "self_attn.kv_a_layernorm": "self_attention/kv_norm"},
    ),
    "self_attn.q_proj.weight": Rule("self_attention/query/kernel", "d h k -> (h k) d"),
    "self_attn.q_a_proj.weight": Rule("self_attention/wq_a/kernel", "d c -> c d"),
    "self_attn.q_b_proj.weight": Rule("self_attention/wq_b/kernel", "c h k -> (h k) c"),
    "self_attn.kv_a_proj_with_mqa.weight": Rule("self_attention/wkv_a/kernel", "d c -> c d"),
    "self_attn.kv_b_proj.weight": Rule("self_attention/wkv_b/kernel", "c h k -> (h k) c"),
    "self_attn.o_proj.weight": Rule("self_attention/out/kernel", "h k d -> d (h k)"),
}
"""DeepSeek's attention."""

_LLAMA_NORMS = vector_rules(
    "scale",
    {
        "input_layernorm": "pre_self_attention_layer_norm",
        "post_attention_layernorm": "post_self_attention_layer_norm",
    },
)
_GEMMA_NORMS = vector_rules(
    "scale", {"input_layernorm": "pre_self_attention_norm", "post_attention_layernorm": "pre_ffw_norm"}
)
_GEMMA2_NORMS = vector_rules(
    "scale",
    {
        "input_layernorm": "pre_self_attention_norm{}",
        "post_attention_layernorm": "post_self_attention_norm{}",
        "pre_feedforward_layernorm": "pre_ffw_norm{}",
        "post_feedforward_layernorm": "post_ffw_norm{}",
    },
)

_ANY_BLOCK: Mapping[str, tuple[Any, ...]] = {
    "rope_min_timescale": (1,),
    "partial_rotary_factor": (None, 1, 1.0),
    "use_mrope": (None, False),
    "attention_sink": (None, False),
    "mlp_activations_limit": (None, -1, -1.0),
    "quantization": (None, ""),
}
_DENSE_BLOCK: Mapping[str, tuple[Any, ...]] = {
    "num_experts": (1,),
    "attention_type": ("global",),
    "rope_type": ("default", "llama3.1"),
}
_NO_CAP: Mapping[str, tuple[Any, ...]] = {"attn_logits_soft_cap": (None, 0, 0.0)}
_ROUTED_BLOCK: Mapping[str, tuple[Any, ...]] = {
    **_NO_CAP,
    "use_random_routing": (None, False),
    "padded_base_moe_mlp_dim": (None,),
}
_MIXTRAL_BLOCK: Mapping[str, tuple[Any, ...]] = {
    **_ROUTED_BLOCK,
    "attention_type": ("global",),
    "rope_type": ("default",),
    "routed_score_func": (None, ""),
    "routed_bias": (None, False),
}
_DEEPSEEK_BLOCK: Mapping[str, tuple[Any, ...]] = {
    **_ROUTED_BLOCK,
    "attention_type": ("mla",),
    "rope_type": ("yarn",),
    "rope_attention_scaling": (None, False),
    "routed_score_func": ("sigmoid",),
    "routed_bias": (True,),
    "use_indexer": (None, False),
    "mhc_expansion_rate": (None, 1),
    "engram_layers": (None, []),
}

_CORRECTED_NAMES = ("deepseek3", "kimi-k2")
"""The names of models whose router has DeepSeek V3's correction; MaxText computes others in another way."""


@dataclass(frozen=True)
class Experts:
    """Where the experts of a layer are.

    Attributes:
        module: The path of the module of the experts.
        router: Hugging Face's name of the router.
        matrices: Hugging Face's names of gate, up and down of an expert, with ``{}`` for its number.
        rules: The rules of what else the layer has.
    """

    module: str
    router: str
    matrices: tuple[str, str, str]
    rules: Mapping[str, Rule] = field(default_factory=dict)

    def all_rules(self, count: int) -> dict[str, Rule]:
        """Return the rules of the router and of `count` experts, which MaxText keeps in one array for each matrix."""
        gate, up, down = self.matrices
        found = {f"{self.router}.weight": Rule(f"{self.module}/gate/kernel", "d e -> e d"), **self.rules}
        for number in range(count):
            found[gate.format(number)] = Rule(f"{self.module}/wi_0", f"{number} d f -> f d")
            found[up.format(number)] = Rule(f"{self.module}/wi_1", f"{number} d f -> f d")
            found[down.format(number)] = Rule(f"{self.module}/wo", f"{number} f d -> d f")
        return found


_MIXTRAL_EXPERTS = Experts(
    "MoeBlock_0",
    "block_sparse_moe.gate",
    (
        "block_sparse_moe.experts.{}.w1.weight",
        "block_sparse_moe.experts.{}.w3.weight",
        "block_sparse_moe.experts.{}.w2.weight",
    ),
)
_SHARED = "DeepSeekMoeBlock_0/shared_experts"
_DEEPSEEK_EXPERTS = Experts(
    "DeepSeekMoeBlock_0/MoeBlock_0",
    "mlp.gate",
    (
        "mlp.experts.{}.gate_proj.weight",
        "mlp.experts.{}.up_proj.weight",
        "mlp.experts.{}.down_proj.weight",
    ),
    {
        "mlp.gate.e_score_correction_bias": Rule("DeepSeekMoeBlock_0/MoeBlock_0/gate/bias", "e -> e"),
        **gated_rules(f"{_SHARED}/wi_0/kernel", f"{_SHARED}/wi_1/kernel", f"{_SHARED}/wo/kernel", "mlp.shared_experts"),
    },
)


UNTRAINED_KEY = "untrained"
"""Added to the path of a router's correction that a training state of NNX keeps apart from the parameters."""

UNTRAINED_CORRECTION = {
    "mlp.gate.e_score_correction_bias": Rule(
        f"DeepSeekMoeBlock_0/MoeBlock_0/gate/bias/{UNTRAINED_KEY}", "e -> e", stack_axis=0
    )
}
"""The rule of such a correction: whatever ``param_scan_axis`` is, its layers are stacked on the first axis."""


@dataclass(frozen=True)
class Block:
    """A decoder block.

    Attributes:
        family: The ``model_type`` of the family that computes it.
        norms: The rules of its norms.
        supported: The values that its settings may have.
        experts: Where its experts are; None for a dense block.
    """

    family: str
    norms: Mapping[str, Rule]
    supported: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: _DENSE_BLOCK)
    experts: Experts | None = None

    @property
    def is_latent(self) -> bool:
        """Whether it has DeepSeek's attention, and layers of two kinds."""
        return self.family == "deepseek_v3"

    def layer_rules(self, experts: int, *, in_pairs: bool) -> dict[str, Rule]:
        """Return the rules of a layer with a number of experts."""
        attention = _LATENT if self.is_latent else {**_VALUES, **(_IN_PAIRS if in_pairs else _IN_HALVES)}
        routed = {} if self.experts is None else self.experts.all_rules(experts)
        return {**attention, **_DENSE, **self.norms, **routed}


BLOCKS: Mapping[str, Block] = {
    "llama2": Block("llama", _LLAMA_NORMS, {**_DENSE_BLOCK, **_NO_CAP}),
    "mistral": Block("llama", _LLAMA_NORMS, {**_DENSE_BLOCK, **_NO_CAP}),  # MaxText's block has no window
    "mixtral": Block("mixtral", _LLAMA_NORMS, _MIXTRAL_BLOCK, _MIXTRAL_EXPERTS),
    "qwen2": Block("qwen2", _LLAMA_NORMS),
    "qwen3": Block("qwen3", _LLAMA_NORMS),
    "gemma": Block("gemma", _GEMMA_NORMS),
    "gemma2": Block("gemma2", _GEMMA2_NORMS),
    "gemma3": Block("gemma3_text", _GEMMA2_NORMS),
    "deepseek": Block("deepseek_v3", _LLAMA_NORMS, _DEEPSEEK_BLOCK, _DEEPSEEK_EXPERTS),
}
"""The blocks, by MaxText's ``decoder_block``."""


def check_settings(settings: Mapping[str, Any]) -> Block:
    """Check that MaxText's configuration is for a model that is supported, and return its block.

    Raises:
        ValueError: It is not; the message names the setting.
    """
    name = str(settings["decoder_block"])
    if name not in BLOCKS:
        raise ValueError(f"MaxText's decoder_block {name!r} is not supported, only {', '.join(BLOCKS)}")
    block = BLOCKS[name]
    for setting, values in {**_ANY_BLOCK, **block.supported}.items():
        if settings.get(setting) not in values:
            raise ValueError(
                f"{setting}={settings.get(setting)!r} of MaxText's configuration is not supported in the block {name}, "
                f"only {values[-1]!r}"
            )
    if block.is_latent and not str(settings.get("model_name", "")).startswith(_CORRECTED_NAMES):
        raise ValueError(
            f"model_name={settings.get('model_name')!r} of MaxText's configuration is not supported in the block {name}: "
            f"MaxText routes as DeepSeek V3 only if the name starts with {' or '.join(_CORRECTED_NAMES)}"
        )
    return block
