"""The output of a bench: a column per workload, and texts of others without markup."""

from __future__ import annotations

import io

from rich.console import Console

from birdie_zmq.tools.bench import terminal
from birdie_zmq.tools.bench.figures import SkippedWorkload
from tests.tools.bench.test_advice import EVERYTHING, described, measured


def shown(*advice: str) -> str:
    written = io.StringIO()
    skipped = SkippedWorkload("generation", "[red]cannot\x1b[2J")
    terminal.show(described(EVERYTHING), 2.5, [measured(), skipped], advice, Console(file=written, width=100))
    return written.getvalue()


def test_table_shows_the_counts() -> None:
    lines = {line[:22].strip(): line[22:].split() for line in shown("give more").splitlines()}

    assert lines["tokens requested"] == ["4,000"]
    assert lines["computed"] == ["1,100"]
    assert lines["requested / computed"] == ["3.64"]
    assert lines["tokenizer, s"] == ["0.00"]
    assert lines["wall / process time"] == ["1.010"]


def test_skipped_workloads_and_advice_are_plain_text() -> None:
    text = shown("give [bold]more[/bold]\x1b[2J")

    assert "generation was skipped: [red]cannot\\x1b[2J" in text
    assert "→ give [bold]more[/bold]\\x1b[2J" in text
    assert "\x1b" not in text
    assert "no advice follows" in shown()


def test_rates_have_three_significant_digits() -> None:
    assert [terminal.format_rate(value) for value in (0.123, 12.34, 123.4, 12_345.0)] == [
        "0.12",
        "12.3",
        "123",
        "12,345",
    ]
