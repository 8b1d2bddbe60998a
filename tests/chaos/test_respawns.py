"""A worker that changes models for days: nothing of a process stays behind in it, or in the broker.

``BIRDIE_CHAOS_SWITCHES`` says how often it changes.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from harness_model import BirdieZMQ
from tests.integration.conftest import Programs, alive, descendants

SWITCHES = int(os.environ.get("BIRDIE_CHAOS_SWITCHES", "200"))
SETTLED = 10
"""Switches after which what a process keeps for good is there."""
MOST_GROWTH_BYTES = 2 * 2**20

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]


def holds(process: psutil.Process) -> tuple[int, int, int]:
    """Descriptors, threads, resident bytes."""
    return process.num_fds(), process.num_threads(), process.memory_info().rss


def test_nothing_grows_over_many_switches(programs: Programs, pages: Path) -> None:
    broker, endpoint = programs.broker()
    worker = programs.worker(endpoint, pages / "letters.py")
    watched = {name: psutil.Process(program.process.pid) for name, program in (("broker", broker), ("agent", worker))}
    before: dict[str, tuple[int, int, int]] = {}
    seen = set()
    began = time.monotonic()
    for number in range(SWITCHES + 1):
        with BirdieZMQ(model_tag="pair", seed=number % 2, endpoint=endpoint) as lm:
            lm.get_model_info()
            seen.add(lm._description.process_id)
            assert lm._description.start_count == number + 1
        children = descendants(worker.process.pid)
        assert len(children) == 1, "a model process is left behind"
        if number == min(SETTLED, SWITCHES // 2):
            before = {name: holds(process) for name, process in watched.items()}
    seconds = time.monotonic() - began
    after = {name: holds(process) for name, process in watched.items()}
    print(f"\n{SWITCHES} switches, {seconds / SWITCHES:.1f} s each; descriptors, threads, MiB:")
    for name in watched:
        (fds, threads, rss), (fds_now, threads_now, rss_now) = before[name], after[name]
        print(f"  {name}: {fds}, {threads}, {rss / 2**20:.1f} -> {fds_now}, {threads_now}, {rss_now / 2**20:.1f}")
        assert (fds_now, threads_now) == (fds, threads)
        assert rss_now - rss < MOST_GROWTH_BYTES
    assert len(seen) == SWITCHES + 1

    left = descendants(worker.process.pid)
    worker.process.kill()
    worker.process.wait()
    psutil.wait_procs(left, timeout=5)
    assert not alive(left), "an orphan holds a model"
