"""``birdie-zmq bench`` through a broker and worker of its own: the demo, a page, and pages that fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_the_demo_is_measured_in_all_forms(tmp_path: Path) -> None:
    done = bench("--model_args", "model_tag=demo", "--workloads", "choice,fewshot,rolling,generation,long", "--json")
    assert done.returncode == 2  # --json wants a file

    file = tmp_path / "bench.json"
    # With so many seconds a pass is as long as it may be, however busy the machine is.
    done = bench(
        *("--model_args", "model_tag=demo", "--seconds", "60", "--limit", "12", "--json", str(file)),
        *("--workloads", "choice,fewshot,rolling,generation,long"),
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    by_kind = {each["workload"]: each for each in found["workloads"]}
    assert list(by_kind) == ["choice", "fewshot", "rolling", "generation", "long"]
    assert found["left_out"] == {}
    assert all(each["steps"]["requests"] == each["requests"] for each in by_kind.values())
    assert all(each["documents"] == 12 for each in by_kind.values())
    # Of a decoder with trees, what four answers and the examples before them share is computed once.
    assert by_kind["fewshot"]["sharing_gain"] > by_kind["choice"]["sharing_gain"] > 2
    assert by_kind["generation"]["steps"]["tokens_generated"] > 0
    assert all(each["path_ratio"] > 1 for each in by_kind.values())
    assert "choice, 0-shot" in done.stdout
    assert "branch" not in " ".join(found["advice"])


def test_a_page_is_told_what_it_could_give() -> None:
    page = EXAMPLES / "plain_functions.py"

    done = bench("--model_args", f"model_tag=plain,api={page}", "--workloads", "choice", "--limit", "8")

    assert done.returncode == 0, done.stderr
    assert "it gives hidden, unembed" in done.stdout
    assert "with init_state and extend" in done.stdout
    assert "give hidden and unembed" not in done.stdout


def test_what_a_model_cannot_do_is_left_out() -> None:
    page = EXAMPLES / "prefix_lm.py"

    done = bench("--model_args", f"model_tag=prefix,api={page}", "--workloads", "choice,rolling", "--limit", "4")

    assert done.returncode == 0, done.stderr
    assert "rolling was left out: the model gives score alone" in done.stdout


def test_an_error_of_the_page_reaches_the_person_with_its_traceback(pages: Path) -> None:
    done = bench("--model_args", f"model_tag=raises,api={pages / 'broken.py'}")

    assert done.returncode == 2
    assert "load_weights" in done.stderr
    assert "birdie-zmq bench: error: load_model('raises')" in done.stderr
    assert "no weights at /nowhere" in done.stderr
    assert "Traceback" not in done.stdout


def test_a_broker_that_runs_is_asked(programs: Programs) -> None:
    _, endpoint = programs.broker()
    worker = programs.worker(endpoint, ROOT / "api.py")

    done = bench("--model_args", f"model_tag=demo,endpoint={endpoint}", "--workloads", "choice", "--limit", "4")

    assert done.returncode == 0, done.stderr
    assert worker.process.poll() is None
    assert "choice, 0-shot" in done.stdout


@pytest.mark.parametrize("wrong", [["--workloads", "sums"], ["--seconds", "0"], ["--limit", "0"]])
def test_what_cannot_be_asked_is_a_fault_of_the_command_line(wrong: list[str]) -> None:
    done = bench("--model_args", "model_tag=demo", *wrong)

    assert done.returncode == 2
    assert wrong[0] in done.stderr
