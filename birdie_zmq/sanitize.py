"""Texts of others on a terminal or a page: what a model, a page or a broker wrote may move the cursor or end a line."""

from __future__ import annotations


def printable(text: str, lines: bool = False) -> str:
    """The text with every character that does not print written as an escape.

    Args:
        text: Whatever somebody else wrote.
        lines: Whether it may have several lines.
    """
    kept = "\n" if lines else ""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)
