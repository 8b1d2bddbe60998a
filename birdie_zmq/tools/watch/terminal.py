"""Prints the results of a watch in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from birdie_zmq.sanitize import sanitize
from birdie_zmq.tools.watch.core import Sighting
from birdie_zmq.tools.watch.evaluation import Evaluated
from birdie_zmq.tools.watch.results import Metric, ResultsFile

MAX_STEPS = 6
"""Maximum number of columns of the table: the last steps."""

_COLUMN_CHARS = 20
"""The width of a column with a value and its standard error."""
_MARGIN_CHARS = 4


class StepPrinter:
    """Prints a line for each metric of a checkpoint that has been evaluated.

    Args:
        console: Where it prints.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def recorded(self, sighting: Sighting, evaluated: Evaluated | None) -> None:
        """Print the metrics of a checkpoint."""
        if evaluated is None:
            return
        details = evaluated.measured.details
        for metric in evaluated.measured.metrics:
            self._print(f"step {sighting.step}: {_name(metric)} {format_value(metric)}")
        self._print(
            f"step {sighting.step}: {details['seconds']:.1f} s, {details['compile_seconds']:.1f} s of it compilation"
        )

    def _print(self, line: str) -> None:
        self._console.print(Text(sanitize(line)), soft_wrap=True)


def show(results: ResultsFile, console: Console) -> None:
    """Print a table of the last steps, with a row for each metric, and what became of the other checkpoints."""
    steps = sorted({metric.step for metric in results.metrics})
    if steps:
        longest = max(len(_name(metric)) for metric in results.metrics)
        fitting = (console.width - longest - _MARGIN_CHARS) // _COLUMN_CHARS
        console.print(_table(results.metrics, steps[-max(1, min(MAX_STEPS, fitting)) :]))
    for step, outcome in sorted(results.outcomes.items()):
        if outcome.status != "evaluated":
            console.print(Text(f"step {step}: {outcome.status}"), soft_wrap=True)
    console.print(Text(f"results: {sanitize(str(results.path))}"), soft_wrap=True)


def _table(metrics: Sequence[Metric], steps: Sequence[int]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("task, metric", overflow="fold")
    for step in steps:
        table.add_column(f"step {step}", justify="right")
    values = {(_name(metric), metric.step): format_value(metric) for metric in metrics}
    for name in dict.fromkeys(_name(metric) for metric in metrics):
        table.add_row(Text(sanitize(name)), *(values.get((name, step), "-") for step in steps))
    return table


def _name(metric: Metric) -> str:
    return f"{metric.task} {metric.metric}" + ("" if metric.filter == "none" else f",{metric.filter}")


def format_value(metric: Metric) -> str:
    """Return a value with its standard error."""
    stderr = "" if metric.stderr is None else f" ± {metric.stderr:.4f}"
    return f"{metric.value:.4f}{stderr}"
