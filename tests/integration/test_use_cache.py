"""lm_eval's ``--use_cache``: a killed run goes on from it, another model may not use it, and repeats stay apart."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from lm_eval.api.model import CachingLM

from birdie_zmq.errors import UsageError
from birdie_zmq.harness.response_cache import MARK
from tests.integration.conftest import ROOT, Program, Programs, Served
from tests.integration.test_resume import TEXTS, Counted

CACHED = """
import json, sys, time
import _birdie_zmq_hook, lm_eval
from lm_eval.api.model import CacheHook
from lm_eval.tasks import TaskManager

given = json.loads(sys.argv[1])
add_partial, told = CacheHook.add_partial, 0

def add_partial_and_stop(self, kind, arguments, answer):
    global told
    add_partial(self, kind, arguments, answer)
    told += 1
    if told == given["stop_at"]:
        print("stopped", flush=True)
        time.sleep(600)

CacheHook.add_partial = add_partial_and_stop
results = lm_eval.simple_evaluate(
    model="birdie_zmq", model_args=given["model_args"], use_cache=given["cache"], limit=12, bootstrap_iters=0,
    tasks=["demo_choice"], task_manager=TaskManager(include_path=given["include"]),
)
print("sent", results["config"]["model_steps"]["requests"], flush=True)
"""


@pytest.fixture
def evaluate(programs: Programs, pages: Path, tmp_path: Path) -> Callable[..., Program]:
    """Starts an evaluation that keeps a cache, and that stops after some answers if it is told to."""

    def start(stop_at: int = 0, more: str = "") -> Program:
        given = {
            "model_args": f"pretrained=pair,api={pages / 'letters.py'}{more}",
            "cache": str(tmp_path / "cache"),
            "include": str(ROOT / "examples" / "tasks"),
            "stop_at": stop_at,
        }
        return programs.start("-c", CACHED, json.dumps(given))

    return start


def cached_requests(tmp_path: Path) -> int:
    with sqlite3.connect(tmp_path / "cache_rank0.db") as database:
        (count,) = database.execute("SELECT COUNT(*) FROM unnamed WHERE key != ?", (MARK,)).fetchone()
    return int(count)


@pytest.mark.chaos
def test_a_killed_run_goes_on_from_lm_evals_cache_and_another_model_may_not_use_it(
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

    other = evaluate(more=",seed=1")
    assert other.process.wait(120) == 1
    assert f"UsageError: the cache {tmp_path / 'cache_rank0.db'} holds the answers of another model" in other.output


def test_repeats_drawn_by_a_temperature_alone_are_refused_with_a_cache(served: Served, tmp_path: Path) -> None:
    drawn = {"until": [], "max_gen_toks": 4, "temperature": 1.0}
    with Counted(served) as asking:
        assert len(set(asking.generated([TEXTS[0]] * 3, drawn))) == 3
        cached = CachingLM(asking.lm, str(tmp_path / "cache.db"))
        asking.generated(TEXTS[:2], drawn)
        with pytest.raises(UsageError, match="add do_sample=true"):
            asking.generated([TEXTS[0]] * 2, drawn)
        before = len(cached.dbdict)
        asking.generated([TEXTS[0]] * 2, {**drawn, "do_sample": True})
        assert len(cached.dbdict) == before == 3  # the mark and two answers
