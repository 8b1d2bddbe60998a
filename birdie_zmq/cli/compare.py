"""``birdie-zmq compare``: its arguments, and the order of its parts."""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from birdie_zmq.cli.common import run_guarded
from birdie_zmq.sanitize import printable
from birdie_zmq.tools.compare import terminal
from birdie_zmq.tools.compare.comparing import TaskReport, compare_task
from birdie_zmq.tools.compare.runs import Run, find_run, read_samples


def parser(prog: str) -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    whole = argparse.ArgumentParser(prog=prog, description="Compare two results of lm_eval, sample by sample.")
    whole.add_argument("a", type=Path, metavar="A", help="what --output_path named, of a run with --log_samples")
    whole.add_argument("b", type=Path, metavar="B", help="the same of another run")
    whole.add_argument("--output", type=Path, metavar="FOLDER", help="write a page with plots there: index.html")
    whole.add_argument(
        "--threshold",
        type=_nats,
        default=1e-3,
        metavar="NATS",
        help="how much two log-likelihoods may differ; default: %(default)s",
    )
    whole.add_argument(
        "--worst",
        type=int,
        default=10,
        metavar="N",
        help="list so many of each task's largest differences; default: %(default)s",
    )
    return whole


def run(options: argparse.Namespace) -> int:
    """Compare, print, and write the page; 0 where both runs agree, else 1.

    Raises:
        UsageError: A folder holds no samples, they cannot be read, or the page cannot be written.
    """
    console = Console(highlight=False)
    a, b = find_run(options.a), find_run(options.b)
    reports = compare_runs(a, b, options.threshold, max(0, options.worst))
    for note in [*a.notes, *b.notes]:
        console.print(Text(printable(note)), soft_wrap=True)
    terminal.show(reports, console)
    if options.output is not None:
        # matplotlib is the largest part of what this command needs, and only the page needs it.
        if importlib.util.find_spec("matplotlib") is None:
            # As Text, since rich would take [compare] for a style.
            missing = "the page is not written: it needs matplotlib (pip install 'birdie-zmq[compare]')"
            console.print(Text(missing), soft_wrap=True)
        else:
            from birdie_zmq.tools.compare.page import write_page

            written = write_page(options.output, a, b, reports, options.threshold)
            console.print(Text(f"written: {printable(str(written))}"), soft_wrap=True)
    return int(not all(report.agrees for report in reports))


def compare_runs(a: Run, b: Run, threshold: float, most_worst: int) -> list[TaskReport]:
    """A report for each task that one of the runs has.

    Args:
        a: The one run.
        b: The other.
        threshold: How many nats two log-likelihoods may differ.
        most_worst: How many of each task's largest differences are listed.
    """
    reports = []
    for task in sorted({*a.samples, *b.samples}):
        samples = [read_samples(run.samples[task]) if task in run.samples else () for run in (a, b)]
        report = compare_task(task, *samples, threshold=threshold, most_worst=most_worst)
        ours, theirs = a.metrics.get(task, {}), b.metrics.get(task, {})
        report.metrics = [(name, ours.get(name), theirs.get(name)) for name in {**ours, **theirs}]
        reports.append(report)
    return reports


def _nats(text: str) -> float:
    value = float(text)
    if math.isnan(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text} must be 0 or above")
    return value


def main(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq compare") -> int:
    """Compare two results of lm_eval, sample by sample."""
    options = parser(prog).parse_args(arguments)
    return run_guarded(prog, True, lambda: run(options))
