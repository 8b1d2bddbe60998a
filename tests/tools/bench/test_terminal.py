"""A bench as it is shown: names of others are text, and every workload has its column."""

from __future__ import annotations

import io

from rich.console import Console

from birdie_zmq.tools.bench import terminal
from birdie_zmq.tools.bench.figures import LeftOut
from tests.tools.bench.test_advice import EVERYTHING, described, measured


def shown(*advice: str) -> str:
    written = io.StringIO()
    left_out = LeftOut("generation", "[red]cannot\x1b[2J")
    terminal.show(described(EVERYTHING), 2.5, [measured(), left_out], advice, Console(file=written, width=100))
    return written.getvalue()


def test_the_table_has_what_was_counted() -> None:
    lines = {line[:20].strip(): line[20:].split() for line in shown("give more").splitlines()}

    assert lines["tokens asked"] == ["4,000"]
    assert lines["computed"] == ["1,100"]
    assert lines["asked / computed"] == ["3.64"]
    assert lines["wall / step time"] == ["1.020"]


def test_what_was_left_out_and_what_is_advised_stand_below_as_plain_text() -> None:
    text = shown("give [bold]more[/bold]\x1b[2J")

    assert "generation was left out: [red]cannot\\x1b[2J" in text
    assert "→ give [bold]more[/bold]\\x1b[2J" in text
    assert "\x1b" not in text
    assert "nothing stands out" in shown()


def test_numbers_have_three_digits() -> None:
    assert [terminal.rate(value) for value in (0.123, 12.34, 123.4, 12_345.0)] == ["0.12", "12.3", "123", "12,345"]
