"""Number formats of a comparison, shared by the terminal and the report page."""

from __future__ import annotations

import math


def format_number(value: float | None, digits: int = 4) -> str:
    """Format a score or metric; None gives a dash."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if math.isfinite(value) else str(value)


def format_difference(value: float) -> str:
    """Format an absolute difference in nats."""
    if math.isinf(value):
        return "infinite"
    return "0" if value == 0 else f"{value:.2g}" if value >= 1e-4 else f"{value:.1e}"


def format_delta(a: float | None, b: float | None) -> str:
    """Format the change of a metric from A to B."""
    if a is None or b is None:
        return "-"
    return "0" if a == b else f"{b - a:+.4f}" if abs(b - a) >= 1e-4 else f"{b - a:+.1e}"
