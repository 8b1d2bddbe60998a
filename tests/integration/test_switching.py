"""Another model is another process, and two runs that want two models each get their own answers."""

from __future__ import annotations

import concurrent.futures
import os
import signal
from pathlib import Path

import psutil
import pytest
from lm_eval.api.instance import Instance

from birdie_zmq.errors import ModelProcessDied
from birdie_zmq.types import ModelDescription
from harness_model import BirdieZMQ
from tests.integration.conftest import Programs, Served, wait_until

TEXTS = [f"the {word} sat on the mat {count} times" for word in ("cat", "dog", "owl") for count in range(20)]


def describe(lm: BirdieZMQ) -> ModelDescription:
    lm.get_model_info()
    return lm._description


def score(lm: BirdieZMQ) -> list[float]:
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(TEXTS)]
    return lm.loglikelihood_rolling(requests, disable_tqdm=True)


def test_two_tags_in_turn_are_two_processes_and_the_first_is_gone(served: Served) -> None:
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


def test_equal_arguments_in_another_order_are_the_same_process(served: Served) -> None:
    with BirdieZMQ(model_tag="pair", seed=1, width=16, endpoint=served.endpoint) as lm:
        first = describe(lm)
    with BirdieZMQ(width=16, seed=1, model_tag="pair", endpoint=served.endpoint) as lm:
        second = describe(lm)

    assert first.process_id == second.process_id


def test_two_runs_at_once_get_what_each_gets_alone(served: Served) -> None:
    def run(seed: int) -> list[float]:
        with BirdieZMQ(model_tag="pair", seed=seed, endpoint=served.endpoint) as lm:
            return score(lm)

    alone = [run(3), run(4)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, (3, 4)))

    assert together == alone


def test_the_four_forms_of_one_model_score_alike(served: Served) -> None:
    scores = []
    for tag in ("pair", "callable", "model"):
        with BirdieZMQ(model_tag=tag, max_length=64, endpoint=served.endpoint) as lm:
            scores.append(score(lm))

    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
    assert scores[2] == pytest.approx(scores[0], abs=1e-4)


def test_nested_arguments_reach_both_functions(served: Served) -> None:
    nested = {"layers": [1, {"kind": "local"}], "note": "a=b,c"}
    with BirdieZMQ(model_tag="echo", nested=nested, batch_rows=2, batch_size=4, endpoint=served.endpoint) as lm:
        (text,) = lm.generate_until([Instance("generate_until", {}, ("", {"max_gen_toks": 500}), 0)], disable_tqdm=True)

    # The page "echo" writes down its keywords, once from load_tokenizer and once from load_model.
    assert text == f"{{'nested': {nested}}}" * 2


def test_a_model_process_that_dies_is_started_again_and_nothing_is_lost(served: Served) -> None:
    with BirdieZMQ(model_tag="pair", seed=5, endpoint=served.endpoint) as lm:
        expected = score(lm)
        before = describe(lm)
        os.kill(before.process_id, signal.SIGKILL)

        assert score(lm) == expected
        assert describe(lm).process_id != before.process_id


def test_a_model_that_kills_its_process_again_and_again_is_given_up(served: Served) -> None:
    with BirdieZMQ(model_tag="pair", endpoint=served.endpoint) as lm:
        expected = score(lm)
    with pytest.raises(ModelProcessDied, match=r"ended by itself 3 times while it was loading, .* SIGABRT") as raised:
        BirdieZMQ(model_tag="aborts", endpoint=served.endpoint)
    assert "letters.py" in str(raised.value.remote_traceback)
    assert "in load_model" in str(raised.value.remote_traceback)
    with BirdieZMQ(model_tag="pair", endpoint=served.endpoint) as lm:
        assert score(lm) == expected


def test_a_worker_that_is_killed_leaves_its_work_to_another(programs: Programs, pages: Path) -> None:
    _, endpoint = programs.broker()
    first = programs.worker(endpoint, pages / "letters.py")
    with BirdieZMQ(model_tag="pair", endpoint=endpoint) as lm:
        expected = score(lm)
        model_process = psutil.Process(describe(lm).process_id)
        first.process.kill()
        wait_until(lambda: not model_process.is_running(), "the end of the killed agent's model process")
        programs.worker(endpoint, pages / "letters.py")

        assert score(lm) == expected


def test_a_broker_that_is_started_again_gets_the_unanswered_work_again(programs: Programs, pages: Path) -> None:
    broker, endpoint = programs.broker()
    programs.worker(endpoint, pages / "letters.py")
    with BirdieZMQ(model_tag="pair", endpoint=endpoint) as lm:
        expected = score(lm)
        broker.process.kill()
        broker.process.wait()
        programs.broker(endpoint)

        assert score(lm) == expected
