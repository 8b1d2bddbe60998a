"""The callbacks of training loops; the examples that use them are run by the tests of the docs."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lm_eval.tasks import TaskManager

from birdie_zmq.errors import UnavailableError, UsageError
from birdie_zmq.training import InProcessEvaluation, LevanterHook, TunixHooks, WorkerEvaluation, by_worker
from harness_model import BirdieZMQ
from tests.conftest import ROOT


class Bytes:
    bos_token_id = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


class Logged:
    """A tracker."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        assert step not in self.steps
        self.steps[step] = dict(metrics)


def unigram(params: Any, tokens: Any) -> Any:
    """Return the logits of a model that knows only how frequent each byte is."""
    return params[None, None, :] + 0.0 * tokens[:, :, None]


def test_params_of_every_nth_step_are_evaluated_in_this_process_and_nothing_else_changes() -> None:
    counts = np.bincount(list((ROOT / "README.md").read_bytes()), minlength=257).astype(np.float32)
    logged = Logged()
    tasks = TaskManager(include_path=str(ROOT / "examples" / "tasks"), include_defaults=False)
    with BirdieZMQ(model=(unigram, np.zeros(257, np.float32)), tokenizer=Bytes(), max_length=128) as lm:
        evaluate = InProcessEvaluation(
            lm, logged, every=10, tasks=["demo_rolling"], task_manager=tasks, limit=2, bootstrap_iters=0
        )
        random.seed(1)
        np.random.seed(1)
        expected = random.random(), np.random.random()
        random.seed(1)
        np.random.seed(1)

        returned = [evaluate(step, np.log1p(counts * step)) for step in (5, 10, 15, 20)]

        assert (random.random(), np.random.random()) == expected
    assert returned == [None, logged.steps[10], None, logged.steps[20]]
    assert logged.steps[10]["demo_rolling/byte_perplexity"] < 40


@pytest.mark.parametrize("every", [0, -1])
def test_interval_must_be_above_0(every: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"every={every} must be an integer above 0"):
        InProcessEvaluation(None, Logged(), every=every)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="every="):
        WorkerEvaluation(tmp_path, lambda *_: None, Logged(), [], every=every)


SCRIPTED = """
import json, pathlib, sys, time
output = pathlib.Path(sys.argv[1]) / "curve"
done = set()
while not (output / "stop").exists():
    for path in sorted(output.parent.glob("checkpoints/step_*")):
        if path.suffix or path.name in done:
            continue
        done.add(path.name)
        value = float((path / "params").read_text())
        if value < 0:
            sys.exit(3)
        step = int(path.name[5:])
        status = "failed" if value == 0 else "evaluated"
        metric = {"step": step, "task": "t", "metric": "acc", "filter": "none", "value": value, "stderr": None}
        lines = [metric] * (status == "evaluated") + [{"step": step, "status": status, "error": "damaged"}]
        with (output / "results.jsonl").open("a") as file:
            file.write("".join(json.dumps(line) + chr(10) for line in lines))
    time.sleep(0.01)
"""
"""Stands for ``birdie-zmq watch``, whose own tests are in tests/tools/watch: it "evaluates" a file with a number."""


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(by_worker, "module_command", lambda *_: [sys.executable, "-c", SCRIPTED, str(tmp_path)])
    monkeypatch.setattr(by_worker, "_POLL_S", 0.01)
    return tmp_path


def save(folder: Path, params: Any) -> None:
    (folder / "params").write_text(str(params))


def test_params_are_handed_over_and_results_are_logged_later(scripted: Path, caplog: pytest.LogCaptureFixture) -> None:
    logged = Logged()
    with WorkerEvaluation(scripted, save, logged, [], every=10) as evaluate:
        for step, params in ((5, 1.0), (10, 0.25), (20, 0.0), (30, 0.75)):
            evaluate(step, params)

    assert logged.steps == {10: {"t/acc": 0.25}, 30: {"t/acc": 0.75}}
    assert "step 20 is failed: damaged" in caplog.text
    assert list((scripted / "checkpoints").iterdir()) == []
    assert evaluate._process.poll() is not None


def test_next_loop_in_the_folder_repeats_no_step(scripted: Path) -> None:
    with WorkerEvaluation(scripted, save, Logged(), [], every=10) as evaluate:
        evaluate(10, 0.25)
    with (scripted / "curve" / "results.jsonl").open("a") as file:
        file.write('{"step": 20, "task": "t", "met')  # a write that was cut off
    logged = Logged()

    with WorkerEvaluation(scripted, save, logged, [], every=10) as evaluate:
        (scripted / "curve" / "results.jsonl").write_text(
            "".join((scripted / "curve" / "results.jsonl").read_text().splitlines(keepends=True)[:-1])
        )
        evaluate(10, 0.5)
        evaluate(20, 0.75)

    assert logged.steps == {20: {"t/acc": 0.75}}


def test_watch_that_ends_is_an_error_with_the_steps_that_are_left(scripted: Path) -> None:
    evaluate = WorkerEvaluation(scripted, save, Logged(), [], every=10)
    evaluate(10, -1.0)

    with pytest.raises(UnavailableError, match=r"exit status 3; .* Steps without results: 10"):
        evaluate.close()


def test_loop_that_fails_ends_the_watch_at_once(scripted: Path) -> None:
    with pytest.raises(ZeroDivisionError), WorkerEvaluation(scripted, save, Logged(), [], every=10) as evaluate:
        1 / 0  # noqa: B018

    assert evaluate._process.poll() is not None


def test_hooks_of_tunix_evaluate_the_model_of_each_update_once() -> None:
    """The trainer itself runs in tests/trainers; this is its order of calls with two micro-batches for an update."""
    seen: list[tuple[int, str]] = []
    hooks = TunixHooks(lambda step, model: seen.append((step, model)))
    trainer = SimpleNamespace(train_steps=3, model="restored")

    hooks.on_train_start(trainer)
    for update in (4, 5):
        hooks.on_train_step_start(trainer)
        hooks.on_train_step_start(trainer)
        trainer.train_steps, trainer.model = update, f"after {update}"
    hooks.on_train_step_end(trainer, 4, 0.5)
    hooks.on_train_end(trainer)

    assert seen == [(4, "after 4"), (5, "after 5")]


def test_hook_of_levanter_evaluates_the_last_step_once() -> None:
    seen: list[tuple[int, str]] = []
    hook = LevanterHook(lambda step, model: seen.append((step, model)))

    for step in (2, 3, 3):
        hook(SimpleNamespace(step=step, eval_model=f"of {step}"))

    assert seen == [(2, "of 2"), (3, "of 3")]
