"""Resolution of model tags to checkpoints: built-in models, local paths, and names of the hub."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

import pytest

from birdie_zmq.errors import UnknownModelTag, UsageError
from birdie_zmq.models.checkpoint_policy import CheckpointPolicy
from birdie_zmq.models.resolution import BUILT_IN, is_hub_name, resolve_checkpoint
from tests.models.hub_cache import COMMITS, add_snapshot

pytestmark = pytest.mark.usefixtures("hub")


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


@pytest.mark.parametrize("tag", ["", "ti ny", "/no/such/directory", "a/b/c", "acme/tiny.gguf", "acme/ti ny"])
def test_unknown_tag_error_lists_valid_tags(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownModelTag, match=f"unknown model tag {tag!r}.*demo.*api="):
        resolve_checkpoint(tag)


@pytest.mark.parametrize("tag", ["acme/none", "none"])
def test_failed_download_error_has_its_cause_and_lists_valid_tags(
    tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UnknownModelTag,
        match=f"unknown model tag {tag!r}: it is not a local checkpoint, and downloading {tag} from the Hugging Face hub "
        r"failed(.|\n)*It may be demo; or the path of .*; or the name of a repository.* such as gpt2.*api=",
    ) as caught:
        resolve_checkpoint(tag)
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


def test_name_without_an_organisation_is_a_hub_name_unless_a_path_has_it(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    snapshot = add_snapshot(hub / "models--gpt2", "main", COMMITS["main"])
    assert resolve_checkpoint("gpt2") == snapshot
    assert is_hub_name("gpt2")
    (tmp_path / "gpt2").mkdir()
    assert resolve_checkpoint("gpt2") == tmp_path / "gpt2"
    assert not is_hub_name("gpt2")
    assert not is_hub_name("demo")
    assert not is_hub_name("a/b/c")


@pytest.mark.parametrize(
    ("given", "name"), [(1000, "1000"), (-7, "-7"), ("step1000", "step1000"), ("refs/pr/1", "refs/pr/1")]
)
def test_revision_may_be_an_integer_or_have_slashes(hub: Path, given: object, name: str) -> None:
    snapshot = add_snapshot(hub / "models--acme--tiny", name, COMMITS["older"])
    assert resolve_checkpoint("acme/tiny", given) == snapshot


@pytest.mark.parametrize("revision", [1.0, 1e3, True, ["main"]])
def test_revision_whose_text_is_lost_is_refused(cached: dict[str, Path], revision: object) -> None:
    with pytest.raises(
        UsageError, match=r"revision=.* is not a string but (float|bool|list); write model_args as JSON"
    ):
        resolve_checkpoint("acme/tiny", revision)


class Repository:
    """A repository of the hub, of which `snapshot_download` downloads the requested files."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
        self.snapshot = folder / COMMITS["main"]
        self._files = files
        self.calls: list[str | None] = []
        self.downloaded: set[str] = set()
        monkeypatch.setattr("huggingface_hub.snapshot_download", self._download)

    def _download(self, name: str, revision: str | None, allow_patterns: list[str]) -> str:
        self.calls.append(revision)
        wanted = {file for file in self._files if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns)}
        for file in wanted:
            path = self.snapshot / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._files[file])
        self.downloaded |= wanted
        return str(self.snapshot)


METADATA = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "merges.txt",
    "vocab.json",
    "qwen.tiktoken",
    "chat_template.jinja",
    "additional_chat_templates/tools.jinja",
    "adapter_config.json",
)
UNUSED = (
    "README.md",
    "pytorch_model.bin",
    "consolidated.safetensors",
    "model.fp16.safetensors",
    "onnx/config.json",
    "trainer_state.json",
)
INDEX = json.dumps(
    {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors", "c": "../outside.safetensors"}}
)


@pytest.mark.parametrize(
    ("stored", "weights"),
    [
        (["model.safetensors", "part-1.safetensors"], ["model.safetensors"]),
        (
            ["part-1.safetensors", "part-2.safetensors", "part-3.safetensors"],
            ["part-1.safetensors", "part-2.safetensors"],
        ),
    ],
    ids=["single", "shards"],
)
def test_only_files_that_are_read_are_downloaded(
    stored: list[str], weights: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: dict[str, Any] = dict.fromkeys([*METADATA, *UNUSED, *stored], "")
    repository = Repository(tmp_path, monkeypatch, files | {"model.safetensors.index.json": INDEX})
    metadata = {*METADATA, "model.safetensors.index.json"}

    assert resolve_checkpoint("acme/tiny", weights=False) == repository.snapshot
    assert repository.downloaded == metadata
    assert resolve_checkpoint("acme/tiny") == repository.snapshot
    assert repository.downloaded == metadata | set(weights)
    # The shards are those of the commit whose index was read.
    assert repository.calls == [None, None] + [COMMITS["main"]] * (weights != ["model.safetensors"])


def test_gguf_file_that_is_a_link_keeps_its_name(tmp_path: Path) -> None:
    """The hub's cache links to files without a suffix, and the parts of a split model lie beside the link."""
    (tmp_path / "blob").write_bytes(b"GGUF")
    (tmp_path / "m-00001-of-00002.gguf").symlink_to(tmp_path / "blob")
    found = resolve_checkpoint(str(tmp_path / "m-00001-of-00002.gguf"))
    assert found == tmp_path.resolve() / "m-00001-of-00002.gguf"


# --- A directory or a GGUF file inside --------------------------------------------------------------------------------


def test_path_inside_a_local_directory(tmp_path: Path) -> None:
    (tmp_path / "step-10").mkdir()
    (tmp_path / "step-10" / "m.gguf").write_bytes(b"GGUF")

    assert resolve_checkpoint(str(tmp_path), inside="step-10") == tmp_path.resolve() / "step-10"
    assert resolve_checkpoint(str(tmp_path), inside="step-10/m.gguf") == tmp_path.resolve() / "step-10" / "m.gguf"


@pytest.mark.parametrize("inside", ["/etc", "../other", "a/../../other", "", "."])
def test_path_inside_that_leaves_its_directory_is_refused(tmp_path: Path, inside: str) -> None:
    with pytest.raises(UsageError, match="must be a relative path without"):
        resolve_checkpoint(str(tmp_path), inside=inside)


def test_missing_path_inside_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"there is no other \(subfolder= or gguf_file= in model_args\) in"):
        resolve_checkpoint(str(tmp_path), inside="other")
    with pytest.raises(UsageError, match=r"there is no m\.gguf"):
        resolve_checkpoint(str(tmp_path / "m.gguf"), inside="m.gguf")
    with pytest.raises(UsageError, match="cannot be used with the built-in model 'demo'"):
        resolve_checkpoint("demo", inside="other")


def test_path_inside_stays_within_the_checkpoint_policy(tmp_path: Path) -> None:
    allowed, other = tmp_path / "allowed", tmp_path / "other"
    for folder in (allowed / "model" / "best", other / "best"):
        folder.mkdir(parents=True)
    policy = CheckpointPolicy.limited([allowed], hub=False)

    assert resolve_checkpoint("model", inside="best", policy=policy) == allowed.resolve() / "model" / "best"
    with pytest.raises(UnknownModelTag):
        resolve_checkpoint(str(other), inside="best", policy=policy)


def test_only_the_files_of_a_subfolder_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = ["part-1.safetensors", "part-2.safetensors", "config.json", "tokenizer.json"]
    files = {**dict.fromkeys([*stored, *(f"v[2]/{name}" for name in stored)], ""), "model.safetensors": ""}
    files["v[2]/model.safetensors.index.json"] = INDEX
    repository = Repository(tmp_path, monkeypatch, files)

    assert resolve_checkpoint("acme/tiny", inside="v[2]") == repository.snapshot / "v[2]"
    assert repository.downloaded == {name for name in files if name.startswith("v[2]/")}


def test_only_the_parts_of_a_gguf_file_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"q4/m-00001-of-00002.gguf": "", "q4/m-00002-of-00002.gguf": ""}
    repository = Repository(tmp_path, monkeypatch, {**parts, "q8/m.gguf": "", "config.json": "", "q4/README.md": ""})

    found = resolve_checkpoint("acme/tiny", inside="q4/m-00001-of-00002.gguf")

    assert found == repository.snapshot / "q4" / "m-00001-of-00002.gguf"
    assert repository.downloaded == parts.keys()
