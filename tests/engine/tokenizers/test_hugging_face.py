"""Tokenizers of Hugging Face: the ids of transformers at the speed of its Rust library, and no stored truncation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.engine.tokenizers.hugging_face import TransformersEncoder, encode_batch

BOS, EOS, PAD = 256, 257, 258
TEXTS = ["", " ", "one two three", "a<s>b</s>", "Zwei Sätze.\n\n日本語", "<pad>" * 3, "x" * 400]


def byte_level() -> Tokenizer:
    """Return a byte-level tokenizer with three special tokens, which adds BOS by its post-processor."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in ("<s>", "</s>", "<pad>")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return tokenizer


def of_transformers(kind: type = transformers.PreTrainedTokenizerFast, **settings: Any) -> Any:
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return kind(tokenizer_object=byte_level(), **names, **settings)


# --- tokenizers.Tokenizer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["truncation", "padding", "both"])
def test_stored_truncation_and_padding_do_not_change_the_ids(stored: str) -> None:
    plain = TokenizerAdapter(byte_level()).encode(TEXTS)
    tokenizer = byte_level()
    if stored != "padding":
        tokenizer.enable_truncation(max_length=3, stride=1, direction="left")
    if stored != "truncation":
        tokenizer.enable_padding(pad_id=PAD, pad_token="<pad>", length=1000, direction="left")

    assert TokenizerAdapter(tokenizer).encode(TEXTS) == plain
    assert [len(ids) for ids in plain] == [0, 1, 13, 4, 23, 3, 400]


def test_truncation_and_padding_are_restored_for_the_users_own_batches() -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(max_length=3, stride=1, strategy="only_first", direction="left")
    tokenizer.enable_padding(pad_id=PAD, pad_token="<pad>", pad_to_multiple_of=4, direction="left")
    before = tokenizer.truncation, tokenizer.padding
    adapter = TokenizerAdapter(tokenizer)

    adapter.encode(["one two three"])
    tokenizer.enable_truncation(max_length=2)
    again = adapter.encode(["one two three"])

    assert len(again[0]) == 13
    assert (tokenizer.truncation or {})["max_length"] == 2
    assert tokenizer.padding == before[1]
    assert before[0] == {"max_length": 3, "stride": 1, "strategy": "only_first", "direction": "left"}


def test_text_that_spells_a_special_token_is_that_token() -> None:
    adapter = TokenizerAdapter(byte_level())

    assert adapter.encode(["</s>"]) == [[EOS]]
    assert adapter.encode_token("</s>") == [EOS]


@pytest.mark.parametrize("make", [byte_level, of_transformers])
def test_ids_beyond_the_tokenizer_decode_to_no_text(make: Any) -> None:
    adapter = TokenizerAdapter(make())
    ids = adapter.encode(["one"], special=False)[0]

    assert adapter.decode([5000, *ids, 300, 259]) == "one"
    assert adapter.decode([5000], skip_special=False) == ""


def test_encode_batch_serves_a_library_without_encode_batch_fast() -> None:
    class Older:
        def __init__(self, tokenizer: Tokenizer) -> None:
            self._tokenizer = tokenizer

        def encode_batch(self, texts: list[str], add_special_tokens: bool) -> Any:
            return self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)

    for add_special in (True, False):
        expected = encode_batch(byte_level(), TEXTS, add_special=add_special)
        assert encode_batch(Older(byte_level()), TEXTS, add_special=add_special) == expected


# --- transformers -----------------------------------------------------------------------------------------------------


def check_same_as_call(tokenizer: Any, encoder: TransformersEncoder) -> None:
    for texts in (TEXTS, TEXTS[:1], ["<s>one"]):
        assert list(encoder.encode(texts)) == tokenizer(texts)["input_ids"]
        assert list(encoder.encode(texts, add_special=False)) == tokenizer(texts, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"split_special_tokens": True},
        {"add_bos_token": False},
        {"add_eos_token": True},
        {"padding_side": "left", "truncation_side": "left", "model_max_length": 4},
    ],
)
def test_the_ids_are_those_of_a_call(settings: dict[str, Any]) -> None:
    tokenizer = of_transformers(**settings)
    encoder = TransformersEncoder(tokenizer)

    assert encoder.backend is tokenizer.backend_tokenizer
    check_same_as_call(tokenizer, encoder)


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "LlamaTokenizer", "Qwen2Tokenizer", "GemmaTokenizer"])
def test_the_classes_of_model_families_are_encoded_in_rust(kind: str) -> None:
    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    special = {"<s>": 256, "</s>": 257, "<unk>": 258, "<|endoftext|>": 259, "<pad>": 260, "<eos>": 261, "<bos>": 262}
    tokenizer = getattr(transformers, kind)(vocab=vocabulary | special, merges=[])
    encoder = TransformersEncoder(tokenizer)

    assert encoder.backend is tokenizer.backend_tokenizer
    check_same_as_call(tokenizer, encoder)


def test_truncation_and_padding_of_an_earlier_call_do_not_change_the_ids() -> None:
    tokenizer = of_transformers()
    expected = tokenizer(TEXTS)["input_ids"]
    adapter = TokenizerAdapter(tokenizer)
    tokenizer(TEXTS, padding=True, truncation=True, max_length=2)
    assert tokenizer.backend_tokenizer.truncation is not None

    assert adapter.encode(TEXTS) == expected


def test_a_setting_that_changes_later_is_followed() -> None:
    tokenizer = of_transformers()
    encoder = TransformersEncoder(tokenizer)
    tokenizer.split_special_tokens = True
    tokenizer.add_bos_token = False

    check_same_as_call(tokenizer, encoder)
    assert encoder.encode(["<s>"]) != [[BOS]]


class OwnCall(transformers.PreTrainedTokenizerFast):
    """A tokenizer whose call returns other ids."""

    def __call__(self, text: Any, **keywords: Any) -> Any:
        return {"input_ids": [[7]] * len(text)}


class OwnEncodePlus(transformers.PreTrainedTokenizerFast):
    """A tokenizer that changes texts before they are encoded, as CodeLlamaTokenizer does."""

    def _encode_plus(self, *arguments: Any, **keywords: Any) -> Any:
        keywords["text"] = [text.upper() for text in keywords["text"]]
        return super()._encode_plus(*arguments, **keywords)


class OwnLanguage(transformers.PreTrainedTokenizerFast):
    """A tokenizer that sets its special tokens before each call, as those of translation models do."""

    def _switch_to_input_mode(self) -> None:
        self.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", EOS)]
        )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(OwnCall, [7]), (OwnEncodePlus, [BOS, 32, 33]), (OwnLanguage, [64, 65, EOS])],
)
def test_a_class_with_its_own_encoding_is_called(kind: type, expected: Sequence[int]) -> None:
    encoder = TransformersEncoder(of_transformers(kind))

    assert encoder.backend is None
    assert list(encoder.encode(["ab"])) == [expected]


def test_a_call_that_is_replaced_on_the_object_is_called() -> None:
    tokenizer = of_transformers()
    tokenizer._encode_plus = lambda text, **keywords: {"input_ids": [[8]] * len(text)}

    assert TransformersEncoder(tokenizer).encode(["ab"]) == [[8]]


def test_probe_texts_with_other_ids_let_the_tokenizer_be_called(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = of_transformers()
    monkeypatch.setattr(type(tokenizer), "split_special_tokens", False, raising=False)
    original = type(tokenizer)._encode_plus

    def other(self: Any, text: Any, **keywords: Any) -> Any:
        return original(self, [one + "!" for one in text], **keywords)

    other.__module__ = original.__module__
    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "_encode_plus", other)
    encoder = TransformersEncoder(tokenizer)

    assert encoder.backend is None
    check_same_as_call(tokenizer, encoder)


def test_the_single_id_that_transformers_returns_for_eos_token_ids_is_taken() -> None:
    adapter = TokenizerAdapter(of_transformers())

    assert adapter.eos_token_ids == {EOS}
    assert (adapter.bos_token_id, adapter.eos_token_id) == (BOS, EOS)


def test_chat_templates_get_the_special_tokens_of_other_names() -> None:
    adapter = TokenizerAdapter(of_transformers(extra_special_tokens={"image_token": "<image>"}))

    assert adapter.chat_templates().special_tokens["image_token"] == "<image>"
