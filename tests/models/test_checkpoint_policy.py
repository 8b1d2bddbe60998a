"""A model tag can name only what the checkpoint policy of the worker allows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from birdie_zmq.errors import UnknownModelTag
from birdie_zmq.models.checkpoint_policy import CheckpointPolicy, set_process_policy
from birdie_zmq.models.resolution import BUILT_IN, resolve_checkpoint


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Make an allowed folder, others that are not allowed, and links between them."""
    for name in ("open/llama", "open/deep/qwen", "secret/mine", "openly/other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "open" / "tiny.gguf").write_bytes(b"GGUF")
    (tmp_path / "open" / "linked").symlink_to(tmp_path / "secret" / "mine")
    return tmp_path


@pytest.fixture
def policy(machine: Path) -> CheckpointPolicy:
    return CheckpointPolicy.limited([machine / "open"], hub=False)


@pytest.mark.parametrize(
    ("tag", "found"),
    [
        ("llama", "open/llama"),
        ("deep/qwen", "open/deep/qwen"),
        ("./llama/../llama/", "open/llama"),
        ("tiny.gguf", "open/tiny.gguf"),
        ("{}/open/llama", "open/llama"),
        ("{}/secret/../open/llama", "open/llama"),
        ("{}/open", "open"),
        ("linked", "secret/mine"),  # a link in an allowed folder is followed
    ],
)
def test_checkpoints_in_an_allowed_folder_are_found(
    machine: Path, policy: CheckpointPolicy, tag: str, found: str
) -> None:
    assert resolve_checkpoint(tag.format(machine), policy=policy) == (machine / found).resolve()


@pytest.mark.parametrize(
    "tag",
    [
        "{}/secret/mine",
        "{}/openly/other",
        "{}/open/../secret/mine",
        "../secret/mine",
        "linked/../mine",  # the file system would resolve this to secret/mine
        "{}",
        "/",
        "~",
        "~nobody-of-this-name",
        "organisation/name",
        "",
    ],
)
def test_paths_outside_the_policy_are_refused_without_disclosing_whether_they_exist(
    machine: Path, policy: CheckpointPolicy, tag: str
) -> None:
    tag = tag.format(machine)
    with pytest.raises(UnknownModelTag) as existing:
        resolve_checkpoint(tag, policy=policy)
    with pytest.raises(UnknownModelTag) as missing:
        resolve_checkpoint(f"{tag}-missing", policy=policy)
    assert str(missing.value) == str(existing.value).replace(repr(tag), repr(f"{tag}-missing"))
    assert f"in {machine}/open on the worker's machine" in str(existing.value)
    assert "Hugging Face" not in str(existing.value)


def test_policy_without_folders_allows_only_the_demo(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(machine)
    demo_only = CheckpointPolicy.limited([], hub=False)
    assert resolve_checkpoint("demo", policy=demo_only) == BUILT_IN["demo"]
    with pytest.raises(UnknownModelTag, match=r"It may be demo\. The options --checkpoints"):
        resolve_checkpoint("open/llama", policy=demo_only)


def test_checkpoint_in_the_second_folder_is_found(machine: Path) -> None:
    both = CheckpointPolicy.limited([machine / "open", machine / "openly"], hub=False)
    assert resolve_checkpoint("other", policy=both) == machine / "openly" / "other"


def test_policy_of_the_process_applies_to_all_its_threads(machine: Path, policy: CheckpointPolicy) -> None:
    secret = machine / "secret" / "mine"
    assert resolve_checkpoint(str(secret)) == secret
    set_process_policy(policy)
    try:
        with pytest.raises(UnknownModelTag):
            resolve_checkpoint(str(secret))
        with ThreadPoolExecutor(1) as threads, pytest.raises(UnknownModelTag):
            threads.submit(resolve_checkpoint, str(secret)).result()
    finally:
        set_process_policy(CheckpointPolicy())
