"""The Llama family's configuration, as transformers completes it: the sizes that follow, and errors for other values."""

from typing import Any

import pytest

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config import complete_config
from birdie_zmq.models.families.llama import llama, plain_llama, to_hugging_face
from birdie_zmq.models.rope import Rope

PLAIN = plain_llama(
    vocab_size=50,
    d_model=64,
    n_layers=4,
    n_heads=16,
    n_kv_heads=2,
    d_ff=48,
    max_length=64,
    rope_theta=500.0,
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


def read(**keys: Any) -> Architecture:
    """Read a configuration with some keys, completed by transformers."""
    return llama(complete_config(SIZES | keys))


def windows(**keys: Any) -> list[int | None]:
    """Return the attention window of each layer of a configuration."""
    return [layer.attention.window for layer in read(**keys).layers]


def biases(model: Architecture) -> set[str]:
    """Return the matrices of a layer that have a bias."""
    return {name.removesuffix("_bias") for name in model.layers[0].specs if name.endswith("_bias")}


def test_keys_of_a_plain_llama_round_trip() -> None:
    values = to_hugging_face(PLAIN)
    assert values["architectures"] == ["LlamaForCausalLM"]
    assert llama(complete_config(values)) == PLAIN


def test_every_size_has_its_own_key() -> None:
    expected = plain_llama(
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
    )
    keys = {"num_key_value_heads": 8, "max_position_embeddings": 77, "rms_norm_eps": 0.25, "tie_word_embeddings": True}
    assert read(model_type="llama", **keys, head_dim=6) == expected
    assert read(model_type="llama", hidden_act="gelu").layers[0].feed_forward.activation == "gelu"


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "rms_norm_eps", "rope_parameters", "hidden_act"])
def test_key_that_is_missing_after_all_is_refused_with_its_name(key: str) -> None:
    values = {name: value for name, value in complete_config(to_hugging_face(PLAIN)).items() if name != key}
    with pytest.raises(ValueError, match="rope_type" if key == "rope_parameters" else key):
        llama(values)


def test_llama_biases_follow_their_two_flags() -> None:
    assert biases(read(model_type="llama", attention_bias=True)) == {"query", "key", "value", "output"}
    assert biases(read(model_type="llama", mlp_bias=True)) == {"gate", "up", "down"}
    specs = read(model_type="llama", attention_bias=True, mlp_bias=True).layers[0].specs
    names = {spec.name for spec in specs.values()}
    for part in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"):
        assert f"model.layers.{{}}.{part}_proj.bias" in names


def test_llama_ignores_the_sliding_window_key() -> None:
    assert windows(model_type="llama", sliding_window=8) == [None] * 4


def test_null_window_of_mistral_means_full_attention() -> None:
    assert windows(model_type="mistral", sliding_window=None) == [None] * 4


def test_mistral_window_limits_every_layer() -> None:
    assert windows(model_type="mistral", sliding_window=7) == [7] * 4


def test_ministral_window_limits_the_layers_of_its_type() -> None:
    types = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    keys = {"model_type": "ministral", "sliding_window": 7, "layer_types": types}
    assert windows(**keys) == [7, None, None, 7]
    model = read(**keys)
    assert (model.layers[0].attention.head_width, biases(model), "query_norm" in model.layers[0].specs) == (
        4,
        set(),
        False,
    )


def test_qwen2_has_only_query_key_and_value_biases() -> None:
    qwen = read(model_type="qwen2")
    assert (biases(qwen), qwen.layers[0].attention.head_width) == ({"query", "key", "value"}, 4)
    assert "query_norm" not in qwen.layers[0].specs


def test_qwen3_has_norms_of_queries_and_keys() -> None:
    qwen = read(model_type="qwen3", head_dim=128)
    layer = qwen.layers[0]
    assert (layer.attention.head_width, layer.attention.rope, biases(qwen)) == (128, Rope(128), set())
    assert layer.specs["query"].shape == (16 * 128, 64)
    assert layer.specs["query_norm"].shape == layer.specs["key_norm"].shape == (128,)
    assert biases(read(model_type="qwen3", attention_bias=True)) == {"query", "key", "value", "output"}


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_qwen_window_is_used_only_if_enabled(kind: str) -> None:
    keys = {"model_type": kind, "sliding_window": 5, "max_window_layers": 3}
    assert windows(**keys) == [None] * 4
    assert windows(**keys, use_sliding_window=True) == [None, None, None, 5]


def test_qwen_layer_types_override_max_window_layers() -> None:
    types = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    keys = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3, "layer_types": types}
    assert windows(model_type="qwen2", **keys) == [5, None, 5, None]


def test_qwen_with_only_full_attention_layers_has_no_windows() -> None:
    assert windows(model_type="qwen2", use_sliding_window=True, max_window_layers=4) == [None] * 4


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_act", "my_swish", "'my_swish'"),
        ("num_attention_heads", 0, "num_attention_heads must be at least 1"),
        ("num_hidden_layers", -1, "num_hidden_layers must be at least 1"),
        ("num_key_value_heads", 3, "num_key_value_heads 3"),
        ("head_dim", 5, "5 dimensions"),
        ("model_type", 7, "model_type"),
        ("rope_parameters", {"rope_type": "foo", "rope_theta": 1.0}, "the unknown rope_type 'foo'"),
        ("rope_parameters", {"rope_type": "linear", "rope_theta": 1.0, "factor": "x"}, "factor must be a number"),
    ],
)
def test_unsupported_value_is_refused_with_its_key(key: str, value: object, message: str) -> None:
    values = complete_config(to_hugging_face(PLAIN))
    with pytest.raises(ValueError, match=message):
        llama(values | {key: value})


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
        llama(values | {"layer_types": types})


def test_windowed_layer_without_a_window_is_refused() -> None:
    values = complete_config({**SIZES, "model_type": "ministral"})
    with pytest.raises(ValueError, match="there is no sliding_window"):
        llama(values | {"sliding_window": None})


@pytest.mark.parametrize("scaled", ["dynamic", "linear", "llama3", "longrope", "yarn"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_partial_rotation_is_ignored_without_scaling_and_refused_with_it(kind: str, scaled: str) -> None:
    """transformers ignores the share in these families for the type default, and fails with any other type."""
    assert read(model_type=kind, partial_rotary_factor=0.5) == read(model_type=kind)
    values = complete_config({**SIZES, "model_type": kind, "partial_rotary_factor": 0.5})
    values["rope_parameters"]["rope_type"] = scaled
    with pytest.raises(ValueError, match=f"partial_rotary_factor=0.5 with the rope_type '{scaled}' is not supported"):
        llama(values)


def test_position_limit_is_that_of_the_rotary_embedding() -> None:
    assert read(model_type="llama").position_limit is None
    assert read(model_type="llama", rope_scaling={"type": "dynamic", "factor": 2.0}).position_limit == 64


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"model_type": "qwen2"},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"model_type": "qwen3"},
        {"model_type": "mistral", "sliding_window": 3},
    ],
)
def test_only_a_plain_llama_can_be_written(keys: dict[str, Any]) -> None:
    assert to_hugging_face(read(model_type="llama"))["num_attention_heads"] == 16
    with pytest.raises(ValueError, match="plain Llama"):
        to_hugging_face(read(**{"model_type": "llama"} | keys))
