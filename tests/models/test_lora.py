"""LoRA adapters: merged weights of every family, and adapters that are refused by name."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from birdie_zmq.models.config import CONFIG_FILE
from birdie_zmq.models.loader import load_checkpoint
from birdie_zmq.models.lora import ADAPTER_WEIGHTS_FILE, LowRankUpdate, read_adapter
from birdie_zmq.models.lora_config import ADAPTER_CONFIG_FILE, read_lora_config
from birdie_zmq.models.tensor_source import INDEX_FILE, WEIGHTS_FILE
from tests.models.test_tensor_names import Tensors, config_of, random_tensors, write

RANK, ALPHA = 2, 6
Q_PROJ = "model.layers.1.self_attn.q_proj"
ADAPTED = {
    "llama": (Q_PROJ, "model.layers.0.mlp.down_proj", "lm_head"),
    "qwen2": ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.gate_proj"),
    "gemma3_text": ("model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.k_proj"),
    "gpt2": ("transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_proj", "transformer.h.1.mlp.c_fc"),
    "gpt_neox": ("gpt_neox.layers.0.attention.query_key_value", "gpt_neox.layers.1.mlp.dense_4h_to_h"),
}
"""Modules of each family, among them square ones, fused ones, and those of GPT-2 that are stored as [in, out]."""


def matrices(family: str, modules: tuple[str, ...], tensors: Tensors, seed: int = 1) -> tuple[Tensors, Tensors]:
    """Return the tensors of an adapter for some modules, and the merged weights."""
    random = np.random.default_rng(seed)
    adapter: Tensors = {}
    merged = dict(tensors)
    for module in modules:
        weight = tensors[f"{module}.weight"]
        outputs, inputs = weight.shape[::-1] if family == "gpt2" else weight.shape
        a = random.normal(size=(RANK, inputs)).astype(np.float32)
        b = random.normal(size=(outputs, RANK)).astype(np.float32)
        adapter |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
        update = b @ a * np.float32(ALPHA / RANK)
        merged[f"{module}.weight"] = weight + (update.T if family == "gpt2" else update)
    return adapter, merged


def write_adapter(directory: Path, tensors: Tensors, **values: Any) -> Path:
    directory.mkdir(exist_ok=True)
    targets = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in tensors})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "target_modules": targets}
    (directory / ADAPTER_CONFIG_FILE).write_text(json.dumps(config | values))
    save_file(tensors, directory / ADAPTER_WEIGHTS_FILE)
    return directory


def assert_close(got: Any, expected: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), got, expected)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    config = config_of("llama", tie_word_embeddings=False)
    return write(tmp_path / "base", config, random_tensors(config))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    tensors, _ = matrices("llama", (Q_PROJ,), random_tensors(json.loads((base / CONFIG_FILE).read_text())))
    return write_adapter(tmp_path / "adapter", tensors)


@pytest.mark.parametrize("family", ADAPTED)
def test_merged_weights_are_those_of_the_formula(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(family, tie_word_embeddings=family != "llama")
    tensors = random_tensors(config)
    low_rank, merged = matrices(family, ADAPTED[family], tensors)
    base = write(tmp_path / "base", config, tensors)
    adapter = write_adapter(tmp_path / "adapter", low_rank, base_model_name_or_path="acme/base")
    expected = load_checkpoint(write(tmp_path / "merged", config, merged))[1]
    caplog.clear()  # of transformers' own warnings about these small models
    assert_close(load_checkpoint(base, adapter=adapter)[1], expected)
    into = f"into {len(ADAPTED[family])} tensors of {base}"
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("birdie_zmq")]
    assert ours == [f"merged the adapter {adapter} (LoRA of rank 2 for the base model acme/base) {into}"]


@pytest.mark.parametrize("dtype", ["float64", "float16", ml_dtypes.bfloat16])
def test_base_weights_of_every_float_dtype_are_merged_in_float32(dtype: Any, tmp_path: Path) -> None:
    config = config_of("llama", tie_word_embeddings=False)
    tensors = {name: values.astype(dtype) for name, values in random_tensors(config).items()}
    wide = {name: values.astype(np.float32) for name, values in tensors.items()}
    low_rank, merged = matrices("llama", ADAPTED["llama"], wide)
    half = {name: values.astype(ml_dtypes.bfloat16) for name, values in low_rank.items()}
    _, merged = matrices("llama", ADAPTED["llama"], wide)
    for module in ADAPTED["llama"]:
        a, b = (half[f"base_model.model.{module}.lora_{part}.weight"].astype(np.float32) for part in "AB")
        merged[f"{module}.weight"] = wide[f"{module}.weight"] + b @ a * np.float32(ALPHA / RANK)
    base = write(tmp_path / "base", config, tensors)
    expected = load_checkpoint(write(tmp_path / "merged", config, merged))[1]
    adapter = write_adapter(tmp_path / "adapter", half)
    assert_close(load_checkpoint(base, "float32", adapter=adapter)[1], expected)


def test_adapter_of_a_base_model_in_shards_is_merged(tmp_path: Path) -> None:
    config = config_of("llama", tie_word_embeddings=False)
    tensors = random_tensors(config)
    low_rank, merged = matrices("llama", ADAPTED["llama"], tensors)
    base = write(tmp_path / "base", config, {})
    (base / WEIGHTS_FILE).unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, base / shard)
    index = {name: shard for shard, part in shards.items() for name in part}
    (base / INDEX_FILE).write_text(json.dumps({"weight_map": index}))
    expected = load_checkpoint(write(tmp_path / "merged", config, merged))[1]
    assert_close(load_checkpoint(base, adapter=write_adapter(tmp_path / "adapter", low_rank))[1], expected)


@pytest.mark.parametrize("transposed", [False, True])
def test_slices_of_an_update_are_slices_of_the_whole(transposed: bool) -> None:
    random = np.random.default_rng(0)
    down, up = random.normal(size=(3, 8)).astype(np.float32), random.normal(size=(10, 3)).astype(np.float32)
    update = LowRankUpdate(down, up, 0.5, transposed)
    assert update.values().shape == update.shape == ((8, 10) if transposed else (10, 8))
    index = (slice(2, 4), slice(None, 7))
    np.testing.assert_allclose(update.values(index), update.values()[index], rtol=1e-6)
    weight = random.normal(size=update.shape)

    def read(index: Any = None) -> NDArray[Any]:
        return weight if index is None else weight[index]

    merged = update.merged(read)
    np.testing.assert_allclose(merged(index), merged()[index], rtol=1e-6)
    assert merged(index).dtype == np.float32


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "model."])
def test_names_of_an_adapter_may_have_another_prefix_than_the_weights(prefix: str, tmp_path: Path) -> None:
    text = config_of("gemma3_text")
    tensors = random_tensors(text)
    low_rank, merged = matrices("gemma3_text", (Q_PROJ,), tensors)
    renamed = {name.replace("base_model.model.model.", f"base_model.model.{prefix}"): x for name, x in low_rank.items()}
    config = {"model_type": "gemma3", "text_config": text}
    base = write(tmp_path / "base", config, {f"language_model.{name}": x for name, x in tensors.items()})
    expected = load_checkpoint(write(tmp_path / "merged", text, merged))[1]
    assert_close(load_checkpoint(base, adapter=write_adapter(tmp_path / "adapter", renamed))[1], expected)


def test_adapters_of_a_vision_tower_are_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = config_of("gemma3_text")
    tensors = random_tensors(text)
    low_rank, merged = matrices("gemma3_text", (Q_PROJ,), tensors)
    vision = "vision_tower.layers.0.q_proj"
    low_rank |= {f"base_model.model.model.{vision}.lora_{x}.weight": np.ones((2, 2), np.float32) for x in "AB"}
    config = {"model_type": "gemma3", "text_config": text}
    stored = {f"language_model.{name}": x for name, x in tensors.items()}
    base = write(tmp_path / "base", config, stored | {f"{vision}.weight": np.ones((2, 2), np.float32)})
    expected = load_checkpoint(write(tmp_path / "merged", text, merged))[1]
    assert_close(load_checkpoint(base, adapter=write_adapter(tmp_path / "adapter", low_rank))[1], expected)
    assert f"ignoring the adapters of 1 modules that are not part of the text decoder: model.{vision}" in caplog.text


REFUSED: dict[str, Any] = {
    "use_rslora": True,
    "use_dora": True,
    "use_qalora": True,
    "rank_pattern": {"q_proj": 4},
    "alpha_pattern": {"q_proj": 4},
    "bias": "lora_only",
    "modules_to_save": ["lm_head"],
    "lora_bias": True,
    "target_parameters": ["mlp.experts"],
    "trainable_token_indices": [1],
    "layer_replication": [[0, 2]],
    "init_lora_weights": "pissa_niter_4",
    "loftq_config": {"loftq_bits": 4},
    "peft_type": "IA3",
    "task_type": "SEQ_CLS",
    "alora_invocation_tokens": [1],
    "velora_config": {"scale": 1.0},
    "a_key_of_a_later_version": 1,
}


@pytest.mark.parametrize("key", REFUSED)
def test_adapter_that_is_not_plain_lora_is_refused_by_the_name_of_its_key(key: str, base: Path, adapter: Path) -> None:
    values = json.loads((adapter / ADAPTER_CONFIG_FILE).read_text())
    (adapter / ADAPTER_CONFIG_FILE).write_text(json.dumps(values | {key: REFUSED[key]}))
    with pytest.raises(ValueError, match=rf"the adapter {adapter} .*{key}.*merge_and_unload"):
        load_checkpoint(base, adapter=adapter)


@pytest.mark.parametrize("kind", ["olora", "pissa", "corda", "loftq", "mica", "lora_ga"])
def test_initialisations_that_change_the_base_model_are_refused(kind: str, adapter: Path) -> None:
    values = json.loads((adapter / ADAPTER_CONFIG_FILE).read_text())
    (adapter / ADAPTER_CONFIG_FILE).write_text(json.dumps(values | {"init_lora_weights": kind}))
    with pytest.raises(ValueError, match=f"init_lora_weights='{kind}'"):
        read_lora_config(adapter)


HARMLESS: dict[str, Any] = {
    "auto_mapping": None,
    "peft_version": "0.21.2",
    "inference_mode": True,
    "lora_dropout": 0.1,
    "fan_in_fan_out": True,
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "loftq_config": {},
    "megatron_core": "megatron.core",
    "megatron_config": None,
    "qalora_group_size": 16,
    "init_lora_weights": "gaussian",
    "layers_to_transform": [1],
    "layers_pattern": None,
    "exclude_modules": ["k_proj"],
    "target_modules": r".*\.(q|k)_proj",
    "a_key_of_a_later_version": None,
}


def test_keys_as_peft_writes_them_are_accepted(base: Path, adapter: Path) -> None:
    expected = load_checkpoint(base, adapter=adapter)[1]
    values = json.loads((adapter / ADAPTER_CONFIG_FILE).read_text())
    (adapter / ADAPTER_CONFIG_FILE).write_text(json.dumps(values | HARMLESS))
    jax.tree.map(np.testing.assert_array_equal, load_checkpoint(base, adapter=adapter)[1], expected)


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": ["k_proj"]},
        {"target_modules": r".*mlp.*"},
        {"exclude_modules": ["q_proj"]},
        {"layers_to_transform": 0},
        {"layers_to_transform": [1], "layers_pattern": ["h"]},
    ],
)
def test_tensors_that_peft_would_leave_out_are_refused(values: dict[str, Any], adapter: Path) -> None:
    config = json.loads((adapter / ADAPTER_CONFIG_FILE).read_text()) | values
    (adapter / ADAPTER_CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{Q_PROJ}.lora_A.weight, and its target_modules .*leave this module out"):
        read_adapter(adapter)


A, B = np.ones((RANK, 8), np.float32), np.ones((8, RANK), np.float32)
MISFITS: dict[str, tuple[Tensors, str]] = {
    "an unknown module": ({"model.layers.0.self_attn.z_proj.lora_#": B}, "z_proj, which is no layer of the model"),
    "a layer beyond the last": ({"model.layers.2.self_attn.q_proj.lora_#": B}, "layers.2.self_attn.q_proj, which is no"),
    "a norm": ({"model.norm.lora_#": B}, "model.norm, which is no layer"),
    "another width": ({"model.layers.0.self_attn.k_proj.lora_#": B}, r"k_proj, which has a weight of the shape \(4, 8\)"),
    "an embedding": ({"model.embed_tokens.lora_embedding_#": B}, "embed_tokens.lora_embedding_A"),
    "DoRA's magnitude": ({"q_proj.lora_magnitude_vector": B}, "lora_magnitude_vector"),
    "a whole weight": ({"model.embed_tokens.weight": B}, "embed_tokens.weight, which is a weight of the base"),
    "a base weight": ({"lm_head.base_layer.weight": B}, "lm_head.base_layer.weight, which is a weight of the base"),
    "one matrix of two": ({f"{Q_PROJ}.lora_B.weight": B}, f"has lora_B of {Q_PROJ} without the other"),
    "another rank": ({f"{Q_PROJ}.lora_A.weight": np.ones((3, 8), np.float32)}, "lora_A.weight has the rank 3, and r is 2"),
    "integers": ({f"{Q_PROJ}.lora_A.weight": np.ones((2, 8), np.int8)}, "lora_A.weight is I8"),
    "nothing": ({}, "has no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISFITS)
def test_tensor_that_fits_no_weight_is_refused_with_its_name(kind: str, base: Path, tmp_path: Path) -> None:
    given, message = MISFITS[kind]
    tensors: Tensors = {}
    for name, values in given.items():
        both = {name.replace("#", "A.weight"): A, name.replace("#", "B.weight"): values}
        tensors |= both if "#" in name else {name: values}
    adapter = write_adapter(
        tmp_path / "adapter", {f"base_model.model.{name}": x for name, x in tensors.items()}, target_modules=None
    )
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(base, adapter=adapter)
    assert str(adapter) in str(caught.value)


def test_adapter_of_a_tied_head_is_refused(tmp_path: Path) -> None:
    config = config_of("llama")
    tensors = random_tensors(config)
    low_rank, _ = matrices("llama", ("lm_head",), tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    base = write(tmp_path / "base", config, tensors)
    with pytest.raises(ValueError, match="lm_head, which shares its matrix with the embedding"):
        load_checkpoint(base, adapter=write_adapter(tmp_path / "adapter", low_rank))


def test_pickled_adapter_is_refused_with_the_reason(base: Path, adapter: Path) -> None:
    (adapter / ADAPTER_WEIGHTS_FILE).rename(adapter / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(adapter))} has no .*adapter_model\.bin is a pickle"):
        load_checkpoint(base, adapter=adapter)


@pytest.mark.parametrize(
    "values",
    [{"r": 0}, {"r": "4"}, {"lora_alpha": None, "r": 1.5}, {"target_modules": 7}, {"target_modules": "("}],
)
def test_damaged_config_of_an_adapter_is_refused_with_the_file_name(values: dict[str, Any], adapter: Path) -> None:
    config = json.loads((adapter / ADAPTER_CONFIG_FILE).read_text()) | values
    (adapter / ADAPTER_CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=ADAPTER_CONFIG_FILE):
        read_adapter(adapter)
