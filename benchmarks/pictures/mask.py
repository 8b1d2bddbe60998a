"""Who sees whom in a row that holds a tree: what ``depths`` and ``ends`` say of each token."""

from __future__ import annotations

from benchmarks.pictures import example
from benchmarks.pictures.canvas import MARGIN, WIDTH, Canvas, shown
from birdie_zmq.engine.planning.steps import Tree
from birdie_zmq.engine.planning.tree_planner import plan_trees

_LABEL = 82


def draw() -> str:
    """The picture."""
    (step,) = plan_trees(example.requests(), example.buckets())
    assert isinstance(step.how, Tree)
    length = step.tokens.shape[1]
    ends, depths = step.how.ends[0], step.how.depths[0]
    size = (WIDTH - 2 * MARGIN - _LABEL) / length
    canvas = Canvas("The attention mask of a row that holds a tree: each token sees its own text alone")
    canvas.heading(
        "The mask of that row",
        "A line is a token; filled squares are what it sees. In front: its depth.",
    )
    words = example.words(step.tokens[0][: step.used_tokens]) + ["(padding)"] * (length - step.used_tokens)
    scored = set(step.positions.tolist())
    top, left = canvas.y, MARGIN + _LABEL
    for i, word in enumerate(words):
        y = top + i * size
        canvas.text(left - 22, y + size - 2.4, shown(word)[:10], "label", "end")
        canvas.text(left - 5, y + size - 2.4, str(depths[i]), "label dim", "end")
        for j in range(i + 1):
            if i < ends[j]:
                kind = "padding" if i >= step.used_tokens else "scores" if i in scored else "seen"
                canvas.box(left + j * size, y, size - 1, size - 1, kind, 1.5)
    canvas.y = top + length * size
    canvas.path(f"M{left - 2:g} {top - 2:g} V{canvas.y:g} H{left + length * size:g}", "grid")
    canvas.legend(("seen", "sees"), ("scores", "sees, and scores"), ("padding", "padding sees itself"))
    return canvas.svg()
