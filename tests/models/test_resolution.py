"""Resolution of model tags to checkpoints, and the fingerprint of a checkpoint."""

import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from birdie_zmq.errors import UnknownModelTag
from birdie_zmq.models.resolution import BUILT_IN, checkpoint_fingerprint, resolve_checkpoint

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
