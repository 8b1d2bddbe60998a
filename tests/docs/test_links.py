"""All relative links are valid on GitHub, and so on the site, which is built from the same pages."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.markdown import ROOT, anchors, blocks, links, pages

_LISTED = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False
).stdout.split()
FILES = [ROOT / name for name in _LISTED if (ROOT / name).exists()] or [*pages(), *ROOT.glob("*.md")]
"""All Markdown files of the checkout; in an unpacked archive without git, the pages and the files of the root folder."""


def broken_links(page: Path, root: Path = ROOT) -> list[str]:
    """Return a message for each relative link of a page that is broken."""
    found = []
    for line, target in links(page):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = unquote(target).partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists():
            found.append(f"line {line}: there is no {target}")
        elif not path.is_relative_to(root):
            found.append(f"line {line}: {target} is outside of the checkout")
        elif anchor and anchor not in anchors(path):
            found.append(f"line {line}: {name or page.name} has no heading for #{anchor}")
    return found


@pytest.mark.parametrize("page", FILES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_has_a_file_and_heading(page: Path) -> None:
    assert broken_links(page) == []


def test_every_page_is_reachable_from_the_readme() -> None:
    reached, pending = set[Path](), [ROOT / "README.md"]
    while pending:
        page = pending.pop()
        if page in reached:
            continue
        reached.add(page)
        names = [unquote(target).partition("#")[0] for _, target in links(page) if "://" not in target]
        pending += [path for name in names if (path := (page.parent / name).resolve()).suffix == ".md"]

    assert [page.name for page in pages() if page not in reached] == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](nowhere.md)", "line 1: there is no nowhere.md"),
        ("[a](#nothing)", "line 1: page.md has no heading for #nothing"),
        ("text\n\n[`code`](there.md#two-words-1)", "line 3: there.md has no heading for #two-words-1"),
        ("![a](../secret.png)", "line 1: ../secret.png is outside of the checkout"),
        ("```text\n[a](nowhere.md)\n```\n`[a](nowhere.md)` [a](there.md#two-words) [b](https://nowhere.md)", None),
    ],
)
def test_broken_link_is_reported(text: str, problem: str | None, tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    root.mkdir()
    (tmp_path / "secret.png").touch()
    (root / "there.md").write_text("# Two words\n")
    (root / "page.md").write_text(text)

    assert broken_links(root / "page.md", root) == ([] if problem is None else [problem])


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_python_blocks_can_be_parsed(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text, filename=block.where)
