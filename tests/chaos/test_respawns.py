"""A worker that switches models many times: neither it nor the broker keeps resources of earlier model processes.

``BIRDIE_CHAOS_SWITCHES`` sets the number of switches.
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
"""Number of switches after which a process has allocated everything that it keeps."""
MAX_GROWTH_BYTES = 2 * 2**20

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]


def resources_of(process: psutil.Process) -> tuple[int, int, int]:
    """Return the descriptors, threads and resident bytes of a process."""
    return process.num_fds(), process.num_threads(), process.memory_info().rss


def test_resources_do_not_grow_over_many_model_switches(programs: Programs, model_files: Path) -> None:
    broker, endpoint = programs.broker()
    worker = programs.worker(endpoint, model_files / "letters.py")
    watched = {name: psutil.Process(program.process.pid) for name, program in (("broker", broker), ("agent", worker))}
    before: dict[str, tuple[int, int, int]] = {}
    process_ids = set()
    began = time.monotonic()
    for number in range(SWITCHES + 1):
        with BirdieZMQ(model_tag="pair", seed=number % 2, endpoint=endpoint) as lm:
            lm.get_model_info()
            process_ids.add(lm._description.process_id)
            assert lm._description.start_count == number + 1
        children = descendants(worker.process.pid)
        assert len(children) == 1, "an earlier model process is still running"
        if number == min(SETTLED, SWITCHES // 2):
            before = {name: resources_of(process) for name, process in watched.items()}
    seconds = time.monotonic() - began
    after = {name: resources_of(process) for name, process in watched.items()}
    print(f"\n{SWITCHES} switches, {seconds / SWITCHES:.1f} s each; descriptors, threads, MiB:")
    for name in watched:
        (fds, threads, rss), (fds_now, threads_now, rss_now) = before[name], after[name]
        print(f"  {name}: {fds}, {threads}, {rss / 2**20:.1f} -> {fds_now}, {threads_now}, {rss_now / 2**20:.1f}")
        assert (fds_now, threads_now) == (fds, threads)
        assert rss_now - rss < MAX_GROWTH_BYTES
    assert len(process_ids) == SWITCHES + 1

    orphans = descendants(worker.process.pid)
    worker.process.kill()
    worker.process.wait()
    psutil.wait_procs(orphans, timeout=5)
    assert not alive(orphans), "an orphaned model process is still running"
