"""The prefix tree of a batch: shared tokens appear once, and each position scores the targets of its requests."""

from __future__ import annotations

from benchmarks.pictures import example
from benchmarks.pictures.canvas import BOX_HEIGHT, MARGIN, WIDTH, Canvas, token_width
from birdie_zmq.engine.planning.prefix_tree import PrefixTree

_INDENT = 22


def draw() -> str:
    """Return the picture."""
    items = example.requests()
    tree = PrefixTree(items)
    requested = sum(len(item.row) for item in items)
    canvas = Canvas("The prefix tree of four requests: shared tokens appear once, with the targets at each position")
    canvas.heading(
        f"{len(items)} requests of {requested} tokens: {tree.distinct_tokens()} are distinct",
        "Two questions of demo_choice, two answers each",
    )
    _subtree(canvas, tree, 0, len(tree.rows), 0, MARGIN)
    canvas.y += 8
    canvas.legend(("read", "computed once"), ("scores", "scores the tokens under it"), ("target", "target token"))
    return canvas.svg()


def _subtree(canvas: Canvas, tree: PrefixTree, first: int, last: int, base: int, x: float) -> None:
    depth = tree.depth(first, last)
    row = tree.rows[first]
    targets: dict[int, list[str]] = {}
    for i in range(first, last):
        for owner in tree.owners[i]:
            item = tree.items[owner]
            for position, word in zip(item.positions, example.token_texts(item.targets), strict=True):
                if base <= position < depth and word not in targets.setdefault(position, []):
                    targets[position].append(word)
    feet = canvas.tokens(
        (
            (word, "scores" if number in targets else "read")
            for number, word in enumerate(example.token_texts(row[base:depth]), base)
        ),
        x,
    )
    top = canvas.y
    _draw_targets(canvas, targets, feet, base, x)
    for begin, end in tree.children(first, last) if last - first > 1 else ():
        if len(tree.rows[begin]) == depth:
            continue  # a row that ends here
        canvas.y += 14
        canvas.path(f"M{x + 8:g} {top + 2:g} V{canvas.y + BOX_HEIGHT / 2:g} H{x + _INDENT:g}")
        _subtree(canvas, tree, begin, end, depth, x + _INDENT)


def _draw_targets(
    canvas: Canvas, targets: dict[int, list[str]], feet: list[tuple[float, float]], base: int, left: float
) -> None:
    """Draw the targets of each position under the last line of tokens, connected by lines."""
    if not targets:
        return
    canvas.y += 14
    width = sum(token_width(word) + 3 for words in targets.values() for word in words) + 12 * (len(targets) - 1)
    x = max(left + _INDENT, min(feet[position - base][0] for position in targets) - 16)
    x = min(x, WIDTH - MARGIN - width)
    for position, words in sorted(targets.items()):
        foot, y = feet[position - base]
        middle = min(max(foot, x + 6), x + token_width(words[0]) - 6)
        canvas.path(f"M{foot:g} {y:g} C{foot:g} {y + 9:g} {middle:g} {canvas.y - 9:g} {middle:g} {canvas.y:g}")
        for word in words:
            x += canvas.token(x, canvas.y, word, "target") + 3
        x += 12
    canvas.y += BOX_HEIGHT
