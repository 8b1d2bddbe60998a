"""What the status page costs a run: ``python -m benchmarks.status_cost``.

Two brokers, each with a worker, serve the same work in turn: one has a status page, which is asked for its JSON and its
metrics each second meanwhile, as an open page and a Prometheus server would. Printed are the ratios of the pairs.
What is scored is small, so that the brokers have as many messages to pass as they can get.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from lm_eval.api.instance import Instance

from birdie_zmq.config import ClientSettings
from harness_model import BirdieZMQ


@contextlib.contextmanager
def _served(folder: Path, device: str, *options: str) -> Iterator[tuple[str, Path]]:
    """A broker and a worker with the built-in page; the broker's endpoint, and what it writes."""
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
            yield endpoint, log
        finally:
            for process in (worker, broker):
                process.terminate()
                process.wait(60)


@contextlib.contextmanager
def _watched(address: str, asked: list[int]) -> Iterator[None]:
    """Ask for the JSON and the metrics each second meanwhile."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            for path in ("status.json", "metrics"):
                with urllib.request.urlopen(f"{address}{path}", timeout=10) as answer:  # noqa: S310 - it is http
                    asked.append(len(answer.read()))
            ended.wait(1.0)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=4_000)
    parser.add_argument("--batch-items", type=int, default=16, help="of one message; fewer make more of them")
    parser.add_argument("--pairs", type=int, default=7, help="how often both are timed in turn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--same", action="store_true", help="neither has a page: what the ratio is for no reason at all"
    )
    options = parser.parse_args()
    requests = [
        Instance("loglikelihood", {}, (f"{number}: the cat sat on the", f" mat {number % 7}"), number)
        for number in range(options.requests)
    ]
    settings = ClientSettings(batch_items=options.batch_items)
    page = [] if options.same else ["--status-port", "0"]
    asked: list[int] = []
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    with contextlib.ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        plain, _ = stack.enter_context(_served(folders[0], options.device))
        shown, log = stack.enter_context(_served(folders[1], options.device, *page))
        models = {
            name: stack.enter_context(BirdieZMQ(model_tag="demo", endpoint=endpoint, client_settings=settings))
            for name, endpoint in (("without", plain), ("with", shown))
        }
        found = re.search(r"status page at (\S+)", log.read_text())
        assert options.same or found is not None
        expected = [lm.loglikelihood(requests, disable_tqdm=True) for lm in models.values()]
        assert expected[0] == expected[1]
        for number in range(options.pairs):
            # Whichever comes first has another machine than the second: they change places.
            for name in ("with", "without") if number % 2 else ("without", "with"):
                with _watched(found[1], asked) if found and name == "with" else contextlib.nullcontext():
                    began = time.monotonic()
                    scores = models[name].loglikelihood(requests, disable_tqdm=True)
                    seconds[name].append(time.monotonic() - began)
                assert scores == expected[0]
    ratios = [a / b for a, b in zip(seconds["with"], seconds["without"], strict=True)]
    print(
        f"{len(requests)} requests in batches of {options.batch_items}, {os.cpu_count()} cores; {len(asked)} answers of "
        f"{statistics.mean(asked or [0]):,.0f} bytes"
    )
    print(
        f"with a page: median {statistics.median(seconds['with']):.2f} s; without: median "
        f"{statistics.median(seconds['without']):.2f} s; median ratio {statistics.median(ratios):.3f} "
        f"(pairs {', '.join(f'{ratio:.3f}' for ratio in ratios)})"
    )


if __name__ == "__main__":
    main()
