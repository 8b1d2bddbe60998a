"""Output of findings, and the exit status of the command."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from birdie_zmq.tools.doctor.finding import Finding, exit_status, show, summary

OK, WARNING = Finding("python", "ok", "3.11"), Finding("open files", "warning", "256", "ulimit -n 4096")
WRONG = Finding("api.py", "wrong", "it raised \x1b[2J [red]", "edit api.py, line 3", "Traceback\n  a\x07b")


def shown(finding: Finding) -> str:
    written = io.StringIO()
    show(finding, Console(file=written, width=40))
    return written.getvalue()


def test_only_wrong_findings_set_the_exit_status() -> None:
    assert exit_status([OK, WARNING]) == 0
    assert exit_status([OK, WRONG, WARNING]) == 1
    assert summary([OK, WARNING]).startswith("nothing is wrong, 1 warning ")
    assert summary([OK, WRONG]).startswith("1 wrong and 0 warnings")


def test_wrong_finding_needs_a_fix() -> None:
    with pytest.raises(ValueError, match="needs a fix"):
        Finding("api.py", "wrong", "it raised")


def test_fix_is_never_wrapped() -> None:
    fix = "pip install " + "x" * 100

    assert f"→ {fix}\n" in shown(Finding("packages", "wrong", "too old", fix))


def test_control_characters_and_markup_are_escaped() -> None:
    text = shown(WRONG)

    assert "\x1b" not in text
    assert "\\x1b[2J [red]" in text
    assert "a\\x07b" in text
