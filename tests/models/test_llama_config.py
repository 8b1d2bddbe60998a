"""The config.json of the Llama family: defaults of missing keys, and errors for unsupported values."""

import dataclasses
from typing import Any

import pytest

from birdie_zmq.models.attention import NO_WINDOW
from birdie_zmq.models.llama import Llama
from birdie_zmq.models.rope import Rope

PLAIN = Llama(
    vocab_size=50,
    d_model=64,
    n_layers=4,
    n_heads=16,
    n_kv_heads=2,
    d_ff=48,
    max_length=64,
    rope=Rope(4, 500.0),
    tied_head=False,
)
MINIMAL = {
    "vocab_size": 50,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
"""The keys without a default."""


def read(**keys: Any) -> Llama:
    return Llama.from_hugging_face(MINIMAL | keys)


def test_keys_of_a_plain_llama_round_trip() -> None:
    values = PLAIN.to_hugging_face()
    assert values["architectures"] == ["LlamaForCausalLM"]
    assert Llama.from_hugging_face(values) == PLAIN


def test_missing_keys_of_a_llama_have_the_defaults_of_transformers() -> None:
    expected = Llama(
        vocab_size=50,
        d_model=64,
        n_layers=4,
        n_heads=16,
        n_kv_heads=16,
        d_ff=48,
        max_length=64,
        norm_epsilon=1e-6,
        tied_head=False,
        head_width=4,
        rope=Rope(4, 10_000.0),
    )
    assert read(model_type="llama") == expected
    assert read(model_type="llama", num_key_value_heads=None, head_dim=None, rope_scaling=None) == expected


def test_newer_rope_key_is_read() -> None:
    values = PLAIN.to_hugging_face()
    del values["rope_theta"]
    values["rope_parameters"] = {"rope_type": "default", "rope_theta": 500.0}
    assert Llama.from_hugging_face(values) == PLAIN


@pytest.mark.parametrize("key", MINIMAL)
def test_missing_size_is_refused_with_its_key(key: str) -> None:
    values = {name: value for name, value in MINIMAL.items() if name != key}
    with pytest.raises(ValueError, match=key):
        Llama.from_hugging_face(values)


def test_llama_biases_follow_their_two_flags() -> None:
    attention = read(model_type="llama", attention_bias=True)
    assert (attention.qkv_bias, attention.output_bias, attention.feed_forward_bias) == (True, True, False)
    feed_forward = read(model_type="llama", mlp_bias=True)
    assert (feed_forward.qkv_bias, feed_forward.output_bias, feed_forward.feed_forward_bias) == (False, False, True)
    names = {spec.name for spec in dataclasses.replace(attention, feed_forward_bias=True).weight_map().layers.values()}
    for part in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"):
        assert f"model.layers.{{}}.{part}_proj.bias" in names


def test_llama_ignores_the_sliding_window_key() -> None:
    assert read(model_type="llama", sliding_window=8).windows == ()


def test_mistral_defaults_to_8_key_value_heads_and_a_window() -> None:
    mistral = read(model_type="mistral")
    assert mistral.n_kv_heads == 8
    assert mistral.windows == (4096,) * 4


def test_null_window_of_mistral_means_full_attention() -> None:
    assert read(model_type="mistral", sliding_window=None).windows == ()


def test_mistral_window_limits_every_layer() -> None:
    assert read(model_type="mistral", sliding_window=7).windows == (7,) * 4


def test_qwen2_has_only_query_key_and_value_biases() -> None:
    qwen = read(model_type="qwen2")
    assert (qwen.qkv_bias, qwen.output_bias, qwen.query_key_norm, qwen.head_width) == (True, False, False, 4)


def test_qwen3_has_heads_of_128_and_norms_of_queries_and_keys() -> None:
    qwen = read(model_type="qwen3")
    assert (qwen.head_width, qwen.rope, qwen.query_key_norm, qwen.qkv_bias) == (128, Rope(128), True, False)
    assert qwen.weight_map().layers["query"].shape == (16 * 128, 64)
    assert qwen.weight_map().layers["query_norm"].shape == (128,)


def test_qwen3_head_width_can_be_set() -> None:
    assert read(model_type="qwen3", head_dim=6).head_width == 6


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_qwen_window_is_used_only_if_enabled(kind: str) -> None:
    keys = {"model_type": kind, "sliding_window": 5, "max_window_layers": 3}
    assert read(**keys).windows == ()
    assert read(**keys, use_sliding_window=True).windows == (NO_WINDOW, NO_WINDOW, NO_WINDOW, 5)


def test_qwen_layer_types_override_max_window_layers() -> None:
    types = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    keys = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3, "layer_types": types}
    assert read(model_type="qwen2", **keys).windows == (5, NO_WINDOW, 5, NO_WINDOW)


def test_qwen_with_only_full_attention_layers_has_no_windows() -> None:
    assert read(model_type="qwen2", use_sliding_window=True, max_window_layers=4).windows == ()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_act", "my_swish", "'my_swish'"),
        ("attention_bias", "yes", "attention_bias"),
        ("head_dim", 5, "5 dimensions"),
        ("rope_scaling", {"type": "longrope", "factor": 2.0}, "'longrope'"),
        ("hidden_size", "32", "hidden_size"),
        ("vocab_size", None, "vocab_size"),
        ("rms_norm_eps", "small", "rms_norm_eps"),
        ("num_hidden_layers", True, "num_hidden_layers"),
        ("num_attention_heads", 0, "num_attention_heads"),
        ("num_key_value_heads", 3, "n_kv_heads 3"),
        ("model_type", 7, "model_type"),
    ],
)
def test_unsupported_value_is_refused_with_its_key(key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Llama.from_hugging_face(PLAIN.to_hugging_face() | {key: value})


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (["full_attention"] * 3, "layer_types must be a list of 4"),
        (["chunked_attention"] * 4, "'chunked_attention'"),
        ("full_attention", "layer_types"),
    ],
)
def test_invalid_layer_types_are_refused(types: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(model_type="qwen2", use_sliding_window=True, layer_types=types)


@pytest.mark.parametrize(
    "change",
    [
        {"rope": Rope(4, kind="linear", factor=2.0)},
        {"qkv_bias": True},
        {"output_bias": True},
        {"feed_forward_bias": True},
        {"query_key_norm": True},
        {"windows": (1, 2, 3, 4)},
    ],
)
def test_only_a_plain_llama_can_be_written(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="plain Llama"):
        dataclasses.replace(PLAIN, **change).to_hugging_face()
