"""One request: its strings, its tokens, the row that is read, and which position scores which token."""

from __future__ import annotations

from benchmarks.pictures import example
from benchmarks.pictures.canvas import MARGIN, Canvas, shown


def draw() -> str:
    """The picture."""
    canvas = Canvas(
        "A request as strings, as tokens, as the row that the model reads, and as the scores of its last two"
    )
    context, continuation = example.pairs()[2]
    item = example.requests()[2]
    words = example.words(item.tokens)
    begin = len(words) - item.count

    canvas.heading("1. What lm_eval asks")
    for name, text in (("context", context), ("continuation", continuation)):
        for number, line in enumerate(_wrapped(text)):
            canvas.y += 13
            canvas.text(MARGIN, canvas.y, "" if number else name, "note")
            canvas.text(MARGIN + 84, canvas.y, shown(line), "token")
            canvas.y += 4
    canvas.y += 10

    canvas.heading("2. Encoded together, and cut where the context ends")
    canvas.tokens((word, "target" if number >= begin else "read") for number, word in enumerate(words))
    canvas.legend(("read", "context"), ("target", "continuation: to be scored"))
    canvas.y += 12

    canvas.heading("3. The row: all tokens but the last", "The logits at a position are for the token after it.")
    scored = set(item.positions)
    feet = canvas.tokens(
        (word, "scores" if number in scored else "read") for number, word in enumerate(words[: len(item.row)])
    )
    canvas.y += 26
    x = max(float(MARGIN), min(feet[number][0] for number in scored) - 30)
    for position, target in zip(item.positions, example.words(item.targets), strict=True):
        foot, y = feet[position]
        width = canvas.token(x, canvas.y, target, "target")
        canvas.path(
            f"M{foot:g} {y:g} C{foot:g} {y + 14:g} {x + width / 2:g} {canvas.y - 14:g} {x + width / 2:g} {canvas.y:g}"
        )
        x += width + 18
    canvas.y += 22
    canvas.legend(("scores", "position whose logits are used"), ("target", "token that they score"))
    canvas.y += 12

    canvas.heading(
        "4. The number",
        "log p(\N{MIDDLE DOT}mushroom | context) + log p(\N{MIDDLE DOT}pie | context \N{MIDDLE DOT}mushroom)",
        "and is_greedy: whether each of the two tokens has the",
        "largest logit at its position.",
    )
    canvas.y -= 9
    return canvas.svg()


def _wrapped(text: str) -> list[str]:
    lines: list[str] = []
    for word in text.replace("\n", "\n ").split(" "):
        glued = f"{lines[-1]} {word}" if lines else word
        if lines and len(glued) <= 38 and not lines[-1].endswith("\n"):
            lines[-1] = glued
        else:
            lines.append(word)
    return lines
