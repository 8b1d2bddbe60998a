"""One request: its strings, its tokens, the model's input row, and the position at which each token is scored."""

from __future__ import annotations

from benchmarks.pictures import example
from benchmarks.pictures.canvas import MARGIN, Canvas, visible_text


def draw() -> str:
    """Return the picture."""
    canvas = Canvas(
        "A request as strings, as tokens, as the model's input row, and as the scores of its last two tokens"
    )
    context, continuation = example.pairs()[2]
    item = example.requests()[2]
    words = example.token_texts(item.tokens)
    begin = len(words) - item.count

    canvas.heading("1. The request of lm_eval")
    for name, text in (("context", context), ("continuation", continuation)):
        for number, line in enumerate(_wrapped(text)):
            canvas.y += 13
            canvas.text(MARGIN, canvas.y, "" if number else name, "note")
            canvas.text(MARGIN + 84, canvas.y, visible_text(line), "token")
            canvas.y += 4
    canvas.y += 10

    canvas.heading("2. Encoded together, and split at the end of the context")
    canvas.tokens((word, "target" if number >= begin else "read") for number, word in enumerate(words))
    canvas.legend(("read", "context"), ("target", "continuation: scored"))
    canvas.y += 12

    canvas.heading("3. The row: all tokens but the last", "The logits at a position are for the token after it.")
    scored = set(item.positions)
    feet = canvas.tokens(
        (word, "scores" if number in scored else "read") for number, word in enumerate(words[: len(item.row)])
    )
    canvas.y += 26
    x = max(float(MARGIN), min(feet[number][0] for number in scored) - 30)
    for position, target in zip(item.positions, example.token_texts(item.targets), strict=True):
        foot, y = feet[position]
        width = canvas.token(x, canvas.y, target, "target")
        canvas.path(
            f"M{foot:g} {y:g} C{foot:g} {y + 14:g} {x + width / 2:g} {canvas.y - 14:g} {x + width / 2:g} {canvas.y:g}"
        )
        x += width + 18
    canvas.y += 22
    canvas.legend(("scores", "position whose logits are used"), ("target", "scored token"))
    canvas.y += 12

    canvas.heading(
        "4. The result",
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
