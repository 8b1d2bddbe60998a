"""A bench in the terminal: a column for each workload, a row for each figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from birdie_zmq.sanitize import printable
from birdie_zmq.tools.bench.figures import LeftOut, Measured
from birdie_zmq.types import ModelDescription

_ROWS: tuple[tuple[str, Callable[[Measured], str]], ...] = (
    ("documents", lambda each: f"{each.documents:,}"),
    ("requests", lambda each: f"{each.requests:,}"),
    ("seconds", lambda each: f"{each.wall_s:.2f}"),
    ("requests a second", lambda each: rate(each.requests_per_s)),
    ("1,000 documents, s", lambda each: rate(each.thousand_s)),
    ("", lambda _: ""),
    ("tokens asked", lambda each: f"{each.report.tokens_requested:,}"),
    ("distinct", lambda each: f"{each.report.tokens_distinct:,}" if each.report.tokens_distinct else "-"),
    ("generated", lambda each: f"{each.report.tokens_generated:,}" if each.report.tokens_generated else "-"),
    ("computed", lambda each: f"{each.report.tokens_computed:,}"),
    ("asked / computed", lambda each: f"{each.sharing_gain:.2f}"),
    ("padding", lambda each: f"{each.padding_share:.0%}"),
    ("asked a second", lambda each: rate(each.asked_per_s)),
    ("computed a second", lambda each: rate(each.computed_per_s)),
    ("", lambda _: ""),
    ("steps", lambda each: f"{each.report.steps:,}"),
    ("new shapes", lambda each: f"{each.new_shapes:,}"),
    ("compiling, s", lambda each: f"{each.compile_s:.1f}"),
    ("device idle", lambda each: f"{each.idle_share:.0%}"),
    ("wall / step time", lambda each: f"{each.path_ratio:.3f}"),
)


def show(
    description: ModelDescription,
    load_s: float,
    results: Sequence[Measured | LeftOut],
    advice: Sequence[str],
    console: Console,
) -> None:
    """Print the model, the table, what was left out and what is advised; lines of words are never broken by us."""
    console.print(Text(printable(model_line(description, load_s))), soft_wrap=True)
    measured = [each for each in results if isinstance(each, Measured)]
    if measured:
        console.print(_table(measured))
    for each in results:
        if isinstance(each, LeftOut):
            console.print(Text(printable(f"{each.kind} was left out: {each.why}")), soft_wrap=True)
    for line in advice:
        console.print(Text.assemble(("→ ", "bold"), printable(line)), soft_wrap=True)
    if not advice:
        console.print("nothing stands out: no advice follows from these figures")


def model_line(description: ModelDescription, load_s: float) -> str:
    """The model in a line."""
    parameters = "" if description.num_parameters is None else f"{description.num_parameters:,} parameters, "
    dtype = "" if description.dtype is None else f"{description.dtype}, "
    return (
        f"{description.model}: {parameters}{dtype}{description.max_length:,} tokens at once, engine {description.engine} on "
        f"{', '.join(description.devices)}; there after {load_s:.1f} s; it gives {', '.join(description.provides)}"
    )


def rate(value: float) -> str:
    """A number with three digits that say something, and no more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _table(measured: Sequence[Measured]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for each in measured:
        table.add_column(each.title, justify="right", no_wrap=True)
    for name, figure in _ROWS:
        table.add_row(name, *(figure(each) for each in measured))
    return table
