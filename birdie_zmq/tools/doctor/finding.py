"""What a check has found, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.text import Text

from birdie_zmq.sanitize import printable

Severity = Literal["ok", "warning", "wrong"]
_STYLES: dict[Severity, str] = {"ok": "green", "warning": "yellow", "wrong": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's list.

    Attributes:
        name: What was looked at.
        level: ``ok``; ``warning`` for what a run can do without; ``wrong`` for what will fail.
        text: What was found.
        cure: The command or edit that mends it; empty where nothing needs mending.
        detail: More lines, such as the traceback of a page.
    """

    name: str
    level: Severity
    text: str
    cure: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        if self.level == "wrong" and not self.cure:
            raise ValueError(f"{self.name}: what is wrong needs a cure")


def exit_status(findings: Sequence[Finding]) -> int:
    """0 where nothing is wrong, else 1."""
    return int(any(finding.level == "wrong" for finding in findings))


def show(finding: Finding, console: Console) -> None:
    """Print one finding; lines are never broken, so that a cure can be copied."""
    line = Text.assemble(
        (f"{finding.level:<8}", _STYLES[finding.level]), f"{finding.name:<17}", printable(finding.text)
    )
    console.print(line, soft_wrap=True)
    if finding.detail:
        for row in printable(finding.detail.rstrip(), lines=True).split("\n"):
            console.print(Text(f"{'':<25}{row}", style="dim"), soft_wrap=True)
    if finding.cure:
        console.print(Text.assemble(f"{'':<25}", ("→ ", "bold"), printable(finding.cure)), soft_wrap=True)


def summary(findings: Sequence[Finding]) -> str:
    """One line about all of them."""
    wrong = sum(finding.level == "wrong" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    if wrong:
        return f"{wrong} wrong, {warnings} to look at, of {len(findings)} checks"
    return f"nothing is wrong, {warnings} to look at, of {len(findings)} checks"
