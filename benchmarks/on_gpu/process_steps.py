"""The steps that need a broker and a worker: model switches, and recovery after a killed model process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.on_gpu.scale import Scale
from benchmarks.restarts import broker_and_worker
from benchmarks.scaling import difference

_MODELS = Path(__file__).parent / "random_models.py"
_LEFT_MIB, _FREE_S = 256, 20
_DIFFERENCE = 0.1
"""Nats between scores of two tokens in bfloat16 that were computed in batches of other sizes; wrong ones differ by more."""


def switch(scale: Scale) -> str:
    """Score with one model, with another one, and with the first again, and read the memory in use after each."""
    from birdie_zmq.client import Client
    from birdie_zmq.client.batching import loglikelihood_jobs
    from birdie_zmq.client.collector import AnswerCollector
    from birdie_zmq.harness.model_args import parse_model_args
    from birdie_zmq.settings import ClientSettings

    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # so that memory in use is memory that is needed
    before, answers, seconds, used = used_mib(), [], [], []
    with tempfile.TemporaryDirectory(prefix="birdie-") as folder:
        with broker_and_worker(Path(folder), "--api", str(_MODELS)) as endpoint:
            for seed in (1, 2, 1):
                began = time.monotonic()
                collector = AnswerCollector(1)
                with Client(endpoint, parse_model_args({"model_tag": f"{scale.large}-{seed}"}).model) as client:
                    for event in client.stream(loglikelihood_jobs([("The sun", " rises")], ClientSettings())):
                        collector.add(event)
                answers += collector.result()
                seconds.append(time.monotonic() - began)
                used.append(used_mib() - before)
        ended = time.monotonic()
        while (left := used_mib() - before) > _LEFT_MIB and time.monotonic() - ended < _FREE_S:
            time.sleep(0.1)
    if answers[0] != answers[2] or answers[0] == answers[1]:
        raise SystemExit(f"a model that was loaded again, or another one, gave other scores than expected: {answers}")
    if left > _LEFT_MIB or max(used) > min(used) + max(_LEFT_MIB, min(used) // 4):
        raise SystemExit(f"memory did not come back: {used} MiB in use after each load, {left} after the end")
    times = " and ".join(f"{each:.1f}" for each in seconds[1:])
    return (
        f"first answer of {scale.large} after {seconds[0]:.1f} s, after a model switch {times} s; "
        f"{', '.join(f'{each:,}' for each in used)} MiB in use after each, {left:,} MiB {time.monotonic() - ended:.1f} s after the end"
    )


def recovery(scale: Scale) -> str:
    """Kill a model process (SIGKILL) at a quarter of the answers, and compare the answers with undisturbed ones."""
    from birdie_zmq.client import Client
    from birdie_zmq.client.actions import Deliver
    from birdie_zmq.client.collector import AnswerCollector
    from birdie_zmq.harness.model_args import parse_model_args
    from birdie_zmq.settings import ClientSettings
    from birdie_zmq.tools.bench.workloads import Sizes, make_jobs, make_requests

    requests = make_requests("choice", scale.documents, 0, Sizes())
    jobs = list(make_jobs("choice", requests, Sizes(), ClientSettings()))
    killed_at = answered_again = None
    with (
        tempfile.TemporaryDirectory(prefix="birdie-") as folder,
        broker_and_worker(Path(folder), "--api", str(_MODELS)) as endpoint,
        Client(endpoint, parse_model_args({"model_tag": f"{scale.small}-1"}).model) as client,
    ):
        undisturbed, disturbed = AnswerCollector(requests.requests), AnswerCollector(requests.requests)
        for event in client.stream(jobs):
            undisturbed.add(event)
        answered, first = 0, client.describe().process_id
        with contextlib.closing(client.stream(jobs)) as events:
            for event in events:
                disturbed.add(event)
                if not isinstance(event, Deliver):
                    continue
                answered += len(event.items)
                # What the killed process had sent before arrives within half a second; a new one takes longer to load.
                if killed_at is not None and answered_again is None and time.monotonic() > killed_at + 0.5:
                    answered_again = time.monotonic()
                if killed_at is None and answered >= requests.requests / 4:
                    os.kill(first, signal.SIGKILL)
                    killed_at = time.monotonic()
        second = client.describe().process_id
    if killed_at is None or answered_again is None or first == second:
        raise SystemExit("the run ended before its model process was killed; use more documents")
    worst = difference(undisturbed.result(), disturbed.result()).nats
    if not worst <= _DIFFERENCE:
        raise SystemExit(f"scores differ from those of an undisturbed run by up to {worst:.2g} nats")
    return (
        f"{requests.requests:,} of {requests.requests:,} requests answered, model process killed at a quarter; answers again "
        f"{answered_again - killed_at:.1f} s later; largest difference from an undisturbed run {worst:.2g} nats"
    )


def used_mib() -> int:
    """Return the memory that is in use on the first GPU, as its driver counts; 0 without a driver."""
    try:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])
    except FileNotFoundError:
        return 0
