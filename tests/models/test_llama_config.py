"""The Llama family's configuration, as transformers completes it: the sizes that follow, and errors for other values."""

import dataclasses
from typing import Any

import pytest

from birdie_zmq.models.attention import NO_WINDOW
from birdie_zmq.models.config import complete_config
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
SIZES = {
    "vocab_size": 50,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


def read(**keys: Any) -> Llama:
    """Read a configuration with some keys, completed by transformers."""
    return Llama.from_hugging_face(complete_config(SIZES | keys))


def test_keys_of_a_plain_llama_round_trip() -> None:
    values = PLAIN.to_hugging_face()
    assert values["architectures"] == ["LlamaForCausalLM"]
    assert Llama.from_hugging_face(complete_config(values)) == PLAIN


def test_every_size_has_its_own_key() -> None:
    expected = Llama(
        vocab_size=50,
        d_model=64,
        n_layers=4,
        n_heads=16,
        n_kv_heads=8,
        d_ff=48,
        max_length=77,
        norm_epsilon=0.25,
        tied_head=True,
        head_width=6,
        activation="gelu",
    )
    keys = {"num_key_value_heads": 8, "max_position_embeddings": 77, "rms_norm_eps": 0.25, "tie_word_embeddings": True}
    assert read(model_type="llama", **keys, head_dim=6, hidden_act="gelu") == expected


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "rms_norm_eps", "rope_parameters", "hidden_act"])
def test_key_that_is_missing_after_all_is_refused_with_its_name(key: str) -> None:
    values = {name: value for name, value in complete_config(PLAIN.to_hugging_face()).items() if name != key}
    with pytest.raises(ValueError, match="rope_type" if key == "rope_parameters" else key):
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


def test_null_window_of_mistral_means_full_attention() -> None:
    assert read(model_type="mistral", sliding_window=None).windows == ()


def test_mistral_window_limits_every_layer() -> None:
    assert read(model_type="mistral", sliding_window=7).windows == (7,) * 4


def test_ministral_window_limits_the_layers_of_its_type() -> None:
    types = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    model = read(model_type="ministral", sliding_window=7, layer_types=types)
    assert model.windows == (7, NO_WINDOW, NO_WINDOW, 7)
    assert (model.head_width, model.qkv_bias, model.query_key_norm) == (4, False, False)


def test_qwen2_has_only_query_key_and_value_biases() -> None:
    qwen = read(model_type="qwen2")
    assert (qwen.qkv_bias, qwen.output_bias, qwen.query_key_norm, qwen.head_width) == (True, False, False, 4)


def test_qwen3_has_norms_of_queries_and_keys() -> None:
    qwen = read(model_type="qwen3", head_dim=128)
    assert (qwen.head_width, qwen.rope, qwen.query_key_norm, qwen.qkv_bias) == (128, Rope(128), True, False)
    assert qwen.weight_map().layers["query"].shape == (16 * 128, 64)
    assert qwen.weight_map().layers["query_norm"].shape == (128,)
    biased = read(model_type="qwen3", attention_bias=True)
    assert (biased.qkv_bias, biased.output_bias) == (True, True)


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
        ("num_attention_heads", 0, "num_attention_heads must be at least 1"),
        ("num_hidden_layers", -1, "num_hidden_layers must be at least 1"),
        ("num_key_value_heads", 3, "n_kv_heads 3"),
        ("head_dim", 5, "5 dimensions"),
        ("model_type", 7, "model_type"),
        ("rope_parameters", {"rope_type": "foo", "rope_theta": 1.0}, "the unknown rope_type 'foo'"),
        ("rope_parameters", {"rope_type": "linear", "rope_theta": 1.0, "factor": "x"}, "factor must be a number"),
    ],
)
def test_unsupported_value_is_refused_with_its_key(key: str, value: object, message: str) -> None:
    values = complete_config(PLAIN.to_hugging_face())
    with pytest.raises(ValueError, match=message):
        Llama.from_hugging_face(values | {key: value})


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (["full_attention"] * 3, "layer_types must be a list of 4"),
        (["chunked_attention"] * 4, "'chunked_attention'"),
        ("full_attention", "layer_types"),
        (None, "layer_types"),
    ],
)
def test_invalid_layer_types_are_refused(types: object, message: str) -> None:
    values = complete_config({**SIZES, "model_type": "qwen2"})
    with pytest.raises(ValueError, match=message):
        Llama.from_hugging_face(values | {"layer_types": types})


def test_windowed_layer_without_a_window_is_refused() -> None:
    values = complete_config({**SIZES, "model_type": "ministral"})
    with pytest.raises(ValueError, match="there is no sliding_window"):
        Llama.from_hugging_face(values | {"sliding_window": None})


@pytest.mark.parametrize("scaled", ["dynamic", "linear", "llama3", "longrope", "yarn"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_partial_rotation_is_ignored_without_scaling_and_refused_with_it(kind: str, scaled: str) -> None:
    """transformers ignores the share in these families for the type default, and fails with any other type."""
    assert read(model_type=kind, partial_rotary_factor=0.5).rope == read(model_type=kind).rope
    values = complete_config({**SIZES, "model_type": kind, "partial_rotary_factor": 0.5})
    values["rope_parameters"]["rope_type"] = scaled
    with pytest.raises(ValueError, match=f"partial_rotary_factor=0.5 with the rope_type '{scaled}' is not supported"):
        Llama.from_hugging_face(values)


def test_position_limit_is_that_of_the_rotary_embedding() -> None:
    assert read(model_type="llama").position_limit is None
    assert read(model_type="llama", rope_scaling={"type": "dynamic", "factor": 2.0}).position_limit == 64


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
