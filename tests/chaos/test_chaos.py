"""Runs under continuous fault injection, compared with undisturbed runs: no answer is missing, and none differs.

``BIRDIE_CHAOS_SEED`` and ``BIRDIE_CHAOS_FAULTS`` choose another plan. docs/explanation/faults.md quotes the printed
figures.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from birdie_zmq.settings import ClientSettings
from harness_model import BirdieZMQ
from tests.chaos.faults import AGENT, ALL_KINDS, BROKER, KILL, MODEL_PROCESS, Answers, FaultInjector, plan
from tests.instances import instance
from tests.integration.conftest import ROOT, alive, descendants

SEED = int(os.environ.get("BIRDIE_CHAOS_SEED", "20261125"))
FAULTS = int(os.environ.get("BIRDIE_CHAOS_FAULTS", "36"))

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


def rolling(texts: Sequence[str]) -> list[Instance]:
    return [instance("loglikelihood_rolling", (text,), i, task="chaos", doc_id=i) for i, text in enumerate(texts)]


def test_faults_do_not_change_scores_of_fixed_shapes_in_any_bit(model_files: Path, tmp_path: Path) -> None:
    texts = [f"{i}: the {word} sat on the mat" + " again" * (i % 9) for i in range(1500) for word in ("cat", "dog")]
    exit_file = tmp_path / "exit"
    common: dict[str, Any] = {"model_tag": "steady", "api": str(model_files / "faulty.py"), "batch_rows": 8}
    settings = ClientSettings(batch_items=32)

    with BirdieZMQ(client_settings=settings, **common) as lm:
        expected = lm.loglikelihood_rolling(rolling(texts), disable_tqdm=True)

    faults = plan(ALL_KINDS, FAULTS, max_answers=24, seed=SEED)
    with BirdieZMQ(client_settings=settings, pause_s=0.1, exit_file=str(exit_file), **common) as lm:
        answers = Answers()
        lm.set_cache_hook(answers)
        began = time.monotonic()
        with FaultInjector(lm, answers, faults, exit_file) as injector:
            scores = lm.loglikelihood_rolling(rolling(texts), disable_tqdm=True)
        seconds = time.monotonic() - began
        lm.get_model_info()
        retries = lm._client.retries
        processes = descendants(os.getpid())

    if injector.error is not None:
        raise injector.error
    differing = sum(score != reference for score, reference in zip(scores, expected, strict=True))
    print(
        f"\n{len(texts)} requests, seed {SEED}, {seconds:.0f} s:\n{injector.report()}\n"
        f"  missing {len(texts) - len(scores)}, delivered twice {answers.duplicates}, differing in any bit {differing}; "
        f"{retries} leases retried after a crash"
    )
    assert len(injector.done) == len(faults), "the run ended before the plan did"
    assert answers.count == len(texts)
    assert answers.duplicates == 0
    assert differing == 0
    assert not alive(processes)


def demo_requests(shots: int) -> list[Instance]:
    """Make few-shot multiple-choice requests, as lm_eval does, from the task of the demo."""
    task_lines = (ROOT / "examples" / "tasks" / "data" / "demo_choice.jsonl").read_text().splitlines()
    documents = [json.loads(line) for line in task_lines]
    examples = [f"{question(document)} {document['choices'][document['label']]}" for document in documents]
    requests: list[Instance] = []
    for number, document in enumerate(documents):
        before = [examples[(number + shot) % len(examples)] for shot in range(1, shots + 1)]
        context = "\n\n".join([*before, question(document)])
        for choice in document["choices"]:
            arguments = (context, f" {choice}")
            requests.append(instance("loglikelihood", arguments, len(requests), task="demo", doc_id=number))
    return requests


def question(document: dict[str, Any]) -> str:
    return f"Question: {document['question']}\nAnswer:"


def test_faults_change_scores_of_shared_prefixes_by_rounding_at_most() -> None:
    requests = [request for shots in (0, 1, 2, 3) for request in demo_requests(shots)]
    prompts = [
        instance("generate_until", (request.args[0], {"until": ["\n"], "max_gen_toks": 24}), i, task="g", doc_id=i)
        for i, request in enumerate(requests[::8])
    ]
    settings = ClientSettings(batch_items=16)
    with BirdieZMQ(model_tag="demo", client_settings=settings) as lm:
        expected = lm.loglikelihood(requests, disable_tqdm=True)
        texts = lm.generate_until(prompts, disable_tqdm=True)

    kinds = [(MODEL_PROCESS, KILL), (AGENT, KILL), (BROKER, KILL)]
    with BirdieZMQ(model_tag="demo", client_settings=settings) as lm:
        answers = Answers()
        lm.set_cache_hook(answers)
        with FaultInjector(lm, answers, plan(kinds, 9, max_answers=32, seed=SEED)) as scoring:
            scores = lm.loglikelihood(requests, disable_tqdm=True)
        with FaultInjector(lm, answers, plan(kinds, 3, max_answers=16, seed=SEED + 1)) as generating:
            generated = lm.generate_until(prompts, disable_tqdm=True)

    for injector in (scoring, generating):
        if injector.error is not None:
            raise injector.error
    differences = [abs(a - b) for (a, _), (b, _) in zip(scores, expected, strict=True)]
    print(
        f"\n{len(requests)} log-likelihoods, seed {SEED}:\n{scoring.report()}\n"
        f"  missing 0, largest difference {max(differences):.1e} nats\n"
        f"{len(prompts)} generated texts:\n{generating.report()}\n"
        f"  differing texts {sum(a != b for a, b in zip(generated, texts, strict=True))}"
    )
    assert len(scoring.done) == 9
    assert len(generating.done) == 3
    assert answers.duplicates == 0
    assert max(differences) < 1e-4
    assert [greedy for _, greedy in scores] == [greedy for _, greedy in expected]
    assert generated == texts
