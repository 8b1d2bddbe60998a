"""When a checkpoint is complete, in each format."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from birdie_zmq.models.completeness import missing_part

UNKNOWN = "the files of a known format (Levanter, EasyDeL, Keras, Orbax, Hugging Face, GGUF)"


def write_checkpoint(folder: Path, shards: int = 1) -> Path:
    """Write files that look like a complete checkpoint of Hugging Face, and return the folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    names = [f"model-{i}.safetensors" for i in range(shards)] if shards > 1 else ["model.safetensors"]
    for name in names:
        save_file({name: np.ones((4, 4), np.float32)}, folder / name)
    if shards > 1:
        index = {"weight_map": {name: name for name in names}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_hugging_face_directory_is_complete_with_all_of_its_files(tmp_path: Path, shards: int) -> None:
    checkpoint = write_checkpoint(tmp_path / "c", shards)

    assert missing_part(checkpoint) is None
    for file in sorted(checkpoint.iterdir()):
        content = file.read_bytes()
        file.unlink()
        assert missing_part(checkpoint) is not None, file.name
        file.write_bytes(content)
    assert missing_part(checkpoint) is None


def test_missing_shard_is_named(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c", shards=3)
    (checkpoint / "model-1.safetensors").unlink()

    assert missing_part(checkpoint) == "model-1.safetensors"


def test_half_written_file_is_noticed_at_every_length(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c")
    file = checkpoint / "model.safetensors"
    content = file.read_bytes()

    for size in range(len(content)):
        file.write_bytes(content[:size])
        missing = missing_part(checkpoint)
        assert missing is not None
        assert missing.startswith("the rest of model.safetensors"), size
    file.write_bytes(content)
    assert missing_part(checkpoint) is None


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_half_written_json_is_noticed(tmp_path: Path, name: str) -> None:
    checkpoint = write_checkpoint(tmp_path / "c", shards=2)
    (checkpoint / name).write_text('{"weight_')

    assert missing_part(checkpoint) == f"the rest of {name}"


def test_adapter_needs_both_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")

    assert missing_part(tmp_path) == "adapter_model.safetensors"
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "adapter_model.safetensors")
    assert missing_part(tmp_path) is None


def test_orbax_checkpoint_needs_its_commit_marker(tmp_path: Path) -> None:
    step = tmp_path / "100"
    (step / "default" / "d").mkdir(parents=True)
    (step / "default" / "_METADATA").write_text("{}")

    assert missing_part(step) == "a commit marker of Orbax (_CHECKPOINT_METADATA or commit_success.txt)"
    (step / "_CHECKPOINT_METADATA").write_text('{"init_timestamp_nsecs": 1, "commit_timestamp_nsecs": null}')
    assert missing_part(step) == "the time of its commit in _CHECKPOINT_METADATA"
    (step / "_CHECKPOINT_METADATA").write_text('{"commit_timestamp_nsecs": 2}')
    assert missing_part(step) is None
    renamed = step.rename(tmp_path / "100.orbax-checkpoint-tmp-17")
    assert missing_part(renamed) == "its final name: Orbax still writes to it"


@pytest.mark.parametrize(
    ("first", "last"),
    [("manifest.ocdbt", "metadata.json"), ("model.zarr", "tensorstore_index.json")],
    ids=["Levanter", "EasyDeL"],
)
def test_checkpoints_of_other_trainers_need_the_file_that_is_written_last(
    tmp_path: Path, first: str, last: str
) -> None:
    (tmp_path / first).write_text("{}")

    assert missing_part(tmp_path) is not None
    (tmp_path / last).write_text("{}")
    assert missing_part(tmp_path) is None


@pytest.mark.parametrize("form", ["file", "preset"])
def test_weights_of_keras_are_complete_once_their_writer_has_closed_them(form: str, tmp_path: Path) -> None:
    path = tmp_path / "epoch_3.weights.h5" if form == "file" else tmp_path / "model.weights.h5"
    checkpoint = path if form == "file" else tmp_path
    (tmp_path / "config.json").write_text("{}")
    with h5py.File(path, "w") as file:
        for number in range(20):
            file[f"layers/{number}/vars/0"] = np.ones(1000, np.float32)
        assert missing_part(checkpoint) == f"the end of {path.name}: it is being written, or its writer died"
    assert missing_part(checkpoint) is None

    content = path.read_bytes()
    for size in (0, 7, 40, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        missing = missing_part(checkpoint)
        assert missing is not None, size
        assert missing.startswith(f"the rest of {path.name} ({size:,} "), size


@pytest.mark.parametrize("version", ["earliest", "v108", "latest"])
def test_each_superblock_of_hdf5_notes_the_length_of_its_file(version: str, tmp_path: Path) -> None:
    path = tmp_path / "model.weights.h5"
    with h5py.File(path, "w", libver=version) as file:
        file["a"] = np.ones(1000, np.float32)
    assert missing_part(tmp_path) is None
    path.write_bytes(path.read_bytes()[:-1])
    assert missing_part(tmp_path) is not None


def test_shards_of_keras_need_their_index_and_each_other(tmp_path: Path) -> None:
    shards = [tmp_path / f"model_0000{number}.weights.h5" for number in range(2)]
    for path in shards:
        with h5py.File(path, "w") as file:
            file["a"] = np.ones(3)

    missing = missing_part(tmp_path)
    assert missing is not None
    assert "model_00000.weights.h5, without the .weights.json file" in missing
    index = {"weight_map": {"/a": shards[0].name, "/b": [path.name for path in shards]}}
    (tmp_path / "model.weights.json").write_text(json.dumps(index))
    assert missing_part(tmp_path) is None
    shards[1].unlink()
    missing = missing_part(tmp_path)
    assert missing is not None
    assert "model_00001.weights.h5, which does not exist" in missing


def test_real_orbax_checkpoint_is_complete(tmp_path: Path) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "100", {"w": np.ones(4, np.float32)})

    assert missing_part(tmp_path / "100") is None


def test_other_directories_and_paths_are_not_complete(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("")

    assert missing_part(tmp_path) == UNKNOWN
    assert missing_part(tmp_path / "nowhere") == UNKNOWN
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert missing_part(tmp_path / "model.gguf") is None
