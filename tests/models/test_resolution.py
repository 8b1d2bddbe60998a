"""Resolution of model tags to checkpoints, and the fingerprint of a checkpoint."""

import json
import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from birdie_zmq.errors import ModelLoadError, UnknownModelTag, UsageError
from birdie_zmq.models.checkpoint_policy import CheckpointPolicy
from birdie_zmq.models.resolution import (
    BUILT_IN,
    Checkpoint,
    checkpoint_fingerprint,
    gguf_parts,
    resolve_checkpoint,
    resolve_model,
)

COMMITS = {"main": "a" * 40, "older": "b" * 40}


@pytest.fixture(autouse=True)
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set up an empty hub cache and no network in huggingface_hub, which reads its variables on import."""
    cache = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    # Versions before 0.24 copy the constant into the module that uses it.
    monkeypatch.setattr("huggingface_hub._snapshot_download.HF_HUB_CACHE", str(cache), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def cached(hub: Path) -> dict[str, Path]:
    """Make a repository with two revisions, in the layout of the hub cache."""
    repository = hub / "models--acme--tiny"
    (repository / "refs").mkdir(parents=True)
    snapshots = {}
    for revision, commit in COMMITS.items():
        (repository / "refs" / revision).write_text(commit)
        snapshots[revision] = repository / "snapshots" / commit
        snapshots[revision].mkdir(parents=True)
        (snapshots[revision] / "config.json").write_text("{}")
        (snapshots[revision] / "model.safetensors").write_bytes(revision.encode())
    return snapshots


def test_demo_resolves_to_the_package() -> None:
    assert resolve_checkpoint("demo") == BUILT_IN["demo"]
    assert (resolve_checkpoint("demo") / "config.json").is_file()


def test_demo_tag_takes_precedence_over_a_directory_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint("demo") == BUILT_IN["demo"]
    assert resolve_checkpoint("./demo") == (tmp_path / "demo").resolve()


def test_directory_resolves_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "acme" / "tiny"
    directory.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for tag in (str(directory), "acme/tiny", "./acme/../acme/tiny", "~/acme/tiny"):
        assert resolve_checkpoint(tag) == directory.resolve()


def test_gguf_file_resolves_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint("tiny.gguf") == resolve_checkpoint(str(file)) == file.resolve()


def test_other_file_type_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(UnknownModelTag, match="neither a checkpoint directory nor a"):
        resolve_checkpoint(str(file))


@pytest.mark.parametrize("tag", ["", "tiny", "/no/such/directory", "a/b/c", "acme/tiny.gguf", "acme/ti ny"])
def test_unknown_tag_error_lists_valid_tags(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownModelTag, match=f"unknown model tag {tag!r}.*demo.*api="):
        resolve_checkpoint(tag)


def test_failed_download_is_refused_with_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UnknownModelTag, match="no directory acme/none, and downloading acme/none from the Hugging Face hub failed"
    ) as caught:
        resolve_checkpoint("acme/none")
    assert caught.value.__cause__ is not None
    assert type(caught.value.__cause__).__name__ in str(caught.value)


def test_hub_repository_resolves_to_its_snapshot(
    cached: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint("acme/tiny") == cached["main"]
    assert resolve_checkpoint("acme/tiny", weights=False) == cached["main"]


def test_revision_selects_the_snapshot(cached: dict[str, Path]) -> None:
    assert resolve_checkpoint("acme/tiny", "older") == cached["older"]
    assert resolve_checkpoint("acme/tiny", COMMITS["older"]) == cached["older"]


def test_unknown_revision_is_refused_with_its_name(cached: dict[str, Path]) -> None:
    with pytest.raises(UnknownModelTag, match="downloading acme/tiny at revision newer from"):
        resolve_checkpoint("acme/tiny", "newer")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "part").mkdir()
    (tmp_path / "a.json").write_text("one")
    (tmp_path / "part" / "b.json").write_text("two")
    return tmp_path


def test_fingerprint_is_stable_without_changes(directory: Path) -> None:
    before = checkpoint_fingerprint(directory)
    (directory / "a.json").read_text()
    assert checkpoint_fingerprint(directory) == before


def test_fingerprint_changes_with_every_file(directory: Path) -> None:
    seen = {checkpoint_fingerprint(directory)}
    (directory / "a.json").write_text("longer")
    seen.add(checkpoint_fingerprint(directory))
    (directory / "part" / "b.json").write_text("longer too")
    seen.add(checkpoint_fingerprint(directory))
    (directory / "a.json").rename(directory / "c.json")
    seen.add(checkpoint_fingerprint(directory))
    (directory / "d.json").touch()
    seen.add(checkpoint_fingerprint(directory))
    (directory / "part" / "b.json").unlink()
    seen.add(checkpoint_fingerprint(directory))
    assert len(seen) == 6


def test_fingerprint_changes_with_the_modification_time_of_a_file(directory: Path) -> None:
    before = checkpoint_fingerprint(directory)
    (directory / "a.json").write_text("eno")
    os.utime(directory / "a.json", ns=(0, 1))
    assert checkpoint_fingerprint(directory) != before


def test_fingerprint_does_not_depend_on_the_path_of_the_directory(directory: Path, tmp_path: Path) -> None:
    before = checkpoint_fingerprint(directory / "part")
    assert checkpoint_fingerprint((directory / "part").rename(tmp_path / "moved")) == before


def test_fingerprint_of_a_file_covers_only_that_file(directory: Path) -> None:
    before = checkpoint_fingerprint(directory / "a.json")
    (directory / "part" / "b.json").write_text("longer")
    assert checkpoint_fingerprint(directory / "a.json") == before
    (directory / "a.json").write_text("longer")
    assert checkpoint_fingerprint(directory / "a.json") != before


def adapter_files(directory: Path, base: object, *names: str) -> Path:
    """Write an adapter for a base model, and further empty files."""
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    for name in names:
        (directory / name).write_bytes(b"")
    return directory.resolve()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / "base" / name).write_bytes(b"")
    return (tmp_path / "base").resolve()


def test_model_without_an_adapter_has_one_path(base: Path) -> None:
    assert resolve_model(str(base)) == Checkpoint(base, None, base)
    assert resolve_model(str(base)).paths == (base,)
    assert resolve_model("demo") == Checkpoint(BUILT_IN["demo"], None, BUILT_IN["demo"])


def test_weights_beside_an_adapter_are_its_base_model(base: Path, tmp_path: Path) -> None:
    """As transformers has it, whatever base model the adapter names."""
    for number, named in enumerate((str(base), "acme/none", None)):
        found = adapter_files(tmp_path / str(number), named, "config.json", "model.safetensors")
        assert resolve_model(str(found)) == Checkpoint(found, found, found)


@pytest.mark.parametrize("names", [(), ("config.json",), ("model.safetensors",)])
def test_adapter_alone_has_the_base_model_that_it_names(names: tuple[str, ...], base: Path, tmp_path: Path) -> None:
    found = adapter_files(tmp_path / "adapter", str(base), *names)
    assert resolve_model(str(found)) == Checkpoint(base, found, base)
    assert resolve_model(str(found)).paths == (base, found)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "tokenizer.model"])
def test_tokenizer_of_an_adapter_comes_before_that_of_its_base_model(name: str, base: Path, tmp_path: Path) -> None:
    found = adapter_files(tmp_path / "adapter", str(base), name)
    assert resolve_model(str(found)) == Checkpoint(base, found, found)


def test_relative_base_model_is_relative_to_the_current_directory(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_model(str(adapter_files(tmp_path / "adapter", "base"))).path == base


def test_base_model_of_the_hub_is_resolved_in_the_revision_that_the_adapter_names(
    cached: dict[str, Path], tmp_path: Path
) -> None:
    found = adapter_files(tmp_path / "adapter", "acme/tiny")
    assert resolve_model(str(found)).path == cached["main"]
    assert resolve_model(str(found), "older").path == cached["older"]
    (found / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "acme/tiny", "revision": "older"})
    )
    assert resolve_model(str(found)).path == cached["older"]


def test_adapter_in_a_repository_of_the_hub_has_the_base_model_that_it_names(
    cached: dict[str, Path], base: Path
) -> None:
    """As transformers has it, although the repository has weights of its own."""
    adapter_files(cached["main"], str(base))
    assert resolve_model("acme/tiny") == Checkpoint(base, cached["main"], base)


@pytest.mark.parametrize("named", ["acme/none", "none_such", "/no/such/base"])
def test_unknown_base_model_is_refused_with_its_name(named: str, tmp_path: Path) -> None:
    found = adapter_files(tmp_path / "adapter", named)
    with pytest.raises(UnknownModelTag, match=f"the adapter {found} is for the base model '{named}'.*peft=") as caught:
        resolve_model(str(found))
    assert "cannot be loaded" in str(caught.value)


def test_base_model_that_the_policy_forbids_is_refused_with_its_name(base: Path, tmp_path: Path) -> None:
    found = adapter_files(tmp_path / "adapter", str(base))
    policy = CheckpointPolicy.limited([found], hub=False)
    with pytest.raises(UnknownModelTag, match=f"is for the base model '{base}'"):
        resolve_model(str(found), policy=policy)
    assert resolve_model(str(found), policy=CheckpointPolicy.limited([tmp_path], hub=False)).path == base


@pytest.mark.parametrize("named", [None, "", 7])
def test_adapter_without_a_base_model_is_refused(named: object, tmp_path: Path) -> None:
    found = adapter_files(tmp_path / "adapter", named)
    with pytest.raises(ModelLoadError, match=f"the adapter {found} names no base model"):
        resolve_model(str(found))


def test_damaged_config_of_an_adapter_is_refused_with_its_name(tmp_path: Path) -> None:
    (adapter_files(tmp_path / "adapter", "x") / "adapter_config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"adapter_config\.json is not valid JSON"):
        resolve_model(str(tmp_path / "adapter"))


def test_adapter_of_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    inner = adapter_files(tmp_path / "inner", str(base), "config.json", "model.safetensors")
    with pytest.raises(ModelLoadError, match="which has an adapter itself"):
        resolve_model(str(adapter_files(tmp_path / "outer", str(inner))))


def test_peft_names_the_adapter_of_a_model(base: Path, tmp_path: Path) -> None:
    found = adapter_files(tmp_path / "adapter", "acme/another", "tokenizer.json")
    assert resolve_model(str(base), peft=str(found)) == Checkpoint(base, found, base)


def test_peft_without_an_adapter_or_beside_another_is_refused(base: Path, tmp_path: Path) -> None:
    found = adapter_files(tmp_path / "adapter", str(base))
    with pytest.raises(UsageError, match=r"names no adapter: .* has no adapter_config\.json"):
        resolve_model(str(base), peft=str(base))
    with pytest.raises(UsageError, match="has another one"):
        resolve_model(str(found), peft=str(found))
    with pytest.raises(UnknownModelTag, match="none_such"):
        resolve_model(str(base), peft="none_such")
    with pytest.raises(UnknownModelTag):
        resolve_model(str(base), peft=str(found), policy=CheckpointPolicy.limited([base], hub=False))


def test_gguf_file_that_is_a_link_keeps_its_name(tmp_path: Path) -> None:
    """The hub's cache links to files without a suffix, and the parts of a split model lie beside the link."""
    (tmp_path / "blob").write_bytes(b"GGUF")
    (tmp_path / "m-00001-of-00002.gguf").symlink_to(tmp_path / "blob")
    found = resolve_checkpoint(str(tmp_path / "m-00001-of-00002.gguf"))
    assert found == tmp_path.resolve() / "m-00001-of-00002.gguf"


def test_parts_of_a_split_gguf_model_are_found_by_name(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        part.write_bytes(b"")
    assert gguf_parts(parts[0]) == parts
    assert gguf_parts(tmp_path / "m.gguf") == [tmp_path / "m.gguf"]
    with pytest.raises(ValueError, match=f"name its first part, {parts[0].name}"):
        gguf_parts(parts[1])
    with pytest.raises(ValueError, match="is no part of a split GGUF model"):
        gguf_parts(tmp_path / "m-00003-of-00002.gguf")


def test_fingerprint_of_a_split_gguf_model_covers_every_part(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        part.write_bytes(b"GGUF")
    before = checkpoint_fingerprint(parts[0])
    parts[1].write_bytes(b"GGUF longer")
    assert checkpoint_fingerprint(parts[0]) != before
