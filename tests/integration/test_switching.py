"""Each model has its own process, and concurrent runs of two models get the answers of their own model."""

from __future__ import annotations

import concurrent.futures
import os
import signal
from pathlib import Path

import psutil
import pytest

from birdie_zmq.errors import ModelProcessDied
from birdie_zmq.types import ModelDescription
from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.conftest import Programs, Served, wait_until

TEXTS = [f"the {word} sat on the mat {count} times" for word in ("cat", "dog", "owl") for count in range(20)]


def describe(lm: BirdieZMQ) -> ModelDescription:
    lm.get_model_info()
    return lm._description


def score(lm: BirdieZMQ) -> list[float]:
    requests = [instance("loglikelihood_rolling", (text,), i) for i, text in enumerate(TEXTS)]
    return lm.loglikelihood_rolling(requests, disable_tqdm=True)


def test_each_model_switch_starts_a_new_process_and_ends_the_old_one(served: Served) -> None:
    with BirdieZMQ(model_tag="pair", seed=1, endpoint=served.endpoint) as lm:
        first, first_scores = describe(lm), score(lm)
    with BirdieZMQ(model_tag="pair", seed=2, endpoint=served.endpoint) as lm:
        second, second_scores = describe(lm), score(lm)
    with BirdieZMQ(model_tag="pair", seed=1, endpoint=served.endpoint) as lm:
        third, third_scores = describe(lm), score(lm)

    assert len({first.process_id, second.process_id, third.process_id}) == 3
    assert first.identity == third.identity != second.identity
    assert not psutil.pid_exists(first.process_id)
    assert not psutil.pid_exists(second.process_id)
    assert first_scores == third_scores
    assert first_scores != second_scores


def test_argument_order_does_not_start_a_new_process(served: Served) -> None:
    with BirdieZMQ(model_tag="pair", seed=1, width=16, endpoint=served.endpoint) as lm:
        first = describe(lm)
    with BirdieZMQ(width=16, seed=1, model_tag="pair", endpoint=served.endpoint) as lm:
        second = describe(lm)

    assert first.process_id == second.process_id


def test_concurrent_runs_of_two_models_get_the_answers_of_separate_runs(served: Served) -> None:
    def run(seed: int) -> list[float]:
        with BirdieZMQ(model_tag="pair", seed=seed, endpoint=served.endpoint) as lm:
            return score(lm)

    separate_scores = [run(3), run(4)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        concurrent_scores = list(pool.map(run, (3, 4)))

    assert concurrent_scores == separate_scores


def test_all_forms_of_one_model_score_equally(served: Served) -> None:
    scores = []
    for tag in ("pair", "callable", "model"):
        with BirdieZMQ(model_tag=tag, max_length=64, endpoint=served.endpoint) as lm:
            scores.append(score(lm))

    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
    assert scores[2] == pytest.approx(scores[0], abs=1e-4)


def test_nested_arguments_reach_load_model_and_load_tokenizer(served: Served) -> None:
    nested = {"layers": [1, {"kind": "local"}], "note": "a=b,c"}
    with BirdieZMQ(model_tag="echo", nested=nested, batch_rows=2, batch_size=4, endpoint=served.endpoint) as lm:
        (text,) = lm.generate_until([instance("generate_until", ("", {"max_gen_toks": 500}), 0)], disable_tqdm=True)

    # The model "echo" generates its keyword arguments, once those of load_tokenizer and once those of load_model.
    assert text == f"{{'nested': {nested}}}" * 2


def test_killed_model_process_is_restarted_without_losing_answers(served: Served) -> None:
    with BirdieZMQ(model_tag="pair", seed=5, endpoint=served.endpoint) as lm:
        expected = score(lm)
        before = describe(lm)
        os.kill(before.process_id, signal.SIGKILL)

        assert score(lm) == expected
        assert describe(lm).process_id != before.process_id


@pytest.mark.chaos
def test_model_that_crashes_its_process_3_times_while_loading_fails(served: Served) -> None:
    with BirdieZMQ(model_tag="pair", endpoint=served.endpoint) as lm:
        expected = score(lm)
    with pytest.raises(ModelProcessDied, match=r"exited unexpectedly 3 times while loading, .* SIGABRT") as raised:
        BirdieZMQ(model_tag="aborts", endpoint=served.endpoint)
    assert "letters.py" in str(raised.value.remote_traceback)
    assert "in load_model" in str(raised.value.remote_traceback)
    with BirdieZMQ(model_tag="pair", endpoint=served.endpoint) as lm:
        assert score(lm) == expected


@pytest.mark.chaos
def test_new_worker_replaces_a_killed_one(programs: Programs, model_files: Path) -> None:
    _, endpoint = programs.broker()
    first = programs.worker(endpoint, model_files / "letters.py")
    with BirdieZMQ(model_tag="pair", endpoint=endpoint) as lm:
        expected = score(lm)
        model_process = psutil.Process(describe(lm).process_id)
        first.process.kill()
        wait_until(lambda: not model_process.is_running(), "the end of the killed agent's model process")
        programs.worker(endpoint, model_files / "letters.py")

        assert score(lm) == expected


@pytest.mark.chaos
def test_restarted_broker_gets_the_unanswered_requests(programs: Programs, model_files: Path) -> None:
    broker, endpoint = programs.broker()
    programs.worker(endpoint, model_files / "letters.py")
    with BirdieZMQ(model_tag="pair", endpoint=endpoint) as lm:
        expected = score(lm)
        broker.process.kill()
        broker.process.wait()
        programs.broker(endpoint)

        assert score(lm) == expected
