"""Measure how much slower a run is while another peer floods its broker: ``python -m benchmarks.flood``.

A broker and a worker serve two clients. One scores the same requests repeatedly. The other one sends as fast as it can,
and takes turns between several kinds of messages and none. The output is, for each kind, the median time divided by the
median without a flood. On machines with few cores this overstates the effect, because the flooding process itself uses
one core.

The large batches are valid and for the same model, but name another model identity. So they travel all the way to the
model process, which rejects them without computing. A batch that is computed makes others wait for that time once per
turn.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import zmq
from lm_eval.api.instance import Instance

from benchmarks.restarts import broker_and_worker
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import encode
from birdie_zmq.protocol.packing import pack_work
from birdie_zmq.types import ModelSpec, RollingWork
from harness_model import BirdieZMQ

_LARGE_CHARACTERS = 4_000_000
"""Characters of one batch; the maximum of a client's own batches."""


def _messages(kind: str, model: ModelSpec) -> Iterator[bytes]:
    ping, garbage = encode(m.Ping()), b"\x92\x05\x81\xa4type\xa5lease"
    large = pack_work(RollingWork(texts=["a " * (_LARGE_CHARACTERS // 2)]))
    number = 0
    while True:
        if kind == "pings":
            yield ping
        elif kind == "unreadable":
            yield garbage
        else:
            number += 1
            yield encode(m.Submit(batch=number, model=model, work=large, identity="another"))


def _flood(endpoint: str, kind: str, model: ModelSpec, sent: Synchronized[int]) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.sndhwm = 100
        peer.linger = 0
        peer.connect(endpoint)
        peer.send(encode(m.OpenSession(package_version="1")))
        for frame in _messages(kind, model):
            peer.send(frame)
            sent.value += 1
            with contextlib.suppress(zmq.Again):
                while True:
                    peer.recv(flags=zmq.DONTWAIT)


@contextlib.contextmanager
def _flooding(endpoint: str, kind: str, model: ModelSpec, sent: dict[str, list[float]]) -> Iterator[None]:
    """Flood the broker from another process; append its rate in messages per second to ``sent[kind]``."""
    if kind == "nothing":
        yield
        return
    context = multiprocessing.get_context("spawn")
    count = context.Value("q", 0)
    flooder = context.Process(target=_flood, args=(endpoint, kind, model, count), daemon=True)
    flooder.start()
    while not count.value:
        time.sleep(0.01)
    time.sleep(1.0)
    before, began = count.value, time.monotonic()
    try:
        yield
    finally:
        sent[kind].append((count.value - before) / (time.monotonic() - began))
        flooder.kill()
        flooder.join()


def main() -> None:
    """Measure each kind of flood in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--kinds", default="nothing,pings,unreadable,large", help="kinds of flood, in turn; default: %(default)s"
    )
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    requests = [
        Instance("loglikelihood", {}, (f"{number}: the cat sat on the", f" mat {number % 7}"), number)
        for number in range(options.requests)
    ]
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    sent: dict[str, list[float]] = {kind: [] for kind in kinds}
    with (
        tempfile.TemporaryDirectory() as folder,
        broker_and_worker(Path(folder), "--built-in", "--device", options.device) as endpoint,
        BirdieZMQ(model_tag="demo", endpoint=endpoint) as lm,
    ):
        expected = lm.loglikelihood(requests, disable_tqdm=True)
        for _ in range(options.rounds):
            for kind in kinds:
                with _flooding(endpoint, kind, lm._description.model, sent):
                    began = time.monotonic()
                    scores = lm.loglikelihood(requests, disable_tqdm=True)
                    seconds[kind].append(time.monotonic() - began)
                assert [greedy for _, greedy in scores] == [greedy for _, greedy in expected]
        lines = (Path(folder) / "served.log").read_text().count("\n")
    alone = statistics.median(seconds["nothing"])
    print(f"{len(requests)} requests, {os.cpu_count()} cores; {lines} lines in the log")
    for kind in kinds:
        each = ", ".join(f"{value:.2f}" for value in seconds[kind])
        rate = f"; {statistics.median(sent[kind]):,.0f} messages/s" if sent[kind] else ""
        print(
            f"  {kind:10}  {each} s; median {statistics.median(seconds[kind]) / alone:.2f} times that without a flood{rate}"
        )


if __name__ == "__main__":
    main()
