"""A checkpoint in the format of a trainer gives the scores of the same weights in Hugging Face's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.native.hugging_face import (
    GEMMA,
    GEMMA2,
    GEMMA3,
    LLAMA,
    LLAMA_31,
    QWEN2,
    QWEN3,
    Tensors,
    logits,
    nested,
    random_tensors,
    save_hugging_face,
)
from tests.models.native.maxtext_experts import (
    DEEPSEEK,
    DEEPSEEK_SETTINGS,
    MIXTRAL,
    MIXTRAL_SETTINGS,
    deepseek_parameters,
    mixtral_parameters,
)
from tests.models.native.trainers_trees import (
    Flat,
    gemma_parameters,
    keras_settings,
    maxtext_parameters,
    maxtext_settings,
    save_easydel,
    save_keras,
    save_levanter,
    save_maxtext,
    save_orbax,
    scanned,
    tunix_parameters,
)

_GEMMA3_SETTINGS = {
    "model_name": "gemma3-4b",
    "sliding_window_size": 5,
    "local_rope_max_timescale": 10_000,
    "rope_max_timescale": 1_000_000,
    "rope_linear_scaling_factor": 8.0,
}
_MAXTEXT: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "llama": (LLAMA, "llama2", {}),
    "llama 3.1": (LLAMA_31, "llama2", {"model_name": "llama3.1-8b"}),
    "qwen2": (QWEN2, "qwen2", {"attention_bias": True}),
    "qwen3": (QWEN3, "qwen3", {"use_qk_norm": True, "normalize_embedding_logits": False}),
    "gemma2": (
        GEMMA2,
        "gemma2",
        {"sliding_window_size": 5, "attn_logits_soft_cap": 50.0, "final_logits_soft_cap": 30.0},
    ),
    "gemma3": (GEMMA3, "gemma3", _GEMMA3_SETTINGS),
}


def assert_same_logits(native: Path, tmp_path: Path, config: dict[str, Any], tensors: Tensors) -> None:
    expected = logits(save_hugging_face(tmp_path / "hugging_face", config, tensors))
    found = logits(native)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("model", "is_scanned"),
    [("llama 3.1", True), ("qwen2", True), ("qwen3", False), ("gemma2", True), ("gemma3", True)],
)
def test_maxtext(model: str, is_scanned: bool, tmp_path: Path) -> None:
    config, block, more = _MAXTEXT[model]
    tensors = random_tensors(config)
    parameters = maxtext_parameters(config, tensors, block, in_pairs="model_name" in more and block == "llama2")
    if is_scanned:
        layers = config["num_hidden_layers"] // (2 if block == "gemma2" else 1)
        parameters = scanned(parameters, layers, 6 if block == "gemma3" else 1)
    step = save_maxtext(tmp_path / "run", maxtext_settings(config, block, **more), parameters)
    assert_same_logits(step, tmp_path, config, tensors)


def test_mixtral_of_maxtext(tmp_path: Path) -> None:
    tensors = random_tensors(MIXTRAL)
    step = save_maxtext(tmp_path / "run", MIXTRAL_SETTINGS, mixtral_parameters(MIXTRAL, tensors))
    assert_same_logits(step, tmp_path, MIXTRAL, tensors)


def test_deepseek_of_maxtext(tmp_path: Path) -> None:
    tensors = random_tensors(DEEPSEEK)
    step = save_maxtext(tmp_path / "run", DEEPSEEK_SETTINGS, deepseek_parameters(DEEPSEEK, tensors))
    assert_same_logits(step, tmp_path, DEEPSEEK, tensors)


@pytest.mark.parametrize("form", ["nested", "flat", "stacked"])
def test_gemma_of_google_deepmind(form: str, tmp_path: Path) -> None:
    config = {**GEMMA2, "num_key_value_heads": 4} if form == "flat" else GEMMA if form == "nested" else GEMMA2
    tensors = random_tensors(config)
    parameters = gemma_parameters(config, tensors, transposed=form != "nested")
    tree = nested(parameters) if form == "nested" else _flat(parameters if form == "flat" else _stacked(parameters))
    saved = save_orbax(tmp_path / "gemma", tree)
    (saved / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert_same_logits(saved, tmp_path, config, tensors)


def _flat(parameters: Flat) -> dict[str, Any]:
    """Return the tree of released checkpoints: ``/`` in the keys, but for the last part."""
    tree: dict[str, Any] = {}
    for path, array in parameters.items():
        module, _, name = f"transformer/{path}{'/w' if '/mlp/' in path else ''}".rpartition("/")
        tree.setdefault(module, {})[name] = array
    return tree


def _stacked(parameters: Flat) -> Flat:
    """Stack the even layers, and the odd ones."""
    tree: Flat = {name: array for name, array in parameters.items() if not name.startswith("layer_")}
    for name in parameters:
        for kind in (0, 1):
            if name.startswith(f"layer_{kind}/"):
                rest = name.removeprefix(f"layer_{kind}/")
                parts = [parameters[f"layer_{number}/{rest}"] for number in (kind, kind + 2)]
                tree[f"stacked_layers/attention_type_{kind}/{rest}"] = np.stack(parts)
    return tree


@pytest.mark.parametrize("config", [LLAMA, QWEN2, QWEN3], ids=lambda config: config["model_type"])
def test_tunix(config: dict[str, Any], tmp_path: Path) -> None:
    tensors = random_tensors(config)
    step = tmp_path / "run" / "7"
    save_orbax(step / "model_params", nested(tunix_parameters(config, tensors)), use_ocdbt=config is not QWEN2)
    (step / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert_same_logits(step, tmp_path, config, tensors)


@pytest.mark.parametrize(("config", "stacked"), [(QWEN2, True), (QWEN3, False)], ids=["stacked", "blocks"])
def test_levanter(config: dict[str, Any], stacked: bool, tmp_path: Path) -> None:
    tensors = random_tensors(config)
    step = save_levanter(tmp_path / "step-3", config, tensors, stacked=stacked)
    (step / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert_same_logits(step, tmp_path, config, tensors)


def test_easydel(tmp_path: Path) -> None:
    config = {**QWEN2, "tie_word_embeddings": True}
    tensors = random_tensors(config)
    assert_same_logits(save_easydel(tmp_path / "model", config, tensors), tmp_path, config, tensors)


_KERAS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Llama3Backbone": (
        LLAMA_31,
        {
            "rope_max_wavelength": 10_000,
            "rope_frequency_adjustment_factor": 8.0,
            "rope_low_freq_factor": 1.0,
            "rope_high_freq_factor": 4.0,
            "rope_pretraining_sequence_length": 8192,
        },
    ),
    "GemmaBackbone": (
        GEMMA2,
        {
            "intermediate_dim": 48,
            "use_post_ffw_norm": True,
            "use_post_attention_norm": True,
            "use_sliding_window_attention": True,
            "sliding_window_size": 5,
            "attention_logit_soft_cap": 50.0,
            "final_logit_soft_cap": 30.0,
        },
    ),
    "Gemma3Backbone": (
        GEMMA3,
        {
            "use_query_key_norm": True,
            "use_post_ffw_norm": True,
            "use_post_attention_norm": True,
            "use_sliding_window_attention": True,
            "sliding_window_size": 5,
            "global_rope_scaling_factor": 8.0,
        },
    ),
}


@pytest.mark.parametrize("name", _KERAS)
def test_keras(name: str, tmp_path: Path) -> None:
    config, more = _KERAS[name]
    tensors = random_tensors(config)
    preset = save_keras(tmp_path / "preset", config, tensors, keras_settings(name, config, **more))
    assert_same_logits(preset, tmp_path, config, tensors)
