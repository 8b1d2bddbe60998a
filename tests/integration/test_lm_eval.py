"""The lm_eval command on the demo model, with an embedded and a separate broker, and the contents of its results."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from birdie_zmq import models
from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.conftest import LM_EVAL, LM_EVAL_WITHOUT_ITS_TASKS, ROOT, Programs

TASKS = "demo_choice,demo_rolling,demo_generate"


def lm_eval(
    folder: Path,
    model_args: str,
    *options: str,
    limit: int = 12,
    tasks: Path = ROOT / "examples" / "tasks",
    script: str = LM_EVAL_WITHOUT_ITS_TASKS,
) -> tuple[str, dict[str, Any], list[Any]]:
    """Run lm_eval from another folder; return its standard output, its results, and the responses of all samples."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", script, "--model", "birdie_zmq", "--model_args", model_args]
    command += ["--include_path", str(tasks), "--tasks", TASKS, "--limit", str(limit)]
    command += ["--output_path", str(folder / "out"), "--log_samples", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    (results,) = (folder / "out").rglob("results_*.json")
    samples = []
    for path in sorted((folder / "out").rglob("samples_*.jsonl"), key=lambda path: path.name.split("_2")[0]):
        samples += [json.loads(line)["resps"] for line in path.read_text().splitlines()]
    return done.stdout, json.loads(results.read_text()), samples


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], list[Any]]:
    """Run lm_eval with an embedded broker and worker."""
    return lm_eval(tmp_path_factory.mktemp("embedded"), "pretrained=demo", script=LM_EVAL)


def test_table_is_printed_and_the_demo_scores_above_chance(embedded: tuple[str, dict[str, Any], list[Any]]) -> None:
    output, results, _ = embedded

    assert re.search(r"\|demo_choice +\|", output)
    assert results["results"]["demo_choice"]["acc,none"] >= 0.75  # chance is 0.25
    assert results["results"]["demo_rolling"]["byte_perplexity,none"] < 1.5


def test_results_record_model_devices_and_versions(embedded: tuple[str, dict[str, Any], list[Any]]) -> None:
    config = embedded[1]["config"]

    assert config["model_tag"] == "demo"
    assert config["model_num_parameters"] > 100_000
    assert config["model_dtype"] == "float32"
    assert config["model_devices"] == ["cpu:0 cpu"]
    assert set(config["model_versions"]) == {"birdie_zmq", "python", "numpy", "jax", "jaxlib"}
    steps = config["model_steps"]
    assert 0 < len(steps["shapes"]) <= steps["shape_bound"]


def test_separate_broker_gives_the_same_results_as_the_embedded_one(
    embedded: tuple[str, dict[str, Any], list[Any]], programs: Programs, tmp_path: Path
) -> None:
    broker, endpoint = programs.broker()
    programs.worker(endpoint, ROOT / "api.py")

    _, results, samples = lm_eval(tmp_path, f"pretrained=demo,endpoint={endpoint}")

    assert samples == embedded[2]
    assert results["results"] == embedded[1]["results"]
    assert f"from {ROOT / 'birdie_zmq'}" in broker.output


def test_chat_template_few_shot_and_cache_options_work(tmp_path: Path) -> None:
    options = [
        "--apply_chat_template",
        "--fewshot_as_multiturn",
        "--num_fewshot",
        "2",
        "--use_cache",
        str(tmp_path / "cache"),
    ]
    _, first, first_samples = lm_eval(tmp_path / "a", "pretrained=demo", *options, limit=4)
    _, second, second_samples = lm_eval(tmp_path / "b", "pretrained=demo", *options, limit=4)

    assert "<|assistant|>" in first["chat_template"]
    assert second_samples == first_samples
    assert first["config"]["model_steps"]["requests"] > 0
    assert second["config"]["model_steps"]["requests"] == 0  # all of it came from the cache


def test_cache_hook_receives_the_original_arguments() -> None:
    received: list[tuple[str, Any, Any]] = []

    class Hook:
        def add_partial(self, kind: str, arguments: Any, answer: Any) -> None:
            received.append((kind, arguments, answer))

    gen_kwargs = {"until": ["."], "max_gen_toks": 8}
    request = instance("generate_until", ("Question: What is 1 plus 1?\nAnswer:", gen_kwargs), 0)
    with BirdieZMQ(model_tag="demo") as lm:
        lm.set_cache_hook(Hook())  # type: ignore[arg-type]
        (text,) = lm.generate_until([request], disable_tqdm=True)

    assert received == [("generate_until", request.args, text)]
    assert gen_kwargs == {"until": ["."], "max_gen_toks": 8}


def test_sampled_answers_depend_only_on_seed_and_repeat() -> None:
    gen_kwargs = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 3.0, "top_p": 0.95}
    questions = [f"Question: What is {number} plus 1?\nAnswer:" for number in range(1, 4)]
    requests = [
        instance("generate_until", (question, gen_kwargs), i) for i, question in enumerate(questions) for _ in "ab"
    ]

    model, tokenizer = models.load_model("demo"), models.load_tokenizer("demo")

    def generate(requests: list[Instance], **model_args: Any) -> list[str]:
        with BirdieZMQ(model=model, tokenizer=tokenizer, **model_args) as lm:
            return lm.generate_until(requests, disable_tqdm=True)

    first = generate(requests)
    with_one_row_per_step = generate(requests, batch_rows=1)
    fewer_requests = generate(requests[2:4])
    with_another_seed = generate(requests, seed=1)

    assert with_one_row_per_step == first
    assert fewer_requests == first[2:4]
    assert all(one != other for one, other in zip(first[::2], first[1::2], strict=True))
    assert all(one != other for one, other in zip(first, with_another_seed, strict=True))


def test_results_folder_and_tasks_get_the_name_of_the_model(tmp_path: Path) -> None:
    """Tasks that measure texts with a tokenizer, such as RULER, read the model's name in their metadata."""
    tasks = tmp_path / "tasks"
    shutil.copytree(ROOT / "examples" / "tasks", tasks)
    loader = tasks / "loader.py"
    text = loader.read_text()
    loader.write_text(
        text.replace(
            "    return datasets", '    print("pretrained is", _metadata["pretrained"])\n    return datasets', 1
        )
    )

    output, results, _ = lm_eval(tmp_path / "run", "model_tag=demo,engine=jax", limit=1, tasks=tasks)

    assert output.count("pretrained is demo") == 3
    assert [path.name for path in (tmp_path / "run" / "out").iterdir()] == ["demo"]
    assert results["model_name"] == "demo"
