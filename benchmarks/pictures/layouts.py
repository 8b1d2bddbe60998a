"""The steps in which one batch is computed, by what the model can do: whole rows, copies of a state, trees in a row."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.pictures import example
from benchmarks.pictures.canvas import MARGIN, WIDTH, Canvas
from birdie_zmq.engine.planning.fork_planner import plan_forks
from birdie_zmq.engine.planning.row_planner import plan_rows
from birdie_zmq.engine.planning.steps import Dense, Extend, Fork, Step, Tree
from birdie_zmq.engine.planning.tree_planner import plan_trees

_SIZE = (WIDTH - 2 * MARGIN) / 33


def draw() -> str:
    """The picture."""
    canvas = Canvas("The same four requests as whole rows, as copies of a state, and as one row that holds their tree")
    items, buckets = example.requests(), example.buckets()
    _panel(canvas, "Logits, or hidden states: whole rows", plan_rows(items, buckets))
    _panel(canvas, "A state (extend): beginnings, then copies that go on", plan_forks(items, buckets))
    _panel(canvas, "Attention with a mask (branch): trees in a row", plan_trees(items, buckets))
    canvas.legend(("read", "token"), ("scores", "position that scores"), ("padding", "padding"))
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
            rows.append(list(zip(example.words(row[:count]), kinds, strict=True)))
            rows[-1] += [(" ", "padding")] * (len(row) - count)
        canvas.cells(MARGIN, rows, _SIZE)
        canvas.y += 6
    canvas.y += 8


def filled(step: Step) -> list[int]:
    """How many positions of each row are no padding."""
    match step.how:
        case Extend(lengths=lengths) | Fork(lengths=lengths):
            return [int(length) for length in lengths]
        case Tree(ends=ends):
            # Padding sees itself alone, as the last token of a tree does, but at the depth of a first one.
            return [_tree_tokens(step, number) for number in range(len(ends))]
        case Dense():
            tokens = (step.tokens != 0).sum(axis=1)  # the demo's texts do not hold its token 0
            return [int(count) for count in tokens]
    raise AssertionError("pairs are not drawn")


def _tree_tokens(step: Step, number: int) -> int:
    if len(step.tokens) == 1:
        return step.used_tokens
    return int((step.tokens[number] != 0).sum())
