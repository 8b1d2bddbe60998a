"""The models whose steps are compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.families.llama import plain_llama


def _of_config(**values: Any) -> Architecture:
    """Return the architecture of a Hugging Face configuration."""
    from birdie_zmq.models.config import complete_config
    from birdie_zmq.models.registry import build_architecture

    return build_architecture(complete_config(values), "config.json")


ARCHITECTURES: dict[str, Callable[[], Architecture]] = {
    "1b": functools.partial(
        plain_llama,
        vocab_size=128_256,
        d_model=2048,
        n_layers=16,
        n_heads=32,
        n_kv_heads=8,
        d_ff=8192,
        max_length=131_072,
    ),
    "14b": functools.partial(
        plain_llama,
        vocab_size=152_064,
        d_model=5120,
        n_layers=48,
        n_heads=40,
        n_kv_heads=8,
        d_ff=13_824,
        max_length=131_072,
    ),
    "windows": functools.partial(
        _of_config,
        model_type="gemma3_text",
        vocab_size=262_144,
        hidden_size=1152,
        num_hidden_layers=26,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        intermediate_size=6912,
        max_position_embeddings=32_768,
        sliding_window=512,
    ),
    "alternating": functools.partial(
        _of_config,
        model_type="gpt_oss",
        vocab_size=201_088,
        hidden_size=2880,
        num_hidden_layers=8,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        intermediate_size=2880,
        num_local_experts=32,
        num_experts_per_tok=4,
        sliding_window=128,
        max_position_embeddings=131_072,
    ),
    "experts": functools.partial(
        _of_config,
        model_type="qwen3_moe",
        vocab_size=151_936,
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_experts=64,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        max_position_embeddings=40_960,
    ),
    "convolutions": functools.partial(
        _of_config,
        model_type="lfm2",
        vocab_size=65_536,
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=12_288,
        max_position_embeddings=128_000,
        layer_types=["full_attention" if layer in (2, 5, 8, 10, 12, 14) else "conv" for layer in range(16)],
    ),
    "recurrences": functools.partial(
        _of_config,
        model_type="falcon_h1",
        vocab_size=65_537,
        hidden_size=2048,
        num_hidden_layers=24,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
        intermediate_size=4096,
        mamba_d_ssm=3072,
        mamba_n_heads=48,
        mamba_d_head=64,
        mamba_d_state=256,
        mamba_n_groups=1,
        max_position_embeddings=131_072,
    ),
    "delta_rule": functools.partial(
        _of_config,
        model_type="qwen3_5_text",
        vocab_size=248_320,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=256,
        intermediate_size=3584,
        linear_num_key_heads=16,
        linear_num_value_heads=16,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        max_position_embeddings=262_144,
    ),
}
"""Llamas of the sizes of Llama 3.2 1B (heads of 64) and Qwen 2.5 14B (heads of 128), Gemma 3 1B (five windowed layers and
a full one in turn, heads of 256), a GPT-OSS 20B with 8 of its 24 layers (windowed and full ones in turn, sinks, experts), a
Qwen 3 with 64 experts and 16 layers, LFM 2 1.2B (short convolutions and attention), and models like Falcon H1 1.5B (Mamba 2
beside attention) and Qwen 3.5 0.8B (three layers of the gated delta rule for each of attention)."""
