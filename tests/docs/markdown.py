"""What the tests read out of the Markdown files of the checkout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

_FENCE = re.compile(r"^```(?P<language>\w*)(?P<rest>.*)$")
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\((?P<target>[^)\s]+)\)")
_CODE = re.compile(r"`[^`]*`")
_HEADING = re.compile(r"^#+ +(?P<title>.+)$")


def pages() -> list[Path]:
    """README.md first, then the pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what stands behind that, the number of its first line, and its text."""

    page: Path
    language: str
    rest: str
    line: int
    text: str

    @property
    def where(self) -> str:
        """Page and line, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page, in order."""
    opened: re.Match[str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        match = _FENCE.match(line)
        if opened is None and match is not None:
            opened, lines, first = match, [], number + 1
        elif opened is not None and line == "```":
            yield Block(page, opened["language"], opened["rest"].strip(), first, "\n".join(lines) + "\n")
            opened = None
        elif opened is not None:
            lines.append(line)
    assert opened is None, f"{page} ends within a block"


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """The lines outside of fenced blocks, with their numbers."""
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line


def links(page: Path) -> Iterator[tuple[int, str]]:
    """The targets of the links and pictures of a page, with their lines."""
    for number, line in prose(page):
        for match in _LINK.finditer(_CODE.sub("code", line)):
            yield number, match["target"]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found: set[str] = set()
    for _, line in prose(page):
        match = _HEADING.match(line)
        if match is None:
            continue
        plain = re.sub(r"[^\w\- ]", "", match["title"].lower()).replace(" ", "-")
        count = 0
        anchor = plain
        while anchor in found:
            count += 1
            anchor = f"{plain}-{count}"
        found.add(anchor)
    return found
