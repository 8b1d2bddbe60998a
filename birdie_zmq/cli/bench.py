"""The command ``birdie-zmq bench``: its arguments, which match those of a run, and its steps."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from birdie_zmq._version import __version__
from birdie_zmq.cli.common import run_guarded
from birdie_zmq.cli.model_options import add_model_options
from birdie_zmq.errors import BirdieError, UsageError
from birdie_zmq.harness.model_args import parse_model_args
from birdie_zmq.harness.run_report import model_record
from birdie_zmq.sanitize import sanitize
from birdie_zmq.tools.bench import terminal
from birdie_zmq.tools.bench.advice import advise
from birdie_zmq.tools.bench.figures import Measurement, SkippedWorkload
from birdie_zmq.tools.bench.measuring import Bench
from birdie_zmq.tools.bench.workloads import DEFAULT_WORKLOADS, WORKLOADS, Workload
from birdie_zmq.types import ModelDescription


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    arg_parser = argparse.ArgumentParser(
        prog=prog,
        description="Measure the throughput of a model on lm_eval workloads, and advise how to improve it.",
    )
    add_model_options(arg_parser)
    arg_parser.add_argument(
        "--seconds",
        type=_seconds,
        default=10.0,
        help="approximate duration of the timed pass of a workload, without warm-up and compilation; default: "
        "%(default).0f",
    )
    arg_parser.add_argument(
        "--limit",
        type=_count,
        metavar="N",
        help="maximum number of documents per pass; default: limited by --seconds only",
    )
    arg_parser.add_argument(
        "--workloads",
        type=_workloads,
        default=DEFAULT_WORKLOADS,
        metavar="NAMES",
        help=f"comma-separated, from {','.join(WORKLOADS)}; default: {','.join(DEFAULT_WORKLOADS)}",
    )
    arg_parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    return arg_parser


def run(options: argparse.Namespace) -> int:
    """Run the workloads, print the figures, and write them to a file if requested; return 0.

    Raises:
        UsageError: An argument is invalid, or the file cannot be written.
        ModelError: The model cannot be loaded or fails to compute; its traceback has been printed.
        UnavailableError: No broker or no worker answers.
    """
    arguments = parse_model_args(options.model_args, batch_size=options.batch_size, device=options.device)
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise UsageError(f"--json {options.json}: there is no folder {options.json.absolute().parent}")
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    results: list[Measurement | SkippedWorkload] = []
    try:
        with (
            errors.status("starting") as status,
            closing(
                Bench(arguments, options.seconds, options.limit, lambda text: status.update(sanitize(text)))
            ) as bench,
        ):
            results.extend(bench.measure(workload) for workload in options.workloads)
            description, load_s = bench.description, bench.load_s
    except BirdieError as error:
        if error.remote_traceback:
            errors.print(Text(sanitize(error.remote_traceback.rstrip(), lines=True)), soft_wrap=True)
        raise
    measured = [each for each in results if isinstance(each, Measurement)]
    advice = advise(description, arguments.limits, measured)
    terminal.show(description, load_s, results, advice, console)
    if options.json is not None:
        _write(options.json, description, arguments.model_args, load_s, results, advice)
        console.print(Text(f"written: {sanitize(str(options.json))}"), soft_wrap=True)
    return 0


def _write(
    path: Path,
    description: ModelDescription,
    model_args: Mapping[str, Any],
    load_s: float,
    results: list[Measurement | SkippedWorkload],
    advice: list[str],
) -> None:
    record = {
        "birdie_zmq": __version__,
        **model_record(description, model_args),
        "model_gives": description.provides,
        "load_seconds": load_s,
        "workloads": [each.as_record() for each in results if isinstance(each, Measurement)],
        "left_out": {each.workload: each.reason for each in results if isinstance(each, SkippedWorkload)},
        "advice": advice,
    }
    try:
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write the --json file {path}: {error}") from error


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3_600:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 3600 seconds")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def _workloads(text: str) -> tuple[Workload, ...]:
    names = text.split(",")
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown workload {', '.join(unknown)}; supported: {', '.join(WORKLOADS)}")
    return tuple(workload for workload in WORKLOADS if workload in names)


def main(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq bench") -> int:
    """Run ``birdie-zmq bench``."""
    options = parser(prog).parse_args(arguments)
    return run_guarded(prog, True, lambda: run(options))
