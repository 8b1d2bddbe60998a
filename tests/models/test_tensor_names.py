"""Where a checkpoint stores a decoder: name prefixes, tied heads, and tensors outside of the decoder."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config import CONFIG_FILE, complete_config
from birdie_zmq.models.decoder import logits
from birdie_zmq.models.loader import load_checkpoint
from birdie_zmq.models.registry import build_architecture
from birdie_zmq.models.tensor_source import WEIGHTS_FILE

SIZES = {
    "vocab_size": 12,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
    "head_dim": 4,
}
GPT2 = {"vocab_size": 12, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
FAMILIES: dict[str, tuple[dict[str, Any], str, str]] = {
    "llama": (SIZES, "model.embed_tokens.weight", "lm_head.weight"),
    "mistral": (SIZES, "model.embed_tokens.weight", "lm_head.weight"),
    "qwen2": (SIZES, "model.embed_tokens.weight", "lm_head.weight"),
    "qwen3": (SIZES, "model.embed_tokens.weight", "lm_head.weight"),
    "gemma2": (SIZES, "model.embed_tokens.weight", "lm_head.weight"),
    "gemma3_text": (SIZES, "model.embed_tokens.weight", "lm_head.weight"),
    "gpt2": (GPT2, "transformer.wte.weight", "lm_head.weight"),
    "gpt_neox": (SIZES, "gpt_neox.embed_in.weight", "embed_out.weight"),
}
TOKENS = jnp.array([[1, 5, 2, 11, 0]])
Tensors = dict[str, NDArray[Any]]


def config_of(family: str, **values: Any) -> dict[str, Any]:
    rotated = {"rotary_pct": 0.5} if family == "gpt_neox" else {}
    return {"model_type": family, "tie_word_embeddings": True, **FAMILIES[family][0], **rotated, **values}


def random_tensors(config: dict[str, Any], seed: int = 0) -> Tensors:
    random = np.random.default_rng(seed)
    weight_map = build_architecture(complete_config(config), CONFIG_FILE).weight_map()
    return {name: random.normal(size=slot.spec.shape).astype(np.float32) for name, slot in weight_map.tensors()}


def write(directory: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / CONFIG_FILE).write_text(json.dumps(config))
    save_file(tensors, directory / WEIGHTS_FILE)
    return directory


def logits_of(directory: Path) -> NDArray[Any]:
    architecture, params = load_checkpoint(directory)
    return np.asarray(logits(architecture, params, TOKENS))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def own_records(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what this package has logged; transformers warns of token ids beyond a small vocabulary."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("birdie_zmq")]


def test_one_matrix_of_a_tied_model_has_either_name(family: str, tmp_path: Path) -> None:
    config, (_, embedding, head) = config_of(family), FAMILIES[family]
    tensors = random_tensors(config)
    assert head not in tensors
    expected = logits_of(write(tmp_path / "usual", config, tensors))
    tensors[head] = tensors.pop(embedding)
    np.testing.assert_array_equal(logits_of(write(tmp_path / "by_head", config, tensors)), expected)


def test_another_head_of_a_tied_model_is_ignored_with_one_warning(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, (_, embedding, head) = config_of(family), FAMILIES[family]
    tensors = random_tensors(config)
    expected = logits_of(write(tmp_path / "usual", config, tensors))
    assert not own_records(caplog)
    np.testing.assert_array_equal(
        logits_of(write(tmp_path / "other", config, tensors | {head: tensors[embedding] + 1})), expected
    )
    assert len(own_records(caplog)) == 1
    assert f"the tensor {head} differs from {embedding}" in caplog.text


def test_equal_head_of_a_tied_model_is_ignored_in_silence(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, (_, embedding, head) = config_of(family), FAMILIES[family]
    tensors = random_tensors(config)
    expected = logits_of(write(tmp_path / "usual", config, tensors))
    tensors[head] = tensors[embedding].copy()
    np.testing.assert_array_equal(logits_of(write(tmp_path / "both", config, tensors)), expected)
    assert not own_records(caplog)


def test_head_with_other_sizes_than_the_embedding_of_a_tied_model_is_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of("llama")
    tensors = random_tensors(config)
    expected = logits_of(write(tmp_path / "usual", config, tensors))
    tensors["lm_head.weight"] = np.zeros((14, 8), np.float32)
    np.testing.assert_array_equal(logits_of(write(tmp_path / "longer", config, tensors)), expected)
    assert "lm_head.weight differs" in caplog.text


def test_head_of_an_untied_model_does_not_replace_its_embedding(family: str, tmp_path: Path) -> None:
    config, (_, embedding, head) = config_of(family, tie_word_embeddings=False), FAMILIES[family]
    tensors = random_tensors(config)
    for missing in (embedding, head):
        kept = {name: values for name, values in tensors.items() if name != missing}
        with pytest.raises(ValueError, match=f"lacks the tensor {missing}"):
            load_checkpoint(write(tmp_path / missing, config, kept))


OUTSIDE = {
    "v_head.summary.weight": np.ones((1, 8), np.float32),
    "vision_tower.encoder.layers.0.self_attn.q_proj.bias": np.ones(4, np.float32),
    "multi_modal_projector.mm_input_projection_weight": np.ones((4, 8), np.float32),
    "model.audio_tower.conv.weight": np.ones((4, 8), np.float32),
}


def test_tensors_outside_of_the_decoder_are_ignored_with_one_warning(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(family)
    tensors = random_tensors(config)
    expected = logits_of(write(tmp_path / "usual", config, tensors))
    np.testing.assert_array_equal(logits_of(write(tmp_path / "more", config, tensors | OUTSIDE)), expected)
    assert len(own_records(caplog)) == 1
    assert "ignoring 4 tensors that are not part of the text decoder: model.audio_tower.conv.weight, " in caplog.text
    assert "and 1 more" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.up_proj.bias",
        "model.layers.0.self_attn.q_proj.weight_scale",
        "model.layers.2.input_layernorm.weight",
        "model.norm.bias",
        "model.embed_tokens.bias",
    ],
)
def test_unknown_tensor_of_the_decoder_is_refused_with_its_name(name: str, tmp_path: Path) -> None:
    config = config_of("llama")
    tensors = random_tensors(config) | {name: np.ones(8, np.float32)}
    with pytest.raises(ValueError, match=f"has the tensor {name}, which this architecture does not use"):
        load_checkpoint(write(tmp_path, config, tensors))


PREFIXES = {
    "as transformers 5 writes it": ("model.language_model.", "lm_head."),
    "as published": ("language_model.model.", "language_model.lm_head."),
    "the text model alone": ("model.", "lm_head."),
    "as other families nest it": ("model.text_model.", "lm_head."),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("prefixes", PREFIXES.values(), ids=PREFIXES)
def test_text_part_of_gemma3_is_found_under_every_prefix(
    prefixes: tuple[str, str], tied: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = config_of("gemma3_text", tie_word_embeddings=tied)
    tensors = random_tensors(text)
    expected = logits_of(write(tmp_path / "text", text, tensors))
    renamed = {
        prefixes[1] + name.removeprefix("lm_head.") if name.startswith("lm_head.") else prefixes[0] + name[6:]: values
        for name, values in tensors.items()
    }
    config = {"model_type": "gemma3", "text_config": text, "tie_word_embeddings": tied}
    vision = {"vision_tower.layers.0.weight": np.ones(3, np.float32)}
    found = logits_of(write(tmp_path / "whole", config, renamed | vision))
    np.testing.assert_array_equal(found, expected)
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'whole'}: ignoring 1 tensors that are not part of the text decoder: vision_tower.layers.0.weight"
    ]


def test_unknown_tensor_of_a_nested_decoder_is_refused_with_its_name(tmp_path: Path) -> None:
    text = config_of("gemma3_text")
    tensors = {f"language_model.{name}": values for name, values in random_tensors(text).items()}
    name = "language_model.model.layers.0.mlp.up_proj.bias"
    tensors[name] = np.ones(16, np.float32)
    with pytest.raises(ValueError, match=f"has the tensor {name}, which"):
        load_checkpoint(write(tmp_path, {"model_type": "gemma3", "text_config": text}, tensors))


def test_outer_config_of_gemma3_says_whether_the_head_is_tied() -> None:
    def head_of(**values: Any) -> bool:
        architecture: Architecture = build_architecture(
            complete_config({"model_type": "gemma3", **values}), CONFIG_FILE
        )
        return "head" in architecture.weight_map().outer

    text = config_of("gemma3_text", tie_word_embeddings=False)
    assert not head_of(text_config=text)
    assert head_of(text_config=config_of("gemma3_text"), tie_word_embeddings=False)


def test_weights_of_a_bare_decoder_may_have_other_parts_beside(tmp_path: Path) -> None:
    config = config_of("llama")
    tensors = random_tensors(config)
    expected = logits_of(write(tmp_path / "usual", config, tensors))
    bare = {name.removeprefix("model."): values for name, values in tensors.items()}
    bare["score.weight"] = np.ones((2, 8), np.float32)
    np.testing.assert_array_equal(logits_of(write(tmp_path / "bare", config, bare)), expected)
