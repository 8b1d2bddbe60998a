"""Stop strings: generated text ends before the first one, which may begin or end within a token."""

from __future__ import annotations

from collections.abc import Sequence


def cut_at_first(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the earliest stop string, and whether there is one; empty stop strings are ignored."""
    found = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return (text[: min(found)], True) if found else (text, False)
