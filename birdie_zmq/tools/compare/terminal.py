"""A comparison in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from birdie_zmq.sanitize import printable
from birdie_zmq.tools.compare.comparing import TaskReport
from birdie_zmq.tools.compare.numbers import change, gap, shown

_MOST_NAMED = 10


def show(reports: Sequence[TaskReport], console: Console) -> None:
    """Print a table of the tasks, one of their metrics, and by name what differs."""
    console.print(_tasks(reports))
    if any(report.metrics for report in reports):
        console.print(_metrics(reports))
    for report in reports:
        for line in _named(report):
            console.print(Text(printable(line)), soft_wrap=True)


def _table(words: Sequence[str], numbers: Sequence[str]) -> Table:
    """A table whose first columns hold words, which are broken before any of them is cut off."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in words:
        table.add_column(column, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _tasks(reports: Sequence[TaskReport]) -> Table:
    table = _table(["task"], ["samples", "missing", "max |d|", "mean |d|", "flips", "texts", ""])
    for report in reports:
        scored = bool(report.finite_differences or report.largest)
        table.add_row(
            Text(printable(report.task)),
            f"{report.compared:,}",
            f"{report.missing:,}",
            gap(report.largest) if scored else "-",
            gap(report.mean) if scored else "-",
            f"{report.flip_count:,}",
            f"{report.text_count:,}",
            Text("agrees", "green") if report.agrees else Text("differs", "bold red"),
        )
    return table


def _metrics(reports: Sequence[TaskReport]) -> Table:
    table = _table(["task", "metric"], ["A", "B", "B - A"])
    for report in reports:
        for i, (name, a, b) in enumerate(report.metrics):
            task = Text("" if i else printable(report.task))
            table.add_row(task, Text(printable(name)), shown(a), shown(b), change(a, b))
    return table


def _named(report: TaskReport) -> list[str]:
    lines = []
    for what, names in (
        ("only in B", report.missing_in_a),
        ("only in A", report.missing_in_b),
        ("asked otherwise", report.asked_otherwise),
    ):
        if names:
            more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
            lines.append(f"{what}: document {', '.join(names[:_MOST_NAMED])}{more}")
    lines += [f"document {flip.doc_id}: {flip.what}" for flip in report.flips[:_MOST_NAMED]]
    if report.flip_count > _MOST_NAMED:
        lines.append(f"and {report.flip_count - _MOST_NAMED:,} more flips")
    for pair in report.texts[:_MOST_NAMED]:
        lines.append(f"document {pair.doc_id}: texts part at character {pair.position}: {pair.a!r} and {pair.b!r}")
    if report.text_count > _MOST_NAMED:
        lines.append(f"and {report.text_count - _MOST_NAMED:,} more texts")
    lines += [
        f"document {one.doc_id}, response {one.response}: {shown(one.a)} and {shown(one.b)}, {gap(one.difference)} apart"
        for one in report.worst[:_MOST_NAMED]
        if one.difference > report.threshold
    ]
    return [f"{report.task}: {line}" for line in lines]
