"""Prints the figures of a bench in the terminal: a column for each workload, a row for each figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from birdie_zmq.sanitize import sanitize
from birdie_zmq.tools.bench.figures import Measurement, SkippedWorkload
from birdie_zmq.types import ModelDescription

_ROWS: tuple[tuple[str, Callable[[Measurement], str]], ...] = (
    ("documents", lambda each: f"{each.documents:,}"),
    ("requests", lambda each: f"{each.requests:,}"),
    ("seconds", lambda each: f"{each.wall_s:.2f}"),
    ("requests/s", lambda each: format_rate(each.requests_per_s)),
    ("1,000 documents, s", lambda each: format_rate(each.seconds_per_1000_documents)),
    ("", lambda _: ""),
    ("tokens requested", lambda each: f"{each.report.tokens_requested:,}"),
    ("distinct", lambda each: f"{each.report.tokens_distinct:,}" if each.report.tokens_distinct else "-"),
    ("generated", lambda each: f"{each.report.tokens_generated:,}" if each.report.tokens_generated else "-"),
    ("computed", lambda each: f"{each.report.tokens_computed:,}"),
    ("requested / computed", lambda each: f"{each.sharing_gain:.2f}"),
    ("padding", lambda each: f"{each.padding_share:.0%}"),
    ("requested tokens/s", lambda each: format_rate(each.requested_tokens_per_s)),
    ("computed tokens/s", lambda each: format_rate(each.computed_tokens_per_s)),
    ("", lambda _: ""),
    ("steps", lambda each: f"{each.report.steps:,}"),
    ("new shapes", lambda each: f"{each.new_shapes:,}"),
    ("compilation, s", lambda each: f"{each.compile_s:.1f}"),
    ("tokenizer, s", lambda each: f"{each.report.tokenizer_seconds:.2f}"),
    ("device idle", lambda each: f"{each.idle_share:.0%}"),
    ("wall / process time", lambda each: f"{each.path_ratio:.3f}"),
)


def show(
    description: ModelDescription,
    load_s: float,
    results: Sequence[Measurement | SkippedWorkload],
    advice: Sequence[str],
    console: Console,
) -> None:
    """Print the model, the table, the skipped workloads and the advice; lines of text are never wrapped."""
    console.print(Text(sanitize(model_line(description, load_s))), soft_wrap=True)
    measured = [each for each in results if isinstance(each, Measurement)]
    if measured:
        console.print(_table(measured))
    for each in results:
        if isinstance(each, SkippedWorkload):
            console.print(Text(sanitize(f"{each.workload} was skipped: {each.reason}")), soft_wrap=True)
    for line in advice:
        console.print(Text.assemble(("→ ", "bold"), sanitize(line)), soft_wrap=True)
    if not advice:
        console.print("no advice follows from these figures")


def model_line(description: ModelDescription, load_s: float) -> str:
    """Return a line that describes the model."""
    parameters = "" if description.num_parameters is None else f"{description.num_parameters:,} parameters, "
    dtype = "" if description.dtype is None else f"{description.dtype}, "
    return (
        f"{description.model}: {parameters}{dtype}maximum length {description.max_length:,} tokens, engine "
        f"{description.engine} on {', '.join(description.devices)}; loaded in {load_s:.1f} s; it provides "
        f"{', '.join(description.provides)}"
    )


def format_rate(value: float) -> str:
    """Format a number with at least three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _table(measured: Sequence[Measurement]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for each in measured:
        table.add_column(each.title, justify="right", no_wrap=True)
    for name, figure in _ROWS:
        table.add_row(name, *(figure(each) for each in measured))
    return table
