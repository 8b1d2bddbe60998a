"""Prints a comparison in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from birdie_zmq.sanitize import sanitize
from birdie_zmq.tools.compare.comparing import TaskReport
from birdie_zmq.tools.compare.numbers import format_delta, format_difference, format_number

_MAX_NAMED = 10


def show(reports: Sequence[TaskReport], console: Console) -> None:
    """Print a table of the tasks, a table of their metrics, and the individual differences."""
    console.print(_tasks(reports))
    if any(report.metrics for report in reports):
        console.print(_metrics(reports))
    for report in reports:
        for line in _differences(report):
            console.print(Text(sanitize(line)), soft_wrap=True)


def _table(text_columns: Sequence[str], number_columns: Sequence[str]) -> Table:
    """Return a table whose text columns wrap instead of being truncated."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in text_columns:
        table.add_column(column, overflow="fold")
    for column in number_columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _tasks(reports: Sequence[TaskReport]) -> Table:
    table = _table(["task"], ["samples", "missing", "max |d|", "mean |d|", "flips", "texts", ""])
    for report in reports:
        scored = bool(report.finite_differences or report.max_difference)
        table.add_row(
            Text(sanitize(report.task)),
            f"{report.compared:,}",
            f"{report.missing:,}",
            format_difference(report.max_difference) if scored else "-",
            format_difference(report.mean_difference) if scored else "-",
            f"{report.flip_count:,}",
            f"{report.text_count:,}",
            Text("agrees", "green") if report.agrees else Text("differs", "bold red"),
        )
    return table


def _metrics(reports: Sequence[TaskReport]) -> Table:
    table = _table(["task", "metric"], ["A", "B", "B - A"])
    for report in reports:
        for i, (name, a, b) in enumerate(report.metrics):
            task = Text("" if i else sanitize(report.task))
            table.add_row(task, Text(sanitize(name)), format_number(a), format_number(b), format_delta(a, b))
    return table


def _differences(report: TaskReport) -> list[str]:
    lines = []
    for what, names in (
        ("only in B", report.missing_in_a),
        ("only in A", report.missing_in_b),
        ("different requests", report.request_changed),
    ):
        if names:
            more = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
            lines.append(f"{what}: document {', '.join(names[:_MAX_NAMED])}{more}")
    lines += [f"document {flip.doc_id}: {flip.what}" for flip in report.flips[:_MAX_NAMED]]
    if report.flip_count > _MAX_NAMED:
        lines.append(f"and {report.flip_count - _MAX_NAMED:,} more flips")
    for pair in report.texts[:_MAX_NAMED]:
        lines.append(f"document {pair.doc_id}: texts differ from character {pair.position}: {pair.a!r} and {pair.b!r}")
    if report.text_count > _MAX_NAMED:
        lines.append(f"and {report.text_count - _MAX_NAMED:,} more texts")
    lines += [
        f"document {one.doc_id}, response {one.response}: {format_number(one.a)} and {format_number(one.b)}, difference {format_difference(one.difference)}"
        for one in report.worst[:_MAX_NAMED]
        if one.difference > report.threshold
    ]
    return [f"{report.task}: {line}" for line in lines]
