"""The table of a watch in the terminal."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
from rich.console import Console

from birdie_zmq.tools.watch.core import Sighting
from birdie_zmq.tools.watch.results import Measured, Metric, ResultsFile
from birdie_zmq.tools.watch.terminal import show


@pytest.mark.parametrize(("width", "shown"), [(200, [30, 40, 50, 60, 70, 80]), (80, [70, 80]), (30, [80])])
def test_last_steps_that_fit_are_shown_in_full(tmp_path: Path, width: int, shown: list[int]) -> None:
    written = io.StringIO()
    with contextlib.closing(ResultsFile(tmp_path, {})) as results:
        for step in range(10, 90, 10):
            metrics = [Metric(step, "demo_rolling", "byte_perplexity", "none", step / 7, 0.0125)]
            results.add(Sighting(step, "/run", None, ""), "evaluated", Measured(metrics, {}))
        show(results, Console(file=written, width=width))

    text = written.getvalue()
    assert [step for step in range(10, 90, 10) if f"step {step}" in text] == shown
    assert "…" not in text
    assert "11.4286" in text
