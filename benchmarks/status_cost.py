"""What the status page costs a run: ``python -m benchmarks.status_cost``.

Two brokers, each with a worker, serve the same work in turn: one has a status page, which a process of its own asks for its
JSON and its metrics each second meanwhile, as an open page and a Prometheus server would. What is scored is small, so that
the brokers have as many messages to pass as they can get. Three figures, the last of which a busy machine blurs:

- idle: the CPU time that the broker with the page takes beyond the other in a second in which nobody asks for work;
- CPU: what its broker takes beyond the other for equal work, over the CPU time of the whole run (client, broker, agent and
  model process). What other programs do changes CPU times little, and wall time much;
- wall: the ratio of the seconds of each pair of passes.

Each is a median with its 95% interval by bootstrap over the pairs. ``--same`` gives neither broker a page: what then is seen
is noise. The broker with a page takes its snapshots in the passes of the other as well, beside the run and not in it; wall
time may feel that on a machine without a free core, CPU time does not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import select
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lm_eval.api.instance import Instance

from benchmarks.simulated_workers import cpu_seconds
from birdie_zmq.settings import ClientSettings
from harness_model import BirdieZMQ

_RESAMPLES = 10_000
_IDLE_WINDOW_S = 2.0
"""Of four snapshots and two questions."""


@dataclass(frozen=True)
class Served:
    """A broker and a worker: their processes, where the broker is, and its page, None if it has none."""

    broker: int
    worker: int
    endpoint: str
    page: str | None


@contextlib.contextmanager
def _served(folder: Path, device: str, *options: str) -> Iterator[Served]:
    """A broker and a worker with the built-in page."""
    endpoint, log = f"ipc://{folder / 'broker'}", folder / "served.log"
    command = [sys.executable, "-m", "birdie_zmq"]
    with log.open("wb") as output:
        broker = subprocess.Popen([*command, "broker", "--bind", endpoint, *options], stdout=output, stderr=output)
        worker = subprocess.Popen(
            [*command, "worker", "--connect", endpoint, "--built-in", "--device", device], stdout=output, stderr=output
        )
        try:
            while "registered with the broker" not in log.read_text():
                time.sleep(0.1)
            found = re.search(r"status page at (\S+)", log.read_text())
            yield Served(broker.pid, worker.pid, endpoint, found and found[1])
        finally:
            for process in (worker, broker):
                process.terminate()
                process.wait(60)


def watch(address: str) -> None:
    """Ask for the JSON and the metrics each second, between a byte on standard input and the next, until it is closed."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asks, due = False, time.monotonic()
    while True:
        # The seconds go on in between, or each short pass would begin with a question.
        if select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
            if not os.read(sys.stdin.fileno(), 1):  # one at a time: what a buffer holds, select does not see
                return
            asks = not asks
        elif asks:
            for path in ("status.json", "metrics"):
                with opener.open(f"{address}{path}", timeout=10) as answer:
                    answer.read()
        if time.monotonic() >= due:
            due += 1.0


class Watcher:
    """The process that asks; nobody, where there is no page."""

    def __init__(self, page: str | None) -> None:
        command = [sys.executable, "-m", "benchmarks.status_cost", "--watch", str(page)]
        self._process = None if page is None else subprocess.Popen(command, stdin=subprocess.PIPE)

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Meanwhile it asks."""
        self._turn()
        try:
            yield
        finally:
            self._turn()

    def _turn(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """End it."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(30)


@dataclass(frozen=True)
class Pass:
    """Seconds of a pass: on the wall, of the broker's CPU time, and of that of the whole run."""

    wall: float
    broker: float
    all: float


def passed(served: Served, lm: BirdieZMQ, score: Callable[[BirdieZMQ], object]) -> Pass:
    """Score everything once, and see what it took."""
    model = lm._description.process_id
    processes = [served.broker, served.worker, model]
    before = [*map(cpu_seconds, processes), time.process_time()]
    began = time.monotonic()
    score(lm)
    wall = time.monotonic() - began
    took = [now - then for now, then in zip([*map(cpu_seconds, processes), time.process_time()], before, strict=True)]
    return Pass(wall, took[0], sum(took))


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and its 95% interval by bootstrap."""
    sample = np.array(values)
    drawn = np.random.default_rng(0).choice(sample, (_RESAMPLES, len(sample)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(np.median(sample)), float(low), float(high)


def idle_cost(shown: Served, plain: Served, watcher: Watcher, windows: int) -> list[float]:
    """CPU seconds a second that the broker with a page takes beyond the other, both seen at the same time."""
    costs = []
    with watcher.asking():
        for _ in range(windows):
            before, began = (cpu_seconds(shown.broker), cpu_seconds(plain.broker)), time.monotonic()
            time.sleep(_IDLE_WINDOW_S)
            after, elapsed = (cpu_seconds(shown.broker), cpu_seconds(plain.broker)), time.monotonic() - began
            costs.append(((after[0] - before[0]) - (after[1] - before[1])) / elapsed)
    return costs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--batch-items", type=int, default=16, help="of one message; fewer make more of them")
    parser.add_argument("--pairs", type=int, default=30, help="how often both are measured in turn")
    parser.add_argument("--windows", type=int, default=10, help=f"of {_IDLE_WINDOW_S:.0f} s without work")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--same", action="store_true", help="neither has a page: what the figures are for no reason at all"
    )
    parser.add_argument("--watch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        watch(options.watch)
        return
    requests = [
        Instance("loglikelihood", {}, (f"{number}: the cat sat on the", f" mat {number % 7}"), number)
        for number in range(options.requests)
    ]

    def score(lm: BirdieZMQ) -> list[tuple[float, bool]]:
        return lm.loglikelihood(requests, disable_tqdm=True)

    settings = ClientSettings(batch_items=options.batch_items)
    load_before = os.getloadavg()[0]
    passes: dict[str, list[Pass]] = {"without": [], "with": []}
    with contextlib.ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        page = [] if options.same else ["--status-port", "0"]
        served = {
            "without": stack.enter_context(_served(folders[0], options.device)),
            "with": stack.enter_context(_served(folders[1], options.device, *page)),
        }
        models = {
            name: stack.enter_context(BirdieZMQ(model_tag="demo", endpoint=each.endpoint, client_settings=settings))
            for name, each in served.items()
        }
        watcher = stack.enter_context(contextlib.closing(Watcher(served["with"].page)))
        expected = [score(lm) for lm in models.values()]
        assert expected[0] == expected[1]
        idle = idle_cost(served["with"], served["without"], watcher, options.windows)
        for number in range(options.pairs):
            # Whichever comes first has another machine than the second: they change places.
            for name in ("with", "without") if number % 2 else ("without", "with"):
                with watcher.asking() if name == "with" else contextlib.nullcontext():
                    passes[name].append(passed(served[name], models[name], score))
    pairs = list(zip(passes["with"], passes["without"], strict=True))
    plain = passes["without"]
    print(
        f"{len(requests):,} requests in batches of {options.batch_items}, {options.pairs} pairs, {os.cpu_count()} cores, "
        f"load {load_before:.1f} before and {os.getloadavg()[0]:.1f} after"
    )
    print(
        f"a pass without a page: median {np.median([each.wall for each in plain]):.2f} s, CPU "
        f"{np.median([each.all for each in plain]):.2f} s, of them the broker's {np.median([each.broker for each in plain]):.3f} s"
    )
    figures = {
        "idle, of a core": idle,
        "CPU, of the run's": [(a.broker - b.broker) / b.all for a, b in pairs],
        "wall, of the run's": [a.wall / b.wall - 1 for a, b in pairs],
    }
    for name, values in figures.items():
        median, low, high = interval(values)
        print(f"{name}: {median:+.3%} ({low:+.3%} to {high:+.3%})")


if __name__ == "__main__":
    main()
