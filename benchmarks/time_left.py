"""Measure how accurate the time left in the progress bar is, over real runs.

``python -m benchmarks.time_left --model DIRECTORY --include_path FOLDER --tasks a,b --num_fewshot 5`` evaluates tasks
as lm_eval does and records what the bar shows. ``--documents 600 --form choice`` runs a workload of ``birdie-zmq
bench`` instead, for runs of several minutes where tasks have too few documents. Errors are relative to the true time
left at that moment: 0.2 with 10 s left is 2 s. Only moments between 10% and 90% of a call's time count, because close
to the end an error is relative to almost zero.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from birdie_zmq.client.progress import Progress
from birdie_zmq.harness import model
from birdie_zmq.harness.progress_bar import ProgressBar
from birdie_zmq.tools.bench.workloads import DEFAULT_WORKLOADS, Sizes, Workload, make_requests
from harness_model import BirdieZMQ


@dataclass
class Record:
    """The history of one bar: pairs of seconds since its start and seconds left, and its total seconds."""

    title: str
    shown: list[tuple[float, float | None]] = field(default_factory=list)
    seconds: float = 0.0

    def errors(self) -> list[float | None]:
        """Return the relative error of each time left, None where none was shown; 0.2 means 20% too long."""
        return [
            None if left is None else left / (self.seconds - at) - 1
            for at, left in self.shown
            if 0.1 <= at / self.seconds <= 0.9
        ]


class RecordingBar(ProgressBar):
    """A progress bar that records each update and the time left in it."""

    records: list[Record]

    def __init__(self, title: str, total: int, *, disable: bool = False) -> None:
        super().__init__(title, total, disable=disable)
        self._record = Record(f"{title}, {total}")
        self.records.append(self._record)
        self._began = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._record.seconds = time.monotonic() - self._began
        super().__exit__(kind, error, traceback)

    def progress(self, progress: Progress) -> None:
        """Record the time left, then show it as usual."""
        self._record.shown.append((time.monotonic() - self._began, progress.seconds_left))
        super().progress(progress)


def describe(record: Record) -> str:
    """Return a line of figures."""
    errors = record.errors()
    known = [error for error in errors if error is not None]
    if not known:
        return f"{record.title}: {record.seconds:.1f} s; no time left was shown between 10% and 90% of it"
    within = sum(abs(error) <= 0.2 for error in known) / len(known)
    return (
        f"{record.title}: {record.seconds:.1f} s; shown at {len(known) / len(errors):.0%} of {len(errors)} moments, "
        f"{within:.0%} of these within 20%, median error {statistics.median(map(abs, known)):.0%}, "
        f"from {min(known):+.0%} to {max(known):+.0%}"
    )


def run_workload(lm: BirdieZMQ, form: Workload, documents: int) -> None:
    """Send the requests of a workload of ``birdie-zmq bench``."""
    sizes = Sizes()
    requests = make_requests(form, documents, 0, sizes)
    if form in ("choice", "fewshot"):
        lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in requests.pairs])
    elif form == "rolling":
        lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0) for text in requests.texts])
    else:
        gen_kwargs = {"until": ["\n\n"], "max_gen_toks": sizes.max_gen_toks}
        lm.generate_until([Instance("generate_until", {}, (text, gen_kwargs), 0) for text in requests.texts])


def main() -> None:
    """Evaluate and print the accuracy of each bar."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="demo", help="model_tag; default: %(default)s")
    parser.add_argument("--model-args", default="", help="further model_args, as KEY=VALUE,KEY=VALUE")
    parser.add_argument("--include_path", default="examples/tasks")
    parser.add_argument("--tasks", default="demo_choice,demo_rolling,demo_generate")
    parser.add_argument("--num_fewshot", type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument(
        "--documents", type=int, help="run a workload of birdie-zmq bench with this many documents instead of tasks"
    )
    parser.add_argument(
        "--form", choices=DEFAULT_WORKLOADS, default="choice", help="this workload; default: %(default)s"
    )
    options = parser.parse_args()
    RecordingBar.records = []
    setattr(model, "ProgressBar", RecordingBar)  # noqa: B010 - the module does not export this name
    model_args: dict[str, Any] = dict(argument.split("=", 1) for argument in options.model_args.split(",") if argument)
    manager = TaskManager(include_path=options.include_path)
    with BirdieZMQ(model_tag=options.model, **model_args) as lm:
        if options.documents:
            run_workload(lm, options.form, options.documents)
        else:
            tasks = options.tasks.split(",")
            lm_eval.simple_evaluate(
                lm, tasks=tasks, num_fewshot=options.num_fewshot, limit=options.limit, task_manager=manager
            )
    for record in RecordingBar.records:
        print(describe(record))


if __name__ == "__main__":
    main()
