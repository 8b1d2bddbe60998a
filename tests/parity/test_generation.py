"""Texts with options of transformers' generate, and with a generation_config.json, equal those of lm_eval's hf backend."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness_model import BirdieZMQ
from tests.parity.checkpoints import make_checkpoint
from tests.parity.conftest import hf, instances, ours
from tests.parity.variants import VARIANTS

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

PROMPTS = ["Question: Where does Una live?\nAnswer:", "Mira has 12 plums, and Una has", "a", "<|bos|>Una"]
PLAIN: dict[str, Any] = {"until": [], "max_gen_toks": 16, "do_sample": False}


@dataclass
class Pair:
    """Both backends on one checkpoint, and the tokens that hf generates without options."""

    theirs: Any
    mine: BirdieZMQ
    tokens: list[int]

    def texts(self, **options: Any) -> tuple[list[str], list[str]]:
        requests = [instances("generate_until", [(p, PLAIN | options) for p in PROMPTS]) for _ in range(2)]
        return self.theirs.generate_until(requests[0], True), self.mine.generate_until(requests[1], True)


@pytest.fixture(scope="module")
def pair(checkpoints: Path) -> Iterator[Pair]:
    directory = make_checkpoint(VARIANTS["llama"], checkpoints / "options")
    theirs = hf(directory)
    plain = theirs.generate_until(instances("generate_until", [(PROMPTS[0], dict(PLAIN))]), True)[0]
    with ours(directory) as mine:
        yield Pair(theirs, mine, theirs.tok_encode(plain, add_special_tokens=False))


OPTIONS: dict[str, Any] = {
    "repetition_penalty": lambda tokens: 1.4,
    "suppress_tokens": lambda tokens: tokens[:3],
    "begin_suppress_tokens": lambda tokens: list(range(0, 1024, 2)),
    "bad_words_ids": lambda tokens: [[token] for token in tokens[1:3]],
    "sequence_bias": lambda tokens: [[[tokens[0]], -4.0], [[7], 3.0]],
    "eos_token_id": lambda tokens: [tokens[3], tokens[5]],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_texts_with_an_option_equal_those_of_hf(name: str, pair: Pair) -> None:
    option = OPTIONS[name](pair.tokens)

    theirs, mine = pair.texts(**{name: option})

    assert mine == theirs
    assert mine != pair.texts()[1]


@pytest.mark.parametrize(("name", "value"), [("min_new_tokens", 10), ("min_length", 20)])
def test_minimum_lengths_equal_those_of_hf(name: str, value: int, pair: Pair) -> None:
    ends = {"eos_token_id": sorted(set(pair.tokens[1:6]))}

    theirs, mine = pair.texts(**ends, **{name: value})

    assert mine == theirs
    assert mine != pair.texts(**ends)[1]


def test_options_together_equal_those_of_hf(pair: Pair) -> None:
    options = {name: make(pair.tokens) for name, make in OPTIONS.items()}

    theirs, mine = pair.texts(**options, min_new_tokens=8)

    assert mine == theirs


@pytest.mark.parametrize(
    "config",
    [
        {"repetition_penalty": 1.4},
        {"repetition_penalty": 1.2, "suppress_tokens": [3, 4, 5, 2000], "min_new_tokens": 9},
        {"do_sample": True, "temperature": 0.5, "top_k": 3, "top_p": 0.5},  # greedy requests ignore it
    ],
)
def test_generation_config_of_a_checkpoint_is_applied_as_by_hf(
    config: dict[str, Any], checkpoints: Path, request: pytest.FixtureRequest
) -> None:
    directory = make_checkpoint(VARIANTS["llama"], checkpoints / request.node.name.replace("[", "-").rstrip("]"))
    path = directory / "generation_config.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(found | config), encoding="utf-8")
    prompts = [(prompt, dict(PLAIN)) for prompt in PROMPTS]
    override = [(prompt, PLAIN | {"repetition_penalty": 1.0}) for prompt in PROMPTS]
    theirs = hf(directory)
    with ours(directory) as mine:
        for arguments in (prompts, override):
            expected = theirs.generate_until(instances("generate_until", arguments), True)
            assert mine.generate_until(instances("generate_until", arguments), True) == expected
