"""How right the time left is that the progress bar shows, over real runs.

``python -m benchmarks.time_left --model DIRECTORY --include_path FOLDER --tasks a,b --num_fewshot 5`` evaluates tasks as
lm_eval does and writes down what the bar shows; ``--documents 600 --form choice`` asks for as many of what ``birdie-zmq bench``
asks, where tasks have too few for a run of some minutes. An error is of the time that is really left when it is shown: 0.2 where 10 s
are left is 2 s. Counted are the moments from a tenth of a call's time on, up to nine tenths: at the end, a moment's error is of
nearly nothing.
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

import harness_model
from birdie_zmq.client.progress import Progress
from birdie_zmq.harness.progress_bar import ProgressBar
from birdie_zmq.tools.bench.workloads import USUAL, Kind, Sizes, draw
from harness_model import BirdieZMQ


@dataclass
class Record:
    """What one bar showed: seconds since it began, and of time left; and how long it stood."""

    title: str
    shown: list[tuple[float, float | None]] = field(default_factory=list)
    seconds: float = 0.0

    def errors(self) -> list[tuple[float, float | None]]:
        """The share of the time that had passed, and the error of the time left, in which 0.2 is a fifth too long."""
        return [
            (at / self.seconds, None if left is None else left / (self.seconds - at) - 1)
            for at, left in self.shown
            if 0.1 <= at / self.seconds <= 0.9
        ]


class RecordingBar(ProgressBar):
    """Writes down what it shows, and each time that it could show it."""

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
        """Also write it down."""
        self._record.shown.append((time.monotonic() - self._began, progress.seconds_left))
        super().progress(progress)


def describe(record: Record) -> str:
    """A line of figures, and a curve of the error by tenths of the call's time."""
    errors = record.errors()
    known = [error for _, error in errors if error is not None]
    if not known:
        return f"{record.title}: {record.seconds:.1f} s; no time left was shown between a tenth and nine tenths of it"
    within = sum(abs(error) <= 0.2 for error in known) / len(errors)
    curve = []
    for tenth in range(1, 9):
        part = [error for share, error in errors if error is not None and tenth <= share * 10 < tenth + 1]
        curve.append(f"{statistics.mean(part):+.0%}" if part else "-")
    return (
        f"{record.title}: {record.seconds:.1f} s; {within:.0%} of {len(errors)} moments within 20%, median error "
        f"{statistics.median(map(abs, known)):.0%}, worst {max(map(abs, known)):.0%}; by tenths {' '.join(curve)}"
    )


def ask(lm: BirdieZMQ, form: Kind, documents: int) -> None:
    """Ask for what the bench asks."""
    sizes = Sizes()
    asked = draw(form, documents, 0, sizes)
    if form in ("choice", "fewshot"):
        lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in asked.pairs])
    elif form == "rolling":
        lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0) for text in asked.texts])
    else:
        how = {"until": ["\n\n"], "max_gen_toks": sizes.max_gen_toks}
        lm.generate_until([Instance("generate_until", {}, (text, how), 0) for text in asked.texts])


def main() -> None:
    """Evaluate, and say how right the bars were."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="demo", help="the model_tag; default: %(default)s")
    parser.add_argument("--model-args", default="", help="further model_args, as a=b,c=d")
    parser.add_argument("--include_path", default="examples/tasks")
    parser.add_argument("--tasks", default="demo_choice,demo_rolling,demo_generate")
    parser.add_argument("--num_fewshot", type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--documents", type=int, help="instead of tasks, so many documents of a form of the bench")
    parser.add_argument("--form", choices=USUAL, default="choice")
    options = parser.parse_args()
    RecordingBar.records = []
    setattr(harness_model, "ProgressBar", RecordingBar)  # noqa: B010 - it is no name that others may import from there
    words: dict[str, Any] = dict(word.split("=", 1) for word in options.model_args.split(",") if word)
    manager = TaskManager(include_path=options.include_path)
    with BirdieZMQ(model_tag=options.model, **words) as lm:
        if options.documents:
            ask(lm, options.form, options.documents)
        else:
            tasks = options.tasks.split(",")
            lm_eval.simple_evaluate(
                lm, tasks=tasks, num_fewshot=options.num_fewshot, limit=options.limit, task_manager=manager
            )
    for record in RecordingBar.records:
        print(describe(record))


if __name__ == "__main__":
    main()
