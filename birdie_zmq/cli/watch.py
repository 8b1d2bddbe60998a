"""The command ``birdie-zmq watch``: its options, besides those of ``lm_eval run``, and its steps."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.text import Text

from birdie_zmq.cli.common import STDIN, add_common, run_guarded
from birdie_zmq.models.completeness import missing_part, missing_part_if_known
from birdie_zmq.sanitize import sanitize
from birdie_zmq.tools.watch.core import Order, Outcome, WatchCore, WatchPolicy
from birdie_zmq.tools.watch.scanning import STEP_PATTERN, Scanner

_EPILOG = """All other options are those of lm_eval run, with the same meaning: --tasks (required), --model_args without
pretrained=, --device, --batch_size, --num_fewshot, --limit, --apply_chat_template, --include_path, --wandb_args,
--trackio_args and so on."""


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command's own options, which also writes its help."""
    arg_parser = argparse.ArgumentParser(
        prog=prog,
        description="Follow a training run: evaluate each checkpoint with lm_eval once it is complete, and never twice.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    arg_parser.add_argument(
        "checkpoints", metavar="PATTERN", help="paths of the checkpoints, with wildcards, quoted: 'RUN/checkpoints/*'"
    )
    arg_parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="where the results are written, and continued"
    )
    arg_parser.add_argument(
        "--endpoint", help="a running broker; default: an embedded broker and worker, as for lm_eval"
    )
    arg_parser.add_argument(
        "--order",
        choices=get_args(Order),
        default="oldest",
        help="which of several complete checkpoints is evaluated first; default: %(default)s",
    )
    arg_parser.add_argument(
        "--until-step", type=int, metavar="N", help="end when step N is done, or the first step behind it"
    )
    arg_parser.add_argument("--once", action="store_true", help="end when no complete checkpoint is left")
    arg_parser.add_argument(
        "--stop-file",
        type=Path,
        metavar="FILE",
        help="end when there is such a file; default: stop in the output folder",
    )
    arg_parser.add_argument(
        "--retry-failed", action="store_true", help="evaluate the steps again that failed in an earlier watch"
    )
    arg_parser.add_argument(
        "--step-pattern",
        default=STEP_PATTERN,
        metavar="REGEX",
        help="where the step is in a checkpoint's name, in parentheses: 'run-(\\d+)-ema'; default: as in step_500, "
        "checkpoint-500 and 500",
    )
    arg_parser.add_argument(
        "--any-format",
        action="store_true",
        help="also evaluate checkpoints of unknown formats, which an api.py reads, once their files no longer change",
    )
    arg_parser.add_argument(
        "--settle-seconds",
        type=_seconds,
        default=5.0,
        metavar="S",
        help="time for which a checkpoint's files must not change; default: %(default).0f",
    )
    arg_parser.add_argument(
        "--abandon-seconds",
        type=_seconds,
        default=600.0,
        metavar="S",
        help="with --until-step: time after which an incomplete checkpoint whose files do not change is not waited for; "
        "default: %(default).0f",
    )
    arg_parser.add_argument(
        "--poll-seconds", type=_seconds, default=2.0, metavar="S", help="time between two scans; default: %(default).0f"
    )
    arg_parser.add_argument(
        "--tensorboard", type=Path, metavar="FOLDER", help="also write event files for TensorBoard; needs tensorboardX"
    )
    add_common(arg_parser)
    return arg_parser


def _complete_parser(own: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Return a parser that also takes the options of ``lm_eval run``, as lm_eval's own parser does."""
    from lm_eval._cli.run import Run

    commands = argparse.ArgumentParser().add_subparsers()
    Run.create(commands)

    class WithOwnHelp(argparse.ArgumentParser):
        def format_help(self) -> str:
            return own.format_help()

        def format_usage(self) -> str:
            return own.format_usage()

    return WithOwnHelp(
        prog=own.prog,
        parents=[commands.choices["run"], own],
        add_help=False,
        conflict_handler="resolve",
        allow_abbrev=False,
    )


def run(options: argparse.Namespace, own: frozenset[str]) -> int:
    """Follow a run until it ends, and return 0.

    Args:
        options: All options.
        own: The names of those that are not lm_eval's.

    Raises:
        UsageError: An option is wrong, or the results cannot be written.
        UnavailableError: No broker or no worker answers.
        ModelError: The user module or the engine is at fault; a checkpoint's own error is recorded instead.
    """
    # Imported here: lm_eval takes seconds, and --help does not need it.
    from birdie_zmq.tools.watch import terminal
    from birdie_zmq.tools.watch.curve import CurveWriter
    from birdie_zmq.tools.watch.evaluation import Evaluation
    from birdie_zmq.tools.watch.loop import Watch, follow
    from birdie_zmq.tools.watch.results import ResultsFile
    from birdie_zmq.tools.watch.trackers import open_trackers

    logging.getLogger("birdie_zmq.watch").setLevel(logging.WARNING if options.quiet else logging.INFO)
    console = Console(highlight=False)
    lm_eval_options = argparse.Namespace(**{name: value for name, value in vars(options).items() if name not in own})
    if options.endpoint is not None:
        lm_eval_options.model_args = {
            **(getattr(lm_eval_options, "model_args", None) or {}),
            "endpoint": options.endpoint,
        }
    missing = missing_part_if_known if options.any_format else missing_part
    scanner = Scanner(options.checkpoints, options.step_pattern, missing)
    policy = WatchPolicy(
        options.order, options.until_step, options.once, options.settle_seconds, options.abandon_seconds
    )
    output: Path = options.output.absolute()
    with (
        Evaluation(lm_eval_options, output) as evaluation,
        contextlib.closing(ResultsFile(output, evaluation.settings)) as results,
    ):
        core = WatchCore(policy, _kept(results.outcomes, retry_failed=options.retry_failed))
        stop_file = options.stop_file or output / "stop"
        watch = Watch(core, scanner, evaluation, results, stop_file, options.poll_seconds)
        curve = CurveWriter(output, results)
        with contextlib.closing(open_trackers(evaluation.config, options.tensorboard)) as trackers:
            try:
                reason = follow(watch, [terminal.StepPrinter(console), curve, trackers])
            except KeyboardInterrupt:
                reason = "interrupted; the same command continues"
        curve.write()
        terminal.show(results, console)
    console.print(Text(sanitize(f"ended: {reason}")), soft_wrap=True)
    return 0


def _kept(outcomes: dict[int, Outcome], *, retry_failed: bool) -> dict[int, Outcome]:
    return {step: each for step, each in outcomes.items() if not (retry_failed and each.status == "failed")}


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return value


def _end_with_parent() -> None:
    """End this process as Ctrl-C does when its standard input is closed."""
    with contextlib.suppress(OSError):
        while os.read(STDIN, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq watch") -> int:
    """Run ``birdie-zmq watch``. SIGTERM ends it as Ctrl-C does, so that batch systems may stop it."""
    own = parser(prog)
    names = frozenset(action.dest for action in own._actions)
    if arguments is not None and {"-h", "--help"} & set(arguments):
        own.parse_args(["--help"])
    options = _complete_parser(own).parse_args(arguments)
    if options.lifeline:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run_guarded(prog, True, lambda: run(options, names))
    finally:
        signal.signal(signal.SIGTERM, previous)
