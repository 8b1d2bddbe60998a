"""How numbers of a comparison are written, in the terminal and on the page."""

from __future__ import annotations

import math


def shown(value: float | None, digits: int = 4) -> str:
    """A score or metric; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if math.isfinite(value) else str(value)


def gap(value: float) -> str:
    """An absolute difference in nats."""
    if math.isinf(value):
        return "infinite"
    return "0" if value == 0 else f"{value:.2g}" if value >= 1e-4 else f"{value:.1e}"


def change(a: float | None, b: float | None) -> str:
    """What a metric gains from A to B."""
    if a is None or b is None:
        return "-"
    return "0" if a == b else f"{b - a:+.4f}" if abs(b - a) >= 1e-4 else f"{b - a:+.1e}"
