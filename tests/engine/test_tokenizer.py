"""The adapter for the three kinds of tokenizer, and the rejection of anything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import TokenizerError
from birdie_zmq.types import ChatTemplates

VOCABULARY = {"<s>": 0, "</s>": 1, "one": 2, "two": 3, "three": 4, "<unk>": 5}
BOS, EOS = VOCABULARY["<s>"], VOCABULARY["</s>"]


def ids_of(text: str) -> list[int]:
    return [VOCABULARY.get(word, VOCABULARY["<unk>"]) for word in text.split()]


def text_of(ids: Sequence[int], skip_special: bool = False) -> str:
    return " ".join(list(VOCABULARY)[i] for i in ids if not (skip_special and i in (BOS, EOS)))


class Words:
    """A plain tokenizer: ``encode`` takes one string."""

    bos_token_id: Any = BOS
    eos_token_id: Any = EOS

    def encode(self, text: Any) -> Any:
        return ids_of(text)

    def decode(self, ids: Any) -> Any:
        return text_of(ids)


class ManyWords(Words):
    """A plain tokenizer whose ``encode`` takes a list of strings only."""

    def encode(self, text: Any) -> Any:
        return [ids_of(one) for one in text]


class OneOrManyWords(Words):
    """A plain tokenizer whose ``encode`` takes either."""

    def encode(self, text: Any) -> Any:
        return ids_of(text) if isinstance(text, str) else [ids_of(one) for one in text]


class TransformersWords:
    """The part of a transformers tokenizer that is used: it is called with texts, and adds BOS by default."""

    bos_token_id = BOS
    eos_token_id = EOS
    bos_token = "<s>"
    eos_token = "</s>"
    pad_token = None
    all_special_ids = (BOS, EOS)
    model_max_length: Any = int(1e30)

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        return {"input_ids": [[BOS] * add_special_tokens + ids_of(text) for text in texts]}

    def encode(self, text: str) -> list[int]:
        raise AssertionError("a transformers tokenizer encodes many texts at once when it is called")

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return text_of(ids, skip_special_tokens)


def library_tokenizer() -> Tokenizer:
    """Return a tokenizers.Tokenizer that would add BOS and EOS by default."""
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)])
    return tokenizer


KINDS: list[Callable[[], Any]] = [Words, ManyWords, OneOrManyWords, TransformersWords, library_tokenizer]
every_kind = pytest.mark.parametrize("make", KINDS)
kinds_without_default_bos = pytest.mark.parametrize("make", [Words, OneOrManyWords, library_tokenizer])


# --- Encoding ---------------------------------------------------------------------------------------------------------


@every_kind
def test_texts_are_encoded_one_list_each(make: Callable[[], Any]) -> None:
    tokenizer = TokenizerAdapter(make(), add_bos=False)

    assert tokenizer.encode(["one two", "", "three"]) == [[2, 3], [], [4]]


@kinds_without_default_bos
def test_bos_is_not_added_by_default(make: Callable[[], Any]) -> None:
    assert TokenizerAdapter(make()).encode(["one"]) == [[2]]


def test_a_transformers_tokenizer_keeps_its_default_for_bos() -> None:
    tokenizer = TokenizerAdapter(TransformersWords())

    assert tokenizer.encode(["one"]) == [[BOS, 2]]
    assert tokenizer.encode(["one"], special=False) == [[2]]


@every_kind
def test_bos_is_added_once_with_add_bos(make: Callable[[], Any]) -> None:
    tokenizer = TokenizerAdapter(make(), add_bos=True)

    assert tokenizer.encode(["one", "<s> one", ""]) == [[BOS, 2], [BOS, 2], [BOS]]
    assert tokenizer.encode(["one", "<s> one"], special=False) == [[2], [BOS, 2]]


def test_a_text_with_bos_gets_no_second_one_from_a_transformers_tokenizer() -> None:
    assert TokenizerAdapter(TransformersWords()).encode(["<s> one"]) == [[BOS, 2]]


def test_a_text_with_bos_twice_keeps_both_without_add_bos() -> None:
    assert TokenizerAdapter(Words(), add_bos=False).encode(["<s> <s> one"]) == [[BOS, BOS, 2]]


@every_kind
def test_no_texts_encode_to_no_lists(make: Callable[[], Any]) -> None:
    assert TokenizerAdapter(make()).encode([]) == []


@pytest.mark.parametrize("form", [tuple, np.array, lambda ids: np.array(ids, dtype=np.int32)])
def test_ids_may_be_tuples_and_arrays(form: Callable[[list[int]], Any]) -> None:
    class Other(Words):
        def encode(self, text: Any) -> Any:
            return form(ids_of(text))

    encoded = TokenizerAdapter(Other()).encode(["one two"])

    assert encoded == [[2, 3]]
    assert type(encoded[0][0]) is int


def test_an_encode_that_treats_a_list_as_one_text_is_called_with_strings() -> None:
    class Lengths(Words):
        def encode(self, text: Any) -> Any:
            return [len(part) for part in text]

    assert TokenizerAdapter(Lengths()).encode(["one", "a"]) == [[1, 1, 1], [1]]


def test_an_encode_that_takes_lists_is_called_with_all_texts_at_once() -> None:
    calls: list[object] = []

    class Recorded(OneOrManyWords):
        def encode(self, text: Any) -> Any:
            calls.append(text)
            return super().encode(text)

    TokenizerAdapter(Recorded()).encode(["one", "two", "three"])

    assert calls[-1] == ["one", "two", "three"]


# --- Decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [TransformersWords, library_tokenizer])
def test_special_tokens_are_skipped_unless_requested(make: Callable[[], Any]) -> None:
    tokenizer = TokenizerAdapter(make())

    assert tokenizer.decode([BOS, 2, EOS]) == "one"
    assert tokenizer.decode([BOS, 2, EOS], skip_special=False) == "<s> one </s>"


def test_a_plain_decode_with_skip_special_tokens_is_called_with_it() -> None:
    class Skipping(Words):
        def decode(self, ids: Any, skip_special_tokens: bool = False) -> Any:
            return text_of(ids, skip_special_tokens)

    tokenizer = TokenizerAdapter(Skipping())

    assert tokenizer.decode([2, EOS]) == "one"
    assert tokenizer.decode([2, EOS], skip_special=False) == "one </s>"


def test_a_plain_decode_without_skip_special_tokens_is_called_without_it() -> None:
    assert TokenizerAdapter(Words()).decode([2, EOS]) == "one </s>"


# --- Special tokens and length ----------------------------------------------------------------------------------------


def test_the_special_tokens_of_a_library_tokenizer_are_found_by_their_usual_names() -> None:
    tokenizer = TokenizerAdapter(library_tokenizer())

    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (BOS, EOS)


@pytest.mark.parametrize(
    ("bos", "eos", "prefix"), [(BOS, EOS, BOS), (None, EOS, EOS), (0, None, 0), (np.int64(3), EOS, 3)]
)
def test_the_prefix_token_is_bos_or_else_eos(bos: Any, eos: Any, prefix: int) -> None:
    class Named(Words):
        bos_token_id = bos
        eos_token_id = eos

    assert TokenizerAdapter(Named()).prefix_token_id == prefix


@pytest.mark.parametrize(
    ("named", "length"), [(2048, 2048), (512.0, 512), (int(1e30), None), (1e30, None), (None, None), (0, None)]
)
def test_max_length_is_model_max_length_if_it_is_a_real_length(named: object, length: int | None) -> None:
    tokenizer = TransformersWords()
    tokenizer.model_max_length = named

    assert TokenizerAdapter(tokenizer).max_length == length


def test_a_tokenizer_without_model_max_length_has_no_max_length() -> None:
    assert TokenizerAdapter(Words()).max_length is None


# --- Rejected tokenizers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["encode", "decode"])
def test_a_tokenizer_without_a_method_is_rejected_by_the_methods_name(missing: str) -> None:
    class Mute(Words):
        pass

    setattr(Mute, missing, None)

    with pytest.raises(TokenizerError, match=rf"returned a Mute without {missing}\(\)"):
        TokenizerAdapter(Mute())


def test_a_tokenizer_without_bos_and_eos_is_rejected() -> None:
    class Nameless(Words):
        bos_token_id = None
        eos_token_id = None

    with pytest.raises(TokenizerError, match="the Nameless has neither bos_token_id nor eos_token_id"):
        TokenizerAdapter(Nameless())


@pytest.mark.parametrize("value", ["<s>", True, -1, 1.0])
def test_a_special_token_that_is_not_an_id_is_rejected(value: object) -> None:
    class Misnamed(Words):
        bos_token_id = value

    with pytest.raises(TokenizerError, match=r"bos_token_id is .* not a token id"):
        TokenizerAdapter(Misnamed())


@pytest.mark.parametrize(
    "ids", [[0.5, 1.0], [2, -1], ["one"], "one", None, 7, [[2], [3]], [True], [2, None], [2**31], [2**70]]
)
def test_values_that_are_not_token_ids_are_rejected(ids: object) -> None:
    class Wrong(Words):
        def encode(self, text: Any) -> Any:
            return ids

    with pytest.raises(TokenizerError, match="list of token ids"):
        TokenizerAdapter(Wrong()).encode(["one"])


def test_an_encode_that_raises_is_reported_with_its_error_type() -> None:
    class Failing(Words):
        def encode(self, text: Any) -> Any:
            raise KeyError("merges")

    with pytest.raises(TokenizerError, match="failed to encode a text: KeyError") as caught:
        TokenizerAdapter(Failing()).encode(["one"])

    assert isinstance(caught.value.__cause__, KeyError)


def test_a_wrong_number_of_lists_is_rejected() -> None:
    class Short(TransformersWords):
        def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
            return super().__call__(texts[1:], add_special_tokens)

    with pytest.raises(TokenizerError, match="for each text, but returned 1 for 2"):
        TokenizerAdapter(Short()).encode(["one", "two"])


def test_a_decode_that_raises_is_reported_with_its_error_type() -> None:
    class Failing(Words):
        def decode(self, ids: Any) -> Any:
            raise RuntimeError("no table")

    with pytest.raises(TokenizerError, match="failed to decode 2 tokens: RuntimeError") as caught:
        TokenizerAdapter(Failing()).decode([2, 3])

    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_decode_that_returns_no_string_is_rejected() -> None:
    class Raw(Words):
        def decode(self, ids: Any) -> Any:
            return text_of(ids).encode()

    with pytest.raises(TokenizerError, match="decode returned a bytes, not a string"):
        TokenizerAdapter(Raw()).decode([2])


# --- Chat -------------------------------------------------------------------------------------------------------------


def test_a_template_text_is_the_default_template() -> None:
    class Chatty(TransformersWords):
        chat_template = "{{ messages }}"

    assert TokenizerAdapter(Chatty()).chat_templates() == ChatTemplates(
        templates={"default": "{{ messages }}"}, special_tokens={"bos_token": "<s>", "eos_token": "</s>"}
    )


def test_named_templates_keep_their_names() -> None:
    class Chatty(Words):
        chat_template = {"default": "a", "tool_use": "b", "broken": None}  # noqa: RUF012 - as transformers has it

    assert TokenizerAdapter(Chatty()).chat_templates().templates == {"default": "a", "tool_use": "b"}


def test_a_tokenizer_without_chat_has_no_templates() -> None:
    assert TokenizerAdapter(Words()).chat_templates() == ChatTemplates()


class Rendering(Words):
    """A tokenizer with a template method of its own."""

    def apply_chat_template(self, conversation: list[dict[str, str]], **keywords: Any) -> Any:
        return f"{conversation[0]['content']} {sorted(keywords.items())}"


@pytest.mark.parametrize("adds_prompt", [True, False])
def test_apply_chat_template_receives_how_the_prompt_ends(adds_prompt: bool) -> None:
    tokenizer = TokenizerAdapter(Rendering())

    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=adds_prompt)

    assert tokenizer.chat_templates().has_method
    assert text == (
        f"Hi [('add_generation_prompt', {adds_prompt}), ('continue_final_message', {not adds_prompt}), ('tokenize', False)]"
    )


def test_an_apply_chat_template_that_raises_is_reported_with_its_error_type() -> None:
    with pytest.raises(TokenizerError, match="apply_chat_template failed: IndexError"):
        TokenizerAdapter(Rendering()).apply_chat_template([], add_generation_prompt=True)


def test_an_apply_chat_template_that_returns_no_string_is_rejected() -> None:
    class Tokenizing(Words):
        def apply_chat_template(self, conversation: object, **keywords: object) -> object:
            return [1, 2, 3]

    with pytest.raises(TokenizerError, match="apply_chat_template returned a list, not a string"):
        TokenizerAdapter(Tokenizing()).apply_chat_template([], add_generation_prompt=True)


def test_a_conversation_without_template_and_method_is_rejected() -> None:
    with pytest.raises(TokenizerError, match="the Words has neither a chat_template nor an apply_chat_template"):
        TokenizerAdapter(Words()).apply_chat_template([], add_generation_prompt=True)


def test_prefix_token_id_overrides_the_prefix_token() -> None:
    assert TokenizerAdapter(Words(), prefix_token_id=3).prefix_token_id == 3
    assert TokenizerAdapter(Words(), prefix_token_id=0).prefix_token_id == 0


def test_prefix_token_id_needs_neither_bos_nor_eos() -> None:
    nameless = Words()
    nameless.bos_token_id = nameless.eos_token_id = None
    assert TokenizerAdapter(nameless, prefix_token_id=4).prefix_token_id == 4


def test_eos_token_ids_include_those_of_the_tokenizer() -> None:
    ends = Words()
    assert TokenizerAdapter(ends).eos_token_ids == {EOS}
    ends.eos_token_ids = (3, 4)  # type: ignore[attr-defined]
    assert TokenizerAdapter(ends).eos_token_ids == {EOS, 3, 4}


@pytest.mark.parametrize(("declared", "expected"), [("abc", "abc"), (None, None), (7, None)])
@pytest.mark.parametrize("name", ["fingerprint", "checkpoint_fingerprint"])
def test_the_fingerprints_are_attributes_of_the_tokenizer(name: str, declared: Any, expected: str | None) -> None:
    tokenizer = Words()
    assert getattr(TokenizerAdapter(tokenizer), name) is None
    setattr(tokenizer, name, declared)
    assert getattr(TokenizerAdapter(tokenizer), name) == expected


def test_apply_chat_template_receives_template_args() -> None:
    received: dict[str, Any] = {}

    class Recording(Words):
        def apply_chat_template(self, conversation: Any, **keywords: Any) -> str:
            received.update(keywords)
            return "text"

    TokenizerAdapter(Recording()).apply_chat_template([], True, {"enable_thinking": False})
    assert received["enable_thinking"] is False
    assert received["add_generation_prompt"] is True
