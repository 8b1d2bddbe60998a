"""Runs to which harm is done all the time, each beside one that nobody touches: nothing is lost, and nothing differs.

``BIRDIE_CHAOS_SEED`` and ``BIRDIE_CHAOS_DEEDS`` choose another plan. What is printed is what docs/explanation/faults.md says.
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
from tests.chaos.faults import AGENT, ALL, BROKER, KILL, MODEL_PROCESS, Answers, Evildoer, plan
from tests.integration.conftest import ROOT, alive, descendants

SEED = int(os.environ.get("BIRDIE_CHAOS_SEED", "20261125"))
DEEDS = int(os.environ.get("BIRDIE_CHAOS_DEEDS", "36"))

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


def rolling(texts: Sequence[str]) -> list[Instance]:
    return [Instance("loglikelihood_rolling", {}, (text,), i, metadata=("chaos", i, 1)) for i, text in enumerate(texts)]


def test_rows_of_one_shape_score_the_same_to_the_last_bit(pages: Path, tmp_path: Path) -> None:
    texts = [f"{i}: the {word} sat on the mat" + " again" * (i % 9) for i in range(1500) for word in ("cat", "dog")]
    exit_file = tmp_path / "exit"
    common: dict[str, Any] = {"model_tag": "steady", "api": str(pages / "faulty.py"), "batch_rows": 8}
    settings = ClientSettings(batch_items=32)

    with BirdieZMQ(client_settings=settings, **common) as lm:
        expected = lm.loglikelihood_rolling(rolling(texts), disable_tqdm=True)

    deeds = plan(ALL, DEEDS, most_answers=24, seed=SEED)
    with BirdieZMQ(client_settings=settings, pause_s=0.1, exit_file=str(exit_file), **common) as lm:
        answers = Answers()
        lm.set_cache_hook(answers)
        began = time.monotonic()
        with Evildoer(lm, answers, deeds, exit_file) as evildoer:
            scores = lm.loglikelihood_rolling(rolling(texts), disable_tqdm=True)
        seconds = time.monotonic() - began
        lm.get_model_info()
        losses = lm._client.retries
        processes = descendants(os.getpid())

    if evildoer.error is not None:
        raise evildoer.error
    differing = sum(score != wanted for score, wanted in zip(scores, expected, strict=True))
    print(
        f"\n{len(texts)} requests, seed {SEED}, {seconds:.0f} s:\n{evildoer.report()}\n"
        f"  lost {len(texts) - len(scores)}, delivered twice {answers.duplicates}, other answers {differing} (to the "
        f"last bit); {losses} leases done again for the loss of their process"
    )
    assert len(evildoer.done) == len(deeds), "the run was over before the plan was"
    assert answers.count == len(texts)
    assert answers.duplicates == 0
    assert differing == 0
    assert not alive(processes)


def demo_requests(shots: int) -> list[Instance]:
    """Multiple choice behind examples, as lm_eval asks it, from the demo's own task."""
    lines = (ROOT / "examples" / "tasks" / "data" / "demo_choice.jsonl").read_text().splitlines()
    documents = [json.loads(line) for line in lines]
    examples = [f"{asked(document)} {document['choices'][document['label']]}" for document in documents]
    requests: list[Instance] = []
    for number, document in enumerate(documents):
        before = [examples[(number + shot) % len(examples)] for shot in range(1, shots + 1)]
        context = "\n\n".join([*before, asked(document)])
        for choice in document["choices"]:
            arguments = (context, f" {choice}")
            requests.append(Instance("loglikelihood", document, arguments, len(requests), metadata=("demo", number, 1)))
    return requests


def asked(document: dict[str, Any]) -> str:
    return f"Question: {document['question']}\nAnswer:"


def test_answers_of_a_model_that_shares_prefixes_differ_by_rounding_at_most() -> None:
    requests = [request for shots in (0, 1, 2, 3) for request in demo_requests(shots)]
    prompts = [
        Instance(
            "generate_until", {}, (request.args[0], {"until": ["\n"], "max_gen_toks": 24}), i, metadata=("g", i, 1)
        )
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
        with Evildoer(lm, answers, plan(kinds, 9, most_answers=32, seed=SEED)) as scoring:
            scores = lm.loglikelihood(requests, disable_tqdm=True)
        with Evildoer(lm, answers, plan(kinds, 3, most_answers=16, seed=SEED + 1)) as generating:
            generated = lm.generate_until(prompts, disable_tqdm=True)

    for evildoer in (scoring, generating):
        if evildoer.error is not None:
            raise evildoer.error
    differences = [abs(a - b) for (a, _), (b, _) in zip(scores, expected, strict=True)]
    print(
        f"\n{len(requests)} log-likelihoods, seed {SEED}:\n{scoring.report()}\n"
        f"  lost 0, largest difference {max(differences):.1e} nats\n"
        f"{len(prompts)} generated texts:\n{generating.report()}\n"
        f"  other texts {sum(a != b for a, b in zip(generated, texts, strict=True))}"
    )
    assert len(scoring.done) == 9
    assert len(generating.done) == 3
    assert answers.duplicates == 0
    assert max(differences) < 1e-4
    assert [greedy for _, greedy in scores] == [greedy for _, greedy in expected]
    assert generated == texts
