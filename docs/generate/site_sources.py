"""A hook of mkdocs that adds files outside of docs/ to the site if pages link to them.

On GitHub a link such as ``../examples/models/x.py`` leads to the file. In the site it leads to a page that shows the
file: Markdown is rendered, other text is a code block, and a folder is a list of its files.
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
"""The folder of these pages in the site; no folder of docs/ has this name."""

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
    """Add a page for each file that is reachable by links."""
    seen: set[str] = set()
    pending = [(f"docs/{file.src_uri}", (ROOT / "docs" / file.src_uri).read_text("utf-8")) for file in _pages(files)]
    while pending:
        source, text = pending.pop()
        for target in _targets(source, text):
            if target in seen or target.startswith("docs/"):
                continue
            seen.add(target)
            content = _content(target)
            files.append(File.generated(config, _uri(target), content=_rewritten(target, content)))
            pending.append((target, content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Rewrite the links of a page of docs/ to lead to these pages."""
    uri = page.file.src_uri
    return markdown if uri.startswith(f"{FOLDER}/") else _rewritten(f"docs/{uri}", markdown)


def _pages(files: Files) -> list[File]:
    return [file for file in files.documentation_pages() if file.generated_by is None]


def _uri(path: str) -> str:
    """Return the page of the site for a path in the checkout."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{FOLDER}/{path}" if path.endswith(".md") else f"{FOLDER}/{path}.md"


def _content(path: str) -> str:
    """Return the Markdown that shows a file or a folder; links are those of the file."""
    file = ROOT / path
    if file.is_dir():
        names = sorted(each.name for each in file.iterdir() if each.is_file() and not each.name.startswith((".", "__")))
        return f"# {path}\n\n" + "".join(f"- [{name}]({file.name}/{name})\n" for name in names)
    text = file.read_text("utf-8")
    if path.endswith(".md"):
        return text
    return f"# {path}\n\n````{_LANGUAGES.get(file.suffix, 'text')}\n{text}````\n"


def _targets(source: str, text: str) -> list[str]:
    """Return the paths in the checkout that a text links to."""
    found: list[str] = []

    def note(path: str) -> str:
        found.append(path)
        return path

    _replace_links(source, text, note)
    return found


def _rewritten(source: str, text: str) -> str:
    """Return the text with links between pages of the site."""
    here = posixpath.dirname(_uri(source))
    return _replace_links(source, text, lambda path: posixpath.relpath(_uri(path), here or "."))


def _replace_links(source: str, text: str, replace: Callable[[str], str]) -> str:
    """Replace the targets of links to files of the checkout, except links from docs/ to docs/."""

    def replaced(match: re.Match[str]) -> str:
        target = match["target"]
        if ":" in target or target.startswith("/"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists() or (source.startswith("docs/") and path.startswith("docs/")):
            return match[0]  # mkdocs reports missing targets.
        return f"{match['before']}{replace(path)}{match['anchor'] or ''})"

    parts: list[str] = []
    at = 0
    for fence in _FENCE.finditer(text):
        parts += [_LINK.sub(replaced, text[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*parts, _LINK.sub(replaced, text[at:])])
