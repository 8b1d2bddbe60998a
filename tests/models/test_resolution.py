"""Where the checkpoint of a tag lies, and what tells it from another at the same path."""

import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from birdie_zmq.errors import UnknownModelTag
from birdie_zmq.models.resolution import BUILT_IN, fingerprint_of, locate

COMMITS = {"main": "a" * 40, "older": "b" * 40}


@pytest.fixture(autouse=True)
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network. huggingface_hub reads its variables when it is imported."""
    cache = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    # Versions before 0.24 keep a copy of it where it is used.
    monkeypatch.setattr("huggingface_hub._snapshot_download.HF_HUB_CACHE", str(cache), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def cached(hub: Path) -> dict[str, Path]:
    """A repository with two revisions, as the hub's own cache lays it out."""
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


def test_demo_lies_in_the_package() -> None:
    assert locate("demo") == BUILT_IN["demo"]
    assert (locate("demo") / "config.json").is_file()


def test_demo_is_the_built_in_one_even_beside_a_directory_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate("demo") == BUILT_IN["demo"]
    assert locate("./demo") == (tmp_path / "demo").resolve()


def test_directory_is_itself_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "acme" / "tiny"
    directory.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for tag in (str(directory), "acme/tiny", "./acme/../acme/tiny", "~/acme/tiny"):
        assert locate(tag) == directory.resolve()


def test_gguf_file_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    assert locate("tiny.gguf") == locate(str(file)) == file.resolve()


def test_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(UnknownModelTag, match="neither a checkpoint directory nor a"):
        locate(str(file))


@pytest.mark.parametrize("tag", ["", "tiny", "/no/such/directory", "a/b/c", "acme/tiny.gguf", "acme/ti ny"])
def test_unknown_tag_is_told_what_a_tag_may_be(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownModelTag, match=f"no model is known by the tag {tag!r}.*demo.*api="):
        locate(tag)


def test_name_that_the_hub_does_not_give_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UnknownModelTag, match="no directory acme/none, and the Hugging Face hub does not give"
    ) as caught:
        locate("acme/none")
    assert caught.value.__cause__ is not None
    assert type(caught.value.__cause__).__name__ in str(caught.value)


def test_repository_of_the_hub_is_its_snapshot(
    cached: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("acme/tiny") == cached["main"]
    assert locate("acme/tiny", weights=False) == cached["main"]


def test_revision_chooses_the_snapshot(cached: dict[str, Path]) -> None:
    assert locate("acme/tiny", "older") == cached["older"]
    assert locate("acme/tiny", COMMITS["older"]) == cached["older"]


def test_unknown_revision_is_named(cached: dict[str, Path]) -> None:
    with pytest.raises(UnknownModelTag, match="does not give acme/tiny at revision newer"):
        locate("acme/tiny", "newer")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "part").mkdir()
    (tmp_path / "a.json").write_text("one")
    (tmp_path / "part" / "b.json").write_text("two")
    return tmp_path


def test_fingerprint_stays_while_nothing_changes(directory: Path) -> None:
    before = fingerprint_of(directory)
    (directory / "a.json").read_text()
    assert fingerprint_of(directory) == before


def test_fingerprint_changes_with_every_file(directory: Path) -> None:
    seen = {fingerprint_of(directory)}
    (directory / "a.json").write_text("longer")
    seen.add(fingerprint_of(directory))
    (directory / "part" / "b.json").write_text("longer too")
    seen.add(fingerprint_of(directory))
    (directory / "a.json").rename(directory / "c.json")
    seen.add(fingerprint_of(directory))
    (directory / "d.json").touch()
    seen.add(fingerprint_of(directory))
    (directory / "part" / "b.json").unlink()
    seen.add(fingerprint_of(directory))
    assert len(seen) == 6


def test_fingerprint_changes_with_the_time_of_a_file_of_the_same_size(directory: Path) -> None:
    before = fingerprint_of(directory)
    (directory / "a.json").write_text("eno")
    os.utime(directory / "a.json", ns=(0, 1))
    assert fingerprint_of(directory) != before


def test_fingerprint_does_not_depend_on_where_the_directory_is(directory: Path, tmp_path: Path) -> None:
    before = fingerprint_of(directory / "part")
    assert fingerprint_of((directory / "part").rename(tmp_path / "moved")) == before


def test_fingerprint_of_a_file_is_of_that_file_alone(directory: Path) -> None:
    before = fingerprint_of(directory / "a.json")
    (directory / "part" / "b.json").write_text("longer")
    assert fingerprint_of(directory / "a.json") == before
    (directory / "a.json").write_text("longer")
    assert fingerprint_of(directory / "a.json") != before
