"""Generated text ends before the first stop string in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.engine.stop_criteria import cut_at_first


@pytest.mark.parametrize(
    ("text", "stops", "cut"),
    [
        ("one\ntwo", ["\n"], "one"),
        ("one. two\n", ["\n", ". "], "one"),
        ("one. two\n", [". ", "\n"], "one"),
        ("aab", ["ab", "aab"], ""),
        ("a stop, a stop", ["stop"], "a "),
        ("stop", ["stop"], ""),
    ],
)
def test_text_is_cut_before_the_earliest_stop_string(text: str, stops: list[str], cut: str) -> None:
    assert cut_at_first(text, stops) == (cut, True)


@pytest.mark.parametrize("stops", [[], ["x"], ["onee"], ["One"], [""]])
def test_text_without_a_stop_string_is_kept_whole(stops: list[str]) -> None:
    assert cut_at_first("one", stops) == ("one", False)


def test_an_empty_stop_string_does_not_hide_another() -> None:
    assert cut_at_first("one two", ["", " "]) == ("one", True)


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), max_size=4))
def test_the_cut_text_is_the_longest_prefix_before_any_stop_string(text: str, stops: list[str]) -> None:
    cut, stopped = cut_at_first(text, stops)

    assert text.startswith(cut)
    assert stopped is any(stop in text for stop in stops)
    assert stopped is any(text[len(cut) :].startswith(stop) for stop in stops)
    assert not any(stop in cut for stop in stops)
