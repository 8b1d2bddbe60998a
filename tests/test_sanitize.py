"""Untrusted text: what is shown of it is printable, and one line of bounded length where it must be."""

from __future__ import annotations

import pytest

from birdie_zmq.sanitize import first_line, one_line, sanitize

FORGED = "host\n12:00:00 WARNING all is lost\x1b[2J\u2028\ud800"


def test_unprintable_characters_become_escape_sequences() -> None:
    assert sanitize(FORGED) == r"host\n12:00:00 WARNING all is lost\x1b[2J\u2028\ud800"
    assert sanitize("naïve “日本” text") == "naïve “日本” text"


def test_newlines_may_be_kept() -> None:
    assert sanitize("one\ntwo\x07\r", lines=True) == "one\ntwo\\x07\\r"


@pytest.mark.parametrize("text", [FORGED, "\x1b" * 10_000, "x" * 10_000, "\U000e0001" * 500])
def test_a_line_is_printable_and_of_bounded_length(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= 502


def test_a_line_tells_whether_it_was_cut() -> None:
    assert one_line("12345", 5) == "12345"
    assert one_line("123456", 5) == "12345 …"


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("one\ntwo"), "one"), (ValueError("\n  two \n"), "two"), (ValueError(), "ValueError")],
)
def test_the_first_line_of_an_error_is_never_blank(error: Exception, line: str) -> None:
    assert first_line(error) == line
