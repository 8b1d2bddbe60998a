"""Sanitising of untrusted text before it is shown.

A text from a model, a user module or a broker may hold control characters that move the cursor or end a line of a terminal.
"""

from __future__ import annotations


def sanitize(text: str, lines: bool = False) -> str:
    """Return the text with every unprintable character written as an escape sequence.

    Args:
        text: The untrusted text.
        lines: Whether newlines are kept.
    """
    allowed = "\n" if lines else ""
    return "".join(c if c.isprintable() or c in allowed else c.encode("unicode_escape").decode() for c in text)
