"""Sanitising of untrusted text before it is shown or logged.

A text from a model, a user module or a peer may hold control characters that move the cursor or end a line of a terminal or
of a log, and may have any length.
"""

from __future__ import annotations

_MAX_LINE_CHARS = 500


def sanitize(text: str, lines: bool = False) -> str:
    """Return the text with every unprintable character written as an escape sequence.

    Args:
        text: The untrusted text.
        lines: Whether newlines are kept.
    """
    allowed = "\n" if lines else ""
    return "".join(c if c.isprintable() or c in allowed else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str, max_chars: int = _MAX_LINE_CHARS) -> str:
    """Return the text as one printable line of at most `max_chars` characters, and " …" if it is longer."""
    shown = sanitize(text[: max_chars + 1])
    return shown if len(shown) <= max_chars else f"{shown[:max_chars]} …"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not blank, or the error's type if there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
