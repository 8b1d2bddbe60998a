"""The three kinds of tokenizers behind one face, and what is said of those that are none."""

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

MODEL_ARGS = {"<s>": 0, "</s>": 1, "one": 2, "two": 3, "three": 4, "<unk>": 5}
BOS, EOS = MODEL_ARGS["<s>"], MODEL_ARGS["</s>"]


def ids_of(text: str) -> list[int]:
    return [MODEL_ARGS.get(word, MODEL_ARGS["<unk>"]) for word in text.split()]


def text_of(ids: Sequence[int], skip_special: bool = False) -> str:
    return " ".join(list(MODEL_ARGS)[i] for i in ids if not (skip_special and i in (BOS, EOS)))


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
    """What is asked of a transformers tokenizer: it is called with texts, and writes BOS unless told not to."""

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
    """A tokenizers.Tokenizer that would write BOS and EOS by itself."""
    tokenizer = Tokenizer(WordLevel(MODEL_ARGS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)])
    return tokenizer


KINDS: list[Callable[[], Any]] = [Words, ManyWords, OneOrManyWords, TransformersWords, library_tokenizer]
every_kind = pytest.mark.parametrize("make", KINDS)
kinds_without_a_habit = pytest.mark.parametrize("make", [Words, OneOrManyWords, library_tokenizer])


# --- Encoding --------------------------------------------------------------------------------------------------------


@every_kind
def test_texts_are_encoded_one_list_each(make: Callable[[], Any]) -> None:
    tokenizer = TokenizerAdapter(make(), add_bos=False)

    assert tokenizer.encode(["one two", "", "three"]) == [[2, 3], [], [4]]


@kinds_without_a_habit
def test_bos_is_left_out_where_nothing_is_said(make: Callable[[], Any]) -> None:
    assert TokenizerAdapter(make()).encode(["one"]) == [[2]]


def test_a_transformers_tokenizer_keeps_its_habit_where_nothing_is_said() -> None:
    tokenizer = TokenizerAdapter(TransformersWords())

    assert tokenizer.encode(["one"]) == [[BOS, 2]]
    assert tokenizer.encode(["one"], special=False) == [[2]]


@every_kind
def test_bos_is_added_once_where_it_is_asked_for(make: Callable[[], Any]) -> None:
    tokenizer = TokenizerAdapter(make(), add_bos=True)

    assert tokenizer.encode(["one", "<s> one", ""]) == [[BOS, 2], [BOS, 2], [BOS]]
    assert tokenizer.encode(["one", "<s> one"], special=False) == [[2], [BOS, 2]]


def test_a_text_with_bos_gets_no_second_one_from_the_habit_of_a_transformers_tokenizer() -> None:
    assert TokenizerAdapter(TransformersWords()).encode(["<s> one"]) == [[BOS, 2]]


def test_a_text_that_says_bos_twice_keeps_both_where_none_is_added() -> None:
    assert TokenizerAdapter(Words(), add_bos=False).encode(["<s> <s> one"]) == [[BOS, BOS, 2]]


@every_kind
def test_no_texts_are_no_lists(make: Callable[[], Any]) -> None:
    assert TokenizerAdapter(make()).encode([]) == []


@pytest.mark.parametrize("form", [tuple, np.array, lambda ids: np.array(ids, dtype=np.int32)])
def test_ids_may_come_as_tuples_and_arrays(form: Callable[[list[int]], Any]) -> None:
    class Other(Words):
        def encode(self, text: Any) -> Any:
            return form(ids_of(text))

    encoded = TokenizerAdapter(Other()).encode(["one two"])

    assert encoded == [[2, 3]]
    assert type(encoded[0][0]) is int


def test_an_encode_that_reads_a_list_as_one_text_is_given_strings() -> None:
    class Lengths(Words):
        def encode(self, text: Any) -> Any:
            return [len(part) for part in text]

    assert TokenizerAdapter(Lengths()).encode(["one", "a"]) == [[1, 1, 1], [1]]


def test_an_encode_that_takes_lists_is_given_all_texts_at_once() -> None:
    calls: list[object] = []

    class Recorded(OneOrManyWords):
        def encode(self, text: Any) -> Any:
            calls.append(text)
            return super().encode(text)

    TokenizerAdapter(Recorded()).encode(["one", "two", "three"])

    assert calls[-1] == ["one", "two", "three"]


# --- Decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [TransformersWords, library_tokenizer])
def test_special_tokens_are_left_out_of_a_text_unless_they_are_asked_for(make: Callable[[], Any]) -> None:
    tokenizer = TokenizerAdapter(make())

    assert tokenizer.decode([BOS, 2, EOS]) == "one"
    assert tokenizer.decode([BOS, 2, EOS], skip_special=False) == "<s> one </s>"


def test_a_plain_decode_that_can_leave_special_tokens_out_is_told_to() -> None:
    class Skipping(Words):
        def decode(self, ids: Any, skip_special_tokens: bool = False) -> Any:
            return text_of(ids, skip_special_tokens)

    tokenizer = TokenizerAdapter(Skipping())

    assert tokenizer.decode([2, EOS]) == "one"
    assert tokenizer.decode([2, EOS], skip_special=False) == "one </s>"


def test_a_plain_decode_that_cannot_is_not_asked() -> None:
    assert TokenizerAdapter(Words()).decode([2, EOS]) == "one </s>"


# --- Special tokens and length ---------------------------------------------------------------------------------------


def test_the_special_tokens_of_a_library_tokenizer_are_found_by_their_usual_names() -> None:
    tokenizer = TokenizerAdapter(library_tokenizer())

    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (BOS, EOS)


@pytest.mark.parametrize(
    ("bos", "eos", "prefix"), [(BOS, EOS, BOS), (None, EOS, EOS), (0, None, 0), (np.int64(3), EOS, 3)]
)
def test_the_prefix_is_bos_or_else_eos(bos: Any, eos: Any, prefix: int) -> None:
    class Named(Words):
        bos_token_id = bos
        eos_token_id = eos

    assert TokenizerAdapter(Named()).prefix_token_id == prefix


@pytest.mark.parametrize(
    ("named", "length"), [(2048, 2048), (512.0, 512), (int(1e30), None), (1e30, None), (None, None), (0, None)]
)
def test_the_length_is_what_the_tokenizer_names_if_it_is_one(named: object, length: int | None) -> None:
    tokenizer = TransformersWords()
    tokenizer.model_max_length = named

    assert TokenizerAdapter(tokenizer).max_length == length


def test_a_tokenizer_that_names_no_length_has_none() -> None:
    assert TokenizerAdapter(Words()).max_length is None


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["encode", "decode"])
def test_a_tokenizer_without_a_method_is_refused_by_the_methods_name(missing: str) -> None:
    class Mute(Words):
        pass

    setattr(Mute, missing, None)

    with pytest.raises(TokenizerError, match=rf"returned a Mute without {missing}\(\)"):
        TokenizerAdapter(Mute())


def test_a_tokenizer_without_bos_and_eos_is_refused() -> None:
    class Nameless(Words):
        bos_token_id = None
        eos_token_id = None

    with pytest.raises(TokenizerError, match="the Nameless names neither bos_token_id nor eos_token_id"):
        TokenizerAdapter(Nameless())


@pytest.mark.parametrize("value", ["<s>", True, -1, 1.0])
def test_a_special_token_that_is_no_id_is_refused(value: object) -> None:
    class Misnamed(Words):
        bos_token_id = value

    with pytest.raises(TokenizerError, match=r"bos_token_id is .* no token id"):
        TokenizerAdapter(Misnamed())


@pytest.mark.parametrize(
    "ids", [[0.5, 1.0], [2, -1], ["one"], "one", None, 7, [[2], [3]], [True], [2, None], [2**31], [2**70]]
)
def test_what_are_no_token_ids_is_refused(ids: object) -> None:
    class Wrong(Words):
        def encode(self, text: Any) -> Any:
            return ids

    with pytest.raises(TokenizerError, match="list of token ids"):
        TokenizerAdapter(Wrong()).encode(["one"])


def test_an_encode_that_raises_is_named_with_its_error() -> None:
    class Failing(Words):
        def encode(self, text: Any) -> Any:
            raise KeyError("merges")

    with pytest.raises(TokenizerError, match="failed to encode a text: KeyError") as caught:
        TokenizerAdapter(Failing()).encode(["one"])

    assert isinstance(caught.value.__cause__, KeyError)


def test_another_number_of_lists_than_of_texts_is_refused() -> None:
    class Short(TransformersWords):
        def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
            return super().__call__(texts[1:], add_special_tokens)

    with pytest.raises(TokenizerError, match="for each text, but gave 1 for 2"):
        TokenizerAdapter(Short()).encode(["one", "two"])


def test_a_decode_that_raises_is_named_with_its_error() -> None:
    with pytest.raises(TokenizerError, match="failed to decode 2 tokens: IndexError") as caught:
        TokenizerAdapter(Words()).decode([2, 1000])

    assert isinstance(caught.value.__cause__, IndexError)


def test_a_decode_that_gives_no_string_is_refused() -> None:
    class Raw(Words):
        def decode(self, ids: Any) -> Any:
            return text_of(ids).encode()

    with pytest.raises(TokenizerError, match="decode gave a bytes, not a string"):
        TokenizerAdapter(Raw()).decode([2])


# --- Chat ------------------------------------------------------------------------------------------------------------


def test_a_template_text_is_the_default_one() -> None:
    class Chatty(TransformersWords):
        chat_template = "{{ messages }}"

    assert TokenizerAdapter(Chatty()).chat_templates() == ChatTemplates(
        templates={"default": "{{ messages }}"}, special_tokens={"bos_token": "<s>", "eos_token": "</s>"}
    )


def test_templates_with_names_keep_them() -> None:
    class Chatty(Words):
        chat_template = {"default": "a", "tool_use": "b", "broken": None}  # noqa: RUF012 - as transformers has it

    assert TokenizerAdapter(Chatty()).chat_templates().templates == {"default": "a", "tool_use": "b"}


def test_a_tokenizer_without_chat_has_no_templates() -> None:
    assert TokenizerAdapter(Words()).chat_templates() == ChatTemplates()


class Rendering(Words):
    """A tokenizer with a template method of its own."""

    def apply_chat_template(self, conversation: list[dict[str, str]], **keywords: Any) -> Any:
        return f"{conversation[0]['content']} {sorted(keywords.items())}"


@pytest.mark.parametrize("opens", [True, False])
def test_a_method_of_its_own_is_told_how_the_prompt_ends(opens: bool) -> None:
    tokenizer = TokenizerAdapter(Rendering())

    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=opens)

    assert tokenizer.chat_templates().has_method
    assert text == (
        f"Hi [('add_generation_prompt', {opens}), ('continue_final_message', {not opens}), ('tokenize', False)]"
    )


def test_a_method_that_raises_is_named_with_its_error() -> None:
    with pytest.raises(TokenizerError, match="apply_chat_template failed: IndexError"):
        TokenizerAdapter(Rendering()).apply_chat_template([], add_generation_prompt=True)


def test_a_method_that_gives_no_string_is_refused() -> None:
    class Tokenizing(Words):
        def apply_chat_template(self, conversation: object, **keywords: object) -> object:
            return [1, 2, 3]

    with pytest.raises(TokenizerError, match="apply_chat_template gave a list, not a string"):
        TokenizerAdapter(Tokenizing()).apply_chat_template([], add_generation_prompt=True)


def test_without_template_and_method_a_conversation_is_refused() -> None:
    with pytest.raises(TokenizerError, match="the Words has neither a chat_template nor an apply_chat_template"):
        TokenizerAdapter(Words()).apply_chat_template([], add_generation_prompt=True)


def test_the_prefix_may_be_another_token() -> None:
    assert TokenizerAdapter(Words(), prefix_token_id=3).prefix_token_id == 3
    assert TokenizerAdapter(Words(), prefix_token_id=0).prefix_token_id == 0


def test_a_named_prefix_does_without_bos_and_eos() -> None:
    nameless = Words()
    nameless.bos_token_id = nameless.eos_token_id = None
    assert TokenizerAdapter(nameless, prefix_token_id=4).prefix_token_id == 4


def test_generation_ends_at_every_token_that_the_tokenizer_lists() -> None:
    ends = Words()
    assert TokenizerAdapter(ends).eos_token_ids == {EOS}
    ends.eos_token_ids = (3, 4)  # type: ignore[attr-defined]
    assert TokenizerAdapter(ends).eos_token_ids == {EOS, 3, 4}


@pytest.mark.parametrize(("said", "expected"), [("abc", "abc"), (None, None), (7, None)])
def test_the_fingerprint_is_what_the_tokenizer_says(said: Any, expected: str | None) -> None:
    marked = Words()
    assert TokenizerAdapter(marked).fingerprint is None
    marked.fingerprint = said  # type: ignore[attr-defined]
    assert TokenizerAdapter(marked).fingerprint == expected


def test_a_method_of_its_own_is_given_the_further_words() -> None:
    given: dict[str, Any] = {}

    class Recording(Words):
        def apply_chat_template(self, conversation: Any, **words: Any) -> str:
            given.update(words)
            return "text"

    TokenizerAdapter(Recording()).apply_chat_template([], True, {"enable_thinking": False})
    assert given["enable_thinking"] is False
    assert given["add_generation_prompt"] is True
