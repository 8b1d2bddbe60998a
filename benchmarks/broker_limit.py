"""Measure the throughput of one broker: ``python -m benchmarks.broker_limit``.

It runs a real broker, a real client and workers that answer at once, with real sockets and messages but without a
model. The main figure is the broker's CPU time per message, which other processes on the machine disturb little. From
it follows the limit of a broker that has a core of its own. Batches per second and MB per second are observed values.
Workers and client share the same cores, so these values may be limited by them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import time
from typing import Any

import psutil

from birdie_zmq._version import __version__
from birdie_zmq.client import Client
from birdie_zmq.client.job import Job
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.dealer import Dealer
from birdie_zmq.protocol.endpoints import parse_endpoint
from birdie_zmq.protocol.packing import pack_answers
from birdie_zmq.protocol.transport import wait
from birdie_zmq.types import ModelSpec, RollingWork

MODEL = ModelSpec(tag="nothing")
_decode = decoder(m.BrokerToWorker | m.Refusal)


def run_instant_workers(endpoint: str, workers: int, rows: int) -> None:
    """Act as several workers without a model, each of which sends ``rows`` answers per message."""
    dealers = [Dealer(parse_endpoint(endpoint)) for _ in range(workers)]
    for number, dealer in enumerate(dealers):
        registration = m.RegisterWorker(
            package_version=__version__, engine="nothing", host="here", process_id=number, capacity=2, model=MODEL
        )
        dealer.send(encode(registration))
    heartbeat_at = time.monotonic()
    while True:
        wait(dealers[0], 0.0 if workers > 1 else 0.05)
        for dealer in dealers:
            while (frame := dealer.receive()) is not None:
                message: Any = _decode(frame)
                if isinstance(message, m.Lease):
                    count = len(message.work)
                    for first in range(0, count, rows):
                        indices = list(range(first, min(first + rows, count)))
                        answers = pack_answers("rolling", [-1.5] * len(indices))
                        dealer.send(encode(m.LeaseAnswered(lease=message.lease, indices=indices, answers=answers)))
                    dealer.send(encode(m.LeaseDone(lease=message.lease)))
        if time.monotonic() >= heartbeat_at:
            heartbeat_at += 1.0
            for dealer in dealers:
                dealer.send(encode(m.Heartbeat(phase="running", model=MODEL)))


def main() -> None:
    """Measure and print, for several text lengths."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=16, help="answers per message; default: %(default)s")
    parser.add_argument("--batches", type=int, default=600, help="default: %(default)s")
    parser.add_argument("--characters", type=int, nargs="*", default=[100, 1_000, 4_000], help="text lengths")
    options = parser.parse_args()
    broker = subprocess.Popen(
        [sys.executable, "-m", "birdie_zmq", "broker", "--bind", "tcp://127.0.0.1:*"], stdout=subprocess.PIPE, text=True
    )
    assert broker.stdout is not None
    endpoint = broker.stdout.readline().rpartition("broker at ")[2].strip()
    workers_process = multiprocessing.get_context("spawn").Process(
        target=run_instant_workers, args=(endpoint, options.workers, options.rows), daemon=True
    )
    workers_process.start()
    process = psutil.Process(broker.pid)
    try:
        with Client(endpoint, MODEL) as client:
            client.run([Job(RollingWork(texts=["x"]), [0])], 1)
            for characters in options.characters:
                work = RollingWork(texts=["x" * characters] * 256)
                jobs = [Job(work, list(range(i * 256, (i + 1) * 256))) for i in range(options.batches)]
                before, began = process.cpu_times(), time.monotonic()
                client.run(jobs, 256 * options.batches)
                seconds, after = time.monotonic() - began, process.cpu_times()
                cpu = after.user + after.system - before.user - before.system
                # The broker receives and forwards a batch and each message of answers; the worker also sends LeaseDone.
                messages = options.batches * (3 + 2 * -(-256 // options.rows))
                megabytes = options.batches * 256 * characters / 1e6
                print(
                    f"{characters:5} characters per text: {options.batches / seconds:6,.0f} batches/s, "
                    f"{options.batches * 256 / seconds:9,.0f} requests/s, {megabytes / seconds:6,.0f} MB/s, broker "
                    f"{cpu / seconds:.0%} of a core; {cpu / messages * 1e6:.0f} µs per message, "
                    f"{cpu / options.batches * 1e3:.2f} ms per batch: at most {options.batches / cpu:,.0f} batches/s, "
                    f"{megabytes / cpu:,.0f} MB/s with a core of its own",
                    flush=True,
                )
    finally:
        workers_process.terminate()
        broker.terminate()
        broker.wait()


if __name__ == "__main__":
    main()
