"""An SVG canvas for light mode, dark mode and phones: a few kinds of boxes and texts on an opaque background.

The width suits a narrow screen. Token texts use a monospaced font, so that boxes fit them without a renderer.
"""

from __future__ import annotations

from collections.abc import Iterable
from xml.sax.saxutils import escape

WIDTH = 420
MARGIN = 14
LETTER = 7.3
"""The assumed width of a monospaced letter at 12 px."""

BOX_HEIGHT = 21
_GAP = 4

_STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--ink); }
.token { font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.letter { font: 8px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.label { font: 9px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.head { font-weight: 600; font-size: 13px; } .note, .label.dim { fill: var(--dim); }
.ground { fill: var(--ground); stroke: var(--read); } .read { fill: var(--read); stroke: var(--line); }
.scores { fill: var(--scores); stroke: var(--scores-edge); } .target { fill: var(--target); stroke: var(--target-edge); }
.padding { fill: none; stroke: var(--line); stroke-dasharray: 2 2; } .seen { fill: var(--seen); }
.line { fill: none; stroke: var(--dim); stroke-width: 1.2; } .grid { fill: none; stroke: var(--line); }
svg { --ground: #fff; --ink: #1b2420; --dim: #58635d; --line: #b9c1bc; --read: #eef1ef; --seen: #8fa39a;
  --scores: #99e0d5; --scores-edge: #0f766e; --target: #fbd38d; --target-edge: #b45309; }
@media (prefers-color-scheme: dark) {
  svg { --ground: #1b211e; --ink: #e6ebe8; --dim: #a5b2ab; --line: #4b5851; --read: #2b342f; --seen: #6f837a;
    --scores: #11655d; --scores-edge: #2dd4bf; --target: #76470f; --target-edge: #fbbf24; }
}
"""


def visible_text(text: str) -> str:
    """Return a token's text with visible white space."""
    return text.replace(" ", "\N{MIDDLE DOT}").replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")


def token_width(text: str) -> float:
    """Return the width of a token's box."""
    return LETTER * len(visible_text(text)) + 8


class Canvas:
    """A picture that is drawn from top to bottom.

    Args:
        title: The description for screen readers.

    Attributes:
        y: The vertical position of the next element.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = []
        self.y: float = MARGIN

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        """Draw a text with its baseline at y."""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}" xml:space="preserve">{escape(text)}</text>'
        )

    def box(self, x: float, y: float, width: float, height: float, kind: str, radius: float = 3) -> None:
        """Draw a rectangle."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" class="{kind}"/>'
        )

    def path(self, points: str, kind: str = "line") -> None:
        """Draw a line, given as SVG path data."""
        self._parts.append(f'<path d="{points}" class="{kind}"/>')

    def heading(self, text: str, *notes: str) -> None:
        """Draw a heading, and notes under it."""
        self.y += 12
        self.text(MARGIN, self.y, text, "head")
        for note in notes:
            self.y += 16
            self.text(MARGIN, self.y, note, "note")
        self.y += 9

    def token(self, x: float, y: float, text: str, kind: str) -> float:
        """Draw a token in a box, and return its width."""
        width = token_width(text)
        self.box(x, y, width, BOX_HEIGHT, kind)
        self.text(x + width / 2, y + 15, visible_text(text), "token", "middle")
        return width

    def tokens(self, tokens: Iterable[tuple[str, str]], x: float = MARGIN) -> list[tuple[float, float]]:
        """Draw (token, kind) pairs side by side, wrapped; return the middle of the lower edge of each box."""
        left, at, y = x, x, self.y
        feet = []
        for text, kind in tokens:
            width = token_width(text)
            if at > left and at + width > WIDTH - MARGIN:
                at, y = left, y + BOX_HEIGHT + _GAP
            self.token(at, y, text, kind)
            feet.append((at + width / 2, y + BOX_HEIGHT))
            at += width + _GAP
        self.y = y + BOX_HEIGHT
        return feet

    def cells(self, x: float, rows: Iterable[Iterable[tuple[str, str]]], size: float) -> None:
        """Draw rows of small squares, one per (token, kind), each with the first letter of its token."""
        for row in rows:
            for number, (text, kind) in enumerate(row):
                self.box(x + number * size, self.y, size - 1, size - 1, kind, 1.5)
                letter = visible_text(text.strip(" "))[:1]
                self.text(x + number * size + (size - 1) / 2, self.y + size / 2 + 2.4, letter, "letter", "middle")
            self.y += size

    def legend(self, *kinds: tuple[str, str]) -> None:
        """Draw a legend of (kind, meaning) pairs."""
        x = float(MARGIN)
        self.y += 10
        for kind, meaning in kinds:
            width = 18 + 6.6 * len(meaning) + 12
            if x > MARGIN and x + width > WIDTH:
                x, self.y = MARGIN, self.y + 18
            self.box(x, self.y, 12, 12, kind)
            self.text(x + 18, self.y + 10.5, meaning, "note")
            x += width
        self.y += 12

    def svg(self) -> str:
        """Return the picture as SVG text."""
        height = self.y + MARGIN
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH * 1.2:g}" '
            f'height="{height * 1.2:g}" role="img"><title>{escape(self._title)}</title><style>{_STYLE}</style>'
        )
        ground = f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="8" class="ground"/>'
        return "\n".join([head, ground, *self._parts, "</svg>"]) + "\n"
