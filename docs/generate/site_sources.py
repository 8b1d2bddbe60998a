"""A hook of mkdocs: what pages link to outside of docs/ becomes a part of the site.

On GitHub a link such as ``../examples/models/x.py`` leads to the file. In the site it leads to a page that shows it: a
Markdown file as it is, another text as a block of code, a folder as a list of what is in it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = "source"
"""Where in the site those pages are; no folder of docs/ has this name."""

_LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LANGUAGES = {
    ".py": "python",
    ".yaml": "yaml",
    ".jsonl": "json",
    ".cfg": "ini",
    ".ini": "ini",
    ".toml": "toml",
    ".sbatch": "bash",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file that can be reached by links."""
    seen: set[str] = set()
    ahead = [(f"docs/{file.src_uri}", (ROOT / "docs" / file.src_uri).read_text("utf-8")) for file in _pages(files)]
    while ahead:
        source, text = ahead.pop()
        for target in _targets(source, text):
            if target in seen or target.startswith("docs/"):
                continue
            seen.add(target)
            content = _content(target)
            files.append(File.generated(config, _uri(target), content=_rewritten(target, content)))
            ahead.append((target, content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Let the links of a page of docs/ lead to those pages."""
    uri = page.file.src_uri
    return markdown if uri.startswith(f"{FOLDER}/") else _rewritten(f"docs/{uri}", markdown)


def _pages(files: Files) -> list[File]:
    return [file for file in files.documentation_pages() if file.generated_by is None]


def _uri(path: str) -> str:
    """The page of the site for a path in the checkout."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{FOLDER}/{path}" if path.endswith(".md") else f"{FOLDER}/{path}.md"


def _content(path: str) -> str:
    """The Markdown that shows a file or a folder; its links are those of the file."""
    file = ROOT / path
    if file.is_dir():
        names = sorted(each.name for each in file.iterdir() if each.is_file() and not each.name.startswith((".", "__")))
        return f"# {path}\n\n" + "".join(f"- [{name}]({file.name}/{name})\n" for name in names)
    text = file.read_text("utf-8")
    if path.endswith(".md"):
        return text
    return f"# {path}\n\n````{_LANGUAGES.get(file.suffix, 'text')}\n{text}````\n"


def _targets(source: str, text: str) -> list[str]:
    """The paths in the checkout that a text links to."""
    found: list[str] = []

    def note(path: str) -> str:
        found.append(path)
        return path

    _each_link(source, text, note)
    return found


def _rewritten(source: str, text: str) -> str:
    """The text with links between pages of the site."""
    here = posixpath.dirname(_uri(source))
    return _each_link(source, text, lambda path: posixpath.relpath(_uri(path), here or "."))


def _each_link(source: str, text: str, change: Callable[[str], str]) -> str:
    """Change the targets of links to files of the checkout, other than pages and pictures of docs/ from within it."""

    def changed(match: re.Match[str]) -> str:
        target = match["target"]
        if ":" in target or target.startswith("/"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists() or (source.startswith("docs/") and path.startswith("docs/")):
            return match[0]  # mkdocs says so where there is nothing.
        return f"{match['before']}{change(path)}{match['anchor'] or ''})"

    parts: list[str] = []
    at = 0
    for fence in _FENCE.finditer(text):
        parts += [_LINK.sub(changed, text[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*parts, _LINK.sub(changed, text[at:])])
