"""``birdie-zmq watch`` on real checkpoints, with a real broker and worker; tests/chaos follows a run that is trained."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import lm_eval
import lm_eval.tasks
import pytest

import birdie_zmq.models
from birdie_zmq.cli.main import main
from birdie_zmq.models.families.llama import plain_llama
from birdie_zmq.models.native.directory import ORBAX_COMMIT_MARKERS
from birdie_zmq.models.weights import save_checkpoint
from harness_model import BirdieZMQ
from tests.models.native.demo_as_maxtext import write_step

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = Path(birdie_zmq.models.__file__).parent / "demo"
TASKS = ROOT / "examples" / "tasks"
MODEL = plain_llama(vocab_size=1024, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64, max_length=256)


@pytest.fixture(autouse=True)
def only_our_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let lm_eval find the tasks of examples/ only: it takes seconds to find its own."""
    monkeypatch.setattr(
        lm_eval.tasks, "TaskManager", functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    )


def write_checkpoint(folder: Path, seed: int) -> Path:
    save_checkpoint(folder, MODEL, MODEL.init_params(jax.random.key(seed)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder / name)
    return folder


def by_hand(checkpoint: Path, task: str = "demo_choice", limit: int = 8, **arguments: str) -> dict[str, Any]:
    """Return the results of the same evaluation through lm_eval's API, with the checkpoint in this process."""
    model = birdie_zmq.models.load_model(str(checkpoint))
    tokenizer = birdie_zmq.models.load_tokenizer(str(checkpoint), **arguments)
    with BirdieZMQ(model=model, tokenizer=tokenizer) as lm:
        manager = lm_eval.tasks.TaskManager(include_path=str(TASKS))
        results = lm_eval.simple_evaluate(lm, tasks=[task], task_manager=manager, limit=limit)
    values: dict[str, Any] = results["results"][task]
    return values


def test_watch_scores_each_checkpoint_as_lm_eval_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, output = tmp_path / "run", tmp_path / "out"
    checkpoints = {step: write_checkpoint(run / f"step_{step}", step) for step in (1, 2, 3)}
    (checkpoints[3] / "model.safetensors").write_bytes(b"\xff" * 100)
    options = ["--output", str(output), "--once", "--settle-seconds", "0.1", "--poll-seconds", "0.1", "--device", "cpu"]
    command = ["watch", f"{run}/*", *options, "--tasks", "demo_choice", "--include_path", str(TASKS), "--limit", "8"]

    assert main(command) == 0

    lines = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    statuses = {line["step"]: line for line in lines if "status" in line}
    assert [(step, line["status"]) for step, line in statuses.items()] == [
        (1, "evaluated"),
        (2, "evaluated"),
        (3, "failed"),
    ]
    assert "model.safetensors" in statuses[3]["error"]
    assert statuses[1]["compile_seconds"] > 0.0
    assert statuses[2]["compile_seconds"] == 0.0, "the weights were swapped in the same model process"
    assert {line["step"] for line in lines if "metric" in line} == {1, 2}
    expected = by_hand(checkpoints[2])
    found = {line["metric"]: line for line in lines if "metric" in line and line["step"] == 2}
    for metric in ("acc", "acc_norm"):
        assert found[metric]["value"] == expected[f"{metric},none"]
        assert found[metric]["stderr"] == pytest.approx(expected[f"{metric}_stderr,none"])
    assert list(output.glob("lm_eval/*step_2/results_*.json"))
    assert "2 checkpoints, up to step 2" in (output / "curve.html").read_text()
    printed = capsys.readouterr().out
    assert "step 2: demo_choice acc" in printed
    assert "step 3: failed" in printed

    assert main(command) == 0

    assert (output / "results.jsonl").read_text().splitlines()[-1] == json.dumps(statuses[3])
    assert "ended: no complete checkpoint is left" in capsys.readouterr().out


def test_watch_follows_the_steps_of_a_trainer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    steps, output = tmp_path / "run" / "checkpoints", tmp_path / "out"
    for step in (1, 2, 3):
        write_step(steps / str(step), scale=step)
    for marker in ORBAX_COMMIT_MARKERS:
        (steps / "1" / marker).unlink(missing_ok=True)
    shutil.copytree(steps / "3", steps / "4.orbax-checkpoint-tmp-17")
    options = ["--output", str(output), "--settle-seconds", "0.1", "--poll-seconds", "0.1", "--device", "cpu"]
    # Step 1 is never committed.
    options += ["--until-step", "3", "--abandon-seconds", "0.1", "--model_args", f"tokenizer={DEMO}"]
    command = ["watch", f"{steps}/*", *options, "--tasks", "demo_rolling", "--include_path", str(TASKS), "--limit", "2"]

    assert main(command) == 0

    lines = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    statuses = [line for line in lines if "status" in line]
    assert [(line["step"], line["status"]) for line in statuses] == [(2, "evaluated"), (3, "evaluated")]
    assert statuses[1]["compile_seconds"] == 0.0, "the weights were swapped in the same model process"
    assert statuses[0]["identity"] != statuses[1]["identity"]
    expected = by_hand(steps / "3", "demo_rolling", 2, tokenizer=str(DEMO))
    before, found = (
        {line["metric"]: line["value"] for line in lines if "metric" in line and line["step"] == step}
        for step in (2, 3)
    )
    assert found == pytest.approx({metric: expected[f"{metric},none"] for metric in found})
    assert found != pytest.approx(before)
    assert "step 1 is not complete: it lacks a commit marker of Orbax" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--tasks", "demo_choice", "--model_args", "pretrained=demo"],
            "pretrained= in model_args cannot be used here",
        ),
        (["--tasks", "nonsense"], "Tasks not found: nonsense"),
        ([], "--tasks is missing"),
        (["--tasks", "demo_choice", "--use_cache", "x"], "--use_cache of lm_eval cannot be used here"),
        (["--tasks", "demo_choice", "--step-pattern", "("], "--step-pattern '('"),
    ],
)
def test_wrong_option_is_named_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    command = ["watch", "nowhere/*", "--output", str(tmp_path / "out"), "--include_path", str(TASKS), *arguments]

    assert main(command) == 2

    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.jsonl").exists()
