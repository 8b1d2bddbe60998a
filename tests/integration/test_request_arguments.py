"""Runs with other request arguments share a loaded built-in model, and get the answers of runs of their own."""

from __future__ import annotations

import concurrent.futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from birdie_zmq.broker.status.snapshot import Status
from birdie_zmq.errors import UsageError
from birdie_zmq.types import ModelDescription
from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.conftest import ROOT, Programs, Served
from tests.integration.test_status import fetch_status

PAIRS = [("", "The cat sat on the mat."), ("A dog", " ran"), ("", "Mira")]
PROMPTS = ["The cat", "A dog", ""]
SAMPLED = {"do_sample": True, "temperature": 1.5, "max_gen_toks": 12, "until": []}
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "seed and limit": {"seed": 2, "max_gen_toks": 3},
    "prefix": {"prefix_token_id": 5, "seed": 1},
    "other prefix": {"prefix_token_id": 6},
    "thinking": {"think_end_token": "e", "enable_thinking": True, "chat_template_args": {"a": 1}},
}


def instances(kind: Any, arguments: list[Any]) -> list[Instance]:
    return [instance(kind, argument, number) for number, argument in enumerate(arguments)]


def answers(lm: BirdieZMQ) -> list[Any]:
    """Return scores, rolling scores, and generated and sampled texts."""
    kinds: list[dict[str, Any]] = [{"until": []}, SAMPLED]
    prompts = [(prompt, settings) for prompt in PROMPTS for settings in kinds]
    found: list[Any] = []
    if not lm._arguments.enable_thinking:
        found += lm.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    found += lm.loglikelihood_rolling(
        instances("loglikelihood_rolling", [(text,) for _, text in PAIRS]), disable_tqdm=True
    )
    found += lm.generate_until(instances("generate_until", prompts), disable_tqdm=True)
    return found


def describe(lm: BirdieZMQ) -> ModelDescription:
    lm.get_model_info()
    return lm._description


@dataclass(frozen=True)
class Watched:
    """A broker with a status page."""

    endpoint: str
    address: str

    @property
    def status(self) -> Status:
        return fetch_status(self.address)


def watched_broker(programs: Programs) -> Watched:
    broker, endpoint = programs.broker("tcp://127.0.0.1:*", "--status-port", "0")
    return Watched(endpoint, broker.wait_for(r"status page at (\S+)")[1])


@pytest.fixture
def built_in(programs: Programs, tmp_path: Path) -> Watched:
    """Provide a broker and a worker with the built-in models."""
    broker = watched_broker(programs)
    command = str(ROOT / "workers" / "jax_worker.py")
    worker = programs.start(command, "--connect", broker.endpoint, "--device", "cpu", cwd=tmp_path)
    worker.wait_for("registered with the broker")
    return broker


def test_runs_with_other_request_arguments_share_one_process_and_get_answers_of_their_own(built_in: Watched) -> None:
    def run(model_args: dict[str, Any]) -> list[Any]:
        with BirdieZMQ(model_tag="demo", endpoint=built_in.endpoint, **model_args) as lm:
            return answers(lm)

    shared, fresh, descriptions = {}, {}, {}
    for name, model_args in RUNS.items():
        with BirdieZMQ(model_tag="demo", endpoint=built_in.endpoint, **model_args) as lm:
            shared[name] = answers(lm)
            descriptions[name] = describe(lm)
            assert lm.get_model_info()["model_keywords"] == model_args
    with concurrent.futures.ThreadPoolExecutor() as pool:
        together = dict(zip(RUNS, pool.map(run, RUNS.values()), strict=True))
    with BirdieZMQ(model_tag="demo", endpoint=built_in.endpoint) as lm:
        last = describe(lm)
    status = built_in.status
    for name, model_args in RUNS.items():
        with BirdieZMQ(model_tag="demo", device="cpu", **model_args) as lm:
            fresh[name] = answers(lm)
            assert lm._description.identity == descriptions[name].identity

    assert shared == fresh
    assert together == fresh
    assert {description.process_id for description in descriptions.values()} == {last.process_id}
    assert {description.start_count for description in descriptions.values()} == {last.start_count} == {1}
    assert status.totals.model_switches == 0
    assert [(model.model, model.workers) for model in status.models] == [("demo", 1)]
    assert len({description.identity for description in descriptions.values()}) == len(RUNS)
    assert all(description.model.all_arguments() == RUNS[name] for name, description in descriptions.items())
    assert len({each[0] for name, each in shared.items() if name != "thinking"}) == 3, "one for each prefix token"
    assert shared["seed and limit"] != shared["plain"]


def test_a_wrong_request_argument_ends_its_own_run_only(built_in: Watched) -> None:
    with pytest.raises(UsageError, match="prefix_token_id=-1 in model_args must be an integer"):
        BirdieZMQ(model_tag="demo", endpoint=built_in.endpoint, prefix_token_id=-1)
    with BirdieZMQ(model_tag="demo", endpoint=built_in.endpoint) as lm:
        before = describe(lm)
        with pytest.raises(UsageError, match="prefix_token_id=-1 in model_args must be an integer"):
            BirdieZMQ(model_tag="demo", endpoint=built_in.endpoint, prefix_token_id=-1)
        assert describe(lm).process_id == before.process_id
        assert answers(lm)


def test_a_journal_keeps_the_answers_of_other_arguments_apart(built_in: Watched, tmp_path: Path) -> None:
    scores: dict[str, list[Any]] = {}
    identities: dict[str, str] = {}
    for name in ("plain", "prefix", "other prefix", "plain"):
        with BirdieZMQ(
            model_tag="demo", endpoint=built_in.endpoint, resume=str(tmp_path / "journal"), **RUNS[name]
        ) as lm:
            found = lm.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
            assert lm.get_model_info()["model_resumed_answers"] == (len(PAIRS) if name in scores else 0)
            assert found == scores.setdefault(name, found)
            identities[name] = lm._description.identity

    assert len({each[0] for each in scores.values()}) == len(scores) == len(set(identities.values())) == 3


def test_a_model_file_without_a_declaration_is_loaded_again(served: Served) -> None:
    described = []
    for prefix in (1, 2):
        with BirdieZMQ(model_tag="pair", prefix_token_id=prefix, endpoint=served.endpoint) as lm:
            described.append(describe(lm))

    assert described[0].process_id != described[1].process_id


def test_a_model_file_with_a_declaration_is_loaded_again_for_other_arguments_only(
    programs: Programs, model_files: Path
) -> None:
    broker = watched_broker(programs)
    programs.worker(broker.endpoint, model_files / "slow_tokenizer.py")
    described, scores, switches = [], [], []
    runs: list[dict[str, Any]] = [{"seed": 1}, {"seed": 2, "prefix_token_id": 3}, {"seed": 2, "max_gen_toks": 3}]
    for model_args in runs:
        with BirdieZMQ(model_tag="mine", endpoint=broker.endpoint, **model_args) as lm:
            (score,) = lm.loglikelihood(instances("loglikelihood", [("", "text")]), disable_tqdm=True)
            scores.append(score)
            described.append(describe(lm))
            switches.append(broker.status.totals.model_switches)

    first, second, third = described
    assert first.process_id == second.process_id != third.process_id
    assert (first.start_count, second.start_count, third.start_count) == (1, 1, 2)
    assert switches == [0, 0, 1]
    assert scores[0] == scores[2] != scores[1]
    assert len({description.identity for description in described}) == 3


def test_the_model_file_of_the_checkout_declares_what_it_ignores(programs: Programs) -> None:
    broker = watched_broker(programs)
    programs.worker(broker.endpoint, ROOT / "api.py")
    found = []
    for seed in (1, 2):
        with BirdieZMQ(model_tag="demo", endpoint=broker.endpoint, seed=seed) as lm:
            answers(lm)
            found.append(describe(lm))

    assert [each.start_count for each in found] == [1, 1]
    assert found[0].process_id == found[1].process_id
    assert found[0].identity != found[1].identity
