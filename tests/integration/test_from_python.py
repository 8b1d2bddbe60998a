"""BirdieZMQ as an object: in programs, notebooks and training loops."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from typing import Any

import lm_eval
import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from birdie_zmq import models
from birdie_zmq.errors import UsageError
from harness_model import BirdieZMQ
from tests.integration.conftest import ROOT

LIMIT = 4


@pytest.fixture(scope="module")
def tasks() -> TaskManager:
    return TaskManager(include_path=str(ROOT / "examples" / "tasks"), include_defaults=False)


def evaluate(lm: BirdieZMQ, tasks: TaskManager) -> dict[str, Any]:
    """The metrics of the demo's tasks."""
    names = ["demo_choice", "demo_rolling", "demo_generate"]
    found = lm_eval.simple_evaluate(lm, tasks=names, task_manager=tasks, limit=LIMIT, bootstrap_iters=0)
    assert found is not None
    return {
        f"{task} {name}": value
        for task, metrics in found["results"].items()
        for name, value in metrics.items()
        if isinstance(value, float)
    }


def test_a_model_of_this_process_scores_as_one_in_a_process_of_its_own(tasks: TaskManager) -> None:
    """Several times in one process; the served one in a thread, under a running event loop, as in a notebook."""

    def served() -> list[dict[str, Any]]:
        with BirdieZMQ(model_tag="demo", device="cpu") as lm:
            return [evaluate(lm, tasks) for _ in range(2)]

    async def notebook() -> list[dict[str, Any]]:
        return await asyncio.to_thread(served)

    there = asyncio.run(notebook())
    with BirdieZMQ(model=models.load_model("demo"), tokenizer=models.load_tokenizer("demo"), model_tag="demo") as lm:
        here = [evaluate(lm, tasks)]

    assert there[0]["demo_choice acc,none"] > 0.5
    for metrics in (*there, *here):
        assert metrics.keys() == there[0].keys()
        np.testing.assert_allclose(list(metrics.values()), list(there[0].values()), rtol=1e-5)


def test_each_answer_is_the_same_here_as_served() -> None:
    pairs = [(f"Question: Where does {name} live?\nAnswer:", f" {town}") for name in ("Una", "Zelda") for town in "ab"]
    how = {"until": ["."], "max_gen_toks": 6, "do_sample": True, "temperature": 0.8, "top_p": 0.9}

    def answers(lm: BirdieZMQ) -> tuple[Any, Any, Any]:
        scored = lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True)
        texts = [Instance("loglikelihood_rolling", {}, (context,), 0) for context, _ in pairs]
        prompts = [Instance("generate_until", {}, (context, how), 0) for context, _ in pairs]
        return scored, lm.loglikelihood_rolling(texts, disable_tqdm=True), lm.generate_until(prompts, disable_tqdm=True)

    with BirdieZMQ(model_tag="demo", device="cpu") as lm:
        there = answers(lm)
        with pytest.raises(UsageError, match="for a model of this process"):
            lm.update()
    with BirdieZMQ(model=models.load_model("demo"), tokenizer=models.load_tokenizer("demo")) as lm:
        here = answers(lm)
    assert [greedy for _, greedy in here[0]] == [greedy for _, greedy in there[0]]
    np.testing.assert_allclose([s for s, _ in here[0]], [s for s, _ in there[0]], atol=1e-5)
    np.testing.assert_allclose(here[1], there[1], atol=1e-5)
    assert here[2] == there[2]


def test_a_training_loop_sees_its_model_learn() -> None:
    command = [sys.executable, "examples/models/training_loop.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^step (\d+): .*byte_perplexity ([\d.]+)$", done.stdout, re.M)
    assert [step for step, _ in found] == ["0", "50", "100", "150"]
    perplexities = [float(value) for _, value in found]
    assert perplexities == sorted(perplexities, reverse=True)
    assert perplexities[-1] < perplexities[0] / 10
