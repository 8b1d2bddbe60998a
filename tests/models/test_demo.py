"""The demo model in the package: its size, its tokenizer and the facts it has learned."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.decoder import logits
from birdie_zmq.models.loader import load_checkpoint
from birdie_zmq.models.resolution import BUILT_IN, DEMO
from birdie_zmq.models.weight_map import Params

DIRECTORY = BUILT_IN[DEMO]


class Demo(NamedTuple):
    """The three parts of the demo checkpoint."""

    model: Architecture
    params: Params
    tokenizer: Tokenizer


@pytest.fixture(scope="module")
def demo() -> Demo:
    return Demo(*load_checkpoint(DIRECTORY), Tokenizer.from_file(str(DIRECTORY / "tokenizer.json")))


def test_demo_is_small() -> None:
    sizes = [path.stat().st_size for path in Path(DIRECTORY).iterdir()]
    assert 0 < sum(sizes) <= 2_000_000


@pytest.mark.parametrize("text", ["", "Mira  has 12\n\n plums.", "naïve 東京 🦔\u200d\x00\ttab ", "<|user|>Hi<|eos|>"])
def test_demo_tokenizer_round_trips_any_text(demo: Demo, text: str) -> None:
    ids = demo.tokenizer.encode(text).ids
    assert demo.tokenizer.decode(ids, skip_special_tokens=False) == text
    assert all(token < demo.model.vocab_size for token in ids)


def test_demo_special_tokens_are_in_its_vocabulary(demo: Demo) -> None:
    description = json.loads((DIRECTORY / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert demo.tokenizer.token_to_id(description["bos_token"]) == 1
    assert demo.tokenizer.token_to_id(description["eos_token"]) == 2
    assert description["model_max_length"] == demo.model.max_length
    assert demo.tokenizer.get_vocab_size() == demo.model.vocab_size


@pytest.mark.parametrize(
    ("context", "right", "wrong"),
    [
        ("Question: What is 4 plus 5?\nAnswer:", " 9", " 8"),
        ("Question: Where does Una live?\nAnswer:", " Fernley", " Oldbrook"),
        ("<|bos|><|user|>Question: Where does Una live?\nAnswer:<|eos|><|assistant|>", "Fernley", "Oldbrook"),
    ],
)
def test_demo_answers_questions_about_its_facts(demo: Demo, context: str, right: str, wrong: str) -> None:
    def loglikelihood(continuation: str) -> float:
        start = len(demo.tokenizer.encode(context).ids)
        ids = demo.tokenizer.encode(context + continuation).ids
        log_probabilities = jax.nn.log_softmax(logits(demo.model, demo.params, jnp.array([ids])))[0]
        return sum(float(log_probabilities[i - 1, ids[i]]) for i in range(start, len(ids)))

    assert loglikelihood(right) > loglikelihood(wrong)
    assert loglikelihood(right) > np.log(0.5)
