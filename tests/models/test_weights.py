"""Checkpoints: round trips, and errors that name what is damaged or not supported."""

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config import CONFIG_FILE
from birdie_zmq.models.families.llama import plain_llama
from birdie_zmq.models.loader import load_checkpoint
from birdie_zmq.models.registry import FAMILIES
from birdie_zmq.models.tensor_source import INDEX_FILE, WEIGHTS_FILE
from birdie_zmq.models.weight_map import Params
from birdie_zmq.models.weights import save_checkpoint

SIZES: dict[str, Any] = {"d_model": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 24, "max_length": 32}
MODEL, LARGER = (plain_llama(vocab_size=size, tied_head=False, **SIZES) for size in (20, 21))
TIED = plain_llama(vocab_size=20, **SIZES)
PARAMS = MODEL.init_params(jax.random.key(0))
DAMAGED = "model.layers.1.mlp.up_proj.weight"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path, MODEL, PARAMS)
    return tmp_path


@pytest.fixture
def sharded(saved: Path) -> Path:
    """Write the same checkpoint as two files that both hold tensors of every layer."""
    tensors = load_file(saved / WEIGHTS_FILE)
    (saved / WEIGHTS_FILE).unlink()
    shards: dict[str, dict[str, NDArray[Any]]] = {FIRST: {}, SECOND: {}}
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        shards[FIRST if number % 3 else SECOND][name] = tensor
    for shard, part in shards.items():
        save_file(part, saved / shard)
    write_index(saved, {name: shard for shard, part in shards.items() for name in part})
    return saved


class CreatesFile:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self._path, "w")


def write_index(directory: Path, weight_map: object) -> None:
    (directory / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")


def read_index(directory: Path) -> dict[str, str]:
    weight_map: dict[str, str] = json.loads((directory / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
    return weight_map


def rewrite(directory: Path, change: dict[str, NDArray[Any] | None]) -> None:
    """Replace tensors on disk; None removes one."""
    tensors = {**load_file(directory / WEIGHTS_FILE), **change}
    save_file({k: v for k, v in tensors.items() if v is not None}, directory / WEIGHTS_FILE)


def reconfigure(directory: Path, **change: object) -> None:
    """Replace keys of the config; None removes one."""
    values = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8")) | change
    kept = {key: value for key, value in values.items() if value is not None}
    (directory / CONFIG_FILE).write_text(json.dumps(kept), encoding="utf-8")


def dtypes(params: Params) -> set[str]:
    return {str(x.dtype) for x in jax.tree.leaves(params)}


def assert_same(got: Params, expected: Params) -> None:
    assert got.outer.keys() == expected.outer.keys()
    assert [set(stack) for stack in got.layers] == [set(stack) for stack in expected.layers]
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("model", [MODEL, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_round_trip(tmp_path: Path, model: Architecture, dtype: str) -> None:
    params = model.init_params(jax.random.key(1))
    save_checkpoint(tmp_path / "new", model, params, dtype)
    read_model, read_params = load_checkpoint(tmp_path / "new")
    assert read_model == model
    assert_same(read_params, jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), params))


def test_names_and_orientation_match_hugging_face(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (8, 16)
    assert tensors["model.layers.0.mlp.down_proj.weight"].shape == (16, 24)
    assert tensors["lm_head.weight"].shape == (20, 16)
    assert len(tensors) == 9 * len(MODEL.layers) + 3


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_missing_file_is_refused_with_its_name(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_checkpoint(saved)


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "llama", "hidden_size": "16"}', "\udcff"])
def test_damaged_config_is_refused_with_its_name(saved: Path, content: str) -> None:
    (saved / CONFIG_FILE).write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=CONFIG_FILE):
        load_checkpoint(saved)


@pytest.mark.parametrize("kind", ["rwkv", None])
def test_unknown_model_type_is_refused_with_the_supported_ones(saved: Path, kind: str | None) -> None:
    reconfigure(saved, model_type=kind)
    with pytest.raises(ValueError, match=r"model_type (.rwkv. is not supported|must be a string, not None)") as caught:
        load_checkpoint(saved)
    assert kind is None or all(known in str(caught.value) for known in FAMILIES)


def test_quantised_checkpoint_is_refused(saved: Path) -> None:
    reconfigure(saved, quantization_config={"quant_method": "hqq", "bits": 4})
    with pytest.raises(ValueError, match="weights quantised by 'hqq' are not supported"):
        load_checkpoint(saved)


@pytest.mark.parametrize("kept_bytes", [0, 5, 200, -1])
def test_truncated_weights_are_refused_with_the_file_name(saved: Path, kept_bytes: int) -> None:
    path = saved / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(ValueError, match=WEIGHTS_FILE):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (None, "lacks the tensor"),
        (np.zeros((16, 24), np.float32), "has the shape"),
        (np.zeros((24, 16), np.int32), "I32; quantised weights are not supported"),
    ],
)
def test_damaged_tensor_is_refused_with_its_name(saved: Path, replacement: NDArray[Any] | None, message: str) -> None:
    rewrite(saved, {DAMAGED: replacement})
    with pytest.raises(ValueError, match=f"({DAMAGED}.*{message})|({message}.*{DAMAGED})") as caught:
        load_checkpoint(saved)
    assert str(saved) in str(caught.value)


def test_unused_tensor_is_refused(saved: Path) -> None:
    """Silently dropping a bias would give a model that is almost right."""
    rewrite(saved, {"model.layers.0.self_attn.q_proj.bias": np.zeros(16, np.float32)})
    with pytest.raises(ValueError, match=r"q_proj\.bias"):
        load_checkpoint(saved)


def test_layer_beyond_the_last_is_refused(saved: Path) -> None:
    rewrite(saved, {"model.layers.2.input_layernorm.weight": np.zeros(16, np.float32)})
    with pytest.raises(ValueError, match=r"model\.layers\.2\.input_layernorm\.weight"):
        load_checkpoint(saved)


def test_buffers_of_old_versions_are_ignored(saved: Path) -> None:
    rewrite(saved, {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(2, np.float32)})
    assert_same(load_checkpoint(saved)[1], PARAMS)


def test_repeated_head_of_a_tied_model_is_ignored(tmp_path: Path) -> None:
    params = TIED.init_params(jax.random.key(0))
    save_checkpoint(tmp_path, TIED, params)
    rewrite(tmp_path, {"lm_head.weight": np.asarray(params.outer["embedding"])})
    assert "head" not in load_checkpoint(tmp_path)[1].outer


def test_names_of_a_headless_checkpoint_have_no_prefix(tmp_path: Path) -> None:
    params = TIED.init_params(jax.random.key(0))
    save_checkpoint(tmp_path, TIED, params)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    save_file({name.removeprefix("model."): x for name, x in tensors.items()}, tmp_path / WEIGHTS_FILE)
    assert_same(load_checkpoint(tmp_path)[1], params)


def test_headless_checkpoint_of_an_untied_model_is_refused(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    del tensors["lm_head.weight"]
    save_file({name.removeprefix("model."): x for name, x in tensors.items()}, saved / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=r"lacks the tensor lm_head\.weight"):
        load_checkpoint(saved)


def test_single_file_comes_before_an_index(saved: Path) -> None:
    """As transformers chooses: an earlier, sharded save may have left its index and its shards."""
    tensors = load_file(saved / WEIGHTS_FILE)
    write_index(saved, dict.fromkeys(tensors, FIRST))
    assert_same(load_checkpoint(saved)[1], PARAMS)
    save_file({name: x + 1 for name, x in tensors.items()}, saved / FIRST)
    assert_same(load_checkpoint(saved)[1], PARAMS)


def test_file_that_the_config_names_is_read(saved: Path) -> None:
    (saved / WEIGHTS_FILE).rename(saved / "weights.safetensors")
    reconfigure(saved, transformers_weights="weights.safetensors")
    assert_same(load_checkpoint(saved)[1], PARAMS)
    for name, message in (("../weights.safetensors", "not a plain file name"), ("weights.bin", "no safetensors file")):
        reconfigure(saved, transformers_weights=name)
        with pytest.raises(ValueError, match=message):
            load_checkpoint(saved)


def test_pickle_is_refused_with_the_reason(saved: Path) -> None:
    (saved / WEIGHTS_FILE).unlink()
    created = saved / "created"
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps(CreatesFile(str(created))))
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin is a pickle.*not read.*save_pretrained"):
        load_checkpoint(saved)
    assert not created.exists()


def test_sharded_checkpoint_is_read(sharded: Path) -> None:
    assert len(set(read_index(sharded).values())) == 2
    assert_same(load_checkpoint(sharded)[1], PARAMS)


def test_missing_shard_is_refused_with_its_name(sharded: Path) -> None:
    (sharded / SECOND).unlink()
    with pytest.raises(FileNotFoundError, match=SECOND):
        load_checkpoint(sharded)


def test_tensor_in_two_shards_is_refused_with_its_name(sharded: Path) -> None:
    name = next(name for name, shard in read_index(sharded).items() if shard == FIRST)
    save_file({**load_file(sharded / SECOND), name: np.zeros(1, np.float32)}, sharded / SECOND)
    with pytest.raises(ValueError, match=f"the tensor {name} is in .* another file"):
        load_checkpoint(sharded)


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "part/x.safetensors", 7])
def test_index_with_files_outside_its_directory_is_refused(sharded: Path, name: object) -> None:
    for directory in (sharded.parent, sharded / "part"):  # complete files, so that only the name can be the reason
        directory.mkdir(exist_ok=True)
        (directory / "x.safetensors").write_bytes((sharded / FIRST).read_bytes())
    write_index(sharded, dict.fromkeys(read_index(sharded), name))
    with pytest.raises(ValueError, match="not a plain file name"):
        load_checkpoint(sharded)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": {}}}'])
def test_damaged_index_is_refused_with_its_name(sharded: Path, content: str) -> None:
    (sharded / INDEX_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=INDEX_FILE):
        load_checkpoint(sharded)


@pytest.mark.parametrize(
    ("stored", "configured", "expected"),
    [
        ("bfloat16", "bfloat16", "bfloat16"),
        ("bfloat16", None, "bfloat16"),
        ("bfloat16", "float32", "float32"),
        ("float16", "float16", "float32"),
        ("float16", None, "float32"),
        ("float32", "bfloat16", "bfloat16"),
        ("float32", None, "float32"),
    ],
)
@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_auto_dtype_is_bfloat16_only_for_bfloat16_checkpoints(
    saved: Path, key: str, stored: str, configured: str | None, expected: str
) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    save_file({name: x.astype(ml_dtypes.bfloat16 if stored == "bfloat16" else stored) for name, x in tensors.items()},
              saved / WEIGHTS_FILE)  # fmt: skip
    reconfigure(saved, **{"dtype": None, key: configured})
    params = load_checkpoint(saved)[1]
    assert dtypes(params) == {expected}
    assert_same(params, jax.tree.map(lambda x: x.astype(stored).astype(expected), PARAMS))


def test_auto_dtype_is_float32_if_one_tensor_is_float32(saved: Path) -> None:
    reconfigure(saved, dtype=None)
    tensors = load_file(saved / WEIGHTS_FILE)
    kept = "model.norm.weight"
    save_file(
        {name: x if name == kept else x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()},
        saved / WEIGHTS_FILE,
    )
    assert dtypes(load_checkpoint(saved)[1]) == {"float32"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_in_memory_is_the_requested_one(saved: Path, dtype: str) -> None:
    assert dtypes(load_checkpoint(saved, dtype)[1]) == {dtype}


def test_save_refuses_invalid_params_and_dtypes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="int8"):
        save_checkpoint(tmp_path, MODEL, PARAMS, "int8")
    with pytest.raises(ValueError, match="head"):
        save_checkpoint(tmp_path, TIED, PARAMS)
    wide = PARAMS._replace(outer={**PARAMS.outer, "final_norm": jnp.full((16,), 1e6)})
    with pytest.raises(ValueError, match=r"model\.norm\.weight .* float16"):
        save_checkpoint(tmp_path, MODEL, wide, "float16")
    with pytest.raises(ValueError, match=r"embed_tokens\.weight has the shape \(20, 16\), not \(21, 16\)"):
        save_checkpoint(tmp_path, LARGER, PARAMS)
    with pytest.raises(ValueError, match="plain Llama"):
        save_checkpoint(tmp_path, dataclasses.replace(MODEL, logit_cap=1.0), PARAMS)
    assert list(tmp_path.iterdir()) == []
