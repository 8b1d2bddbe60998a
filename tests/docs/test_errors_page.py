"""docs/reference/errors.md lists every error, and only messages that exist in the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from birdie_zmq import errors
from birdie_zmq.errors import BirdieError
from tests.docs.markdown import ROOT, prose

PAGE = ROOT / "docs" / "reference" / "errors.md"
CODES = {code: kind.__name__ for code, kind in BirdieError._classes.items() if kind.__module__ == errors.__name__}


def messages() -> list[str]:
    """Return the first column of the tables of messages."""
    found, inside = [], False
    for _, line in prose(PAGE):
        cells = [cell.strip() for cell in line.split(" | ")]
        if line.startswith("| message |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("| ---"):
            found.append(cells[0].removeprefix("| "))
    return found


def templates() -> Iterator[str]:
    """Yield the string constants and f-strings of the code, with … for each replacement field."""
    for path in [*(ROOT / "birdie_zmq").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)  # type: ignore[misc]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


TEMPLATES = list(templates())


def matches(message: str, template: str) -> bool:
    """Return whether the text fragments between the … of a message occur in a template, in their order."""
    fragments = [re.escape(fragment) for fragment in re.split(r"\s*…\s*", message) if fragment]
    return re.search(".*".join(fragments), template, re.DOTALL) is not None


def test_every_error_code_and_class_is_on_the_page() -> None:
    lines = [line for _, line in prose(PAGE)]
    text = "\n".join(lines)

    assert {code for code in CODES if f"## {code}" not in lines and f"| `{code}` |" not in text} == set()
    assert {name for name in CODES.values() if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("message", messages())
def test_message_of_the_page_exists_in_the_code(message: str) -> None:
    assert len(re.sub(r"[…\s]", "", message)) > 8
    assert any(matches(message, template) for template in TEMPLATES)


def test_messages_are_parsed_and_matched() -> None:
    assert len(messages()) > 50
    assert not matches("there is no cat at …", "there is no file at …")
    assert matches("there is … at …", "there is no file at …, which")
    assert not matches("at … there is", "there is no file at …")
