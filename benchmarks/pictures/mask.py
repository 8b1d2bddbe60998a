"""The attention mask of a row that holds a token tree, from ``depths`` and ``ends``."""

from __future__ import annotations

from benchmarks.pictures import example
from benchmarks.pictures.canvas import MARGIN, WIDTH, Canvas, visible_text
from birdie_zmq.engine.planning.execution_mode import TREES
from birdie_zmq.engine.planning.steps import Tree

_LABEL = 82


def draw() -> str:
    """Return the picture."""
    (step,) = TREES.group(example.requests()).plan(example.buckets(), {})
    assert isinstance(step.kind, Tree)
    length = step.tokens.shape[1]
    ends, depths = step.kind.ends[0], step.kind.depths[0]
    size = (WIDTH - 2 * MARGIN - _LABEL) / length
    canvas = Canvas("The attention mask of a row that holds a token tree: each token attends only to its own text")
    canvas.heading(
        "The attention mask of that row",
        "A line is a token; filled squares are the tokens it attends to.",
        "In front of each token: its depth.",
    )
    words = example.token_texts(step.tokens[0][: step.used_tokens]) + ["(padding)"] * (length - step.used_tokens)
    scored = set(step.positions.tolist())
    top, left = canvas.y, MARGIN + _LABEL
    for i, word in enumerate(words):
        y = top + i * size
        canvas.text(left - 22, y + size - 2.4, visible_text(word)[:10], "label", "end")
        canvas.text(left - 5, y + size - 2.4, str(depths[i]), "label dim", "end")
        for j in range(i + 1):
            if i < ends[j]:
                kind = "padding" if i >= step.used_tokens else "scores" if i in scored else "seen"
                canvas.box(left + j * size, y, size - 1, size - 1, kind, 1.5)
    canvas.y = top + length * size
    canvas.path(f"M{left - 2:g} {top - 2:g} V{canvas.y:g} H{left + length * size:g}", "grid")
    canvas.legend(("seen", "attends"), ("scores", "attends; scored position"), ("padding", "padding attends to itself"))
    return canvas.svg()
