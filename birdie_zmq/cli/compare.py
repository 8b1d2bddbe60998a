"""The command ``birdie-zmq compare``: its arguments and its steps."""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from birdie_zmq.cli.common import run_guarded
from birdie_zmq.sanitize import sanitize
from birdie_zmq.tools.compare import terminal
from birdie_zmq.tools.compare.comparing import TaskReport, compare_task
from birdie_zmq.tools.compare.runs import Run, find_run, read_samples


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    arg_parser = argparse.ArgumentParser(prog=prog, description="Compare two lm_eval results sample by sample.")
    arg_parser.add_argument("a", type=Path, metavar="A", help="the --output_path of a run with --log_samples")
    arg_parser.add_argument("b", type=Path, metavar="B", help="the --output_path of the other run")
    arg_parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="write an HTML report with plots to FOLDER/index.html"
    )
    arg_parser.add_argument(
        "--threshold",
        type=_nats,
        default=1e-3,
        metavar="NATS",
        help="allowed difference of two log-likelihoods; default: %(default)s",
    )
    arg_parser.add_argument(
        "--worst",
        type=int,
        default=10,
        metavar="N",
        help="number of largest differences to list per task; default: %(default)s",
    )
    return arg_parser


def run(options: argparse.Namespace) -> int:
    """Compare two runs, print the differences, and write the report; return 0 if they agree, else 1.

    Raises:
        UsageError: A folder has no samples, they cannot be read, or the report cannot be written.
    """
    console = Console(highlight=False)
    a, b = find_run(options.a), find_run(options.b)
    reports = compare_runs(a, b, options.threshold, max(0, options.worst))
    for note in [*a.notes, *b.notes]:
        console.print(Text(sanitize(note)), soft_wrap=True)
    terminal.show(reports, console)
    if options.output is not None:
        # matplotlib is a large dependency that only the report needs.
        if importlib.util.find_spec("matplotlib") is None:
            # As Text: rich would interpret [compare] as a style.
            missing = "the report is not written: it needs matplotlib (pip install 'birdie-zmq[compare]')"
            console.print(Text(missing), soft_wrap=True)
        else:
            from birdie_zmq.tools.compare.page import write_page

            written = write_page(options.output, a, b, reports, options.threshold)
            console.print(Text(f"written: {sanitize(str(written))}"), soft_wrap=True)
    return int(not all(report.agrees for report in reports))


def compare_runs(a: Run, b: Run, threshold: float, max_worst: int) -> list[TaskReport]:
    """Return a report for each task of either run.

    Args:
        a: The first run.
        b: The second run.
        threshold: Allowed difference of two log-likelihoods, in nats.
        max_worst: Number of largest differences to list per task.
    """
    reports = []
    for task in sorted({*a.samples, *b.samples}):
        samples = [read_samples(run.samples[task]) if task in run.samples else () for run in (a, b)]
        report = compare_task(task, *samples, threshold=threshold, max_worst=max_worst)
        metrics_a, metrics_b = a.metrics.get(task, {}), b.metrics.get(task, {})
        report.metrics = [(name, metrics_a.get(name), metrics_b.get(name)) for name in {**metrics_a, **metrics_b}]
        reports.append(report)
    return reports


def _nats(text: str) -> float:
    value = float(text)
    if math.isnan(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text} must be a number of at least 0")
    return value


def main(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq compare") -> int:
    """Run ``birdie-zmq compare``."""
    options = parser(prog).parse_args(arguments)
    return run_guarded(prog, True, lambda: run(options))
