"""The frame of the pages that commands write: no script, no external resource, and every text escaped."""

from __future__ import annotations

import html

from birdie_zmq._version import __version__
from birdie_zmq.sanitize import sanitize
from birdie_zmq.tools.page_style import STYLE


def escape(text: str) -> str:
    """Return a text as HTML, with unprintable characters as escape sequences."""
    return html.escape(sanitize(text), quote=True)


def render_page(title: str, header: str, content: str, command: str) -> str:
    """Return a page.

    Args:
        title: The title, as HTML.
        header: The content of the header, as HTML.
        content: What follows it, as HTML.
        command: The command of birdie-zmq that writes the page.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
{header}
</header>
{content}
<footer>birdie-zmq {__version__} {command}</footer>
</main>
</body>
</html>
"""
