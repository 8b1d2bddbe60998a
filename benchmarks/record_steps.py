"""Record what the steps of a real worker take, for ``benchmarks.simulation``: ``python -m benchmarks.record_steps --model DIR``.

A run of its own broker and worker is asked what ``birdie-zmq bench`` asks. With its answers a worker says how many
seconds of work went into them, without compiling; these and the number of answers are written down, as they came.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.simulation import RECORDED
from benchmarks.time_left import ask
from birdie_zmq.client import client
from birdie_zmq.client.progress import Estimate
from birdie_zmq.tools.bench.workloads import USUAL
from birdie_zmq.types import ProgressDelta
from harness_model import BirdieZMQ


class Recorder(Estimate):
    """Writes down what each message of answers has cost."""

    steps: list[tuple[int, float]]
    _answers = 0
    _seconds = 0.0

    def answered(self, items: Sequence[int]) -> None:
        """Also count them."""
        self._answers += len(items)
        super().answered(items)

    def advanced(self, item: int, advance: ProgressDelta, now: float) -> None:
        """Also write down what the answers before have cost."""
        self._seconds += advance.computed.seconds
        if self._answers:
            self.steps.append((self._answers, round(self._seconds, 5)))
            self._answers, self._seconds = 0, 0.0
        super().advanced(item, advance, now)


def _processor() -> str:
    """The name of the processor, as Linux shows it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    """Run once to compile, once to record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="demo", help="the model_tag; default: %(default)s")
    parser.add_argument("--model-args", default="", help="further model_args, as a=b,c=d")
    parser.add_argument("--form", choices=USUAL, default="choice", help="default: %(default)s")
    parser.add_argument("--documents", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--name", help="what the recording calls the model; default: the end of its tag")
    parser.add_argument("--output", type=Path, default=RECORDED)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    Recorder.steps = []
    setattr(client, "Estimate", Recorder)  # noqa: B010 - it is no name that others may import from there
    words: dict[str, Any] = dict(word.split("=", 1) for word in options.model_args.split(",") if word)
    with BirdieZMQ(model_tag=options.model, device=options.device, **words) as lm:
        ask(lm, options.form, options.documents)
        Recorder.steps.clear()
        ask(lm, options.form, options.documents)
        steps = list(Recorder.steps)
        about = lm.get_model_info()
    source = {
        "model": options.name or Path(options.model).name,
        "model_args": words,
        "form": options.form,
        "documents": options.documents,
        "device": about["model_devices"],
        "machine": _processor(),
        "cores": os.cpu_count(),
        "command": "python -m benchmarks.record_steps",
        "steps": "answers in a message, and the seconds of work that went into it",
    }
    lines = ",\n  ".join(json.dumps(step) for step in steps)
    options.output.write_text(f'{{\n "source": {json.dumps(source)},\n "steps": [\n  {lines}\n ]\n}}\n')
    seconds = sum(each for _, each in steps)
    print(
        f"{len(steps)} messages, {sum(count for count, _ in steps)} answers, {seconds:.1f} s of work, in {options.output}"
    )


if __name__ == "__main__":
    main()
