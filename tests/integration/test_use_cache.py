"""lm_eval's ``--use_cache``: a killed run resumes from it, another model cannot use it, and sampled repeats stay separate."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from lm_eval.api.model import CachingLM

from birdie_zmq.errors import UsageError
from birdie_zmq.harness.response_cache import IDENTITY_KEY
from tests.integration.conftest import ROOT, Program, Programs, Served
from tests.integration.test_resume import TEXTS, CountingModel

RUN = """
import json, sys, time
import _birdie_zmq_hook, lm_eval
from lm_eval.api.model import CacheHook
from lm_eval.tasks import TaskManager

options = json.loads(sys.argv[1])
add_partial, received = CacheHook.add_partial, 0

def add_partial_and_stop(self, kind, arguments, answer):
    global received
    add_partial(self, kind, arguments, answer)
    received += 1
    if received == options["stop_at"]:
        print("stopped", flush=True)
        time.sleep(600)

CacheHook.add_partial = add_partial_and_stop
results = lm_eval.simple_evaluate(
    model="birdie_zmq", model_args=options["model_args"], use_cache=options["cache"], limit=12, bootstrap_iters=0,
    tasks=["demo_choice"], task_manager=TaskManager(include_path=options["include"], include_defaults=False),
)
print("sent", results["config"]["model_steps"]["requests"], flush=True)
"""


@pytest.fixture
def evaluate(programs: Programs, model_files: Path, tmp_path: Path) -> Callable[..., Program]:
    """Return a function that starts an evaluation with a cache; it pauses after ``stop_at`` answers (0: never)."""

    def start(stop_at: int = 0, extra_model_args: str = "") -> Program:
        options = {
            "model_args": f"pretrained=pair,api={model_files / 'letters.py'}{extra_model_args}",
            "cache": str(tmp_path / "cache"),
            "include": str(ROOT / "examples" / "tasks"),
            "stop_at": stop_at,
        }
        return programs.start("-c", RUN, json.dumps(options))

    return start


def cached_requests(tmp_path: Path) -> int:
    with sqlite3.connect(tmp_path / "cache_rank0.db") as database:
        (count,) = database.execute("SELECT COUNT(*) FROM unnamed WHERE key != ?", (IDENTITY_KEY,)).fetchone()
    return int(count)


@pytest.mark.chaos
def test_killed_run_resumes_from_the_cache_and_another_model_is_rejected(
    evaluate: Callable[..., Program], tmp_path: Path
) -> None:
    killed = evaluate(stop_at=20)
    killed.wait_for("stopped")
    killed.stop(signal.SIGKILL)
    cached = cached_requests(tmp_path)
    assert 0 < cached <= 20

    resumed = evaluate()
    assert int(resumed.wait_for(r"sent (\d+)\n")[1]) == 48 - cached  # 12 questions of 4 choices
    assert cached_requests(tmp_path) == 48

    other = evaluate(extra_model_args=",seed=1")
    assert other.process.wait(120) == 1
    assert f"UsageError: the cache {tmp_path / 'cache_rank0.db'} holds the answers of another model" in other.output


def test_repeats_sampled_by_temperature_alone_are_rejected_with_a_cache(served: Served, tmp_path: Path) -> None:
    sampled = {"until": [], "max_gen_toks": 4, "temperature": 1.0}
    with CountingModel(served) as model:
        assert len(set(model.generate([TEXTS[0]] * 3, sampled))) == 3
        cached = CachingLM(model.lm, str(tmp_path / "cache.db"))
        model.generate(TEXTS[:2], sampled)
        with pytest.raises(UsageError, match="add do_sample=true"):
            model.generate([TEXTS[0]] * 2, sampled)
        before = len(cached.dbdict)
        model.generate([TEXTS[0]] * 2, {**sampled, "do_sample": True})
        assert len(cached.dbdict) == before == 3  # the identity entry and two answers
