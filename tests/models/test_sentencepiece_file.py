"""``tokenizer=FILE.model``: a SentencePiece file without a directory of Hugging Face around it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import TokenizerError, UnknownModelTag
from birdie_zmq.models import load_tokenizer
from birdie_zmq.models.checkpoint_policy import CheckpointPolicy, process_policy, set_process_policy


def train(path: Path, **settings: Any) -> Path:
    """Train a small model, and return its file."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the capital of France is Paris", "two and two is four"] * 20),
        model_writer=model,
        vocab_size=300,
        model_type="bpe",
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
        **settings,
    )
    path.write_bytes(model.getvalue())
    return path


def test_bos_is_added_as_the_arguments_say(tmp_path: Path) -> None:
    path = train(tmp_path / "tokenizer.model")
    default = TokenizerAdapter(load_tokenizer("demo", tokenizer=str(path)))
    bare = TokenizerAdapter(load_tokenizer("demo", tokenizer=str(path), add_bos_token=False))
    (ids,) = default.encode(["the capital"], special=True)
    assert ids[0] == default.bos_token_id == 1
    assert list(ids[1:]) == list(bare.encode(["the capital"], special=True)[0])
    assert default.decode(list(ids[1:])) == "the capital"
    assert default.fingerprint != bare.fingerprint
    assert default.checkpoint_fingerprint is not None


def test_other_content_is_another_tokenizer(tmp_path: Path) -> None:
    first, second = (train(tmp_path / f"{name}.model", control_symbols=f"<{name}>") for name in ("first", "second"))
    one, other = (load_tokenizer("demo", tokenizer=str(path)).fingerprint for path in (first, second))
    assert one != other


def test_a_file_without_bos_adds_none(tmp_path: Path) -> None:
    path = train(tmp_path / "t5.model", bos_id=-1)
    adapter = TokenizerAdapter(load_tokenizer("demo", tokenizer=str(path)))
    assert adapter.bos_token_id is None
    with pytest.raises(TokenizerError, match=r"t5\.model has no BOS, so add_bos_token=True"):
        load_tokenizer("demo", tokenizer=str(path), add_bos_token=True)


def test_a_damaged_or_missing_file_is_an_error(tmp_path: Path) -> None:
    damaged = tmp_path / "tokenizer.model"
    damaged.write_bytes(b"not a model")
    with pytest.raises(TokenizerError, match=r"tokenizer\.model is not a complete SentencePiece file"):
        load_tokenizer("demo", tokenizer=str(damaged))
    with pytest.raises(UnknownModelTag, match="there is no SentencePiece file"):
        load_tokenizer("demo", tokenizer=str(tmp_path / "other.model"))


def test_the_checkpoint_policy_holds(tmp_path: Path) -> None:
    (tmp_path / "allowed").mkdir()
    inside, outside = train(tmp_path / "allowed" / "in.model"), train(tmp_path / "out.model")
    policy = process_policy()
    set_process_policy(CheckpointPolicy.limited([tmp_path / "allowed"], hub=False))
    try:
        assert load_tokenizer("demo", tokenizer=inside.name).bos_id() == 1
        with pytest.raises(UnknownModelTag, match="do not allow it"):
            load_tokenizer("demo", tokenizer=str(outside))
    finally:
        set_process_policy(policy)
