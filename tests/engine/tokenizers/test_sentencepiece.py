"""A real ``SentencePieceProcessor`` of a small model that is trained here."""

from __future__ import annotations

import io
from typing import Any

import pytest
import sentencepiece

from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import TokenizerError

UNK, BOS, EOS = 0, 1, 2
TEXTS = ["the capital of France is Paris", "once upon a time there was a king", "two and two is four"]


def train(**settings: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=model,
        vocab_size=320,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def model() -> bytes:
    return train(byte_fallback=True, control_symbols="<call>", user_defined_symbols="<think>")


def processor(model: bytes, **settings: Any) -> Any:
    return sentencepiece.SentencePieceProcessor(model_proto=model, **settings)


def test_texts_are_encoded_without_bos_and_eos(model: bytes) -> None:
    given = processor(model)
    adapter = TokenizerAdapter(given)

    encoded = adapter.encode(["the capital", "", "日"])

    assert encoded == [given.encode("the capital"), [], given.encode("日")]
    assert not {BOS, EOS} & {id for ids in encoded for id in ids}
    assert [adapter.decode(ids) for ids in encoded] == ["the capital", "", "日"]


def test_bos_and_eos_are_those_of_the_processor(model: bytes) -> None:
    adapter = TokenizerAdapter(processor(model))

    assert (adapter.bos_token_id, adapter.eos_token_id, adapter.prefix_token_id) == (BOS, EOS, BOS)
    assert adapter.eos_token_ids == {EOS}


def test_bos_is_added_with_add_bos(model: bytes) -> None:
    plain = processor(model).encode("a king")
    adapter = TokenizerAdapter(processor(model), add_bos=True)

    assert adapter.encode(["a king"]) == [[BOS, *plain]]
    assert adapter.encode(["a king"], special=False) == [plain]


@pytest.mark.parametrize(("add_bos", "first"), [(None, [BOS]), (True, [BOS]), (False, [])])
def test_a_processor_that_adds_bos_does_so_for_whole_texts_only(
    model: bytes, add_bos: bool | None, first: list[int]
) -> None:
    plain = processor(model).encode("a king")
    adapter = TokenizerAdapter(
        processor(model, add_bos=True, add_eos=True, reverse=True, enable_sampling=True, alpha=0.9, nbest_size=-1),
        add_bos=add_bos,
    )

    assert adapter.encode(["a king"]) == [[*first, *plain]]
    assert adapter.encode(["a king"], special=False) == [plain]


def test_out_type_of_the_processor_does_not_matter(model: bytes) -> None:
    assert TokenizerAdapter(processor(model, out_type=str)).encode(["a king"]) == [processor(model).encode("a king")]


def test_text_that_spells_a_control_symbol_is_ordinary_text(model: bytes) -> None:
    given = processor(model)
    adapter = TokenizerAdapter(given)

    (ids,) = adapter.encode(["a <s> king </s>"])

    assert not {BOS, EOS} & set(ids)
    assert adapter.decode(ids) == "a <s> king </s>"
    assert adapter.encode_token("</s>") == [EOS]
    assert adapter.encode_token("<call>") == [given.piece_to_id("<call>")]
    assert given.piece_to_id("<think>") in adapter.encode(["a <think> king"])[0]


@pytest.mark.parametrize("beyond", [400, 5000, 2**31 - 1])
def test_ids_that_the_processor_does_not_have_decode_to_no_text(model: bytes, beyond: int) -> None:
    given = processor(model)
    adapter = TokenizerAdapter(given)
    ids = given.encode("a king")

    assert adapter.decode([beyond, *ids, beyond]) == "a king"
    assert adapter.decode([beyond], skip_special=False) == ""


def test_special_tokens_are_left_out_of_the_text(model: bytes) -> None:
    adapter = TokenizerAdapter(processor(model))
    ids = processor(model).encode("a king")

    assert adapter.decode([BOS, *ids, UNK, EOS]) == "a king"


def test_a_model_without_bos_and_eos_is_rejected_with_the_attribute_to_set() -> None:
    bare = train(bos_id=-1, eos_id=-1)

    with pytest.raises(TokenizerError, match=r"SentencePieceProcessor has neither .* set tokenizer.eos_token_id = N"):
        TokenizerAdapter(processor(bare))
    named = processor(bare)
    named.eos_token_id = 5
    assert TokenizerAdapter(named).prefix_token_id == 5
