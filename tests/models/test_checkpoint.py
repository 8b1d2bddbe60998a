"""The parts of a model: its checkpoint, its adapter and its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from birdie_zmq.errors import ModelLoadError, UnknownModelTag, UsageError
from birdie_zmq.models.checkpoint import Checkpoint, resolve_model
from birdie_zmq.models.checkpoint_policy import CheckpointPolicy
from birdie_zmq.models.resolution import BUILT_IN

pytestmark = pytest.mark.usefixtures("hub")


def write_adapter(directory: Path, base: object, *names: str) -> Path:
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
    assert resolve_model("demo") == Checkpoint(BUILT_IN["demo"], None, BUILT_IN["demo"])


def test_weights_beside_an_adapter_are_its_base_model(base: Path, tmp_path: Path) -> None:
    """As transformers has it, whatever base model the adapter names."""
    for number, named in enumerate((str(base), "acme/none", None)):
        found = write_adapter(tmp_path / str(number), named, "config.json", "model.safetensors")
        assert resolve_model(str(found)) == Checkpoint(found, found, found)


@pytest.mark.parametrize("names", [(), ("config.json",), ("model.safetensors",)])
def test_adapter_alone_has_the_base_model_that_it_names(names: tuple[str, ...], base: Path, tmp_path: Path) -> None:
    found = write_adapter(tmp_path / "adapter", str(base), *names)
    assert resolve_model(str(found)) == Checkpoint(base, found, base)
    names_of_files = [file.path for file in resolve_model(str(found)).files()]
    assert names_of_files == [base / "config.json", base / "model.safetensors", found / "adapter_config.json"]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "tokenizer.model"])
def test_tokenizer_of_an_adapter_comes_before_that_of_its_base_model(name: str, base: Path, tmp_path: Path) -> None:
    found = write_adapter(tmp_path / "adapter", str(base), name)
    assert resolve_model(str(found)) == Checkpoint(base, found, found)


def test_relative_base_model_is_relative_to_the_current_directory(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_model(str(write_adapter(tmp_path / "adapter", "base"))).path == base


def test_base_model_of_the_hub_is_resolved_in_the_revision_that_the_adapter_names(
    cached: dict[str, Path], tmp_path: Path
) -> None:
    found = write_adapter(tmp_path / "adapter", "acme/tiny")
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
    write_adapter(cached["main"], str(base))
    assert resolve_model("acme/tiny") == Checkpoint(base, cached["main"], base)


@pytest.mark.parametrize("named", ["acme/none", "none_such", "/no/such/base"])
def test_unknown_base_model_is_refused_with_its_name(named: str, tmp_path: Path) -> None:
    found = write_adapter(tmp_path / "adapter", named)
    with pytest.raises(
        UnknownModelTag, match=f"(?s)the adapter {found} is for the base model '{named}'.*peft="
    ) as caught:
        resolve_model(str(found))
    assert "cannot be loaded" in str(caught.value)


def test_base_model_that_the_policy_forbids_is_refused_with_its_name(base: Path, tmp_path: Path) -> None:
    found = write_adapter(tmp_path / "adapter", str(base))
    policy = CheckpointPolicy.limited([found], hub=False)
    with pytest.raises(UnknownModelTag, match=f"is for the base model '{base}'"):
        resolve_model(str(found), policy=policy)
    assert resolve_model(str(found), policy=CheckpointPolicy.limited([tmp_path], hub=False)).path == base


@pytest.mark.parametrize("named", [None, "", 7])
def test_adapter_without_a_base_model_is_refused(named: object, tmp_path: Path) -> None:
    found = write_adapter(tmp_path / "adapter", named)
    with pytest.raises(ModelLoadError, match=f"the adapter {found} names no base model"):
        resolve_model(str(found))


def test_damaged_config_of_an_adapter_is_refused_with_its_name(tmp_path: Path) -> None:
    (write_adapter(tmp_path / "adapter", "x") / "adapter_config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"adapter_config\.json is not valid JSON"):
        resolve_model(str(tmp_path / "adapter"))


def test_adapter_of_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    inner = write_adapter(tmp_path / "inner", str(base), "config.json", "model.safetensors")
    with pytest.raises(ModelLoadError, match="which has an adapter itself"):
        resolve_model(str(write_adapter(tmp_path / "outer", str(inner))))


def test_peft_names_the_adapter_of_a_model(base: Path, tmp_path: Path) -> None:
    found = write_adapter(tmp_path / "adapter", "acme/another", "tokenizer.json")
    assert resolve_model(str(base), peft=str(found)) == Checkpoint(base, found, base)


def test_peft_without_an_adapter_or_beside_another_is_refused(base: Path, tmp_path: Path) -> None:
    found = write_adapter(tmp_path / "adapter", str(base))
    with pytest.raises(UsageError, match=r"names no adapter: .* has no adapter_config\.json"):
        resolve_model(str(base), peft=str(base))
    with pytest.raises(UsageError, match="has another one"):
        resolve_model(str(found), peft=str(found))
    with pytest.raises(UnknownModelTag, match="none_such"):
        resolve_model(str(base), peft="none_such")
    with pytest.raises(UnknownModelTag):
        resolve_model(str(base), peft=str(found), policy=CheckpointPolicy.limited([base], hub=False))
