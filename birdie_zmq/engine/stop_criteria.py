"""Where generated text ends: the first stop string, wherever its tokens begin and end."""

from __future__ import annotations

from collections.abc import Sequence


def cut_at_first(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the earliest stop string in it, and whether there was one. An empty stop string stops nothing."""
    found = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return (text[: min(found)], True) if found else (text, False)
