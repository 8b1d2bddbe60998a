"""Measure the overhead of the status page: ``python -m benchmarks.status_cost``.

Two brokers, each with a worker, serve the same work in turn. One has a status page, whose JSON and metrics another
process requests each second during its passes, as an open page and a Prometheus server would. The requests are small,
so that the brokers handle as many messages as possible. There are three figures; a busy machine blurs the last one:

- idle: extra CPU time per second of the broker with the page while there is no work;
- CPU: extra CPU time of that broker for equal work, divided by the CPU time of the whole run (client, broker, agent and
  model process). Other programs change CPU times little, but wall time much;
- wall: the ratio of the seconds of each pair of passes.

Each figure is a median with a 95% bootstrap interval over the pairs. ``--same`` gives neither broker a page, which
shows the noise. The broker with a page also takes snapshots during the passes of the other one, beside the measured
run. On a machine without a free core this may affect wall time, but not CPU time.
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
"""Long enough for four snapshots and two polls."""


@dataclass(frozen=True)
class Service:
    """A broker and a worker: their process IDs, the broker's endpoint, and the URL of its status page or None."""

    broker: int
    worker: int
    endpoint: str
    page: str | None


@contextlib.contextmanager
def _serve(folder: Path, device: str, *options: str) -> Iterator[Service]:
    """Run a broker and a worker with the built-in models."""
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
            yield Service(broker.pid, worker.pid, endpoint, found and found[1])
        finally:
            for process in (worker, broker):
                process.terminate()
                process.wait(60)


def poll_status(address: str) -> None:
    """Request JSON and metrics each second; a byte on standard input starts or stops it, and closing it ends it."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    is_polling, due = False, time.monotonic()
    while True:
        # The schedule continues while polling is off, or each short pass would begin with a request.
        if select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
            if not os.read(sys.stdin.fileno(), 1):  # unbuffered: select does not see bytes in a buffer
                return
            is_polling = not is_polling
        elif is_polling:
            for path in ("status.json", "metrics"):
                with opener.open(f"{address}{path}", timeout=10) as answer:
                    answer.read()
        if time.monotonic() >= due:
            due += 1.0


class StatusPoller:
    """The polling process; without a page there is none."""

    def __init__(self, page: str | None) -> None:
        command = [sys.executable, "-m", "benchmarks.status_cost", "--watch", str(page)]
        self._process = None if page is None else subprocess.Popen(command, stdin=subprocess.PIPE)

    @contextlib.contextmanager
    def polling(self) -> Iterator[None]:
        """Poll inside this context."""
        self._toggle()
        try:
            yield
        finally:
            self._toggle()

    def _toggle(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """End the process."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(30)


@dataclass(frozen=True)
class Pass:
    """Seconds of a pass: wall time, CPU time of the broker, and CPU time of the whole run."""

    wall: float
    broker: float
    total: float


def run_pass(served: Service, lm: BirdieZMQ, score: Callable[[BirdieZMQ], object]) -> Pass:
    """Score all requests once and measure it."""
    model = lm._description.process_id
    processes = [served.broker, served.worker, model]
    before = [*map(cpu_seconds, processes), time.process_time()]
    began = time.monotonic()
    score(lm)
    wall = time.monotonic() - began
    took = [now - then for now, then in zip([*map(cpu_seconds, processes), time.process_time()], before, strict=True)]
    return Pass(wall, took[0], sum(took))


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and its 95% bootstrap interval."""
    sample = np.array(values)
    resamples = np.random.default_rng(0).choice(sample, (_RESAMPLES, len(sample)))
    low, high = np.quantile(np.median(resamples, axis=1), (0.025, 0.975))
    return float(np.median(sample)), float(low), float(high)


def idle_cost(with_page: Service, without_page: Service, poller: StatusPoller, windows: int) -> list[float]:
    """Return extra CPU seconds per second of the broker with a page, for windows in which both are measured at once."""
    costs = []
    with poller.polling():
        for _ in range(windows):
            before, began = (cpu_seconds(with_page.broker), cpu_seconds(without_page.broker)), time.monotonic()
            time.sleep(_IDLE_WINDOW_S)
            after, elapsed = (cpu_seconds(with_page.broker), cpu_seconds(without_page.broker)), time.monotonic() - began
            costs.append(((after[0] - before[0]) - (after[1] - before[1])) / elapsed)
    return costs


def main() -> None:
    """Measure in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2_000, help="requests of a pass; default: %(default)s")
    parser.add_argument("--batch-items", type=int, default=16, help="requests per message; fewer make more messages")
    parser.add_argument("--pairs", type=int, default=30, help="measured passes of each, in turn")
    parser.add_argument("--windows", type=int, default=10, help=f"idle windows of {_IDLE_WINDOW_S:.0f} s")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--same", action="store_true", help="give neither broker a page, to measure noise")
    parser.add_argument("--watch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        poll_status(options.watch)
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
        status_options = [] if options.same else ["--status-port", "0"]
        served = {
            "without": stack.enter_context(_serve(folders[0], options.device)),
            "with": stack.enter_context(_serve(folders[1], options.device, *status_options)),
        }
        models = {
            name: stack.enter_context(BirdieZMQ(model_tag="demo", endpoint=each.endpoint, client_settings=settings))
            for name, each in served.items()
        }
        poller = stack.enter_context(contextlib.closing(StatusPoller(served["with"].page)))
        expected = [score(lm) for lm in models.values()]
        assert expected[0] == expected[1]
        idle = idle_cost(served["with"], served["without"], poller, options.windows)
        for number in range(options.pairs):
            # The first and the second pass find the machine in different states, so the order alternates.
            for name in ("with", "without") if number % 2 else ("without", "with"):
                with poller.polling() if name == "with" else contextlib.nullcontext():
                    passes[name].append(run_pass(served[name], models[name], score))
    pairs = list(zip(passes["with"], passes["without"], strict=True))
    without_page = passes["without"]
    print(
        f"{len(requests):,} requests in batches of {options.batch_items}, {options.pairs} pairs, {os.cpu_count()} cores, "
        f"load average {load_before:.1f} before and {os.getloadavg()[0]:.1f} after"
    )
    print(
        f"pass without a page: median {np.median([each.wall for each in without_page]):.2f} s, CPU "
        f"{np.median([each.total for each in without_page]):.2f} s, of which the broker {np.median([each.broker for each in without_page]):.3f} s"
    )
    figures = {
        "idle, share of a core": idle,
        "CPU, share of the run's": [(a.broker - b.broker) / b.total for a, b in pairs],
        "wall, share of the run's": [a.wall / b.wall - 1 for a, b in pairs],
    }
    for name, values in figures.items():
        median, low, high = interval(values)
        print(f"{name}: {median:+.3%} ({low:+.3%} to {high:+.3%})")


if __name__ == "__main__":
    main()
