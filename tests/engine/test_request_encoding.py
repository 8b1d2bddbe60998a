"""The tokens that are computed and scored, for a tokenizer that merges across the end of the context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from birdie_zmq.engine.planning.steps import ScoredSequence
from birdie_zmq.engine.request_encoding import encode_pairs, encode_rolling
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from tests.instances import instance

VOCABULARY = ["<s>", " ", "\n", "a", "b", "c", "ab", "bcc", " a", " b", "c\n"]
PREFIX = VOCABULARY.index("<s>")
MAX_LENGTH = 6


class MergingTokenizer:
    """Always takes the longest token that fits; "0" stands for a character that the tokenizer drops."""

    bos_token_id = PREFIX

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.encoded.append(text)
        ids = []
        rest = text.replace("0", "")
        while rest:
            token = max((token for token in VOCABULARY if rest.startswith(token)), key=len)
            ids.append(VOCABULARY.index(token))
            rest = rest[len(token) :]
        return ids

    def decode(self, ids: list[int]) -> str:
        return "".join(VOCABULARY[i] for i in ids)


def encode_pair(
    context: str, continuation: str, *, max_length: int = MAX_LENGTH, add_bos: bool | None = None
) -> ScoredSequence | None:
    (scored,) = encode_pairs(TokenizerAdapter(MergingTokenizer(), add_bos), [(context, continuation)], max_length)
    return scored


def halves(scored: ScoredSequence | None) -> tuple[list[str], list[str]]:
    """Return the tokens that are only context, and the tokens that are scored."""
    assert scored is not None
    tokens = [VOCABULARY[i] for i in scored.tokens]
    return tokens[: -scored.count], tokens[-scored.count :]


@pytest.mark.parametrize(
    ("context", "continuation", "expected"),
    [
        ("a", " b", (["a"], [" b"])),
        # Alone the continuation is "bcc"; after "a" it begins in the middle of "ab", and the split drops that token.
        ("a", "bcc", (["a"], ["c", "c"])),
        ("c", "\na", (["c"], ["a"])),
    ],
)
def test_context_and_continuation_are_encoded_together_and_split_at_the_context_length(
    context: str, continuation: str, expected: tuple[list[str], list[str]]
) -> None:
    assert halves(encode_pair(context, continuation)) == expected


@pytest.mark.parametrize(
    ("context", "continuation", "expected"),
    [
        ("a ", "b", (["a"], [" b"])),
        ("a  ", "b", (["a"], [" ", " b"])),
        ("a\n ", "b", (["a"], ["\n", " b"])),
        ("a ", " b", (["a"], [" ", " b"])),
    ],
)
def test_spaces_at_the_end_of_the_context_are_scored_with_the_continuation(
    context: str, continuation: str, expected: tuple[list[str], list[str]]
) -> None:
    assert halves(encode_pair(context, continuation)) == expected


def test_a_context_of_spaces_is_replaced_by_the_prefix_token_and_the_spaces_are_scored() -> None:
    assert halves(encode_pair("  ", "a")) == (["<s>"], [" ", " a"])


def test_a_continuation_without_tokens_after_the_split_is_encoded_separately() -> None:
    assert halves(encode_pair("a", "b")) == (["a"], ["b"])


def test_an_empty_context_is_the_prefix_token() -> None:
    assert halves(encode_pair("", "ab")) == (["<s>"], ["ab"])


def test_a_context_that_the_tokenizer_drops_is_the_prefix_token() -> None:
    assert halves(encode_pair("0", "ab")) == (["<s>"], ["ab"])


def test_a_continuation_that_begins_with_the_prefix_token_uses_it_as_context() -> None:
    assert halves(encode_pair("", "<s>ab")) == (["<s>"], ["ab"])


@pytest.mark.parametrize(("context", "continuation"), [("a", ""), ("", ""), ("", "<s>"), ("", "0"), ("a", "0")])
def test_nothing_to_score_is_none(context: str, continuation: str) -> None:
    assert encode_pair(context, continuation) is None


def test_bos_is_added_before_contexts_and_never_between_the_two() -> None:
    assert halves(encode_pair("a", " b", add_bos=True)) == (["<s>", "a"], [" b"])
    assert halves(encode_pair("a", "b", add_bos=True)) == (["<s>", "a"], ["b"])
    assert halves(encode_pair("", "b", add_bos=True)) == (["<s>"], ["b"])
    assert halves(encode_pair("<s>a", " b", add_bos=True)) == (["<s>", "a"], [" b"])


def test_a_long_text_keeps_max_length_plus_one_tokens() -> None:
    scored = encode_pair("c" * 5 + "a", " b" * 3)

    assert halves(scored) == (["c", "c", "c", "a"], [" b", " b", " b"])
    assert scored is not None
    assert (len(scored.tokens), len(scored.row), scored.truncated) == (MAX_LENGTH + 1, MAX_LENGTH, 2)


def test_a_text_that_fits_is_not_truncated() -> None:
    scored = encode_pair("c" * 4, " b" * 3)

    assert scored is not None
    assert (len(scored.row), scored.truncated) == (MAX_LENGTH, 0)


def test_a_continuation_of_max_length_keeps_one_token_of_context() -> None:
    scored = encode_pair("cca", " b" * MAX_LENGTH)

    assert halves(scored) == (["a"], [" b"] * MAX_LENGTH)


def test_a_continuation_longer_than_max_length_is_returned_whole() -> None:
    scored = encode_pair("cca", " b" * (MAX_LENGTH + 2))

    assert scored is not None
    assert scored.count == MAX_LENGTH + 2
    assert halves(scored) == (["a"], [" b"] * (MAX_LENGTH + 2))


def test_positions_are_one_before_their_targets() -> None:
    scored = ScoredSequence(np.array([5, 6, 7, 8], dtype=np.int32), count=2)

    assert scored.row.tolist() == [5, 6, 7]
    assert scored.targets.tolist() == [7, 8]
    assert list(scored.positions) == [1, 2]
    assert scored.tokens[np.array(scored.positions) + 1].tolist() == scored.targets.tolist()


def test_a_text_that_many_pairs_share_is_encoded_once() -> None:
    merging = MergingTokenizer()
    tokenizer = TokenizerAdapter(merging)
    tokenizer.encode(["a"])  # the first call also probes the tokenizer
    merging.encoded.clear()

    encode_pairs(tokenizer, [("ca", " a"), ("ca", " b"), ("ca", " a")], MAX_LENGTH)

    assert sorted(merging.encoded) == ["ca", "ca a", "ca b"]


class LmEvalReference(TemplateLM):
    """lm_eval's own encoding of pairs, over the same tokenizer."""

    eot_token_id = PREFIX

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return MergingTokenizer().encode(string)

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> Any:
        return [(context, continuation) for _, context, continuation in requests]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        requests = [instance("loglikelihood", pair, i) for i, pair in enumerate(pairs)]
        encoded: Any = self.loglikelihood(requests, disable_tqdm=True)
        return list(encoded)


text = st.lists(st.sampled_from(VOCABULARY[1:]), max_size=8).map("".join)
text_or_prefixed = text | text.map("<s>".__add__)
pair = st.tuples(text_or_prefixed, text.filter(bool)) | st.tuples(st.just(""), text_or_prefixed.filter(bool))


@given(st.lists(pair, min_size=1, max_size=6), st.integers(1, 12))
def test_pairs_that_lm_eval_can_score_have_the_tokens_of_lm_eval(pairs: list[tuple[str, str]], max_length: int) -> None:
    encoded = encode_pairs(TokenizerAdapter(MergingTokenizer()), pairs, max_length)

    assert len(encoded) == len(pairs)
    for scored, (context, continuation) in zip(encoded, LmEvalReference().encode_pairs(pairs), strict=True):
        if context and 0 < len(continuation) <= max_length:
            assert scored is not None
            assert scored.tokens.tolist() == (context + continuation)[-(max_length + 1) :]
            assert scored.targets.tolist() == continuation


def windows_of(texts: Sequence[str], max_length: int) -> list[list[ScoredSequence]]:
    return encode_rolling(TokenizerAdapter(MergingTokenizer()), texts, max_length)


@given(st.lists(text_or_prefixed, max_size=4), st.integers(1, 5))
def test_rolling_windows_are_those_of_lm_eval(texts: list[str], max_length: int) -> None:
    expected = [
        list(
            map(make_disjoint_window, get_rolling_token_windows(MergingTokenizer().encode(text), PREFIX, max_length, 1))
        )
        for text in texts
    ]

    assert [
        [(window.tokens[: -window.count].tolist(), window.targets.tolist()) for window in windows]
        for windows in windows_of(texts, max_length)
    ] == expected


@given(text_or_prefixed, st.integers(1, 5))
def test_rolling_scores_every_token_once_in_rows_that_fit(text: str, max_length: int) -> None:
    (windows,) = windows_of([text], max_length)

    assert [token for window in windows for token in window.targets.tolist()] == MergingTokenizer().encode(text)
    assert all(len(window.row) <= max_length for window in windows)


def test_an_empty_text_has_no_windows() -> None:
    assert [len(windows) for windows in windows_of(["", "a", "0"], MAX_LENGTH)] == [0, 1, 0]
