"""Checkpoints of trainers: shards, identity, what is incomplete or unknown, and the arguments that describe them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import jax
import ml_dtypes
import numpy as np
import pytest
import yaml
from jax.sharding import Mesh

from birdie_zmq.errors import IncompleteCheckpoint, ModelLoadError, UsageError
from birdie_zmq.models import load_model
from birdie_zmq.models.fingerprint import Fingerprint, checkpoint_files
from birdie_zmq.models.loader import load_checkpoint
from birdie_zmq.models.native.directory import native_checkpoint
from birdie_zmq.models.native.formats import load_native
from birdie_zmq.models.native.hdf5_tree import read_hdf5_tree
from birdie_zmq.models.native.hints import NO_HINTS, ModelHints
from birdie_zmq.models.native.maxtext_settings import read_settings
from tests.models.native.hugging_face import LLAMA, nested, random_tensors, save_hugging_face
from tests.models.native.maxtext_experts import DEEPSEEK_SETTINGS
from tests.models.native.trainers_trees import (
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

SETTINGS = maxtext_settings(LLAMA, "llama2")
TENSORS = random_tensors(LLAMA)
PARAMETERS = scanned(maxtext_parameters(LLAMA, TENSORS, "llama2"), 3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a step of MaxText; tests copy it before they change it."""
    return save_maxtext(tmp_path_factory.mktemp("maxtext") / "run", SETTINGS, PARAMETERS)


@pytest.fixture
def step(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved.parent.parent, tmp_path / "run")
    return tmp_path / "run" / "checkpoints" / saved.name


def fingerprint(path: Path) -> str:
    return Fingerprint(checkpoint_files(path)).result()


def test_each_device_reads_its_shard_of_stacked_layers(saved: Path, tmp_path: Path) -> None:
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    whole = load_checkpoint(save_hugging_face(tmp_path / "hf", LLAMA, TENSORS), "float32")[1]
    sharded = load_checkpoint(saved, "float32", mesh)[1]
    scaled = {"query": 8**-0.5}
    for key, array in whole.layers[0].items():
        np.testing.assert_allclose(sharded.layers[0][key], array * scaled.get(key, 1.0), rtol=1e-6, err_msg=key)


def test_the_item_of_a_step_may_be_named(saved: Path) -> None:
    found = native_checkpoint(saved / "items")
    assert found is not None
    assert found.settings_file() == saved.parent.parent / "config.yml"
    assert load_checkpoint(saved / "items", "float32")[0] == load_checkpoint(saved, "float32")[0]


def test_a_copy_is_the_same_model_and_other_weights_are_another(step: Path, saved: Path, tmp_path: Path) -> None:
    assert fingerprint(step) == fingerprint(saved)
    (step / "commit_success.txt").write_text("another time", encoding="utf-8")
    (step / "metrics.txt").write_text("a neighbour", encoding="utf-8")
    assert fingerprint(step) == fingerprint(saved)
    changed = {**PARAMETERS, "decoder/decoder_norm/scale": PARAMETERS["decoder/decoder_norm/scale"] + 1}
    other = save_maxtext(tmp_path / "other", SETTINGS, changed)
    assert fingerprint(other) != fingerprint(saved)


def test_other_settings_are_another_model(step: Path, saved: Path) -> None:
    settings = {**SETTINGS, "rope_max_timescale": 500_000}
    (step.parent.parent / "config.yml").write_text(yaml.dump(settings), encoding="utf-8")
    assert fingerprint(step) != fingerprint(saved)


def test_a_step_without_a_commit_is_incomplete(step: Path) -> None:
    metadata = step / "items" / "_CHECKPOINT_METADATA"
    values = json.loads(metadata.read_text(encoding="utf-8"))
    metadata.write_text(json.dumps({**values, "commit_timestamp_nsecs": None}), encoding="utf-8")
    (step / "items" / "commit_success.txt").unlink(missing_ok=True)
    with pytest.raises(
        IncompleteCheckpoint, match=r"items is an incomplete checkpoint of Orbax.*names no time of a commit"
    ):
        load_model(str(step))


def test_a_step_that_is_being_written_is_incomplete(step: Path) -> None:
    unfinished = step.with_name("20.orbax-checkpoint-tmp-3")
    step.rename(unfinished)
    with pytest.raises(IncompleteCheckpoint, match="being written, or its writer died"):
        load_model(str(unfinished))
    with pytest.raises(IncompleteCheckpoint, match="being written, or its writer died"):
        load_model(str(step.parent))


@pytest.mark.parametrize("use_ocdbt", [True, False])
def test_a_missing_block_is_not_read_as_zeros(use_ocdbt: bool, tmp_path: Path) -> None:
    saved = save_orbax(tmp_path / "saved", nested(tunix_parameters(LLAMA, TENSORS)), use_ocdbt=use_ocdbt)
    save_hugging_face(tmp_path / "hf", LLAMA, TENSORS)
    pattern = "**/d/*" if use_ocdbt else "layers.1.mlp.up_proj.kernel.value/*.*"
    blocks = [path for path in saved.glob(pattern) if path.is_file() and not path.name.startswith(".")]
    assert blocks
    for path in blocks:
        path.unlink()
    with pytest.raises(IncompleteCheckpoint, match="cannot be read, so the checkpoint is incomplete or damaged"):
        load_checkpoint(saved, "float32", hints=ModelHints(config=tmp_path / "hf"))


def test_the_steps_of_a_run_are_listed(step: Path) -> None:
    (step / "_CHECKPOINT_METADATA").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelLoadError, match=r"holds the steps 10 of a training run; name one, as .*10"):
        load_model(str(step.parent))


def test_an_unknown_tree_shows_its_top_and_the_known_formats(tmp_path: Path) -> None:
    saved = save_orbax(tmp_path / "mine", nested({"encoder/block_0/w": np.ones(3), "head/w": np.ones(2)}))
    with pytest.raises(
        ModelLoadError, match=r"unknown format: encoder/block_0, head/w\. Known formats: MaxText \(Orbax\), "
    ):
        load_model(str(saved))


def test_an_array_without_a_use_is_refused(tmp_path: Path) -> None:
    extra = {**PARAMETERS, "decoder/layers/mlp/wi_0/bias": np.ones((24, 3), np.float32)}
    step = save_maxtext(tmp_path / "run", SETTINGS, extra)
    with pytest.raises(
        ModelLoadError, match="has the array decoder/layers/mlp/wi_0/bias, which this architecture does not"
    ):
        load_model(str(step))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_block": "gpt3"}, "decoder_block 'gpt3' is not supported, only llama2"),
        ({"num_experts": 8}, "num_experts=8 of MaxText's configuration is not supported"),
        ({"rope_type": "yarn"}, "rope_type='yarn' of MaxText's configuration is not supported"),
        ({"param_scan_axis": 0}, r"not stacked on the axis 0 \(param_scan_axis\)"),
        ({"logits_via_embedding": True}, "logits_via_embedding is True in MaxText's configuration"),
        ({"mlp_activations": ["silu"]}, "mlp_activations"),
    ],
)
def test_settings_of_maxtext_that_are_not_supported(change: dict[str, object], message: str, step: Path) -> None:
    (step.parent.parent / "config.yml").write_text(yaml.dump({**SETTINGS, **change}), encoding="utf-8")
    with pytest.raises(ModelLoadError, match=message):
        load_model(str(step))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_name": "deepseek2-16b"}, "MaxText routes as DeepSeek V3 only if the name starts with deepseek3"),
        ({"routed_score_func": "softmax"}, "routed_score_func='softmax' of MaxText's configuration is not supported"),
        ({"use_indexer": True}, "use_indexer=True of MaxText's configuration is not supported in the block deepseek"),
        ({"first_num_dense_layers": 2}, "first_num_dense_layers is 2 in MaxText's configuration"),
        ({"decoder_block": "mixtral"}, "attention_type='mla' of MaxText's configuration is not supported"),
    ],
)
def test_settings_of_experts_that_are_not_supported(change: dict[str, object], message: str, tmp_path: Path) -> None:
    tree = {
        "token_embedder/embedding": np.ones((40, 16), np.float32),
        "decoder/dense_layers/pre_self_attention_layer_norm/scale": np.ones((16, 1), np.float32),
    }
    step = save_maxtext(tmp_path / "run", {**DEEPSEEK_SETTINGS, **change}, tree)
    with pytest.raises(ModelLoadError, match=message):
        load_model(str(step))


def test_maxtext_needs_its_settings_or_a_name(step: Path) -> None:
    (step.parent.parent / "config.yml").unlink()
    with pytest.raises(UsageError, match=r"copy the run's config\.yml .* or add model_name="):
        load_model(str(step))
    with pytest.raises(
        UsageError, match="model_name='llama9' in model_args is none of the supported models of MaxText"
    ):
        load_model(str(step), model_name="llama9")
    interleaved = load_model(str(step), model_name="llama3.1-8b", dtype="float32").params
    plain = load_model(str(step), model_name="llama3-8b", dtype="float32").params
    query = np.asarray(plain.layers[0]["query"]).reshape(3, 16, 4, 2, 4)
    expected = np.asarray(interleaved.layers[0]["query"]).reshape(3, 16, 4, 2, 4)
    np.testing.assert_array_equal(query.reshape(3, 16, 4, 4, 2).swapaxes(-1, -2), expected)


def test_settings_of_maxtext_hold_python_objects(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(
        "decoder_block: !!python/object/apply:maxtext.common.common_types.DecoderBlockType\n- qwen3\n"
        "mesh_axes: !!python/tuple\n- data\n- fsdp\nrope_max_timescale: 1000000\nrun: !!python/name:os.system ''\n",
        encoding="utf-8",
    )
    settings = read_settings(file, None)
    assert (settings["decoder_block"], settings["rope_max_timescale"]) == ("qwen3", 1_000_000)
    assert (settings["mesh_axes"], settings["run"]) == (["data", "fsdp"], "")


def test_a_description_is_refused_where_it_has_no_effect(saved: Path, tmp_path: Path) -> None:
    directory = save_hugging_face(tmp_path / "hf", LLAMA, TENSORS)
    with pytest.raises(UsageError, match=r"config in model_args describes the checkpoint of a JAX trainer"):
        load_model(str(directory), config=str(directory))
    tunix = save_orbax(tmp_path / "tunix", nested(tunix_parameters(LLAMA, TENSORS)))
    with pytest.raises(UsageError, match="model_name='llama3-8b' in model_args is for checkpoints of MaxText"):
        load_model(str(tunix), model_name="llama3-8b")
    with pytest.raises(UsageError, match=r"which stores no configuration: add config= to model_args"):
        load_model(str(tunix))


def test_tunix_trains_with_positions_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tunix = save_orbax(tmp_path / "tunix", nested(tunix_parameters(LLAMA, TENSORS)))
    described = save_hugging_face(tmp_path / "hf", LLAMA, TENSORS)
    with caplog.at_level(logging.WARNING):
        model = load_model(str(tunix), config=str(described))
    assert "trains Llama and Qwen with rope_type=default and rope_theta=1000000" in caplog.text
    other = save_hugging_face(tmp_path / "other", {**LLAMA, "rope_theta": 1e6}, TENSORS)
    caplog.clear()
    assert load_model(str(tunix), config=str(other)).fingerprint != model.fingerprint
    assert "rope_theta" not in caplog.text


def test_levanter_is_complete_once_its_metadata_is_written(tmp_path: Path) -> None:
    described = save_hugging_face(tmp_path / "hf", LLAMA, TENSORS)
    step = save_levanter(tmp_path / "step-3", LLAMA, TENSORS, stacked=True)
    first = fingerprint(step)
    (step / "metadata.json").write_text(json.dumps({"step": 3, "timestamp": "later"}), encoding="utf-8")
    assert fingerprint(step) == first
    load_checkpoint(step, "float32", hints=ModelHints(config=described))
    (step / "metadata.json").unlink()
    with pytest.raises(IncompleteCheckpoint, match=r"neither metadata\.json of Levanter nor _METADATA of Orbax"):
        load_model(str(step), config=str(described))


def test_the_index_of_easydel_names_no_file_elsewhere(tmp_path: Path) -> None:
    saved = save_easydel(tmp_path / "model", LLAMA, TENSORS)
    index = json.loads((saved / "tensorstore_index.json").read_text(encoding="utf-8"))
    index["prefixes"]["model"][0]["path"] = "../elsewhere"
    (saved / "tensorstore_index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelLoadError, match=r"names the path \.\./elsewhere, which leaves its folder"):
        load_model(str(saved))


def test_the_tree_of_orbax_names_no_file_elsewhere(tmp_path: Path) -> None:
    saved = save_orbax(tmp_path / "saved", nested(tunix_parameters(LLAMA, TENSORS)), use_ocdbt=False)
    metadata = saved / "_METADATA"
    metadata.write_text(metadata.read_text().replace('"final_norm"', '"../final_norm"'))
    with pytest.raises(ModelLoadError, match=r"names the path \.\./final_norm.*, which leaves its folder"):
        load_model(str(saved))


def test_a_damaged_or_missing_file_of_keras_is_incomplete(tmp_path: Path) -> None:
    settings = keras_settings("LlamaBackbone", LLAMA, rope_max_wavelength=10_000)
    preset = save_keras(tmp_path / "preset", LLAMA, TENSORS, settings)
    first = fingerprint(preset)
    weights = preset / "model.weights.h5"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(IncompleteCheckpoint, match=r"incomplete HDF5 file: it lacks the rest of model\.weights\.h5"):
        load_model(str(preset))
    weights.write_bytes(content[:2000] + bytes(3000) + content[5000:])
    with pytest.raises(IncompleteCheckpoint, match="incomplete or damaged HDF5 file"):
        load_model(str(preset))
    weights.write_bytes(content)
    assert fingerprint(preset) == first
    (preset / "model.weights.json").write_text(json.dumps({"weight_map": {"/layers": ["model_00000.weights.h5"]}}))
    with pytest.raises(IncompleteCheckpoint, match=r"model_00000\.weights\.h5, which does not exist"):
        load_model(str(preset))


def tensors_of(path: Path, hints: ModelHints = NO_HINTS) -> dict[str, Any]:
    """Return the tensors of a trainer's checkpoint by Hugging Face's names."""
    found = native_checkpoint(path)
    assert found is not None
    return {name: read_tensor() for name, read_tensor in load_native(found, hints)[1].read()}


def assert_same_tensors(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert {name: array.dtype for name, array in found.items()} == {n: array.dtype for n, array in expected.items()}
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def as_keras_saves_a_language_model(preset: Path, path: Path) -> None:
    """Write the weights of a preset as those of a causal language model, whose backbone is a layer, with an optimiser."""
    with h5py.File(preset / "model.weights.h5") as backbone, h5py.File(path, "w") as file:
        backbone.copy(backbone["layers"], file, "layers/llama_backbone/layers")
        file["optimizer/vars/0"] = np.ones(3)


def test_a_file_of_keras_is_described_beside_it_or_by_config(tmp_path: Path) -> None:
    settings = keras_settings("LlamaBackbone", LLAMA, rope_max_wavelength=10_000)
    preset = save_keras(tmp_path / "preset", LLAMA, TENSORS, settings)
    (tmp_path / "run").mkdir()
    epochs = [tmp_path / "run" / f"epoch_{number}.weights.h5" for number in (1, 2)]
    for path in epochs:
        as_keras_saves_a_language_model(preset, path)
    with pytest.raises(UsageError, match=r"stores no configuration: add config= .* into .*run$"):
        load_model(str(epochs[0]))
    described = ModelHints(config=save_hugging_face(tmp_path / "hf", LLAMA, TENSORS))
    assert_same_tensors(tensors_of(epochs[0], described), tensors_of(preset))
    shutil.copy(preset / "config.json", tmp_path / "run")
    assert_same_tensors(tensors_of(epochs[0]), tensors_of(preset))
    assert fingerprint(epochs[0]) == fingerprint(epochs[1])
    with pytest.raises(ModelLoadError, match=r"several models of Keras .*; name a file, as .*epoch_1\.weights\.h5"):
        load_model(str(tmp_path / "run"))


def test_keras_stores_bfloat16_as_bytes(tmp_path: Path) -> None:
    settings = keras_settings("LlamaBackbone", LLAMA, rope_max_wavelength=10_000)
    rounded = {name: array.astype(ml_dtypes.bfloat16) for name, array in TENSORS.items()}
    preset = save_keras(
        tmp_path / "preset", LLAMA, {name: array.view("V2") for name, array in rounded.items()}, settings
    )
    with h5py.File(preset / "model.weights.h5", "r+") as file:
        file.visititems(lambda _, node: node.attrs.update(dtype="bfloat16") if hasattr(node, "shape") else None)
    assert_same_tensors(tensors_of(preset), rounded)


@pytest.mark.parametrize("kind", ["external", "unwritten", "gone"])
def test_values_that_are_not_in_the_file_are_refused(kind: str, tmp_path: Path) -> None:
    settings = keras_settings("LlamaBackbone", LLAMA, rope_max_wavelength=10_000)
    preset = save_keras(tmp_path / "preset", LLAMA, TENSORS, settings)
    name = "layers/llama_layer_norm/vars/0"
    if kind == "gone":
        array = read_hdf5_tree(preset)[tuple(name.split("/"))]
        (preset / "model.weights.h5").unlink()
        with pytest.raises(IncompleteCheckpoint, match=f"the array {name} cannot be read from"):
            array.read((slice(0, 3),))
        return
    with h5py.File(preset / "model.weights.h5", "r+") as file:
        shape = file[name].shape
        del file[name]
        elsewhere = [(str(tmp_path / "elsewhere"), 0, h5py.h5f.UNLIMITED)] if kind == "external" else None
        file.create_dataset(name, shape, "f4", external=elsewhere)
    message = "are in another file, which is not read" if kind == "external" else f"the array {name} has no values"
    with pytest.raises(ModelLoadError, match=message):
        load_model(str(preset))


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("MistralBackbone", {}, "the Keras model MistralBackbone is not supported"),
        ("GemmaBackbone", {"use_sliding_window_attention": True}, "use_sliding_window_attention=True is not supported"),
        ("Gemma3Backbone", {"use_query_key_norm": False}, "use_query_key_norm=False is not supported"),
    ],
)
def test_models_of_keras_that_are_not_supported(
    name: str, more: dict[str, object], message: str, tmp_path: Path
) -> None:
    preset = save_keras(tmp_path / "preset", LLAMA, TENSORS, keras_settings(name, LLAMA, **more))
    with pytest.raises(ModelLoadError, match=message):
        load_model(str(preset))
