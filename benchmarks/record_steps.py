"""Record step times of a real worker for ``benchmarks.simulation``: ``python -m benchmarks.record_steps --model DIR``.

A run with an embedded broker and worker gets the requests of ``birdie-zmq bench``. Twice a second a worker reports the
seconds of its work, without compilation. The recording contains the number of answers since the last report and these
seconds.
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
from benchmarks.time_left import run_workload
from birdie_zmq.client import client
from birdie_zmq.client.progress import ProgressEstimator
from birdie_zmq.tools.bench.workloads import DEFAULT_WORKLOADS
from birdie_zmq.types import ComputeCounters
from harness_model import BirdieZMQ


class Recorder(ProgressEstimator):
    """An estimator that also records the answers and the seconds of work of each report."""

    steps: list[tuple[int, float]]
    _answers = 0
    _seconds = 0.0

    def answered(self, items: Sequence[int]) -> None:
        """Count answers, then process them as usual."""
        self._answers += len(items)
        super().answered(items)

    def progressed(self, computed: ComputeCounters, now: float) -> None:
        """Record the seconds of the preceding answers, then process the report as usual."""
        self._seconds += computed.seconds + computed.idle_seconds
        if self._answers:
            self.steps.append((self._answers, round(self._seconds, 5)))
            self._answers, self._seconds = 0, 0.0
        super().progressed(computed, now)


def _processor() -> str:
    """Return the name of the processor as Linux reports it, or else the machine type."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    """Run once to compile and once to record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="demo", help="model_tag; default: %(default)s")
    parser.add_argument("--model-args", default="", help="further model_args, as KEY=VALUE,KEY=VALUE")
    parser.add_argument(
        "--form", choices=DEFAULT_WORKLOADS, default="choice", help="workload of birdie-zmq bench; default: %(default)s"
    )
    parser.add_argument("--documents", type=int, default=200, help="documents of this workload; default: %(default)s")
    parser.add_argument("--name", help="model name in the recording; default: the last component of the tag")
    parser.add_argument("--output", type=Path, default=RECORDED, help="file of the recording; default: %(default)s")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    Recorder.steps = []
    setattr(client, "ProgressEstimator", Recorder)  # noqa: B010 - the module does not export this name
    model_args: dict[str, Any] = dict(argument.split("=", 1) for argument in options.model_args.split(",") if argument)
    with BirdieZMQ(model_tag=options.model, device=options.device, **model_args) as lm:
        run_workload(lm, options.form, options.documents)
        Recorder.steps.clear()
        run_workload(lm, options.form, options.documents)
        steps = list(Recorder.steps)
        about = lm.get_model_info()
    source = {
        "model": options.name or Path(options.model).name,
        "model_args": model_args,
        "form": options.form,
        "documents": options.documents,
        "device": about["model_devices"],
        "machine": _processor(),
        "cores": os.cpu_count(),
        "command": "python -m benchmarks.record_steps",
        "steps": "answers per report, and the seconds of work for them",
    }
    lines = ",\n  ".join(json.dumps(step) for step in steps)
    options.output.write_text(f'{{\n "source": {json.dumps(source)},\n "steps": [\n  {lines}\n ]\n}}\n')
    seconds = sum(each for _, each in steps)
    print(
        f"{len(steps)} reports, {sum(count for count, _ in steps)} answers, {seconds:.1f} s of work, in {options.output}"
    )


if __name__ == "__main__":
    main()
