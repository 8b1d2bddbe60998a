"""Fuzzing a broker with malformed frames from many connections while an honest run uses it.

``BIRDIE_FUZZ_SECONDS`` and ``BIRDIE_FUZZ_SEED`` choose another attack.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from lm_eval.api.instance import Instance

from birdie_zmq.protocol.limits import MAX_ELEMENTS
from birdie_zmq.protocol.router import MAX_UNREAD_BY_BROKER
from birdie_zmq.settings import ClientSettings
from harness_model import BirdieZMQ
from tests.fuzz.attack import CONNECTIONS, MAX_FRAME_BYTES, MEAN_FRAME_BYTES
from tests.instances import instance
from tests.integration.conftest import ROOT, Programs

SEED = int(os.environ.get("BIRDIE_FUZZ_SEED", "20261125"))
SECONDS = float(os.environ.get("BIRDIE_FUZZ_SECONDS", "60"))
MEMORY_LIMIT_MIB = 512
"""The broker's memory limit. Frames of closed connections are queued too, and their number depends on timing, so that only
this limit bounds the memory. The usual growth is smaller: the frame in decoding (limited by tests/fuzz/test_codec.py), and the
queued frames of the open connections, with one memory bomb per peer."""
USUAL_GROWTH_BYTES = 128 * MAX_ELEMENTS + CONNECTIONS * (MAX_UNREAD_BY_BROKER * MEAN_FRAME_BYTES + MAX_FRAME_BYTES)

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(3600)]


def requests() -> list[Instance]:
    pairs = [(f"{number}: the cat sat", f" on the {word}") for number in range(40) for word in ("mat", "hat", "dog")]
    return [instance("loglikelihood", pair, number) for number, pair in enumerate(pairs)]


@contextmanager
def resident_memory(pid: int) -> Iterator[list[int]]:
    """Sample the resident memory of a process in bytes: at the start, and the maximum since."""
    process = psutil.Process(pid)
    samples = [process.memory_info().rss] * 2
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.01):
            samples[1] = max(samples[1], process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        is_over.set()
        thread.join()


def test_an_honest_run_during_an_attack_has_the_same_scores(programs: Programs, model_files: Path) -> None:
    broker, endpoint = programs.broker("tcp://127.0.0.1:*", "--memory-limit", str(MEMORY_LIMIT_MIB))
    worker = programs.worker(endpoint, model_files / "letters.py")
    calls = 0
    with BirdieZMQ(model_tag="pair", endpoint=endpoint, client_settings=ClientSettings(batch_items=16)) as lm:
        expected = lm.loglikelihood(requests(), disable_tqdm=True)
        with resident_memory(broker.process.pid) as memory_bytes:
            attacker = programs.start("-m", "tests.fuzz.attack", endpoint, str(SEED), str(SECONDS), cwd=ROOT)
            began = time.monotonic()
            while attacker.process.poll() is None:
                assert lm.loglikelihood(requests(), disable_tqdm=True) == expected
                calls += 1
            seconds = time.monotonic() - began
        assert lm.loglikelihood(requests(), disable_tqdm=True) == expected

    assert attacker.process.returncode == 0, attacker.output
    counts = json.loads(attacker.output)
    lines = broker.output.count("\n")
    print(
        f"\nbroker, seed {SEED}: {counts['frames']:,} frames ({counts['bytes'] >> 20:,} MiB, {counts['multipart']:,} of "
        f"several parts) over {counts['connections']:,} connections in {seconds:.0f} s, {counts['answers']:,} answers; "
        f"crashes 0; resident {memory_bytes[0] >> 20} MiB before, {memory_bytes[1] >> 20} at most (usually under "
        f"{(memory_bytes[0] + USUAL_GROWTH_BYTES) >> 20}, bound {MEMORY_LIMIT_MIB}); {calls} honest calls of {len(expected)} requests meanwhile, other "
        f"scores 0; {lines} lines of log"
    )
    assert calls > 0
    assert broker.process.poll() is None, broker.output
    assert worker.process.poll() is None, worker.output
    assert "Traceback" not in broker.output + worker.output
    assert memory_bytes[1] < MEMORY_LIMIT_MIB * 2**20
    assert lines < 15 * seconds + 200
