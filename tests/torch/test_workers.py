"""Two workers with the engine torch, one of whose model processes is killed in the middle of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from lm_eval.api.model import CacheHook

from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.conftest import ROOT, Programs, descendants

pytestmark = [pytest.mark.torch, pytest.mark.variant, pytest.mark.filterwarnings("ignore")]

CONTEXTS = [f"Question: Where does {name} live? " * 4 for name in ("Una", "Mira", "Tom")]
PAIRS = [(f"{context}Number {number}:", f" house {number} in Fernley") for number in range(300) for context in CONTEXTS]


class KillsOnce(CacheHook):
    """Kills a process at the first answer."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(None)
        self._process = process
        self.answers_before = 0

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        if self._process.is_running():
            self.answers_before += 1
            self._process.kill()


def score(lm: BirdieZMQ) -> list[float]:
    requests = [instance("loglikelihood", pair, number) for number, pair in enumerate(PAIRS)]
    return [loglikelihood for loglikelihood, _ in lm.loglikelihood(requests, disable_tqdm=True)]


def test_answers_are_equal_with_two_workers_and_a_killed_model_process(programs: Programs, checkpoint: Path) -> None:
    arguments: dict[str, Any] = {"model_tag": str(checkpoint), "dtype": "float32"}
    with BirdieZMQ(engine="torch", device="cpu", **arguments) as lm:
        expected = score(lm)
    _, endpoint = programs.broker()
    workers = [programs.worker(endpoint, ROOT / "api.py", command_module="workers.torch_worker") for _ in range(2)]
    with BirdieZMQ(endpoint=endpoint, **arguments) as lm:
        undisturbed = score(lm)
        processes = [process for worker in workers for process in descendants(worker.process.pid)]
        (running,) = [process for process in processes if process.pid == lm._description.process_id]
        hook = KillsOnce(running)
        lm.set_cache_hook(hook)
        disturbed = score(lm)
        retries = lm._client.retries
    np.testing.assert_allclose(undisturbed, expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(disturbed, expected, atol=1e-4, rtol=0)
    assert hook.answers_before > 0
    assert not running.is_running()
    assert retries <= 1
