"""The steps of one batch by the kind of step: dense rows, forks of a state, token trees."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.pictures import example
from benchmarks.pictures.canvas import MARGIN, WIDTH, Canvas
from birdie_zmq.engine.planning.execution_mode import FORKS, ROWS, TREES
from birdie_zmq.engine.planning.steps import Dense, Extend, Fork, Step, Tree

_CELL_SIZE = (WIDTH - 2 * MARGIN) / 33


def draw() -> str:
    """Return the picture."""
    canvas = Canvas("The same four requests as dense rows, as forks of a state, and as one row with their prefix tree")
    items, buckets = example.requests(), example.buckets()
    _panel(canvas, "Logits, or hidden states: dense rows", ROWS.group(items).plan(buckets, {}))
    _panel(canvas, "A state (extend): shared prefixes, then forks", FORKS.group(items).plan(buckets, {}))
    _panel(canvas, "Attention with a mask (branch): token trees", TREES.group(items).plan(buckets, {}))
    canvas.legend(("read", "token"), ("scores", "scored position"), ("padding", "padding"))
    return canvas.svg()


def _panel(canvas: Canvas, title: str, steps: Sequence[Step]) -> None:
    computed, used = sum(step.tokens.size for step in steps), sum(step.used_tokens for step in steps)
    shapes = ", then ".join("{} \N{MULTIPLICATION SIGN} {}".format(*step.shape) for step in steps)
    canvas.heading(title, f"{shapes}: {computed} positions, {used} of them tokens")
    for step in steps:
        rows = []
        for number, (row, count) in enumerate(zip(step.tokens, filled(step), strict=True)):
            scored = set(step.positions[step.rows == number].tolist())
            kinds = ("scores" if at in scored else "read" for at in range(count))
            rows.append(list(zip(example.token_texts(row[:count]), kinds, strict=True)))
            rows[-1] += [(" ", "padding")] * (len(row) - count)
        canvas.cells(MARGIN, rows, _CELL_SIZE)
        canvas.y += 6
    canvas.y += 8


def filled(step: Step) -> list[int]:
    """Return the number of positions of each row that are not padding."""
    match step.kind:
        case Extend(lengths=lengths) | Fork(lengths=lengths):
            return [int(length) for length in lengths]
        case Tree(ends=ends):
            # Padding attends only to itself, as the last token of a tree does, but has the depth of a first token.
            return [_tree_tokens(step, number) for number in range(len(ends))]
        case Dense():
            tokens = (step.tokens != 0).sum(axis=1)  # the demo's texts do not contain token 0
            return [int(count) for count in tokens]
    raise AssertionError("steps of pairs are not drawn")


def _tree_tokens(step: Step, number: int) -> int:
    if len(step.tokens) == 1:
        return step.used_tokens
    return int((step.tokens[number] != 0).sum())
