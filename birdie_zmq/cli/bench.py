"""``birdie-zmq bench``: its arguments, which are a run's own, and the order of its parts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from lm_eval._cli.utils import MergeDictAction
from rich.console import Console
from rich.text import Text

from birdie_zmq._version import __version__
from birdie_zmq.cli.common import run_guarded
from birdie_zmq.errors import BirdieError, UsageError
from birdie_zmq.harness.model_args import read_arguments
from birdie_zmq.sanitize import printable
from birdie_zmq.tools.bench import terminal
from birdie_zmq.tools.bench.advice import advise
from birdie_zmq.tools.bench.figures import LeftOut, Measured
from birdie_zmq.tools.bench.measuring import Bench
from birdie_zmq.tools.bench.workloads import KINDS, USUAL, Kind
from birdie_zmq.types import ModelDescription


def parser(prog: str) -> argparse.ArgumentParser:
    """The parser of the command's arguments; those of lm_eval are read by lm_eval's own rules."""
    whole = argparse.ArgumentParser(
        prog=prog,
        description="Measure how fast a model answers what lm_eval asks, and say what would make it faster.",
    )
    whole.add_argument(
        "--model_args",
        "-a",
        nargs="+",
        type=str,
        required=True,
        action=MergeDictAction,
        metavar="ARG",
        help="as lm_eval takes them: model_tag=mine,size=large,api=page.py; with port= or endpoint=, of a broker that runs",
    )
    whole.add_argument("--device", metavar="cpu|cuda:N", help="of the bench's own worker; default: what there is")
    whole.add_argument(
        "--batch_size", metavar="N", help="above 1: the most rows of a step; default: the engine chooses"
    )
    whole.add_argument(
        "--seconds",
        type=_seconds,
        default=10.0,
        help="how long the timed pass of a workload takes, about; finding its size and compiling come on top; default: "
        "%(default).0f",
    )
    whole.add_argument(
        "--limit", type=_count, metavar="N", help="the most documents of a pass; default: what time allows"
    )
    whole.add_argument(
        "--workloads",
        type=_kinds,
        default=USUAL,
        metavar="NAMES",
        help=f"of {','.join(KINDS)}; default: {','.join(USUAL)}",
    )
    whole.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    return whole


def run(options: argparse.Namespace) -> int:
    """Measure, print, and write; 0 if all went well.

    Raises:
        UsageError: An argument cannot be used as given, or the file cannot be written.
        ModelError: The model cannot be loaded or does not compute; its traceback has been printed.
        UnavailableError: No broker or no worker answers.
    """
    arguments = read_arguments(options.model_args, batch_size=options.batch_size, device=options.device)
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {options.json.absolute().parent} for --json")
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    results: list[Measured | LeftOut] = []
    try:
        with (
            errors.status("starting") as status,
            Bench(arguments, options.seconds, options.limit, lambda text: status.update(printable(text))) as bench,
        ):
            results.extend(bench.measure(kind) for kind in options.workloads)
            description, load_s = bench.description, bench.load_s
    except BirdieError as error:
        if error.remote_traceback:
            errors.print(Text(printable(error.remote_traceback.rstrip(), lines=True)), soft_wrap=True)
        raise
    measured = [each for each in results if isinstance(each, Measured)]
    advice = advise(description, arguments.limits, measured)
    terminal.show(description, load_s, results, advice, console)
    if options.json is not None:
        _write(options.json, description, load_s, results, advice)
        console.print(Text(f"written: {printable(str(options.json))}"), soft_wrap=True)
    return 0


def _write(
    path: Path, description: ModelDescription, load_s: float, results: list[Measured | LeftOut], advice: list[str]
) -> None:
    record = {
        "birdie_zmq": __version__,
        "model_tag": description.model.tag,
        "model_keywords": json.loads(description.model.arguments),
        "model_identity": description.identity,
        "model_num_parameters": description.num_parameters,
        "model_dtype": description.dtype,
        "model_max_length": description.max_length,
        "model_engine": description.engine,
        "model_devices": description.devices,
        "model_versions": description.versions,
        "model_gives": description.provides,
        "load_seconds": load_s,
        "workloads": [each.as_record() for each in results if isinstance(each, Measured)],
        "left_out": {each.kind: each.why for each in results if isinstance(each, LeftOut)},
        "advice": advice,
    }
    try:
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--json {path} cannot be written: {error}") from error


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3_600:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 3600")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def _kinds(text: str) -> tuple[Kind, ...]:
    names = text.split(",")
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: the workloads are {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in names)


def main(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq bench") -> int:
    """Measure how fast a model answers what lm_eval asks, and say what would make it faster."""
    options = parser(prog).parse_args(arguments)
    return run_guarded(prog, True, lambda: run(options))
