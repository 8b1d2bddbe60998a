"""Tokenizers of a user's own, from the model file to the answer."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness_model import BirdieZMQ
from tests.instances import instance
from tests.integration.conftest import Programs


@pytest.fixture(scope="module")
def model_file(model_files: Path) -> Path:
    return model_files / "tiktoken_model.py"


@pytest.fixture(scope="module")
def module(model_file: Path) -> Any:
    spec = importlib.util.spec_from_file_location("tiktoken_model", model_file)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def score(lm: BirdieZMQ, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    requests = [instance("loglikelihood", pair, index) for index, pair in enumerate(pairs)]
    return lm.loglikelihood(requests, disable_tqdm=True)


def generate(lm: BirdieZMQ, prompt: str, **settings: Any) -> str:
    request = instance("generate_until", (prompt, {"max_gen_toks": 20, **settings}), 0)
    (text,) = lm.generate_until([request], disable_tqdm=True)
    return text


def expected_score(module: Any, context: str, continuation: str) -> float:
    _, params = module.load_model("bigram")
    table = np.asarray(params, np.float64)
    table[:, ord("#")] = -np.inf
    logprobs = table - np.log(np.exp(table).sum(-1, keepdims=True))
    tokens = [*(context.encode() or [module.END]), *continuation.encode()]
    count = len(continuation)
    return float(logprobs[tokens[-count - 1 : -1], tokens[-count:]].sum())


def test_a_model_file_with_a_tiktoken_encoding_is_served(
    model_file: Path, module: Any, programs: Programs, tmp_path: Path
) -> None:
    _, endpoint = programs.broker()
    programs.worker(endpoint, model_file)
    pairs = [("one", " two"), ("", "one<|endoftext|>two"), ("one<|endoftext|>", " b"), ("number", " #1"), ("a", "b")]
    expected = [expected_score(module, *pair) for pair in pairs]
    journal = str(tmp_path / "answers.journal")

    for resumed in (0, len(pairs)):
        with BirdieZMQ(model_tag="bigram", endpoint=endpoint, max_length=64, resume=journal) as lm:
            answers = score(lm, pairs)
            assert lm.eot_token_id == module.END
            assert lm.get_model_info()["model_resumed_answers"] == resumed
            # Masked tokens score minus infinity, also from the journal.
            assert [value for value, _ in answers] == pytest.approx(expected, abs=1e-4)
            assert answers[3] == (-math.inf, False)
            sampled = generate(lm, "ab", until=[], do_sample=True, temperature=9.0)
            assert "#" not in sampled
    with BirdieZMQ(model_tag="recite", endpoint=endpoint, max_length=64) as lm:
        assert generate(lm, "a:", until=[]) == "one"
        assert generate(lm, "a:", until=["ne"]) == "o"
