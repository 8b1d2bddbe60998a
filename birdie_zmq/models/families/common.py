"""What most families share: sizes, tensors with Llama's names, and layer types."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from birdie_zmq.models.config_fields import ConfigReader, require_positive
from birdie_zmq.models.weight_map import (
    TensorSpec,
    column_parallel,
    embedding_spec,
    gated_layer_specs,
    head_spec,
    linear_specs,
    norm_specs,
    row_parallel,
)

HEAD = "lm_head.weight"
"""The name of the head's matrix in most checkpoints."""

LAYER = "model.layers.{}."
"""The prefix of a layer's tensors in most checkpoints."""

WINDOWED, FULL = "sliding_attention", "full_attention"
"""The values of ``layer_types``."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a decoder."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_width: int
    d_ff: int
    max_length: int

    @classmethod
    def read(cls, config: ConfigReader) -> Self:
        """Read the sizes from the keys of Llama's configuration; ``head_dim`` and ``num_key_value_heads`` may be missing.

        Raises:
            ValueError: A size is missing or below 1, or one is not a multiple of another that divides it.
        """
        keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        sizes = {key: config.integer(key) for key in (*keys, "max_position_embeddings")}
        d_model, n_heads = sizes["hidden_size"], sizes["num_attention_heads"]
        sizes["num_key_value_heads"] = n_kv_heads = config.integer("num_key_value_heads", n_heads)
        require_positive(**sizes)
        if "head_dim" not in config and d_model % n_heads:
            raise ValueError(f"hidden_size {d_model} is not a multiple of num_attention_heads {n_heads}")
        if n_heads % n_kv_heads:
            raise ValueError(f"num_attention_heads {n_heads} is not a multiple of num_key_value_heads {n_kv_heads}")
        return cls(
            vocab_size=sizes["vocab_size"],
            d_model=d_model,
            n_layers=sizes["num_hidden_layers"],
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_width=config.integer("head_dim", d_model // n_heads),
            d_ff=sizes["intermediate_size"],
            max_length=sizes["max_position_embeddings"],
        )

    def gated_specs(self, biased: Collection[str] = ()) -> dict[str, TensorSpec]:
        """Return the matrices of a layer, with Llama's names; `biased` names those with a bias."""
        heads = (self.n_heads, self.n_kv_heads)
        return gated_layer_specs(LAYER, self.d_model, heads, self.head_width, self.d_ff, biased)

    def attention_specs(self, biased: Collection[str] = (), *, output: str = "o_proj") -> dict[str, TensorSpec]:
        """Return the matrices of attention, with Llama's names but for that of the output; `biased` as above."""
        d, queries, keys = self.d_model, self.n_heads * self.head_width, self.n_kv_heads * self.head_width
        by_kv_head = column_parallel(self.n_kv_heads)
        matrices = {
            "query": ("q_proj", d, queries, column_parallel(self.n_heads)),
            "key": ("k_proj", d, keys, by_kv_head),
            "value": ("v_proj", d, keys, by_kv_head),
            "output": (output, queries, d, row_parallel(self.n_heads)),
        }
        specs: dict[str, TensorSpec] = {}
        for key, (name, inputs, outputs, shard) in matrices.items():
            specs |= linear_specs(f"{LAYER}self_attn.{name}", inputs, outputs, shard, bias=key in biased, key=key)
        return specs

    def feed_forward_specs(self) -> dict[str, TensorSpec]:
        """Return the matrices of a gated feed-forward layer, with Llama's names."""
        specs = self.gated_specs()
        return {key: specs[key] for key in ("gate", "up", "down")}

    def up_down_specs(self, up: str, down: str, *, bias: bool) -> dict[str, TensorSpec]:
        """Return the matrices of a feed-forward layer without a gate, given their names in the file."""
        d, f = self.d_model, self.d_ff
        specs = linear_specs(f"{LAYER}mlp.{up}", d, f, column_parallel(f), bias=bias, key="up")
        return specs | linear_specs(f"{LAYER}mlp.{down}", f, d, row_parallel(f), bias=bias, key="down")

    def fused_gate_specs(self) -> dict[str, TensorSpec]:
        """Return the matrices of a gated feed-forward layer whose gate and up matrices are one.

        A shard of that one holds parts of either, so devices exchange its outputs.
        """
        d, f = self.d_model, self.d_ff
        gate_up = linear_specs(LAYER + "mlp.gate_up_proj", d, 2 * f, column_parallel(f), key="gate_up")
        return gate_up | linear_specs(LAYER + "mlp.down_proj", f, d, row_parallel(f), key="down")

    def norm_specs(self, *, bias: bool = False, **names: str) -> dict[str, TensorSpec]:
        """Return the norms of a layer, given as ``parameter name=name in the file``."""
        specs: dict[str, TensorSpec] = {}
        for key, name in names.items():
            specs |= norm_specs(LAYER + name, self.d_model, bias=bias, key=key)
        return specs

    def outer_specs(self, *, tied: bool, norm_bias: bool = False, norm: str = "model.norm") -> dict[str, TensorSpec]:
        """Return the tensors outside of the layers, with Llama's names; a tied model has no head."""
        specs = {"embedding": embedding_spec("model.embed_tokens.weight", self.vocab_size, self.d_model)}
        specs |= norm_specs(norm, self.d_model, bias=norm_bias, key="final_norm")
        return specs if tied else specs | {"head": head_spec(HEAD, self.vocab_size, self.d_model)}


def read_layer_types(config: ConfigReader, n_layers: int) -> tuple[str, ...]:
    """Return Hugging Face's ``layer_types``.

    Raises:
        ValueError: A type is neither sliding_attention nor full_attention.
    """
    types = config.texts("layer_types", n_layers)
    unknown = sorted(set(types) - {WINDOWED, FULL})
    if unknown:
        raise ValueError(f"layer_types has the unknown type {unknown[0]!r}; supported: {WINDOWED}, {FULL}")
    return types


def read_windows(config: ConfigReader, n_layers: int) -> tuple[int | None, ...]:
    """Return the window of each layer from ``layer_types`` and ``sliding_window``.

    Raises:
        ValueError: A type is unknown, or a window is needed and missing.
    """
    types, window = read_layer_types(config, n_layers), config.optional_integer("sliding_window")
    if WINDOWED in types and window is None:
        raise ValueError(f"layer_types has {WINDOWED}, but there is no sliding_window")
    return tuple(window if kind == WINDOWED else None for kind in types)
