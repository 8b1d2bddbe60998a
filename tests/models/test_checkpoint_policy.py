"""What a worker offers is all that a tag can name."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from birdie_zmq.cli.worker import _offer
from birdie_zmq.errors import UnknownModelTag, UsageError
from birdie_zmq.models.checkpoint_policy import VARIABLE, CheckpointPolicy
from birdie_zmq.models.resolution import BUILT_IN, locate


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder that is offered, one that is not, and links between them."""
    for name in ("open/llama", "open/deep/qwen", "secret/mine", "openly/other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "open" / "tiny.gguf").write_bytes(b"GGUF")
    (tmp_path / "open" / "linked").symlink_to(tmp_path / "secret" / "mine")
    return tmp_path


@pytest.fixture
def offer(machine: Path) -> CheckpointPolicy:
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
        ("linked", "secret/mine"),  # whoever offers the folder has put it there
    ],
)
def test_what_lies_in_an_offered_folder_is_found(machine: Path, offer: CheckpointPolicy, tag: str, found: str) -> None:
    assert locate(tag.format(machine), offer=offer) == (machine / found).resolve()


@pytest.mark.parametrize(
    "tag",
    [
        "{}/secret/mine",
        "{}/openly/other",
        "{}/open/../secret/mine",
        "../secret/mine",
        "linked/../mine",  # for the file system this is secret/mine
        "{}",
        "/",
        "~",
        "~nobody-of-this-name",
        "organisation/name",
        "",
    ],
)
def test_nothing_else_is_found_nor_said_to_be_there(machine: Path, offer: CheckpointPolicy, tag: str) -> None:
    tag = tag.format(machine)
    with pytest.raises(UnknownModelTag) as there:
        locate(tag, offer=offer)
    with pytest.raises(UnknownModelTag) as nowhere:
        locate(f"{tag}-that-is-not-there", offer=offer)
    assert str(nowhere.value) == str(there.value).replace(repr(tag), repr(f"{tag}-that-is-not-there"))
    assert f"in {machine}/open on the worker's machine" in str(there.value)
    assert "Hugging Face" not in str(there.value)


def test_an_offer_of_no_folder_is_the_demo(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(machine)
    nothing = CheckpointPolicy.limited([], hub=False)
    assert locate("demo", offer=nothing) == BUILT_IN["demo"]
    with pytest.raises(UnknownModelTag, match=r"It may be demo\. Whoever starts the worker"):
        locate("open/llama", offer=nothing)


def test_the_second_folder_has_what_the_first_has_not(machine: Path) -> None:
    both = CheckpointPolicy.limited([machine / "open", machine / "openly"], hub=False)
    assert locate("other", offer=both) == machine / "openly" / "other"


def test_an_offer_passes_through_the_environment(
    machine: Path, offer: CheckpointPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CheckpointPolicy.of(offer.as_variable()) == offer
    assert CheckpointPolicy.of(CheckpointPolicy().as_variable()) == CheckpointPolicy()
    monkeypatch.setenv(VARIABLE, offer.as_variable()[VARIABLE])
    with pytest.raises(UnknownModelTag):
        locate(str(machine / "secret" / "mine"))


def options(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"checkpoints": None, "key_file": None, "hub": False, **given})


def test_a_worker_with_a_key_offers_the_demo_alone_until_it_says_more(machine: Path) -> None:
    assert _offer(options()) == CheckpointPolicy()
    assert _offer(options(key_file=Path("k"))) == CheckpointPolicy((), hub=False)
    assert _offer(options(key_file=Path("k"), hub=True)) == CheckpointPolicy((), hub=True)
    said = _offer(options(key_file=Path("k"), checkpoints=[machine / "open"]))
    assert said == CheckpointPolicy((machine / "open",), hub=False)


def test_options_that_mean_nothing_are_refused(machine: Path) -> None:
    with pytest.raises(UsageError, match="--hub adds to --checkpoints"):
        _offer(options(hub=True))
    with pytest.raises(UsageError, match="there is no folder at"):
        _offer(options(checkpoints=[machine / "none"]))
