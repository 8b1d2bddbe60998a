"""Draws the curve of a watch: a page with each metric over the steps, and a PNG file for each metric.

The page holds everything itself: no script, no external resource, and every text escaped. matplotlib draws the plots.
"""

from __future__ import annotations

import base64
import importlib.util
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from birdie_zmq.errors import UsageError
from birdie_zmq.tools.html_page import escape, render_page
from birdie_zmq.tools.watch.core import Outcome, Sighting
from birdie_zmq.tools.watch.results import Metric, ResultsFile

logger = logging.getLogger("birdie_zmq.watch")

PAGE = "curve.html"
PLOTS = "curves"
"""The folder of the PNG files."""

MAX_PLOTS = 60
"""Maximum number of metrics with plots: the first ones. The others are in the results."""

_MARGIN_STDERRS = 1.96
"""Half of the height of a 95% confidence band, in standard errors of a normal distribution."""


@dataclass(frozen=True)
class Series:
    """A metric over the steps that have it, in ascending order."""

    name: str
    metrics: tuple[Metric, ...]


def series_of(metrics: Sequence[Metric]) -> list[Series]:
    """Return the series of each metric, in the order in which lm_eval reports them."""
    names = {(m.task, m.metric, m.filter): m for m in metrics}
    found = []
    for task, metric, filter_name in names:
        own = [m for m in metrics if (m.task, m.metric, m.filter) == (task, metric, filter_name)]
        title = f"{task} {metric}" + ("" if filter_name == "none" else f",{filter_name}")
        found.append(Series(title, tuple(sorted(own, key=lambda m: m.step))))
    return found


class CurveWriter:
    """Writes the page and the PNG files again after each checkpoint.

    Args:
        folder: The output folder.
        results: The results.
    """

    def __init__(self, folder: Path, results: ResultsFile) -> None:
        self._folder = folder
        self._results = results
        self._is_possible: bool | None = None

    def recorded(self, sighting: Sighting, evaluated: Any) -> None:
        """Write the curve with the new checkpoint."""
        del sighting, evaluated
        self.write()

    def write(self) -> None:
        """Write the curve if matplotlib is installed and there is a metric; warn once if it is not.

        Raises:
            UsageError: A file cannot be written.
        """
        if self._is_possible is None:
            self._is_possible = importlib.util.find_spec("matplotlib") is not None
            if not self._is_possible:
                logger.warning("no curve is drawn: it needs matplotlib (pip install 'birdie-zmq[compare]')")
        if not self._is_possible or not self._results.metrics:
            return
        series = series_of(self._results.metrics)
        try:
            (self._folder / PLOTS).mkdir(exist_ok=True)
            pictures = [self._draw(each) for each in series[:MAX_PLOTS]]
            _replace(self._folder / PAGE, render(series, pictures, self._results.outcomes).encode())
        except OSError as error:
            raise UsageError(f"cannot write the curve to {self._folder}: {error.strerror}") from error

    def _draw(self, series: Series) -> str:
        """Write the PNG file of a series, and return its picture as HTML."""
        from birdie_zmq.tools.compare import plots

        drawn = [m for m in series.metrics if math.isfinite(m.value)]
        margins = [
            _MARGIN_STDERRS * m.stderr if m.stderr is not None and math.isfinite(m.stderr) else 0.0 for m in drawn
        ]
        points = [m.step for m in drawn], [m.value for m in drawn], margins
        light, dark = (plots.curve(*points, series.name, theme) for theme in (plots.LIGHT, plots.DARK))
        _replace(self._folder / PLOTS / f"{re.sub(r'[^0-9A-Za-z_.-]+', '_', series.name)}.png", light)
        source = "data:image/png;base64,{}"
        light_source, dark_source = (source.format(base64.b64encode(png).decode()) for png in (light, dark))
        return (
            f"<picture><source media='(prefers-color-scheme: dark)' srcset='{dark_source}'>"
            f"<img alt='{escape(series.name)} over the steps' width=539 height=374 src='{light_source}'></picture>"
        )


def render(series: Sequence[Series], pictures: Sequence[str], outcomes: Mapping[int, Outcome]) -> str:
    """Return the HTML of the page.

    Args:
        series: All metrics.
        pictures: The pictures of the first ones, as HTML.
        outcomes: The status of each step.
    """
    evaluated = sorted(step for step, outcome in outcomes.items() if outcome.status == "evaluated")
    others = [f"step {step}: {outcome.status}" for step, outcome in sorted(outcomes.items()) if step not in evaluated]
    left = len(series) - len(pictures)
    notes = [*others, *([f"{left} more metrics are in results.jsonl"] if left else [])]
    title = f"{len(evaluated)} checkpoints, up to step {evaluated[-1]}" if evaluated else "no checkpoints"
    header = f"""<p class="verdict">{title}</p>
<h1>A training run</h1>
<p class=note>Bands are 95% confidence intervals, ± {_MARGIN_STDERRS} standard errors of lm_eval, where it computes one.</p>
{"".join(f"<p class=note>{escape(note)}</p>" for note in notes)}"""
    content = f"""<section><div class=plots>{"".join(pictures)}</div></section>
<section><h2>Values</h2>{_table(series, evaluated)}</section>"""
    return render_page(f"{title}: a training run", header, content, "watch")


def _table(series: Sequence[Series], steps: Sequence[int]) -> str:
    """Return a table with a row for each step and a column for each metric."""
    values = [{metric.step: metric for metric in each.metrics} for each in series]
    head = "".join(f"<th class=n>{escape(each.name)}</th>" for each in series)
    rows = []
    for step in reversed(steps):
        cells = "".join(f"<td class=n>{_cell(each.get(step))}</td>" for each in values)
        rows.append(f"<tr><td>{step}</td>{cells}</tr>")
    return f"<div class=scroll><table><thead><tr><th>step</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    return f"{metric.value:.4f}" + ("" if metric.stderr is None else f" ± {metric.stderr:.4f}")


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
