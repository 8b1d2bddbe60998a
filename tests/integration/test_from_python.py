"""``BirdieZMQ`` as a Python object: in scripts, notebooks and training loops."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import psutil
import pytest
from lm_eval.tasks import TaskManager

from birdie_zmq import models
from birdie_zmq.errors import BirdieError, UsageError
from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.conftest import ROOT

LIMIT = 4


@pytest.fixture(scope="module")
def tasks() -> TaskManager:
    return TaskManager(include_path=str(ROOT / "examples" / "tasks"), include_defaults=False)


def evaluate(lm: BirdieZMQ, tasks: TaskManager) -> dict[str, Any]:
    """Evaluate the demo tasks and return their metrics."""
    names = ["demo_choice", "demo_rolling", "demo_generate"]
    results = lm_eval.simple_evaluate(lm, tasks=names, task_manager=tasks, limit=LIMIT, bootstrap_iters=0)
    assert results is not None
    return {
        f"{task} {name}": value
        for task, metrics in results["results"].items()
        for name, value in metrics.items()
        if isinstance(value, float)
    }


def test_in_process_metrics_equal_served_metrics(tasks: TaskManager) -> None:
    """Evaluate several times in one process; the served model in a thread under a running event loop, as in a notebook."""

    def evaluate_served() -> list[dict[str, Any]]:
        with BirdieZMQ(model_tag="demo", device="cpu") as lm:
            return [evaluate(lm, tasks) for _ in range(2)]

    async def notebook() -> list[dict[str, Any]]:
        return await asyncio.to_thread(evaluate_served)

    served = asyncio.run(notebook())
    with BirdieZMQ(model=models.load_model("demo"), tokenizer=models.load_tokenizer("demo"), model_tag="demo") as lm:
        in_process = [evaluate(lm, tasks)]

    assert served[0]["demo_choice acc,none"] > 0.5
    for metrics in (*served, *in_process):
        assert metrics.keys() == served[0].keys()
        np.testing.assert_allclose(list(metrics.values()), list(served[0].values()), rtol=1e-5)


@pytest.mark.parametrize(
    ("gen_kwargs", "message"),
    [
        ("num_beams=4", "num_beams=4, which is not supported"),
        ("do_sample=True,temperature=0", "do_sample=True contradicts temperature=0"),
        ("eos_token_id=99999", "the token 99999 in eos_token_id"),
    ],
)
def test_a_mixed_run_is_rejected_before_its_log_likelihoods(tasks: TaskManager, gen_kwargs: str, message: str) -> None:
    names = ["demo_choice", "demo_rolling", "demo_generate"]
    with BirdieZMQ(model=models.load_model("demo"), tokenizer=models.load_tokenizer("demo")) as lm:
        with pytest.raises(BirdieError, match=message):
            lm_eval.simple_evaluate(lm, tasks=names, task_manager=tasks, limit=2, gen_kwargs=gen_kwargs)
        assert lm.get_model_info()["model_steps"]["requests"] == 0


def test_in_process_answers_equal_served_answers() -> None:
    pairs = [(f"Question: Where does {name} live?\nAnswer:", f" {town}") for name in ("Una", "Zelda") for town in "ab"]
    gen_kwargs = {"until": ["."], "max_gen_toks": 6, "do_sample": True, "temperature": 0.8, "top_p": 0.9}

    def answers(lm: BirdieZMQ) -> tuple[Any, Any, Any]:
        scored = lm.loglikelihood([instance("loglikelihood", pair, 0) for pair in pairs], disable_tqdm=True)
        texts = [instance("loglikelihood_rolling", (context,), 0) for context, _ in pairs]
        prompts = [instance("generate_until", (context, gen_kwargs), 0) for context, _ in pairs]
        return scored, lm.loglikelihood_rolling(texts, disable_tqdm=True), lm.generate_until(prompts, disable_tqdm=True)

    with BirdieZMQ(model_tag="demo", device="cpu") as lm:
        served = answers(lm)
        with pytest.raises(UsageError, match="for a model of this process"):
            lm.update()
    with BirdieZMQ(model=models.load_model("demo"), tokenizer=models.load_tokenizer("demo")) as lm:
        in_process = answers(lm)
    assert [greedy for _, greedy in in_process[0]] == [greedy for _, greedy in served[0]]
    np.testing.assert_allclose([s for s, _ in in_process[0]], [s for s, _ in served[0]], atol=1e-5)
    np.testing.assert_allclose(in_process[1], served[1], atol=1e-5)
    assert in_process[2] == served[2]


def test_gpus_are_hidden_from_lm_eval_during_a_run_only(model_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.delenv("ROCR_VISIBLE_DEVICES", raising=False)

    def start() -> BirdieZMQ:
        lm = BirdieZMQ.create_from_arg_string(f"model_tag=pair,api={model_files / 'letters.py'}")
        worker = psutil.Process(lm._description.process_id).environ()
        assert worker["CUDA_VISIBLE_DEVICES"] == "3"
        assert "ROCR_VISIBLE_DEVICES" not in worker
        assert os.environ["CUDA_VISIBLE_DEVICES"] == os.environ["ROCR_VISIBLE_DEVICES"] == ""
        return lm

    def assert_restored() -> None:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
        assert "ROCR_VISIBLE_DEVICES" not in os.environ

    first, second = start(), start()
    first.close()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    second.close()
    second.close()
    assert_restored()
    # lm_eval does not close the models that it makes.
    lm = start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of its sockets
        del lm
        gc.collect()
    assert_restored()


SETTINGS = """
import jax
import birdie_zmq.models

for name, value in {
    "jax_enable_x64": True,
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_numpy_rank_promotion": "raise",
    "jax_numpy_dtype_promotion": "strict",
    "jax_default_matmul_precision": "bfloat16",
    "jax_debug_nans": True,
    "jax_disable_jit": True,
}.items():
    jax.config.update(name, value)

load_model, load_tokenizer = birdie_zmq.models.load_model, birdie_zmq.models.load_tokenizer
"""


def test_answers_do_not_depend_on_what_a_user_module_sets(tmp_path: Path) -> None:
    (tmp_path / "api.py").write_text(SETTINGS)
    gen_kwargs = {"until": ["."], "max_gen_toks": 6, "do_sample": True, "temperature": 0.8, "top_p": 0.9}
    prompts = ["Question: Where does Una live?\nAnswer:", "Delia"]

    def answers(**arguments: Any) -> tuple[Any, Any]:
        with BirdieZMQ(model_tag="demo", device="cpu", **arguments) as lm:
            pairs = [instance("loglikelihood", (prompt, " a town"), 0) for prompt in prompts]
            texts = [instance("generate_until", (prompt, gen_kwargs), 0) for prompt in prompts]
            scored = lm.loglikelihood(pairs, disable_tqdm=True)
            return [score for score, _ in scored], lm.generate_until(texts, disable_tqdm=True)

    expected, found = answers(), answers(api=str(tmp_path / "api.py"))
    np.testing.assert_allclose(found[0], expected[0], atol=1e-4)
    assert found[1] == expected[1]


def test_perplexity_falls_in_the_training_loop_example() -> None:
    command = [sys.executable, "examples/models/training_loop.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    results = re.findall(r"^step (\d+): .*byte_perplexity ([\d.]+)$", done.stdout, re.M)
    assert [step for step, _ in results] == ["0", "50", "100", "150"]
    perplexities = [float(value) for _, value in results]
    assert perplexities == sorted(perplexities, reverse=True)
    assert perplexities[-1] < perplexities[0] / 10
