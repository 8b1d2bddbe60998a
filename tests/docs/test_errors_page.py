"""docs/reference/errors.md has every error, and no message that the code does not have."""

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
    """The first column of the tables of messages."""
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
    """The texts of the code, with … for what is put into them."""
    for path in [*(ROOT / "birdie_zmq").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)  # type: ignore[misc]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


TEMPLATES = list(templates())


def fits(message: str, template: str) -> bool:
    """Whether the words between the … of a message stand in a text, in their order."""
    words = [re.escape(word) for word in re.split(r"\s*…\s*", message) if word]
    return re.search(".*".join(words), template, re.DOTALL) is not None


def test_every_code_is_on_the_page_with_its_class() -> None:
    lines = [line for _, line in prose(PAGE)]
    text = "\n".join(lines)

    assert {code for code in CODES if f"## {code}" not in lines and f"| `{code}` |" not in text} == set()
    assert {name for name in CODES.values() if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("message", messages())
def test_a_message_of_the_page_is_one_of_the_code(message: str) -> None:
    assert len(re.sub(r"[…\s]", "", message)) > 8
    assert any(fits(message, template) for template in TEMPLATES)


def test_messages_are_found_on_the_page_and_told_from_others() -> None:
    assert len(messages()) > 50
    assert not fits("there is no cat at …", "there is no page at …")
    assert fits("there is … at …", "there is no page at …, which")
    assert not fits("at … there is", "there is no page at …")
