"""A checkpoint's configuration through transformers: defaults, older keys, RoPE records, nested parts and errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config import complete_config, read_config
from birdie_zmq.models.families.gpt_neox import gpt_neox
from birdie_zmq.models.registry import FAMILIES, WITH_TEXT_CONFIG, build_architecture, check_model_type
from birdie_zmq.models.rope import Rope

DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 11_008,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "gemma2": {
        "vocab_size": 256_000,
        "hidden_size": 2304,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "intermediate_size": 9216,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "gpt2": {
        "vocab_size": 50_257,
        "n_embd": 768,
        "n_head": 12,
        "n_positions": 1024,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
    },
    "gpt_neox": {
        "vocab_size": 50_432,
        "hidden_size": 6144,
        "num_attention_heads": 64,
        "intermediate_size": 24_576,
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25},
    },
}
"""The complete keys of a config.json that names only the model_type and two layers; all keys that a family reads."""

SMALL = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 2}
"""Heads of eight dimensions."""


def write(directory: Path, **keys: Any) -> Path:
    (directory / "config.json").write_text(json.dumps(keys), encoding="utf-8")
    return directory


def rope(**keys: Any) -> Rope:
    """Return the rotary embedding of a small Llama whose config.json has some more keys."""
    return of(build_architecture(complete_config(SMALL | keys), "config.json"))


def of(model: Architecture, layer: int = 0) -> Rope:
    """Return the rotary embedding of a layer."""
    found = model.layers[layer].attention.rope
    assert found is not None
    return found


def windows(model: Architecture) -> list[int | None]:
    """Return the attention window of each layer."""
    return [layer.attention.window for layer in model.layers]


@pytest.mark.parametrize("kind", DEFAULTS)
def test_missing_keys_have_the_defaults_of_the_family(kind: str, tmp_path: Path) -> None:
    keys = {"model_type": kind, ("n_layer" if kind == "gpt2" else "num_hidden_layers"): 2}
    expected = build_architecture(keys | DEFAULTS[kind], "config.json")
    assert build_architecture(complete_config(keys), "config.json") == expected
    assert build_architecture(read_config(write(tmp_path, **keys)), "config.json") == expected


@pytest.mark.parametrize("kind", FAMILIES)
def test_config_without_any_sizes_describes_a_model(kind: str) -> None:
    completed = complete_config({"model_type": kind})
    assert build_architecture(complete_config(completed), "config.json") == build_architecture(completed, "config.json")


def test_null_values_are_completed_where_the_family_allows_them(tmp_path: Path) -> None:
    keys = {"model_type": "llama", "num_hidden_layers": 2, "torch_dtype": None, "quantization_config": None}
    nulls = {"num_key_value_heads": None, "head_dim": None, "rope_scaling": None, "rope_parameters": None}
    config = read_config(write(tmp_path, **keys, **nulls))
    assert build_architecture(config, "config.json") == build_architecture(
        {"model_type": "llama", "num_hidden_layers": 2} | DEFAULTS["llama"], "config.json"
    )
    assert config.get("dtype") is None


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_dtype_of_the_weights_is_read_under_either_key(key: str, tmp_path: Path) -> None:
    assert read_config(write(tmp_path, **SMALL, **{key: "bfloat16"}))["dtype"] == "bfloat16"


# --- Rotary embeddings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_scaling_is_read_from_either_record_and_under_either_name_of_its_type(record: str, kind: str) -> None:
    linear = Rope(8, 500.0, "linear", 2.0)
    assert rope(rope_theta=500.0, **{record: {kind: "linear", "factor": 2.0}}) == linear
    assert rope(**{record: {kind: "linear", "factor": 2.0, "rope_theta": 500.0}}) == linear


@pytest.mark.parametrize("scaling", [None, {}, {"rope_type": "default"}, {"type": "default"}])
def test_config_without_scaling_gives_default_frequencies(scaling: dict[str, Any] | None) -> None:
    assert rope(rope_theta=500.0, rope_scaling=scaling) == Rope(8, 500.0)


def test_rope_scaling_takes_precedence_beside_rope_parameters() -> None:
    """As in transformers; a user who adds rope_scaling to a newer config.json gets scaled positions."""
    parameters = {"rope_type": "default", "rope_theta": 500.0}
    scaling = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    assert rope(rope_parameters=parameters, rope_scaling=scaling) == Rope(8, 500.0, "linear", 2.0)


YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 8.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 2.0, 3.0, 4.0], "long_factor": [5.0] * 4}


@pytest.mark.parametrize("scaling", [YARN, LLAMA3])
def test_original_length_at_the_top_level_takes_precedence(scaling: dict[str, Any]) -> None:
    assert rope(rope_scaling=dict(scaling), original_max_position_embeddings=64).original_length == 64
    inner = scaling | {"original_max_position_embeddings": 32}
    assert rope(rope_scaling=dict(inner)).original_length == 32
    assert rope(rope_scaling=dict(inner), original_max_position_embeddings=64).original_length == 64
    assert rope(rope_scaling=dict(scaling), max_position_embeddings=4096).original_length == 4096


def test_longrope_with_its_original_length_at_the_top_level() -> None:
    """Phi-3's own form: the factors in the record, both lengths beside it."""
    found = rope(rope_scaling=LONGROPE, original_max_position_embeddings=1024, max_position_embeddings=4096)
    assert (found.kind, found.factors, found.position_limit) == ("default", (1.0, 2.0, 3.0, 4.0), 1024)
    assert found.attention_factor == pytest.approx(1.0954451150103321, rel=1e-12)


def test_dynamic_scaling_bounds_the_length() -> None:
    assert rope(rope_scaling={"type": "dynamic", "factor": 2.0}, max_position_embeddings=96) == Rope(
        8, position_limit=96
    )


@pytest.mark.parametrize("kind", ["foo", "su", "mrope"])
def test_unknown_scaling_type_is_refused_with_its_name(kind: str) -> None:
    config = complete_config(SMALL | {"rope_scaling": {"rope_type": kind, "factor": 2.0}})
    with pytest.raises(ValueError, match=rf"^path: .* unknown rope_type '{kind}'; supported: default, dynamic, linear"):
        build_architecture(config, "path")


@pytest.mark.parametrize(
    ("keys", "width"),
    [
        ({}, 2),
        ({"rotary_pct": 0.5}, 4),
        ({"rotary_pct": 0.5, "rope_scaling": {"type": "linear", "factor": 2.0}}, 4),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}}, 8),
        ({"partial_rotary_factor": 0.5}, 2),  # transformers has set its default of 0.25 before it sees this key
    ],
)
def test_share_of_rotated_dimensions_of_gpt_neox(keys: dict[str, Any], width: int) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 2}
    model = gpt_neox(complete_config({"model_type": "gpt_neox", **sizes, **keys}))
    assert of(model).width == width


def test_older_base_of_gpt_neox_is_read() -> None:
    model = gpt_neox(complete_config({"model_type": "gpt_neox", "rotary_emb_base": 500}))
    assert of(model).theta == 500.0


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_share_at_the_top_level_with_scaling_is_refused_where_transformers_fails(kind: str) -> None:
    keys = {"model_type": kind, "partial_rotary_factor": 0.5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    with pytest.raises(ValueError, match=r"^path: partial_rotary_factor=0.5 with the rope_type 'linear'"):
        build_architecture(complete_config(keys), "path")


# --- Families -----------------------------------------------------------------------------------------------------


def test_mistral_with_layer_types_is_a_ministral(tmp_path: Path) -> None:
    types = ["sliding_attention", "full_attention"]
    keys = {"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": 5, "layer_types": types}
    config = read_config(write(tmp_path, **keys))
    model = build_architecture(config, "config.json")
    assert (config["model_type"], windows(model)) == ("ministral", [5, None])


def test_text_part_of_gemma3_is_read(tmp_path: Path) -> None:
    text = {
        "model_type": "gemma3_text",
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "sliding_window": 5,
        "rope_theta": 5e5,
        "rope_local_base_freq": 2e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 3,
    }
    keys = {"model_type": "gemma3", "torch_dtype": "bfloat16", "text_config": text, "vision_config": {"hidden_size": 8}}
    config = read_config(write(tmp_path, **keys))
    model = build_architecture(config, "config.json")
    assert (config["dtype"], model.outer["embedding"].shape[1]) == ("bfloat16", 32)
    assert windows(model) == [5, 5, None]
    assert (of(model, 2), of(model)) == (Rope(256, 5e5, "linear", 8.0), Rope(256, 2e4))
    assert model.tied_head is not None


def test_untied_head_of_gemma3_is_a_key_of_the_whole_model(tmp_path: Path) -> None:
    keys = {"model_type": "gemma3", "tie_word_embeddings": False, "text_config": {"num_hidden_layers": 2}}
    model = build_architecture(read_config(write(tmp_path, **keys)), "config.json")
    assert model.tied_head is None


@pytest.mark.parametrize(("text", "tied"), [({"model_type": "mistral"}, False), ({"tie_word_embeddings": True}, True)])
def test_tied_head_of_mistral3_is_a_key_of_its_text_part(text: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    """Mistral Small 3.1 and Ministral 3 have no such key outside of it, where transformers' default is true."""
    keys = {"model_type": "mistral3", "text_config": {"model_type": "ministral3", "num_hidden_layers": 2, **text}}
    config = read_config(write(tmp_path, **keys))
    assert config["tie_word_embeddings"] is tied
    assert (build_architecture(config, "config.json").tied_head is not None) is tied


@pytest.mark.parametrize("keys", [{"model_type": "llama"}, {"model_type": "gemma3", "text_config": {}}])
def test_weights_of_an_unknown_quantisation_are_refused(keys: dict[str, Any], tmp_path: Path) -> None:
    config = read_config(write(tmp_path, **keys, quantization_config={"quant_method": "bitsandbytes", "bits": 4}))
    with pytest.raises(
        ValueError, match=r"^path: weights quantised by 'bitsandbytes' are not supported, only by awq, fp8, gptq, mxfp4"
    ):
        build_architecture(config, "path")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "granitemoe",
            r"the most similar supported family is granite, which does not have the keys .*num_local_experts",
        ),
        ("bitnet", r"the most similar supported family is \w+, which has the same keys but another architecture"),
        ("rwkv", r"no supported family has a similar configuration"),
        ("no_such_family", r"transformers [\w.]+ has no such configuration"),
    ],
)
def test_unsupported_family_is_refused_with_the_nearest_one(kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^path: the model_type '{kind}' is not supported .*{message}") as caught:
        check_model_type(kind, "path")
    assert "engine=torch in model_args" in str(caught.value)
    assert f"Supported: {', '.join(sorted([*FAMILIES, *WITH_TEXT_CONFIG]))}" in str(caught.value)


def test_unsupported_value_of_a_family_is_refused_with_the_engine_that_supports_it() -> None:
    config = complete_config({"model_type": "gpt2", "n_layer": 2, "add_cross_attention": True})
    with pytest.raises(
        ValueError, match=r"^path: add_cross_attention=True is not supported, only False\. engine=torch"
    ):
        build_architecture(config, "path")


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "cause"),
    [
        ({"model_type": "no_such_family"}, "no_such_family"),
        ({}, "model_type"),
        ({"model_type": "llama", "hidden_size": "32"}, r"'hidden_size' expected int, got str \(value: '32'\)"),
        ({"model_type": "llama", "vocab_size": None}, "'vocab_size' expected int, got NoneType"),
        ({"model_type": "llama", "num_attention_heads": 0}, "ZeroDivisionError: integer division"),
        (
            {"model_type": "llama", "rope_scaling": {"type": "linear"}},
            r"Missing required keys .*'linear': \{'factor'\}",
        ),
        ({"model_type": "llama", "rope_scaling": {"type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"model_type": "llama", "head_dim": 5}, "`head_dim`=5"),
        ({"model_type": "qwen2", "num_hidden_layers": 2, "layer_types": ["full_attention"]}, "`layer_types`"),
    ],
)
def test_value_that_transformers_refuses_is_refused_with_file_key_and_cause(
    keys: dict[str, Any], cause: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"^{tmp_path}/config\.json: .*{cause}") as caught:
        read_config(write(tmp_path, **keys))
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"[]", b"", b"\xff\xfe"])
def test_damaged_file_is_refused_with_its_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/config\.json (is not valid JSON|does not hold a JSON object)"):
        read_config(tmp_path)


def test_missing_file_is_refused_with_its_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no config\.json in {tmp_path}"):
        read_config(tmp_path)


@pytest.mark.parametrize("keys", [{"model_type": "no_such_family"}, {"num_hidden_layers": 2}])
def test_incomplete_mapping_is_refused_with_its_cause(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no_such_family|model_type"):
        complete_config(keys)
