"""The finding of a check, and how it is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.text import Text

from birdie_zmq.sanitize import sanitize

Severity = Literal["ok", "warning", "wrong"]
_STYLES: dict[Severity, str] = {"ok": "green", "warning": "yellow", "wrong": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's output.

    Attributes:
        name: The name of the check.
        level: ``ok``; ``warning`` if a run can succeed anyway; ``wrong`` if a run will fail.
        text: The result of the check.
        fix: The command or edit that fixes the problem; may be empty unless the level is ``wrong``.
        detail: Further lines, such as a traceback.
    """

    name: str
    level: Severity
    text: str
    fix: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        if self.level == "wrong" and not self.fix:
            raise ValueError(f"{self.name}: a finding with level wrong needs a fix")


def exit_status(findings: Sequence[Finding]) -> int:
    """Return 1 if a finding has the level ``wrong``, else 0."""
    return int(any(finding.level == "wrong" for finding in findings))


def show(finding: Finding, console: Console) -> None:
    """Print one finding; lines are never wrapped, so that a fix can be copied."""
    line = Text.assemble((f"{finding.level:<8}", _STYLES[finding.level]), f"{finding.name:<17}", sanitize(finding.text))
    console.print(line, soft_wrap=True)
    if finding.detail:
        for row in sanitize(finding.detail.rstrip(), lines=True).split("\n"):
            console.print(Text(f"{'':<25}{row}", style="dim"), soft_wrap=True)
    if finding.fix:
        console.print(Text.assemble(f"{'':<25}", ("→ ", "bold"), sanitize(finding.fix)), soft_wrap=True)


def summary(findings: Sequence[Finding]) -> str:
    """Return a line that summarizes the findings."""
    wrong = sum(finding.level == "wrong" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    counted = f"{warnings} warning{'s' * (warnings != 1)}"
    if wrong:
        return f"{wrong} wrong and {counted} in {len(findings)} checks"
    return f"nothing is wrong, {counted} in {len(findings)} checks"
