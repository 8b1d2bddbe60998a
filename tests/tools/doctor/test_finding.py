"""How findings are shown, and what the command ends with."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from birdie_zmq.tools.doctor.finding import Finding, exit_status, show, summary

OK, WARNING = Finding("python", "ok", "3.11"), Finding("open files", "warning", "256", "ulimit -n 4096")
WRONG = Finding("page", "wrong", "it raised \x1b[2J [red]", "edit page.py, line 3", "Traceback\n  a\x07b")


def shown(finding: Finding) -> str:
    written = io.StringIO()
    show(finding, Console(file=written, width=40))
    return written.getvalue()


def test_only_what_is_wrong_fails() -> None:
    assert exit_status([OK, WARNING]) == 0
    assert exit_status([OK, WRONG, WARNING]) == 1
    assert summary([OK, WARNING]).startswith("nothing is wrong, 1 to look at")
    assert summary([OK, WRONG]).startswith("1 wrong, 0 to look at")


def test_what_is_wrong_has_a_cure() -> None:
    with pytest.raises(ValueError, match="needs a cure"):
        Finding("page", "wrong", "it raised")


def test_a_cure_is_never_broken_over_lines() -> None:
    cure = "pip install " + "x" * 100

    assert f"→ {cure}\n" in shown(Finding("packages", "wrong", "too old", cure))


def test_what_others_wrote_neither_moves_the_cursor_nor_colours() -> None:
    text = shown(WRONG)

    assert "\x1b" not in text
    assert "\\x1b[2J [red]" in text
    assert "a\\x07b" in text
