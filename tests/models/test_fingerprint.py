"""The fingerprint of a checkpoint is that of the content of the files that are read, and of nothing else."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from birdie_zmq.errors import ModelLoadError
from birdie_zmq.models.file_hashes import FileHasher, HashStore
from birdie_zmq.models.fingerprint import (
    TOKENIZER_PATTERNS,
    CheckpointFile,
    Fingerprint,
    checkpoint_files,
    shard_names,
    tokenizer_files,
)

INDEX = "model.safetensors.index.json"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Make a checkpoint directory with small files."""
    path = tmp_path / "one"
    path.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        (path / name).write_text(f"content of {name}")
    return path


def fingerprint(path: Path, files: Callable[[Path], list[CheckpointFile]] = checkpoint_files) -> str:
    return Fingerprint(files(path), FileHasher(HashStore(None))).result()


def both(path: Path) -> tuple[str, str]:
    return fingerprint(path), fingerprint(path, tokenizer_files)


def write_index(directory: Path, *shards: str) -> None:
    (directory / INDEX).write_text(json.dumps({"weight_map": {f"w{n}": shard for n, shard in enumerate(shards)}}))


def test_copy_with_other_times_has_the_same_fingerprint(directory: Path) -> None:
    copy = directory.with_name("two")
    shutil.copytree(directory, copy, copy_function=shutil.copyfile)
    for file in copy.iterdir():
        os.utime(file, (1_600_000_000, 1_600_000_000))
    assert both(copy) == both(directory)


def test_files_beside_the_checkpoint_change_nothing(directory: Path) -> None:
    before = both(directory)
    (directory / "eval").mkdir()
    for name in (
        "README.md",
        "answers.journal",
        "eval/config.json",
        "eval/results.json",
        "trainer_state.json",
        "training_args.bin",
        "optimizer.pt",
        "pytorch_model.bin",
        "consolidated.safetensors",
        "model-00001-of-00002.safetensors",
        INDEX,  # model.safetensors is read, not the shards
        "tokenizer.png",
        ".gitattributes",
    ):
        (directory / name).write_text("other")
    (directory / "vocab.json").mkdir()
    assert both(directory) == before


@pytest.mark.parametrize(
    ("name", "model", "tokenizer"),
    [
        ("config.json", True, True),
        ("generation_config.json", True, True),
        ("model.safetensors", True, False),
        ("adapter_config.json", True, False),
        ("adapter_model.safetensors", True, False),
        ("tokenizer.json", False, True),
        ("tokenizer_config.json", False, True),
        ("tokenizer.4.0.0.json", False, True),
        ("special_tokens_map.json", False, True),
        ("added_tokens.json", False, True),
        ("vocab.json", False, True),
        ("merges.txt", False, True),
        ("tokenizer.model", False, True),
        ("qwen.tiktoken", False, True),
        ("chat_template.jinja", False, True),
        ("additional_chat_templates/tools.jinja", False, True),
    ],
)
def test_every_file_that_is_read_counts_by_content(directory: Path, name: str, model: bool, tokenizer: bool) -> None:
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    seen = [both(directory)]
    for content in ("one", "two"):
        path.write_text(content)
        seen.append(both(directory))
    for number, changes in enumerate((model, tokenizer)):
        assert len({prints[number] for prints in seen}) == (3 if changes else 1)


def test_other_weights_with_equal_size_and_times_have_another_fingerprint(directory: Path) -> None:
    weights = directory / "model.safetensors"
    status = weights.stat()
    before = fingerprint(directory)
    weights.write_bytes(weights.read_bytes()[::-1])
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (weights.stat().st_size, weights.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert fingerprint(directory) != before


def test_contents_that_change_places_have_another_fingerprint(directory: Path) -> None:
    before = both(directory)
    (directory / "config.json").rename(directory / "x")
    (directory / "generation_config.json").rename(directory / "config.json")
    (directory / "x").rename(directory / "generation_config.json")
    assert not set(both(directory)) & set(before)


def test_shards_of_the_index_count_if_there_is_no_single_file(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    write_index(directory, "b.safetensors", "a.safetensors", "b.safetensors", "missing.safetensors", "../one/x", "")
    for name in ("a", "b", "c"):
        (directory / f"{name}.safetensors").write_text(name)
    names = [file.role for file in checkpoint_files(directory)]
    assert names == ["config.json", "generation_config.json", INDEX, "a.safetensors", "b.safetensors"]

    seen = {fingerprint(directory)}
    (directory / "c.safetensors").write_text("not named")
    seen.add(fingerprint(directory))
    assert len(seen) == 1
    (directory / "a.safetensors").write_text("another")
    seen.add(fingerprint(directory))
    write_index(directory, "a.safetensors", "b.safetensors")
    seen.add(fingerprint(directory))
    assert len(seen) == 3


@pytest.mark.parametrize("content", ["", "[", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": [1]}}', "\xff"])
def test_damaged_index_counts_by_its_content_alone(directory: Path, content: str) -> None:
    (directory / "model.safetensors").unlink()
    (directory / INDEX).write_text(content, encoding="latin-1")
    assert shard_names(directory / INDEX) == []
    assert [file.role for file in checkpoint_files(directory)][-1] == INDEX
    assert len(fingerprint(directory)) == 64


def test_gguf_file_counts_under_any_name(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_text("weights")
    assert both(tmp_path / "a.gguf") == both(tmp_path / "b.gguf")
    before = both(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_text("other")
    assert not set(both(tmp_path / "a.gguf")) & set(before)


def test_all_parts_of_a_split_gguf_file_count(tmp_path: Path) -> None:
    parts = [tmp_path / f"model-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for part in parts:
        part.write_text(part.name)
    (tmp_path / "other-00002-of-00003.gguf").write_text("another model")
    assert [file.path for file in checkpoint_files(parts[0])] == parts
    before = fingerprint(parts[0])
    parts[2].write_text("other")
    assert fingerprint(parts[0]) != before


def test_a_file_that_changes_while_the_model_is_loaded_is_an_error(directory: Path) -> None:
    pending = Fingerprint(checkpoint_files(directory))
    (directory / "config.json").write_text("a longer content than before")
    with pytest.raises(ModelLoadError, match=r"one/config\.json was changed while the model was loaded"):
        pending.result()


def test_every_vocabulary_file_of_transformers_is_a_tokenizer_file(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    sources = [*folder.glob("tokenization_*.py"), *folder.glob("models/*/tokenization_*.py")]
    declared = re.compile(r"^\s*(?:VOCAB_FILES_NAMES|vocab_files_names)\s*=\s*\{(.*?)\}", re.DOTALL | re.MULTILINE)
    names = {
        name
        for source in sources
        for block in declared.findall(source.read_text(encoding="utf-8"))
        for name in re.findall(r":\s*\"([^\"]+)\"", block)
    }
    assert {"tokenizer.json", "vocab.json", "merges.txt", "spiece.model"} < names
    for name in names:
        (tmp_path / name).touch()
    assert {file.role for file in tokenizer_files(tmp_path)} == names
    assert len(TOKENIZER_PATTERNS) == len(set(TOKENIZER_PATTERNS))
