"""``birdie-zmq bench`` with an embedded broker and worker: the demo, example model files, and failures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from birdie_zmq.cli.bench import main
from tests.integration.conftest import EXAMPLES, ROOT, Programs


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "birdie_zmq", "bench", "--device", "cpu", "--seconds", "0.2", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_all_workloads_are_measured_on_the_demo(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    # --seconds 60 lets a pass reach its maximum size even on a busy machine.
    done = bench(
        *("--model_args", "model_tag=demo", "--seconds", "60", "--limit", "4", "--json", str(file)),
        *("--workloads", "choice,fewshot,rolling,generation,long"),
    )

    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    by_workload = {measured["workload"]: measured for measured in report["workloads"]}
    assert list(by_workload) == ["choice", "fewshot", "rolling", "generation", "long"]
    assert report["left_out"] == {}
    assert all(measured["steps"]["requests"] == measured["requests"] for measured in by_workload.values())
    assert all(measured["documents"] == 4 for measured in by_workload.values())
    # The demo supports trees: the prefix that four answers and their few-shot examples share is computed once.
    assert by_workload["fewshot"]["sharing_gain"] > by_workload["choice"]["sharing_gain"] > 2
    assert by_workload["generation"]["steps"]["tokens_generated"] > 0
    # Neither time includes compilation, which takes longer. The model process ends a batch after it has sent the last
    # answer, so on a busy machine it counts more time than the client, which stops at that answer.
    for measured in by_workload.values():
        assert 0 < measured["steps"]["seconds"] + measured["steps"]["idle_seconds"] < measured["wall_seconds"] + 1
    assert "choice, 0-shot" in done.stdout
    assert "branch" not in " ".join(report["advice"])


def test_advice_names_the_missing_model_functions() -> None:
    model_file = EXAMPLES / "plain_functions.py"

    done = bench("--model_args", f"model_tag=plain,api={model_file}", "--workloads", "choice", "--limit", "8")

    assert done.returncode == 0, done.stderr
    assert "it provides hidden, unembed" in done.stdout
    assert "with init_state and extend" in done.stdout
    assert "provide hidden and unembed" not in done.stdout


def test_unsupported_workload_is_skipped() -> None:
    model_file = EXAMPLES / "prefix_lm.py"

    done = bench("--model_args", f"model_tag=prefix,api={model_file}", "--workloads", "choice,rolling", "--limit", "4")

    assert done.returncode == 0, done.stderr
    assert "rolling was skipped: the model provides only score" in done.stdout


def test_model_file_error_is_printed_with_its_traceback(model_files: Path) -> None:
    done = bench("--model_args", f"model_tag=raises,api={model_files / 'broken.py'}")

    assert done.returncode == 2
    assert "load_weights" in done.stderr
    assert "birdie-zmq bench: error: load_model('raises')" in done.stderr
    assert "no weights at /nowhere" in done.stderr
    assert "Traceback" not in done.stdout


def test_bench_uses_a_running_broker(programs: Programs) -> None:
    _, endpoint = programs.broker()
    worker = programs.worker(endpoint, ROOT / "api.py")

    done = bench("--model_args", f"model_tag=demo,endpoint={endpoint}", "--workloads", "choice", "--limit", "4")

    assert done.returncode == 0, done.stderr
    assert worker.process.poll() is None
    assert "choice, 0-shot" in done.stdout


@pytest.mark.parametrize("arguments", [["--workloads", "sums"], ["--seconds", "0"], ["--limit", "0"], ["--json"]])
def test_invalid_option_value_is_a_command_line_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["--model_args", "model_tag=demo", *arguments])

    assert exited.value.code == 2
    assert arguments[0] in capsys.readouterr().err
