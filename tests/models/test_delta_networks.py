"""The families with delta rules and Griffin's blocks: unknown variants are refused by name, and merged experts are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from birdie_zmq.models.fused_experts import SeparateExperts
from birdie_zmq.models.linear_scan import linear_scan
from birdie_zmq.models.tensor_source import SafetensorsFiles
from tests.models.test_decoder import architecture


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("qwen3_next", {"layer_types": ["linear_attention", "sliding_attention"]}, "layer_types has the unknown type"),
        ("qwen3_next", {"linear_num_value_heads": 3}, "3 value heads are not a multiple of 2 key heads"),
        ("qwen3_next", {"linear_conv_kernel_dim": 0}, "linear_conv_kernel_dim must be at least 1"),
        ("qwen3_next", {"hidden_act": "tanh"}, "the activation 'tanh' is not supported"),
        ("qwen3_next", {"num_experts_per_tok": 9}, "num_experts_per_tok must be from 1 to 4"),
        ("qwen3_5_text", {"attn_output_gate": False}, "attn_output_gate=False is not supported, only True"),
        ("qwen3_5_moe_text", {"norm_topk_prob": False}, "norm_topk_prob=False is not supported, only True"),
        ("recurrent_gemma", {"block_types": ["recurrent", "local"]}, "block_types must be a list of recurrent and"),
        ("recurrent_gemma", {"lru_width": 18}, "lru_width 18 is not a multiple of num_attention_heads 4"),
        ("recurrent_gemma", {"embeddings_scale_by_sqrt_dim": False}, "embeddings_scale_by_sqrt_dim=False is not"),
    ],
)
def test_an_unknown_variant_is_refused_by_name(kind: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        architecture(kind, **change)


def test_merged_experts_are_read_as_separate_ones(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    prefix, path = "model.layers.0.mlp.experts", tmp_path / "model.safetensors"
    merged = {
        f"{prefix}.gate_up_proj": random.standard_normal((3, 8, 6)).astype(np.float32),
        f"{prefix}.down_proj": random.standard_normal((3, 6, 4)).astype(np.float32),
        "model.norm.weight": np.ones(6, np.float32),
    }
    save_file(merged, path)
    source = SeparateExperts(SafetensorsFiles(str(path), [path]))
    read = {name: (reader(), reader((slice(2, None), slice(0, 3)))) for name, reader in source.read() if "mlp" in name}
    assert read.keys() == source.headers.keys() - {"model.norm.weight"}
    assert len(read) == 9
    for name, (whole, part) in read.items():
        assert whole.shape == source.headers[name].shape == ((6, 4) if "down" in name else (4, 6))
        np.testing.assert_array_equal(part, whole[2:, 0:3])
    stored = load_file(path)
    for expert in range(3):
        names = [f"{prefix}.{expert}.{matrix}.weight" for matrix in ("gate_proj", "up_proj")]
        np.testing.assert_array_equal(
            np.concatenate([read[name][0] for name in names]), stored[f"{prefix}.gate_up_proj"][expert]
        )
        np.testing.assert_array_equal(
            read[f"{prefix}.{expert}.down_proj.weight"][0], stored[f"{prefix}.down_proj"][expert]
        )


@pytest.mark.parametrize("length", [1, 9])
def test_a_scan_equals_one_token_after_another(length: int) -> None:
    random = np.random.default_rng(1)
    factors, inputs = random.uniform(0, 1, (2, 2, length, 3))
    factors[1, length // 2 :], inputs[1, length // 2 :] = 1, 0  # padding
    state = before = random.standard_normal((2, 3))
    expected = []
    for t in range(length):
        state = factors[:, t] * state + inputs[:, t]
        expected.append(state)
    got = jax.jit(linear_scan)(*(jnp.asarray(x, jnp.float32) for x in (factors, inputs, before)))
    np.testing.assert_allclose(got, np.stack(expected, axis=1), atol=1e-6)
    if length == 1:
        np.testing.assert_array_equal(got[1, 0], before[1].astype(np.float32))
