"""Two workers on a local Ray cluster, one of which is killed while lm_eval runs: the answers do not change."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.integration.conftest import ROOT, Program, Programs, alive, descendants, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

WORKERS = 2


@dataclass
class RunningCluster:
    """A broker and a ``birdie-zmq ray up`` that connects to it."""

    endpoint: str
    up: Program

    def agents(self) -> dict[str, int]:
        """Return the process id of each worker, from the last line that the command logged about it."""
        return {number: int(pid) for number, pid in re.findall(r"worker (\d) is placed.*process (\d+)", self.up.output)}

    def placed_again(self) -> int:
        return len(re.findall(r"worker \d is placed again: node ", self.up.output))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A broker and a cluster with all workers registered; afterwards both must exit cleanly and leave no process."""
    started = Programs(tmp_path_factory.mktemp("ray"))
    try:
        broker, endpoint = started.broker()
        options = ["--address", "local", "--workers", str(WORKERS), "--cpus-per-worker", "0.5", "--connect", endpoint]
        up = started.start("-m", "birdie_zmq", "ray", "up", *options, "--built-in", "--device", "cpu")
        wait_until(lambda: len(re.findall(r"worker \d+ on \S+ is ready", broker.output)) == WORKERS, "two workers")
        yield RunningCluster(endpoint, up)
        assert up.stop() == 0, up.output
        wait_until(lambda: not alive(up.seen), "the end of all processes of Ray")
        assert len(re.findall("it shut down", broker.output)) >= WORKERS
    finally:
        started.end()


def lm_eval(folder: Path, endpoint: str) -> subprocess.Popen[bytes]:
    """Start lm_eval with a journal."""
    folder.mkdir()
    command = [sys.executable, "-m", "birdie_zmq", "lm_eval", "--model", "birdie_zmq", "--model_args"]
    command += [f"model_tag=demo,endpoint={endpoint},resume={folder / 'journal'}", "--output_path", str(folder / "out")]
    command += ["--include_path", str(ROOT / "examples" / "tasks"), "--tasks", "demo_choice,demo_generate,demo_rolling"]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen([*command, "--log_samples"], stdout=log, stderr=log)


def responses(folder: Path) -> tuple[list[float], list[str]]:
    """Return all scores of a run, and all other answers: the greedy flags and texts."""
    scores, others = [], []
    for path in sorted((folder / "out").rglob("samples_*.jsonl"), key=lambda path: path.name.split("_2")[0]):
        for line in path.read_text().splitlines():
            for response in itertools.chain.from_iterable(json.loads(line)["resps"]):
                score, *rest = response if isinstance(response, list) else [response]
                if path.name.startswith("samples_demo_generate"):
                    others.append(score)
                else:
                    scores.append(float(score))
                others += rest
    return scores, others


@pytest.fixture(scope="module")
def undisturbed(cluster: RunningCluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], list[str]]:
    """The responses of an undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run = lm_eval(folder, cluster.endpoint)
    assert run.wait(300) == 0, (folder / "log").read_text()
    return responses(folder)


@pytest.mark.parametrize("what", ["actor", "agent", "model process"])
def test_killed_worker_is_replaced_and_no_answer_is_missing(
    what: str,
    cluster: RunningCluster,
    undisturbed: tuple[list[float], list[str]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    folder = tmp_path / "run"
    again = cluster.placed_again()
    run = lm_eval(folder, cluster.endpoint)
    request.addfinalizer(run.kill)
    journal = folder / "journal"
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 20, "the first answers")
    # A worker that was just placed again may have no model yet.
    agent = next(psutil.Process(pid) for pid in cluster.agents().values() if descendants(pid))
    actor, (model, *_) = agent.parent(), descendants(agent.pid)
    assert actor is not None
    assert "RayWorker" in " ".join(actor.cmdline())
    killed = {"actor": actor, "agent": agent, "model process": model}[what]
    processes = [killed, *descendants(killed.pid)]

    os.kill(killed.pid, signal.SIGKILL)

    assert run.poll() is None, "the run had ended before the kill"
    assert run.wait(300) == 0, (folder / "log").read_text()
    scores, others = responses(folder)
    assert len(scores) == 420
    # Retried requests are computed in other steps, whose sums round differently.
    np.testing.assert_allclose(scores, undisturbed[0], atol=1e-4, rtol=0)
    assert others == undisturbed[1]
    wait_until(lambda: not alive(processes), "the end of its child processes")
    if what == "model process":
        assert cluster.placed_again() == again, "the agent restarts the model process, without Ray"
    else:
        wait_until(lambda: cluster.placed_again() == again + 1, "the worker's new placement")
    assert all(psutil.pid_exists(pid) for pid in cluster.agents().values())
