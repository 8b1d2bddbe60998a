"""Rolling windows: a text longer than max_length, and the tokens that each window scores."""

from __future__ import annotations

from benchmarks.pictures import example
from benchmarks.pictures.canvas import MARGIN, WIDTH, Canvas

_COUNT, _MAX_LENGTH = 20, 8


def draw() -> str:
    """Return the picture."""
    words, windows = example.windows(_COUNT, _MAX_LENGTH)
    canvas = Canvas("A text in rolling windows: every token is scored once, and the last window overlaps")
    canvas.heading(f"{_COUNT} tokens, and a model with max_length {_MAX_LENGTH}")
    canvas.tokens((word, "read") for word in words)
    canvas.y += 14
    size = (WIDTH - 2 * MARGIN) / (_COUNT + 1)
    done = 0
    for number, window in enumerate(windows, 1):
        begin, context = done - (len(window.tokens) - window.count), len(window.tokens) - window.count
        canvas.heading(
            f"Window {number}",
            f"{len(window.row)} input tokens, {window.count} scored",
        )
        cells = [
            (word, "read" if at < context else "target") for at, word in enumerate(example.token_texts(window.tokens))
        ]
        cells = [("\N{EMPTY SET}" if begin + at < 0 else word, kind) for at, (word, kind) in enumerate(cells)]
        canvas.cells(MARGIN + (begin + 1) * size, [cells], size)
        canvas.y += 8
        done += window.count
    canvas.y -= 4
    canvas.legend(("read", "context (\N{EMPTY SET}: the prefix token)"), ("target", "scored"))
    return canvas.svg()
