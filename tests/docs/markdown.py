"""Markdown parsing for the tests of the documentation: blocks, prose, links and anchors."""

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
    """Return README.md and the pages of docs/, in this order."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the rest of the opening line, the number of its first line, and its text."""

    page: Path
    language: str
    rest: str
    line: int
    text: str

    @property
    def where(self) -> str:
        """Page and line, for error messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Yield all fenced blocks of a page, in order."""
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
    """Yield the lines outside of fenced blocks, with their numbers."""
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line


def links(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the targets of the links and pictures of a page, with their line numbers."""
    for number, line in prose(page):
        for match in _LINK.finditer(_CODE.sub("code", line)):
            yield number, match["target"]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
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
